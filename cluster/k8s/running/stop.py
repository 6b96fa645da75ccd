"""Stop a RayJob: delete it, and wait until its pods are gone.

KubeRay 1.7 has two ways to end one. `spec.suspend` takes the cluster away and keeps the object, to be started anew, and
belongs to Kueue where there is one; deleting it asks Ray to stop the job first (the finalizer in
`rayjob_controller.go`) and takes everything along. What the run has committed stays in its `run_dir` either way."""

import contextlib
import time
from collections.abc import Callable

from cluster.k8s.running import words
from cluster.k8s.running.api import RAY, Api, Missing, ask, connect, path
from cluster.k8s.running.around import around
from cluster.k8s.running.jobs import find

PATIENCE = 120.0  # seconds: KubeRay's turn, then 30 s in which pods end by themselves


def stop(name: str, namespace: str | None, context: str | None, say: Callable[[str], None]) -> int:
    """Stop the RayJob, or a run's newest, and wait until nothing of it runs. Exit status 0: it is gone, or had ended
    before; 1: it still goes on ending after `PATIENCE` seconds. Raises ValueError where there is none, and like
    `api.ask`."""
    api = connect(namespace, context)
    job = find(api, name)
    name = job["metadata"]["name"]
    ended = words.end(job)
    if ended and not job["metadata"].get("deletionTimestamp"):
        say(f"nothing to stop: {ended.text}")
        return 0
    uid = job["metadata"]["uid"]
    body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
    with contextlib.suppress(Missing):
        ask(api, "delete", path(api, RAY, "rayjobs", name), body)
    say(f"RayJob {name} is being stopped")
    began, kept = time.monotonic(), True
    while time.monotonic() - began < PATIENCE:
        kept = _there(api, name, uid)
        pods = around(api, job)[0] if not kept else []
        if not kept and not pods:
            say(f"RayJob {name} is stopped; the same recipe submitted again goes on from what is done")
            return 0
        time.sleep(1)
    what = "KubeRay's operator has not let go of it; does it run?" if kept else "its pods are still ending"
    say(f"RayJob {name} is not gone after {PATIENCE:.0f} s: {what}")
    return 1


def _there(api: Api, name: str, uid: str) -> bool:
    try:
        return bool(ask(api, "get", path(api, RAY, "rayjobs", name))["metadata"]["uid"] == uid)
    except Missing:
        return False
