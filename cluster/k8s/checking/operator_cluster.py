"""What KubeRay v1.7.0 refuses in a Ray cluster though its CRD takes it: controllers/ray/utils/validation.go
(`ValidateRayClusterMetadata`, `ValidateRayClusterSpec`, `ValidateRayClusterUpgradeOptions`), pkg/webhooks/v1 and
controllers/ray/common/{pod,service}.go. Feature gates are the operator's settings, not the manifest's: they are taken
as on."""

import json
import re
import shlex
from collections.abc import Iterator

from cluster.k8s.checking import operator_options
from cluster.k8s.checking.finding import Problem, Thing
from cluster.k8s.checking.names import amount, is_dns1035, is_label_value, is_qualified, version
from cluster.k8s.checking.pods import Cluster, cluster, env

RULES = {
    "ray-name": "the name leaves room for what KubeRay appends: ≤ 53 characters, 47 or 36",
    "group-name": "worker groups have names, each its own",
    "group-container": "every group has a container, and Ray's is the first",
    "group-resources": "what a group offers stands in rayStartParams or in `resources`, not in both",
    "group-labels": "a group's labels stand in `labels`, with the syntax of Kubernetes' labels",
    "group-replicas": "0 ≤ minReplicas ≤ maxReplicas",
    "group-idle-timeout": "idleTimeoutSeconds ≥ 0; a group has its own with autoscaler v2 alone",
    "group-priority": "a group's priority needs autoscaler v2 and Ray 2.56",
    "group-suspend": "a group is not suspended while the autoscaler is on",
    "ray-start-params": "rayStartParams are options of `ray start`; `resources` is JSON once the shell unquotes it",
    "autoscaler": "autoscaler v2 is asked for by autoscalerOptions.version, with restartPolicy Never",
    "autoscaler-token": "the head of an autoscaling cluster can speak to the API server",
    "upgrade-strategy": "upgradeStrategy is Recreate or None, and that of a RayCluster of its own",
    "head-service": "a custom head Service is unnamed in a RayService and does not repeat the head's ports",
}
LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
V2 = "RAY_enable_autoscaler_v2"
ON = ("1", "true")
WHOLE = ("num-cpus", "num-gpus", "memory", "object-store-memory")  # a number, or a variable that the shell fills in


def problems(thing: Thing) -> Iterator[Problem]:
    """The problems of `thing`, one of KubeRay's kinds with defaults put in, that come from its cluster."""
    longest = LONGEST[thing.kind]
    name = thing.metadata.get("name") or f"{thing.name}xxxxx"  # the API server appends five characters to generateName
    if len(name) > longest:
        message = f"has {len(name)} characters; KubeRay takes {longest} for a {thing.kind}"
        yield Problem("ray-name", "metadata.name", message)
    elif not is_dns1035(name):
        yield Problem("ray-name", "metadata.name", "write a lower-case letter, then letters, digits and `-`")
    found = cluster(thing)
    if found is None:
        return
    if not all(group.get("template", {}).get("spec", {}).get("containers") for _, _, group in found.groups()):
        for _, path, group in found.groups():
            if not group.get("template", {}).get("spec", {}).get("containers"):
                yield Problem("group-container", f"{path}.template.spec.containers", "write Ray's container, first")
        return
    yield from _groups(found)
    yield from _start(found)
    yield from _autoscaler(found)
    yield from _head_service(found)
    yield from _upgrade(found)
    yield from operator_options.problems(found)


def _groups(found: Cluster) -> Iterator[Problem]:
    names: list[str] = []
    for number, worker in enumerate(found.workers):
        path = f"{found.path}.workerGroupSpecs[{number}]"
        name = worker.get("groupName", "")
        if not name or name in names:
            said = "is that of another group; give each its own" if name else "is empty; name the group"
            yield Problem("group-name", f"{path}.groupName", said)
        names.append(name)
        least, most = worker.get("minReplicas", 0), worker.get("maxReplicas", 0)
        if least < 0 or most < 0:
            yield Problem("group-replicas", path, f"minReplicas {least}, maxReplicas {most}: write 0 or more")
        elif least > most:
            yield Problem("group-replicas", path, f"minReplicas {least} is more than maxReplicas {most}")
        yield from _v2_only(found, worker, path)
        if worker.get("suspend") and found.autoscales:
            yield Problem("group-suspend", f"{path}.suspend", "not with enableInTreeAutoscaling; set maxReplicas to 0")
    for _, path, group in found.groups():
        params = group.get("rayStartParams") or {}
        if group.get("resources") and any(params.get(k) for k in ("num-cpus", "num-gpus", "memory", "resources")):
            yield Problem("group-resources", f"{path}.resources", "rayStartParams says it too; write one of the two")
        if "labels" in params:
            yield Problem("group-labels", f"{path}.rayStartParams.labels", "write them in the group's `labels`")
        for key, value in (group.get("labels") or {}).items():
            if not is_qualified(key) or not is_label_value(value):
                yield Problem("group-labels", f"{path}.labels.{key}", "key or value has not the form of a label")


def _v2_only(found: Cluster, worker: dict, path: str) -> Iterator[Problem]:
    """What a worker group may have with autoscaler v2 alone."""
    asked = env(found.head["template"]["spec"]["containers"][0]).get(V2, {}).get("value")
    second = found.autoscales_v2 or asked in ON
    idle = worker.get("idleTimeoutSeconds")
    if idle is not None and idle < 0:
        yield Problem("group-idle-timeout", f"{path}.idleTimeoutSeconds", "write 0 or more seconds")
    elif idle is not None and not second:
        message = "needs autoscaler v2: set autoscalerOptions.version to v2, or autoscalerOptions.idleTimeoutSeconds"
        yield Problem("group-idle-timeout", f"{path}.idleTimeoutSeconds", message)
    if worker.get("priority"):
        ray = version(found.spec.get("rayVersion") or "")
        if not ray or ray < (2, 56):
            yield Problem(
                "group-priority", f"{path}.priority", "needs rayVersion 2.56.0 or later, stated in rayVersion"
            )
        elif not second:
            yield Problem("group-priority", f"{path}.priority", "needs autoscalerOptions.version: v2")


def _start(found: Cluster) -> Iterator[Problem]:
    for _, path, group in found.groups():
        for name, value in (group.get("rayStartParams") or {}).items():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                message = "is no option of `ray start`: write it without `--`, with `-` between the words"
                yield Problem("ray-start-params", f"{path}.rayStartParams.{name}", message)
            elif name == "resources" and not _is_resources(value):
                message = """is no JSON mapping to numbers, once a shell unquotes it; write '"{\\"name\\": 1}"'"""
                yield Problem("ray-start-params", f"{path}.rayStartParams.resources", message)
            elif name in WHOLE and not re.fullmatch(r"\d+|\$.*", value):
                yield Problem("ray-start-params", f"{path}.rayStartParams.{name}", "write a whole number, in quotes")


def _is_resources(text: str) -> bool:
    try:
        found = json.loads("".join(shlex.split(text)))
    except ValueError:
        return False
    return isinstance(found, dict) and all(amount(value) is not None for value in found.values())


def _autoscaler(found: Cluster) -> Iterator[Problem]:
    head = found.head["template"]["spec"]
    variable = env(head["containers"][0]).get(V2)
    path = f"{found.path}.headGroupSpec.template.spec"
    if variable and not found.autoscales and variable.get("value") in ON:
        yield Problem("autoscaler", f"{path}.containers[0].env", f"{V2} needs enableInTreeAutoscaling: true")
    if variable and found.autoscales and "version" in found.autoscaler:
        message = f"{V2} and autoscalerOptions.version are both set; keep the latter"
        yield Problem("autoscaler", f"{path}.containers[0].env", message)
    if found.autoscales and found.autoscales_v2:
        for _, place, group in found.groups():
            if group["template"]["spec"].get("restartPolicy") not in (None, "", "Never"):
                message = "must be Never, or left out, with autoscaler v2"
                yield Problem("autoscaler", f"{place}.template.spec.restartPolicy", message)
    if found.autoscaler.get("idleTimeoutSeconds", 0) < 0:
        yield Problem("group-idle-timeout", f"{found.path}.autoscalerOptions.idleTimeoutSeconds", "write 0 or more")
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in env(found.autoscaler):
        yield Problem(
            "autoscaler", f"{found.path}.autoscalerOptions.env", "KubeRay sets KUBERAY_GEN_AUTOSCALER_START_CMD"
        )
    if found.autoscales and head.get("automountServiceAccountToken") is False:
        projected = (s for v in head.get("volumes") or [] for s in (v.get("projected") or {}).get("sources") or [])
        if not any("serviceAccountToken" in source for source in projected):
            message = "the autoscaler in the head's pod needs it: leave it out of the head's template"
            yield Problem("autoscaler-token", f"{path}.automountServiceAccountToken", message)


def _head_service(found: Cluster) -> Iterator[Problem]:
    service = found.head.get("headService")
    if not service:
        return
    path = f"{found.path}.headGroupSpec.headService"
    if found.thing.kind == "RayService" and (service.get("metadata") or {}).get("name"):
        yield Problem("head-service", f"{path}.metadata.name", "KubeRay names it in a RayService: leave it out")
    first = found.head["template"]["spec"]["containers"][0]
    ports = [port.get("name") or f"{port['containerPort']}-port" for port in first.get("ports") or []]
    ports = ports or ["client", "gcs-server", "dashboard", "serve"]
    for number, port in enumerate((service.get("spec") or {}).get("ports") or []):
        if port.get("name") in {*ports, "metrics"}:
            message = f"KubeRay appends the head container's port {port['name']!r} itself; leave it out here"
            yield Problem("head-service", f"{path}.spec.ports[{number}]", message)


def _upgrade(found: Cluster) -> Iterator[Problem]:
    kind = (found.spec.get("upgradeStrategy") or {}).get("type")
    owner = (found.thing.metadata.get("labels") or {}).get("ray.io/originated-from-crd")
    path = f"{found.path}.upgradeStrategy.type"
    if kind and kind not in ("Recreate", "None"):
        yield Problem("upgrade-strategy", path, "write Recreate or None")
    elif kind and (found.thing.kind != "RayCluster" or owner in ("RayJob", "RayService")):
        yield Problem("upgrade-strategy", path, "is for a RayCluster of its own; leave it out here")
