"""A RayJob's log as its driver writes it: by the Kubernetes API, from the container that prints it.

In K8sJobMode that is the submitter's pod, in SidecarMode a container of the head's (`ray job logs --follow`,
`common/job.go` of KubeRay 1.7); otherwise a container `job-log` of the head that prints the driver's file, as
kubernetes.io ("Logging Architecture") has it. A log that breaks off is read on from where it was, and a second
submitter of the same Ray job tells the beginning again: neither doubles a line.
"""

import contextlib
import datetime
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.k8s.rendering.ray_job import LOG
from cluster.k8s.running.api import Api, Missing, ask, lines, path
from cluster.k8s.running.around import cluster

PRINTING = ("ray-job-submitter", LOG)  # KubeRay's container, and regrow's own beside the head
PAUSE = 2.0  # seconds between two looks at pods that have not started yet
TRIES = 5  # of the last lines
QUIET = 60.0  # seconds without a line after which the connection is made anew: it may be dead
SLACK = datetime.timedelta(seconds=30)  # how far lines may be out of order, and clocks apart


def selector(job: dict[str, Any]) -> str | None:
    """The label selector of the pods that print the job's log; None where none is made yet."""
    if ((job.get("spec") or {}).get("submissionMode") or "K8sJobMode") == "K8sJobMode":
        return f"job-name={job['metadata']['name']}"
    made = cluster(job)
    return f"ray.io/cluster={made},ray.io/node-type=head" if made else None


@dataclass
class Log:
    """One container's log, and how far it has been read."""

    api: Api
    pod: str
    container: str
    last: datetime.datetime | None = None
    over: bool = False  # read to its end
    times: Counter[int] = field(default_factory=Counter)  # hash of a line → how often it came
    recent: deque[tuple[datetime.datetime, str]] = field(default_factory=deque)  # no older than SLACK before `last`

    def lines(self, follow: bool) -> Iterator[str]:
        """What has not been read yet; with `follow` until the container ends.

        Raises ConnectionError where it breaks off: call again. Raises Missing where the pod is gone, ValueError where
        the container has not started."""
        query = {"container": self.container, "timestamps": "true", "follow": str(follow).lower()}
        again = Counter(self.recent)
        if self.last:
            query["sinceTime"] = (self.last - SLACK).strftime("%Y-%m-%dT%H:%M:%SZ")
        for raw in lines(self.api, path(self.api, "v1", "pods", self.pod, "log"), query, QUIET):
            stamp, _, text = raw.partition(" ")
            try:
                at = datetime.datetime.fromisoformat(stamp)
            except ValueError:  # the kubelet's own words, not the container's
                yield raw
                continue
            if again[at, text]:
                again[at, text] -= 1
                continue
            if self.last and at < self.last - SLACK:
                continue
            self.last = max(at, self.last or at)
            self.recent.append((at, text))
            while self.recent[0][0] < self.last - SLACK:
                self.recent.popleft()
            yield text


def stream(api: Api, job: Callable[[], dict[str, Any]], over: threading.Event, write: Callable[[str], None]) -> None:
    """Write every line of the log of `job()`, the RayJob as it is now, through its attempts, until `over` is set and
    what was written by then is read. Raises PermissionError where pods or logs may not be read, ConnectionError where
    the last lines cannot be had."""
    logs: dict[Any, Log] = {}
    told: dict[str, Counter[int]] = defaultdict(Counter)  # Ray job → hash of a line → how often it was written
    left = TRIES
    while True:
        last = over.is_set()
        try:
            for key, pod, status in _started(api, job()):
                log = logs.setdefault(key, Log(api, pod["metadata"]["name"], status["name"]))
                if not log.over:
                    _read(log, told[_ray_job(pod)], not last, write)
                    log.over = "terminated" in status["state"]
            if last:
                return
        except ConnectionError:
            left -= last
            if not left:
                raise
        time.sleep(PAUSE) if last else over.wait(PAUSE)


def _read(log: Log, told: Counter[int], follow: bool, write: Callable[[str], None]) -> None:
    """Write what is new in `log` and was not `told` by another container of the same Ray job."""
    with contextlib.suppress(Missing, ValueError):  # gone, or not begun after all
        for text in log.lines(follow):
            log.times[hash(text)] += 1
            if log.times[hash(text)] > told[hash(text)]:
                told[hash(text)] += 1
                write(text)


def written(api: Api, job: dict[str, Any], write: Callable[[str], None]) -> bool:
    """Write the log that the pods of `job` hold now; whether there was a line. Raises like `api.ask`."""
    over, lines_there = threading.Event(), threading.Event()
    over.set()

    def seen(text: str) -> None:
        lines_there.set()
        write(text)

    stream(api, lambda: job, over, seen)
    return lines_there.is_set()


def _started(api: Api, job: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """(key, pod, status of the container) of every container that prints the log and has begun, the first one first."""
    chosen = selector(job)
    pods = ask(api, "get", path(api, "v1", "pods"), query={"labelSelector": chosen})["items"] if chosen else []
    for pod in sorted(pods, key=lambda one: str(one["metadata"].get("creationTimestamp"))):
        statuses = {one["name"]: one for one in (pod.get("status") or {}).get("containerStatuses") or []}
        name = next((name for name in PRINTING if name in statuses), None)
        if name is None and chosen and chosen.startswith("job-name="):
            name = pod["spec"]["containers"][0]["name"]  # of the user's own submitterPodTemplate
        status = statuses.get(name or "", {})
        if {"running", "terminated"} & (status.get("state") or {}).keys():
            yield (pod["metadata"]["uid"], status.get("restartCount", 0)), pod, status


def _ray_job(pod: dict[str, Any]) -> str:
    """The Ray job whose log is printed: of a submitter by the variable that KubeRay gives it, else the pod's own."""
    named = (env for one in pod["spec"]["containers"] for env in one.get("env") or [])
    found = next((env.get("value") for env in named if env["name"] == "RAY_JOB_SUBMISSION_ID"), None)
    return str(found or pod["metadata"]["uid"])
