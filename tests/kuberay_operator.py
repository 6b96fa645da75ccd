"""What KubeRay 1.7's operator (`rayjob_controller.go`), the scheduler and the kubelet do with a RayJob, played step by
step on tests/kube_api.py: the same status fields in the same order, pods with the same labels and containers."""

import time
from typing import Any

from tests.kube_api import Kube, now

NOT_RETRIED = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")
Content = dict[str, Any]


def starts(kube: Kube, name: str) -> str:
    """New → Initializing; the name of the RayCluster."""
    status = kube.get("rayjobs", name).get("status", {})
    cluster = f"{name}-c{status.get('failed', 0) + 1}"
    kube.status(
        "rayjobs", name, jobDeploymentStatus="Initializing", jobId=f"{cluster}-job", rayClusterName=cluster,
        startTime=status.get("startTime", now()), jobStatus="",
    )  # fmt: skip
    return cluster


def head(kube: Kube, name: str, cluster: str, printing: str = "job-log", **status: Any) -> str:
    """The head's pod, with the container that prints the driver's log; its name."""
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": "head", "ray.io/group": "headgroup"}
    return pod(kube, f"{cluster}-head", labels, {"ray-head": None, printing: None}, kube.get("rayjobs", name), status)


def worker(kube: Kube, name: str, cluster: str, state: Content | None = None, number: int = 1, **status: Any) -> str:
    """A worker's pod; its name."""
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": "worker", "ray.io/group": "gpu"}
    owner = kube.get("rayjobs", name)
    return pod(kube, f"{cluster}-gpu-worker-{number}", labels, {"ray-worker": state}, owner, status)


def submitter(kube: Kube, name: str, number: int = 1) -> str:
    """A pod of the submitter's Kubernetes Job (K8sJobMode); its name."""
    job = kube.get("rayjobs", name)
    return pod(
        kube,
        f"{name}-submit-{number}",
        {"job-name": name},
        {"ray-job-submitter": None},
        job,
        {},
        job["status"]["jobId"],
    )


def pod(
    kube: Kube, name: str, labels: Content, containers: Content, owner: Content, status: Content, ray_job: str = ""
) -> str:
    env = [{"name": "RAY_JOB_SUBMISSION_ID", "value": ray_job}] if ray_job else []
    limits = {"limits": {"memory": "16Gi"}}
    image = "regrow:none"
    kube.add(
        "pods",
        {
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [{"uid": owner["metadata"]["uid"]}],
            },
            "spec": {"containers": [{"name": n, "image": image, "env": env, "resources": limits} for n in containers]},
            "status": {
                "containerStatuses": [
                    {
                        "name": n,
                        "image": image,
                        "restartCount": 0,
                        **(s or {"state": {"running": {"startedAt": now()}}}),
                    }
                    for n, s in containers.items()
                ]
            }
            | status,
        },
    )
    return name


def ends(kube: Kube, name: str, code: int = 0) -> None:
    """All containers of a pod terminate."""
    statuses = kube.get("pods", name)["status"]["containerStatuses"]
    ended = [one | {"state": {"terminated": {"exitCode": code, "finishedAt": now()}}} for one in statuses]
    kube.status("pods", name, containerStatuses=ended)


def runs(kube: Kube, name: str) -> None:
    """Initializing → Running: the job is submitted, then PENDING, then RUNNING."""
    kube.status("rayjobs", name, jobDeploymentStatus="Running", dashboardURL=f"{name}-head-svc.ml.svc:8265")
    kube.status("rayjobs", name, jobStatus="PENDING")
    kube.status("rayjobs", name, jobStatus="RUNNING")


def completes(kube: Kube, name: str, result: str = "SUCCEEDED") -> None:
    done = {"succeeded": 1} if result == "SUCCEEDED" else {}
    kube.status("rayjobs", name, jobDeploymentStatus="Complete", jobStatus=result, endTime=now(), **done)


def fails(kube: Kube, name: str, reason: str = "AppFailed", message: str = "", result: str = "FAILED") -> None:
    """→ Retrying while spec.backoffLimit has attempts left: the cluster goes, and New comes again; else → Failed."""
    job = kube.get("rayjobs", name)
    failed = job["status"].get("failed", 0) + 1
    why = {"reason": reason, "message": message, "failed": failed, "jobStatus": result}
    if failed > job["spec"].get("backoffLimit", 0) or reason in NOT_RETRIED:
        kube.status("rayjobs", name, jobDeploymentStatus="Failed", endTime=now(), **why)
        return
    kube.status("rayjobs", name, jobDeploymentStatus="Retrying", **why)
    for one in kube.names("pods"):
        kube.drop("pods", one)
    blank = {"jobId": "", "rayClusterName": "", "dashboardURL": "", "message": "", "reason": "", "jobStatus": ""}
    kube.status("rayjobs", name, jobDeploymentStatus="", **blank)


def event(
    kube: Kube, kind: str, name: str, reason: str, message: str, number: int = 1, severity: str = "Warning"
) -> None:
    """An event, as controllers, scheduler and kubelet record them."""
    about = {"kind": kind, "name": name}
    one = {"metadata": {"name": f"{name}.{number}"}, "involvedObject": about, "reason": reason, "message": message}
    kube.add("events", one | {"type": severity, "lastTimestamp": now()})


def runs_through(kube: Kube, name: str, lines: list[str], pause: float = 0.0) -> None:
    """A job without any trouble, whose driver prints `lines`, half of them `pause` seconds after the others."""
    cluster = starts(kube, name)
    printing = head(kube, name, cluster)
    runs(kube, name)
    kube.print(printing, "job-log", *lines[: len(lines) // 2])
    time.sleep(pause)
    kube.print(printing, "job-log", *lines[len(lines) // 2 :])
    time.sleep(0.2)
    completes(kube, name)


def held_up(kube: Kube, name: str, cluster: str, what: str, number: int) -> None:
    """A worker that does not come up, as scheduler, kubelet and admission tell it."""
    pod_name = f"{cluster}-gpu-worker-{number}"
    if what in ("quota", "security"):
        why = {
            "quota": "exceeded quota: team, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8",
            "security": 'violates PodSecurity "restricted:latest": runAsNonRoot != true',
        }[what]
        text = f'Failed to create worker Pod ml/{pod_name}: pods "{pod_name}" is forbidden: {why}'
        event(kube, "RayCluster", cluster, "FailedToCreateWorkerPod", text, number)
        return
    text = "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 Insufficient nvidia.com/gpu."
    gpu = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
    spot = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    states: dict[str, Content] = {
        "image": {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}},
        "memory": {
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
        },
        "secret": {
            "state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "regrow-s3" not found'}}
        },
    }
    conditions = {"gpu": [gpu], "evicted": [spot]}.get(what, [])
    worker(kube, name, cluster, states.get(what), number, conditions=conditions)
