"""What Kubernetes says of pods and events, as sentences; and a RayJob's status in words."""

from typing import Any

import pytest

from cluster.k8s.running import words
from cluster.k8s.running.reasons import reasons

Content = dict[str, Any]


def pod(state: Content | None = None, last: Content | None = None, group: str = "gpu", **status: Any) -> Content:
    container = {"name": "ray-worker", "image": "regrow:1", "state": state or {"running": {}}, "lastState": last or {}}
    limits = {"limits": {"memory": "64Gi"}}
    return {
        "metadata": {"name": "p-1", "labels": {"ray.io/group": group}},
        "spec": {"containers": [{"name": "ray-worker", "image": "regrow:1", "resources": limits}]},
        "status": {"containerStatuses": [container]} | status,
    }


def waiting(reason: str, message: str = "") -> Content:
    return {"waiting": {"reason": reason, "message": message}}


def unscheduled(message: str, reason: str = "Unschedulable") -> Content:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}])


def event(reason: str, message: str, kind: str = "Warning") -> Content:
    return {"type": kind, "reason": reason, "message": message, "involvedObject": {"kind": "Pod", "name": "p-1"}}


def job(suspend: bool = False, queue: str | None = None) -> Content:
    labels = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    return {"metadata": {"name": "gsm", "labels": labels}, "spec": {"suspend": suspend}}


@pytest.mark.parametrize(
    ("one", "kind", "told"),
    [
        (pod(waiting("ErrImagePull")), "image", "the image regrow:1 cannot be pulled (ErrImagePull)"),
        (pod(waiting("InvalidImageName")), "image", "is its name and tag right"),
        (pod({"terminated": {"reason": "OOMKilled", "exitCode": 137}}), "memory", "killed at its limit of 64Gi"),
        (
            pod(waiting("CrashLoopBackOff"), {"terminated": {"reason": "Error", "exitCode": 2}}),
            "crash",
            "ends with exit status 2 each time it is started; `kubectl logs p-1 -c ray-worker --previous`",
        ),
        (pod(waiting("CrashLoopBackOff"), {"terminated": {"reason": "OOMKilled"}}), "memory", "give the pod more"),
        (
            pod(waiting("CreateContainerConfigError", 'configmap "c" not found')),
            "mount",
            'configmap "c" not found; create what is missing',
        ),
        (pod(waiting("RunContainerError", "exec: no such file")), "crash", "RunContainerError): exec: no such file"),
        (pod(reason="Evicted", message="The node was low on resource: memory."), "evicted", "low on resource: memory"),
        (
            pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]),
            "evicted",
            "was preempted by a pod of higher priority",
        ),
        (
            unscheduled("0/2 nodes: 2 Insufficient cpu, 1 Insufficient memory."),
            "unschedulable",
            "enough cpu, memory free",
        ),
        (unscheduled("1 node(s) didn't match Pod's node affinity/selector"), "unschedulable", "node selector"),
        (unscheduled("pod has unbound immediate PersistentVolumeClaims"), "unschedulable", "not bound"),
        (unscheduled("", "SchedulingGated"), "queue", "held by a scheduling gate"),
        (event("FailedMount", 'secret "regrow-api-keys" not found'), "mount", "create the Secret"),
        (event("Preempted", "by ml/other on node n"), "evicted", "was preempted"),
        (event("FailedCreate", "admission webhook denied"), "denied", "cannot be created: admission webhook denied"),
        (event("InvalidRayJobSpec", "the spec"), "operator", "KubeRay refuses Pod p-1: the spec"),
    ],
)
def test_each_trouble_has_its_sentence(one: Content, kind: str, told: str) -> None:
    found = reasons(job(), [one] if "status" in one else [], [] if "status" in one else [one])
    assert [reason.kind for reason in found] == [kind]
    assert told in found[0].text


def test_what_is_well_is_no_reason() -> None:
    starting = pod(waiting("ContainerCreating"))
    ended = pod({"terminated": {"reason": "Completed", "exitCode": 0}})
    fine = {"type": "PodScheduled", "status": "True"}
    news = [event("Pulled", "the image is there", "Normal"), event("Unhealthy", "Readiness probe failed")]
    assert reasons(job(), [starting, ended, pod(conditions=[fine])], news) == []


def test_many_pods_of_a_group_are_one_matter() -> None:
    pods = [unscheduled("2 Insufficient nvidia.com/gpu") for _ in range(16)]
    other = pod(waiting("ErrImagePull"), group="cpu")
    assert [(one.kind, one.about) for one in reasons(job(), [*pods, other], [])] == [
        ("unschedulable", "gpu"),
        ("image", "cpu"),
    ]


def test_suspended_by_somebody_or_by_a_queue() -> None:
    assert "kubectl patch rayjob gsm" in reasons(job(suspend=True), [], [])[0].text
    assert "waits in the queue team" in reasons(job(suspend=True, queue="team"), [], [])[0].text


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({}, "New: waits for KubeRay's operator"),
        ({"failed": 1}, "New: attempt 2 is next"),
        ({"jobDeploymentStatus": "Initializing", "rayClusterName": "c"}, "Initializing: Ray cluster c starts"),
        ({"jobDeploymentStatus": "Suspended"}, "Suspended: no pods are held"),
        ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}, "Failed: SubmissionFailed"),
    ],
)
def test_a_status_in_words(status: Content, told: str) -> None:
    assert words.phrase(job() | {"status": status}) == told
    assert (words.end(job() | {"status": status}) is None) == ("Failed" not in told)


def test_how_a_job_ended() -> None:
    times = {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T01:30:05Z"}
    done = words.end(job() | {"status": {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"} | times})
    assert done == (0, "RayJob gsm succeeded after 1:30:05")
    stopped = words.end(job() | {"status": {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}})
    assert stopped is not None and stopped.status == 1 and "somebody stopped the Ray job" in stopped.text
    refused = words.end(job() | {"status": {"jobDeploymentStatus": "ValidationFailed", "message": "too long"}})
    assert refused == (1, "RayJob gsm: KubeRay refuses the RayJob: too long")
