"""What KubeRay v1.7.0 refuses in a cluster's options: fault tolerance, history server, authentication, network policy,
TLS (validation.go: `ValidateRayClusterSpec`, `validateGcsFaultToleranceBackend`, `validateCollectorOptions`,
`validateNetworkPolicy`, `validateTLSOptions`)."""

from collections.abc import Iterator
from typing import Any

from cluster.k8s.checking.finding import Content, Problem
from cluster.k8s.checking.names import is_label, version
from cluster.k8s.checking.pods import Cluster, env

RULES = {
    "gcs-ft": "the GCS's fault tolerance and its access to Redis stand in gcsFaultToleranceOptions alone",
    "gcs-ft-backend": "the GCS's backend has its own options alone, and KubeRay's volume for it is free",
    "history-server": "the history server's collector has an image, a storage backend and that backend's variables",
    "ray-auth": "token authentication has a rayVersion of 2.52 or later, and Kubernetes' tokens 2.55 and a RayCluster",
    "ray-network-policy": "networkPolicy's rules are for directions that its mode restricts, and for groups that exist",
    "ray-tls": "with tlsOptions on, variables and mounts of TLS are KubeRay's",
}
TLS_VARIABLES = ("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
COLLECTOR_VARIABLES = set(
    "POD_IP FQ_RAY_IP RAY_CLUSTER_NAME RAY_CLUSTER_NAMESPACE RAY_ROLE OWNER_KIND OWNER_NAME EVENTS_PORT".split()
)
COLLECTOR_NEEDS = {
    "GCS": ["GCS_BUCKET"],
    "S3": ["S3_REGION"],
    "ALIYUNOSS": ["OSS_BUCKET", "OSS_ENDPOINT", "OSS_REGION"],
}


def problems(found: Cluster) -> Iterator[Problem]:
    yield from _fault_tolerance(found)
    yield from _history(found)
    yield from _auth(found)
    yield from _network(found)
    yield from _tls(found)


def _fault_tolerance(found: Cluster) -> Iterator[Problem]:
    options = found.spec.get("gcsFaultToleranceOptions")
    head = found.head["template"]["spec"]["containers"][0]
    variables, params = env(head), found.head.get("rayStartParams") or {}
    path = f"{found.path}.headGroupSpec"
    here = f"{path}.template.spec.containers[0].env"
    annotated = found.annotations.get("ray.io/ft-enabled", "")
    instead = "write gcsFaultToleranceOptions.{} instead"
    if options is not None:
        if annotated:
            message = "gcsFaultToleranceOptions says it: leave the annotation out"
            yield Problem("gcs-ft", "metadata.annotations.ray.io/ft-enabled", message)
        if params.get("redis-password"):
            yield Problem("gcs-ft", f"{path}.rayStartParams.redis-password", instead.format("redisPassword"))
        for name, field in (("REDIS_PASSWORD", "redisPassword"), ("RAY_REDIS_ADDRESS", "redisAddress")):
            if name in variables:
                yield Problem("gcs-ft", here, f"{name}: {instead.format(field)}")
        if found.annotations.get("ray.io/external-storage-namespace"):
            message = instead.format("externalStorageNamespace")
            yield Problem("gcs-ft", "metadata.annotations.ray.io/external-storage-namespace", message)
        yield from _backend(found, options, head)
    elif annotated.lower() != "true" and "RAY_REDIS_ADDRESS" in variables:
        yield Problem("gcs-ft", here, f"RAY_REDIS_ADDRESS: {instead.format('redisAddress')}")
    if params.get("redis-username") or "REDIS_USERNAME" in variables:
        yield Problem("gcs-ft", here, f"the name of Redis' user: {instead.format('redisUsername')}")


def _backend(found: Cluster, options: Content, head: Content) -> Iterator[Problem]:
    path = f"{found.path}.gcsFaultToleranceOptions"
    storage = options.get("storage")
    if options.get("backend", "redis") != "rocksdb":
        if storage is not None:
            yield Problem("gcs-ft-backend", f"{path}.storage", "is for backend: rocksdb alone")
        return
    for field in ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"):
        if options.get(field):
            yield Problem("gcs-ft-backend", f"{path}.{field}", "is for backend: redis; leave it out with rocksdb")
    if storage and storage.get("claimName") and {"size", "storageClassName", "accessModes"} & storage.keys():
        message = "with claimName, leave size, storageClassName and accessModes out"
        yield Problem("gcs-ft-backend", f"{path}.storage", message)
    place = f"{found.path}.headGroupSpec.template.spec"
    if {"RAY_gcs_storage", "RAY_gcs_storage_path"} & env(head).keys():
        yield Problem("gcs-ft-backend", f"{place}.containers[0].env", "KubeRay sets RAY_gcs_storage and …_path itself")
    mounts = head.get("volumeMounts") or []
    volumes = found.head["template"]["spec"].get("volumes") or []
    if any(m.get("mountPath") == "/data/gcs" for m in mounts) or any(
        one.get("name") == "gcs-storage" for one in (*mounts, *volumes)
    ):
        yield Problem("gcs-ft-backend", place, "the volume gcs-storage and the path /data/gcs are KubeRay's own here")


def _history(found: Cluster) -> Iterator[Problem]:
    options = found.spec.get("historyServerOptions")
    if options is None:
        return
    path = f"{found.path}.historyServerOptions.collectorOptions"
    collector = options.get("collectorOptions")
    if not collector or not collector.get("image"):
        yield Problem("history-server", path, "write collectorOptions with an image")
        return
    variables = env(collector)
    for name in sorted(COLLECTOR_VARIABLES & variables.keys()):
        yield Problem("history-server", f"{path}.env", f"{name} is set by KubeRay; leave it out")
    backend = variables.get("STORAGE_BACKEND", {}).get("value", "")
    missing = [name for name in COLLECTOR_NEEDS.get(backend.upper(), []) if not _given(variables.get(name))]
    if not backend:
        yield Problem("history-server", f"{path}.env", "write STORAGE_BACKEND as a plain value")
    elif backend.upper() == "AZUREBLOB":
        missing = _azure(variables)
    if missing:
        yield Problem("history-server", f"{path}.env", f"STORAGE_BACKEND {backend} needs {', '.join(missing)} too")
    for group, place, spec in found.groups():
        if any(one["name"] == "ray-history-collector" for one in spec["template"]["spec"]["containers"]):
            message = f"{group}: the container ray-history-collector is added by KubeRay; give yours another name"
            yield Problem("history-server", f"{place}.template.spec.containers", message)


def _azure(variables: dict[str, Content]) -> list[str]:
    mode = variables.get("AZURE_STORAGE_AUTH_MODE", {}).get("value", "").strip().lower()
    connection, account = "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_URL"
    needed = {"connection_string": [connection], "workload_identity": [account], "default": [account]}.get(mode)
    if needed is None:
        given = _given(variables.get(connection)) or _given(variables.get(account))
        return [] if given else [f"{connection} or {account}"]
    return [name for name in needed if not _given(variables.get(name))]


def _given(variable: Content | None) -> bool:
    return bool(variable and (variable.get("value") or variable.get("valueFrom")))


def _auth(found: Cluster) -> Iterator[Problem]:
    options = found.spec.get("authOptions") or {}
    path = f"{found.path}.authOptions"
    by_kubernetes = options.get("enableK8sTokenAuth")
    if by_kubernetes and found.thing.kind != "RayCluster":
        yield Problem("ray-auth", f"{path}.enableK8sTokenAuth", "is for a RayCluster alone; leave it out")
        return
    if options.get("mode") != "token":
        if by_kubernetes:
            yield Problem("ray-auth", f"{path}.mode", "write token, as enableK8sTokenAuth needs it")
        return
    given = found.spec.get("rayVersion") or ""
    ray = version(given)
    if not ray or ray < ((2, 55) if by_kubernetes else (2, 52)):
        message = "enableK8sTokenAuth needs 2.55.0" if by_kubernetes else "authOptions.mode: token needs 2.52.0"
        yield Problem("ray-auth", f"{found.path}.rayVersion", f"{message} or later, stated here in numbers")
    if by_kubernetes and options.get("secretName"):
        yield Problem("ray-auth", f"{path}.secretName", "has no use with enableK8sTokenAuth: leave it out")


def _network(found: Cluster) -> Iterator[Problem]:
    policy = found.spec.get("networkPolicy")
    if policy is None:
        return
    path = f"{found.path}.networkPolicy"
    unused = {"DenyAllEgress": "ingressRules", "DenyAllIngress": "egressRules"}.get(policy.get("mode", "DenyAll"))
    names = [worker.get("groupName", "") for worker in found.workers]
    parts: list[tuple[str, Any]] = [(f"{path}.{part}", policy.get(part) or {}) for part in ("head", "worker")]
    for number, name in enumerate(names):
        if not is_label(name):
            message = "is part of a NetworkPolicy's name: write lower-case letters, digits and `-`"
            yield Problem("ray-network-policy", f"{found.path}.workerGroupSpecs[{number}].groupName", message)
    for number, group in enumerate(policy.get("workerGroups") or []):
        parts.append((f"{path}.workerGroups[{number}]", group))
        if group.get("groupName") not in names:
            message = f"names no worker group; there are: {', '.join(names)}"
            yield Problem("ray-network-policy", f"{path}.workerGroups[{number}].groupName", message)
    for place, rules in parts:
        if unused and rules.get(unused):
            yield Problem(
                "ray-network-policy", f"{place}.{unused}", f"mode {policy.get('mode')} does not restrict that"
            )


def _tls(found: Cluster) -> Iterator[Problem]:
    if not (found.spec.get("tlsOptions") or {}).get("enabled"):
        return
    places = [
        (f"{path}.template.spec.containers[0]", g["template"]["spec"]["containers"][0]) for _, path, g in found.groups()
    ]
    for path, container in [*places, (f"{found.path}.autoscalerOptions", found.autoscaler)]:
        for name in TLS_VARIABLES:
            if name in env(container):
                yield Problem("ray-tls", f"{path}.env", f"{name} is set by KubeRay with tlsOptions; leave it out")
        for number, mount in enumerate(container.get("volumeMounts") or []):
            if mount["name"] == "ray-tls" or mount["mountPath"] == "/etc/ray/tls":
                message = "the volume ray-tls and the path /etc/ray/tls are KubeRay's with tlsOptions"
                yield Problem("ray-tls", f"{path}.volumeMounts[{number}]", message)
