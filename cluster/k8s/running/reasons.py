"""Why a RayJob does not get on: from what Kubernetes says of its pods and events to sentences with a remedy. Pure.

The words looked for are those of the kubelet (waiting reasons), the scheduler (`Unschedulable`), the admission plugins
(quota, Pod Security), KubeRay 1.7 (events `FailedToCreate…`, `utils/constant.go`) and Kueue (events on its Workload).
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
QUEUE = "kueue.x-k8s.io/queue-name"
MOUNTS = ("FailedMount", "FailedAttachVolume")
DISRUPTED = {  # reasons of a pod's condition DisruptionTarget (kubernetes.io, "Disruptions")
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "was taken off its node by a taint (a node that fails, or spot capacity called back)",
    "EvictionByEvictionAPI": "was evicted (a node is drained)",
    "TerminationByKubelet": "was ended by its node (shutdown, spot capacity called back, or a shortage)",
    "DeletionByPodGC": "went with its node",
}


class Reason(NamedTuple):
    """One thing that holds a job up."""

    kind: str  # image, unschedulable, quota, memory, crash, mount, security, evicted, queue, operator, denied
    about: str  # the worker group, pod or other object: many pods of one group are one matter
    text: str  # a sentence, and what to do

    def __str__(self) -> str:
        return self.text


def reasons(job: dict[str, Any], pods: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[Reason]:
    """Everything that holds `job` up, one of each kind about each group or object. `pods` are the job's, `events` those
    about it and what it made (core/v1 Events), both as the API gives them."""
    found = [*_queued(job, events)]
    for pod in pods:
        about = (pod["metadata"].get("labels") or {}).get("ray.io/group") or pod["metadata"]["name"]
        found += [Reason(kind, about, text) for kind, text in _pod(pod)]
    for event in events:
        involved = event.get("involvedObject") or {}
        about = f"{involved.get('kind', 'object')} {involved.get('name', '')}".strip()
        if event.get("type") == "Warning" and (told := _event(event, about)):
            found.append(Reason(told[0], about, told[1]))
    return list({(one.kind, one.about): one for one in reversed(found)}.values())[::-1]


def _pod(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, status, spec = pod["metadata"]["name"], pod.get("status") or {}, pod.get("spec") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield _unscheduled(name, condition)
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            why = DISRUPTED.get(condition.get("reason", ""), f"is being ended: {condition.get('message')}")
            yield ("evicted", f"pod {name} {why}; KubeRay replaces a worker, Ray does its work again")
    if status.get("reason") == "Evicted":
        yield ("evicted", f"pod {name} was evicted: {status.get('message')}; raise its requests, or free the node")
    limits = {one["name"]: one for one in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        yield from _container(name, container, limits.get(container["name"], {}))


def _container(pod: str, container: dict[str, Any], spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    where = f"pod {pod}, container {container['name']}"
    state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or last
    why, message = waiting.get("reason", ""), waiting.get("message") or ""
    if why in IMAGE:
        image = container.get("image") or spec.get("image")
        yield (
            "image",
            f"{where}: the image {image} cannot be pulled ({why}); is its name and tag right, is it pushed where the "
            "nodes reach it, and does its registry need an imagePullSecret?",
        )
    elif ended.get("reason") == "OOMKilled":
        limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
        has = f" of {limit}" if limit else ""
        yield ("memory", f"{where}: out of memory, killed at its limit{has} (OOMKilled); give the pod more memory")
    elif why == "CrashLoopBackOff":
        code = f" with exit status {ended['exitCode']}" if "exitCode" in ended else ""
        yield (
            "crash",
            f"{where} ends{code} each time it is started; `kubectl logs {pod} -c {container['name']} --previous`",
        )
    elif why == "CreateContainerConfigError":
        yield ("mount", f"{where} cannot be made: {message}; create what is missing, and it starts by itself")
    elif why in ("CreateContainerError", "RunContainerError"):
        yield ("crash", f"{where} cannot be started ({why}): {message}")


def _unscheduled(pod: str, condition: dict[str, Any]) -> tuple[str, str]:
    message = condition.get("message") or ""
    if condition.get("reason") == "SchedulingGated":
        return ("queue", f"pod {pod} is held by a scheduling gate (a queue such as Kueue has not admitted it)")
    short = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", message)))
    advice = []
    if short:
        advice.append(f"no node has enough {', '.join(short)} free: wait for it, add nodes, or ask for less")
    if "taint" in message:
        advice.append("a taint is not tolerated: name it as a toleration")
    if "affinity" in message or "selector" in message:
        advice.append("no node fits the pod's node selector")
    if "unbound" in message or "persistentvolumeclaim" in message:
        advice.append("a PersistentVolumeClaim is not there or not bound")
    text = f"pod {pod} has no node yet; " + ("; ".join(advice) or "the cluster's autoscaler may add one")
    return ("unschedulable", f"{text} ({message.rstrip('. ')})")


def _event(event: dict[str, Any], where: str) -> tuple[str, str] | None:
    why, message = event.get("reason") or "", " ".join((event.get("message") or "").split())
    if "exceeded quota" in message:
        quota = message[message.index("exceeded quota") :]
        return ("quota", f"{where}: {quota}; free some of it, or ask for less (`kubectl describe resourcequota`)")
    if "violates PodSecurity" in message:
        broken = message[message.index("violates PodSecurity") :]
        return ("security", f"{where}: its pod {broken}, which the namespace forbids; see `regrow k8s check`")
    if why in MOUNTS:
        return ("mount", f"{where}: {message}; create the Secret, ConfigMap or volume that is named there")
    if why == "Evicted":
        return ("evicted", f"{where} was evicted: {message}; raise its requests, or free the node")
    if why == "Preempted":
        return ("evicted", f"{where} was preempted: {message}; KubeRay replaces a worker, Ray does its work again")
    if why == "FailedCreate" or why.startswith("FailedToCreate"):
        return ("denied", f"{where}: a pod or object of it cannot be created: {message}")
    if why.startswith("InvalidRay"):
        return ("operator", f"KubeRay refuses {where}: {message}")
    return None


def _queued(job: dict[str, Any], events: list[dict[str, Any]]) -> Iterator[Reason]:
    if not (job.get("spec") or {}).get("suspend"):
        return
    name, queue = job["metadata"]["name"], (job["metadata"].get("labels") or {}).get(QUEUE)
    said = [one for one in events if (one.get("involvedObject") or {}).get("kind") == "Workload"]
    latest = max(said, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""), default={})
    if queue is None:
        patch = """--type merge -p '{"spec":{"suspend":false}}'"""
        yield Reason("queue", name, f"suspended (spec.suspend); `kubectl patch rayjob {name} {patch}` lets it run")
    else:
        why = f": {latest['message']}" if latest.get("message") else ""
        yield Reason("queue", name, f"waits in the queue {queue} until Kueue admits it{why} (`kubectl get workloads`)")
