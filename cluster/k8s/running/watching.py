"""A RayJob's changes as they come, over dropped connections and expired versions.

The rules are Kubernetes' own (kubernetes.io, "Efficient detection of changes"): list, watch from the list's resource
version, and list again where that version is no longer kept (410 Gone)."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.k8s.running.api import RAY, Api, Gone, ask, lines, path

OUTAGE = 900.0  # seconds without an answer after which nobody watches any more; the job goes on all the same
PAUSE = 2.0  # seconds between two tries to reach the server
SHORTEST = 0.5  # seconds between two watches, where something on the way ends each at once


def changes(api: Api, name: str, tick: float, say: Callable[[str], None]) -> Iterator[dict[str, Any] | None]:
    """The RayJob as it is now and after every change; None whenever `tick` (whole seconds) went by.
    Ends when it is deleted.

    Raises ConnectionError after `OUTAGE` seconds without an answer, PermissionError and the like at once."""
    version, lost = "", 0.0
    while True:
        began = time.monotonic()
        try:
            if not version:
                version, job = _listed(api, name)
                if job is None:
                    return
                yield job
            else:
                for newer, job in _watched(api, name, version, tick):
                    version, lost = newer, _back(lost, say)
                    if job is None:
                        return
                    yield job
                time.sleep(max(0.0, began + SHORTEST - time.monotonic()))
            lost = _back(lost, say)
            yield None
        except Gone:
            version = ""
        except ConnectionError as error:
            if not lost:
                lost = time.monotonic()
                say(f"{error}; trying again")
            elif time.monotonic() - lost > OUTAGE:
                raise
            time.sleep(min(PAUSE, tick))


def _back(lost: float, say: Callable[[str], None]) -> float:
    """`lost` anew, now that the server has answered."""
    if lost:
        say("the cluster answers again")
    return 0.0


def _listed(api: Api, name: str) -> tuple[str, dict[str, Any] | None]:
    """The version of the whole list, which is newer than the object's own, and the object."""
    answer = ask(api, "get", path(api, RAY, "rayjobs"), query={"fieldSelector": f"metadata.name={name}"})
    return answer["metadata"]["resourceVersion"], next(iter(answer["items"]), None)


def _watched(api: Api, name: str, version: str, tick: float) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(version, object) of each change, None for a deletion, until the server ends the watch after `tick` seconds."""
    query = {"fieldSelector": f"metadata.name={name}", "watch": "true", "resourceVersion": version}
    query |= {"timeoutSeconds": str(max(1, round(tick))), "allowWatchBookmarks": "true"}
    for line in lines(api, path(api, RAY, "rayjobs"), query, quiet=tick + 30):
        try:
            event = json.loads(line)
        except ValueError:
            raise ConnectionError(f"a change broke off on the way from {api.server}") from None
        kind, one = event["type"], event["object"]
        if kind == "ERROR" and one.get("code") == 410:
            raise Gone(one.get("message"))
        if kind == "ERROR":
            raise ConnectionError(f"{api.server} ended the watch: {one.get('message')}")
        if kind != "BOOKMARK":
            yield one["metadata"]["resourceVersion"], None if kind == "DELETED" else one
