"""The RayJobs that regrow made: their rows, one by its name, and the name that the next submission of a run gets."""

from typing import Any, NamedTuple

from cluster.k8s.rendering.workload import RUN_LABEL
from cluster.k8s.running.api import RAY, Api, Missing, ask, connect, path, ways

LONGEST = 47  # characters of a RayJob's name: MaxRayJobNameLength of KubeRay 1.7
WORKLOAD = "regrow/workload"  # annotation: the rendered name of a RayJob, which its ConfigMap has too
FINISHED = ("Complete", "Failed", "ValidationFailed")  # jobDeploymentStatus from which no pod runs again by itself


class Row(NamedTuple):
    """One RayJob. Times are RFC 3339 in UTC, as Kubernetes writes them; empty where not known yet."""

    name: str
    run: str
    status: str  # `Running`, `Complete: SUCCEEDED`
    reason: str
    attempts: int  # that failed
    created: str
    ended: str
    cluster: str


def jobs(namespace: str | None = None, context: str | None = None) -> list[Row]:
    """Every RayJob of regrow in the namespace, newest first. Raises like `api.ask`."""
    api = connect(namespace, context)
    return [row(one) for one in sorted(listed(api, RUN_LABEL), key=_created, reverse=True)]


def listed(api: Api, selector: str = "") -> list[dict[str, Any]]:
    """The RayJobs that a label selector fits. Raises like `api.ask`."""
    answer = ask(api, "get", path(api, RAY, "rayjobs"), query={"labelSelector": selector} if selector else None)
    items: list[dict[str, Any]] = answer["items"]
    return items


def row(job: dict[str, Any]) -> Row:
    """What a list shows of a RayJob."""
    meta, status = job["metadata"], job.get("status") or {}
    state = "being deleted" if meta.get("deletionTimestamp") else status.get("jobDeploymentStatus") or "New"
    if status.get("jobStatus"):
        state += f": {status['jobStatus']}"
    return Row(
        meta["name"],
        (meta.get("labels") or {}).get(RUN_LABEL, ""),
        state,
        status.get("reason") or "",
        status.get("failed") or 0,
        meta.get("creationTimestamp") or "",
        status.get("endTime") or "",
        status.get("rayClusterName") or "",
    )


def find(api: Api, name: str) -> dict[str, Any]:
    """The RayJob of that name, or the newest of the run of that name. Raises ValueError where there is neither, with
    the names that there are; and like `api.ask`."""
    try:
        found: dict[str, Any] = ask(api, "get", path(api, RAY, "rayjobs", name))
        return found
    except Missing:
        every = sorted(listed(api, RUN_LABEL), key=_created)
        of_run = [one for one in every if one["metadata"]["labels"][RUN_LABEL] == name]
        if of_run:
            return of_run[-1]
        there = ", ".join(one["metadata"]["name"] for one in reversed(every)) or "none"
        raise ValueError(f"no RayJob or run {name!r} in namespace {api.namespace}; there: {there}") from None


def next_name(api: Api, job: dict[str, Any]) -> str:
    """The name for `job`'s RayJob: its own, or with `-2`, `-3`, … where finished ones have those before.

    Raises ValueError where one is under way of the same run or of the same name: its pods still read the recipe and
    write the run's artifacts. Raises like `api.ask`."""
    wanted, run = job["metadata"]["name"], (job["metadata"].get("labels") or {}).get(RUN_LABEL)
    there = {one["metadata"]["name"]: one for one in listed(api)}
    for name, one in there.items():
        same = run is not None and (one["metadata"].get("labels") or {}).get(RUN_LABEL) == run
        if not same and wanted not in (name, (one["metadata"].get("annotations") or {}).get(WORKLOAD)):
            continue
        if one["metadata"].get("deletionTimestamp"):
            raise ValueError(f"RayJob {name} is still being deleted; submit again in a moment")
        if (one.get("status") or {}).get("jobDeploymentStatus") not in FINISHED:
            what = f"run {run} is" if same else f"the name {wanted} is taken: another run is"
            raise ValueError(f"{what} under way as RayJob {name} in namespace {api.namespace}; {ways(api, name)}")
    if wanted not in there:
        return str(wanted)
    tails = (f"-{number}" for number in range(2, len(there) + 3))
    return next(new for tail in tails if (new := wanted[: LONGEST - len(tail)].rstrip("-") + tail) not in there)


def _created(job: dict[str, Any]) -> str:
    return str(job["metadata"].get("creationTimestamp") or "")
