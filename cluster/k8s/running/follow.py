"""Follow a RayJob to its end: every change of its status, what holds it up, its log, and an exit status."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cluster.k8s.running import logs, words
from cluster.k8s.running.api import Api, ways
from cluster.k8s.running.around import around, cluster
from cluster.k8s.running.reasons import Reason, reasons
from cluster.k8s.running.watching import changes

TICK = 5.0  # seconds between two looks at pods and events
PATIENCE = 30.0  # seconds in which KubeRay's operator takes up a RayJob; it takes one
GRACE = 10.0  # seconds for the log's last lines, once the job is over,
DRAIN = 2.0  # and so many without any
NO_LOG = "no container printed the job's log; the Ray dashboard has it while the cluster stands"
Say = Callable[[str], None]


class Voice(NamedTuple):
    """Where words go. Both are called from two threads, one at a time."""

    say: Say  # what is remarked
    write: Say  # a line of the job's log


class Reader(NamedTuple):
    """The thread that reads the log; whether it wrote a line at all, and one since that was last asked."""

    thread: threading.Thread
    any: threading.Event
    wrote: threading.Event


def follow(api: Api, name: str, say: Say, write: Say | None = None, tick: float = TICK) -> int:
    """Exit status 0 once the RayJob `name` succeeded; 1 where it failed, was stopped or deleted. `say` gets remarks,
    `write` the log's lines (by default `say` too).

    Ctrl-C and SIGTERM leave the job as it is and say how to go on. Raises ConnectionError where the cluster is away for
    `watching.OUTAGE` seconds, PermissionError where the RayJob may not be read."""
    lock, over = threading.Lock(), threading.Event()

    def one_at_a_time(out: Say) -> Say:
        def call(text: str) -> None:
            with lock:
                out(text)

        return call

    voice = Voice(one_at_a_time(say), one_at_a_time(write or say))
    try:
        return _followed(api, name, voice, over, tick)
    except (KeyboardInterrupt, SystemExit):
        say(f"RayJob {name} goes on in namespace {api.namespace}; {ways(api, name)}")
        raise
    except (ConnectionError, PermissionError):
        say(f"RayJob {name} is no longer followed; it goes on all the same; {ways(api, name)}")
        raise
    finally:
        over.set()


def _followed(api: Api, name: str, voice: Voice, over: threading.Event, tick: float) -> int:
    """Exit status of the RayJob, followed until it ends."""
    job: dict[str, Any] = {}
    before, shown = "", set[tuple[str, str]]()
    reader: Reader | None = None
    began = looked = time.monotonic()

    def latest() -> dict[str, Any]:
        return job

    for changed in changes(api, name, tick, voice.say):
        if changed is not None:
            if cluster(changed) != cluster(job):
                shown.clear()  # another attempt: what held the last one up may hold this one up too
            job = changed
            now = words.phrase(job)
            if now != before:
                voice.say(now)
            before = now
            reader = reader or _reader(api, latest, over, voice)
        ended = words.end(job)
        if ended.status if ended else changed is None or time.monotonic() - looked > tick:
            looked = time.monotonic()
            _tell(api, job, voice, shown, late=looked - began > PATIENCE)
        if ended and reader:
            return _ended(job, ended, voice, over, reader)
    voice.say(f"RayJob {name} was deleted: it is stopped; submit again to go on from what is done")
    return 1


def _ended(job: dict[str, Any], ended: words.End, voice: Voice, over: threading.Event, reader: Reader) -> int:
    over.set()
    until = time.monotonic() + GRACE
    # A container beside the head does not end with the job: once it is quiet, it has said all.
    while reader.thread.is_alive() and time.monotonic() < until:
        reader.wrote.clear()
        reader.thread.join(DRAIN)
        if not reader.wrote.is_set():
            break
    if not reader.any.is_set():
        voice.say("no container printed the job's log; what KubeRay tells of it:" if words.tail(job) else NO_LOG)
        for line in words.tail(job):
            voice.write(line)
    voice.say(ended.text)
    return ended.status


def _reader(api: Api, job: Callable[[], dict[str, Any]], over: threading.Event, voice: Voice) -> Reader:
    some, wrote = threading.Event(), threading.Event()

    def write(text: str) -> None:
        some.set()
        wrote.set()
        voice.write(text)

    def read() -> None:
        try:
            logs.stream(api, job, over, write)
        except (ConnectionError, PermissionError) as error:
            voice.say(f"the log cannot be shown: {error}")

    made = Reader(threading.Thread(target=read, daemon=True), some, wrote)
    made.thread.start()
    return made


def _tell(api: Api, job: dict[str, Any], voice: Voice, shown: set[tuple[str, str]], late: bool) -> None:
    """Say what holds the job up and has not been said yet. Who may not read pods or events is told nothing of them."""
    found: list[Reason] = []
    with contextlib.suppress(ConnectionError, PermissionError):
        found = reasons(job, *around(api, job))
    if late and not (job.get("status") or {}).get("jobDeploymentStatus"):
        where = "`kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator`"
        text = f"KubeRay's operator does not take it up; does it run ({where}), and watch this namespace?"
        found.append(Reason("operator", "", text))
    for one in found:
        if (one.kind, one.about) not in shown:
            shown.add((one.kind, one.about))
            voice.say(one.text)
