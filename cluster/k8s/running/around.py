"""What there is of a RayJob in the cluster beside itself: its pods, and the events about all of it."""

from typing import Any

from cluster.k8s.running.api import Api, ask, path


def around(api: Api, job: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pods of the job's Ray cluster and of its submitter; and the events about them, about the job, and about what
    KubeRay and Kueue made of it. Events of a RayJob before it that had the same name are left out.

    Raises like `api.ask`."""
    name, made = job["metadata"]["name"], cluster(job)
    pods = _pods(api, f"job-name={name}") + (_pods(api, f"ray.io/cluster={made}") if made else [])
    events = _events(api, "type=Warning")
    if (job.get("spec") or {}).get("suspend"):
        events += _events(api, "involvedObject.kind=Workload")
    theirs = {name, made, *(one["metadata"]["name"] for one in pods)}
    since = str(job["metadata"].get("creationTimestamp"))[:19]  # to the second, as events have it

    def ours(event: dict[str, Any]) -> bool:
        about = event.get("involvedObject") or {}
        when = str(event.get("lastTimestamp") or event.get("eventTime") or since)
        of_queue = about.get("kind") == "Workload" and str(about.get("name")).startswith(f"rayjob-{name}-")
        return (about.get("name") in theirs or of_queue) and when[:19] >= since

    return pods, [event for event in events if ours(event)]


def cluster(job: dict[str, Any]) -> str:
    """The RayCluster of the job's present attempt; empty where it has none."""
    return (job.get("status") or {}).get("rayClusterName") or ""


def _pods(api: Api, selector: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(api, "get", path(api, "v1", "pods"), query={"labelSelector": selector})["items"]
    return found


def _events(api: Api, selector: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(api, "get", path(api, "v1", "events"), query={"fieldSelector": selector})["items"]
    return found
