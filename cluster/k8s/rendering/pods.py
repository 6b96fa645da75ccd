"""Pods of a Ray cluster: what head and workers have in common.

All meet the `restricted` Pod Security Standard (kubernetes.io, "Pod Security Standards"), also with what KubeRay puts
into them: its init container copies the security context of the Ray container (common/pod.go), the autoscaler has one
of its own (autoscalerOptions).
"""

from typing import Any

from cluster.gpus import PROMISED
from cluster.k8s.rendering.workload import GPU, RECIPE, SCRATCH, Size, Workload
from cluster.session import SERVE_ENVIRONMENT

Content = dict[str, Any]
USER = 1000  # of the image, and of what it writes
HOME = "/home/regrow"
KEYS = "/etc/regrow-keys"  # where a RayService's pods see the Secret regrow-api-keys
S3 = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
HUB = ("HF_TOKEN",)
GIB = 1 << 30
SHARED, OBJECTS = 0.4, 0.3  # of a pod's memory: /dev/shm at most, and Ray's object store in it
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
ENVIRONMENT = {
    "HOME": HOME,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a dead proxy is started again after three of them
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
}


def container(w: Workload, name: str, size: Size, gpus: int, scratch: bool = True) -> Content:
    """The Ray container of a pod of `size`, in a cluster that has or will add `gpus` in all."""
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "home", "mountPath": HOME}]
    mounts += [{"name": "scratch", "mountPath": SCRATCH}] if scratch else []
    mounts += [{"name": volume.name, "mountPath": volume.path} for volume in w.volumes]
    return {
        "name": name,
        "image": w.image,
        "imagePullPolicy": "IfNotPresent",
        "env": environment(w, gpus, scratch),
        "resources": resources(size),
        "securityContext": SECURITY,
        "volumeMounts": mounts,
    }


def environment(w: Workload, gpus: int, scratch: bool) -> list[Content]:
    """Variables of all processes of a pod. Keys come from Secrets that need not be there: a workload identity (the
    ServiceAccount's annotations) is the better way."""
    plain = ENVIRONMENT | SERVE_ENVIRONMENT
    plain |= {PROMISED: str(gpus)} if gpus else {}
    plain |= {"HF_HOME": f"{SCRATCH}/hub"} if scratch else {}
    plain |= dict(w.env)
    secret = [("regrow-s3", name) for name in S3] + [("regrow-hub", name) for name in HUB]
    kept = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": where, "key": name, "optional": True}}}
        for where, name in secret
        if name not in plain
    ]
    return [{"name": name, "value": value} for name, value in plain.items()] + kept


def resources(size: Size) -> Content:
    """Requests and limits are the same: a pod that gets more than it asked for is the first to go when a node is
    full."""
    asked: Content = {"cpu": str(size.cpus), "memory": f"{size.memory}Gi"}
    if size.gpus:
        asked[GPU] = str(size.gpus)
    return {"requests": dict(asked), "limits": dict(asked)}


def template(w: Workload, ray: Content, size: Size, scratch: bool = True) -> Content:
    """The pod around the container `ray`. Its ServiceAccount is there for a workload identity: nothing in it gets a
    token for Kubernetes' API."""
    volumes: list[Content] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared(size)}Gi"}},
        {"name": "home", "emptyDir": {}},
    ]
    volumes += [{"name": "scratch", "persistentVolumeClaim": {"claimName": w.scratch}}] if scratch else []
    volumes += [{"name": v.name, "persistentVolumeClaim": {"claimName": v.claim}} for v in w.volumes]
    return {
        "metadata": {"labels": w.labels},
        "spec": {
            "serviceAccountName": w.account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": POD_SECURITY,
            "containers": [ray],
            "volumes": volumes,
        },
    }


def mounted(pod: Content, name: str, path: str, source: Content) -> None:
    """Add a volume that the Ray container of `pod` may read at `path`."""
    pod["spec"]["containers"][0]["volumeMounts"].append({"name": name, "mountPath": path, "readOnly": True})
    pod["spec"]["volumes"].append({"name": name, **source})


def with_recipe(w: Workload, pod: Content) -> None:
    """Add the run's recipe to `pod`."""
    mounted(pod, "recipe", RECIPE.rpartition("/")[0], {"configMap": {"name": f"{w.own}-recipe"}})


def with_keys(pod: Content) -> None:
    """Add the API keys of an endpoint to `pod`."""
    mounted(pod, "api-keys", KEYS, {"secret": {"secretName": "regrow-api-keys", "defaultMode": 0o440}})


def start_params(size: Size, cpus: int | None = None) -> dict[str, str]:
    """Arguments of `ray start` for a node of `size`, with so many logical CPUs where they are not the pod's own."""
    return {
        "num-cpus": str(size.cpus if cpus is None else cpus),
        "object-store-memory": str(int(OBJECTS * size.memory * GIB)),
    }


def shared(size: Size) -> int:
    """GiB of /dev/shm, which count as the pod's memory."""
    return max(1, int(SHARED * size.memory))
