"""`regrow submit --kuberay`: a run's objects into a cluster, and the RayJob followed to its end."""

from collections.abc import Callable
from typing import Any

from cluster.k8s.running import apply, jobs
from cluster.k8s.running.api import Api, connect, ways
from cluster.k8s.running.follow import TICK, follow

Say = Callable[[str], None]


def submit(
    objects: list[dict[str, Any]],
    namespace: str | None,
    context: str | None,
    followed: bool,
    say: Say,
    write: Say | None = None,
    tick: float = TICK,
) -> int:
    """Apply `objects`, one of them a RayJob, and follow it: the exit status is that of `follow.follow`, or 0 at once
    where it is not `followed`. A run whose RayJob has finished gets a new one, which goes on from the run's artifacts.

    Raises ValueError where the run is under way, and like `api.ask`."""
    api = connect(namespace, context)
    name = place(api, objects, say)
    if not followed:
        say(f"RayJob {name} in namespace {api.namespace}: {ways(api, name)}")
        return 0
    return follow(api, name, say, write, tick)


def place(api: Api, objects: list[dict[str, Any]], say: Say, dry: bool = False) -> str:
    """Apply `objects`; the name that the RayJob got. Raises like `submit`."""
    job = apply.rayjob(objects)
    name, wanted = jobs.next_name(api, job), job["metadata"]["name"]
    if name != wanted:
        say(f"RayJob {wanted} has finished; this one is {name}")
    notes = {**(job["metadata"].get("annotations") or {}), jobs.WORKLOAD: wanted}
    new = {**job, "metadata": {**job["metadata"], "name": name, "annotations": notes}}
    try:
        apply.apply(api, [new if one is job else one for one in objects], say, dry)
    except apply.Taken as error:
        raise ValueError(f"another submission came first: {error}; {ways(api, name)}") from None
    return name
