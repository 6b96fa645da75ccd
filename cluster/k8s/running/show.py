"""A RayJob's log again, by the job's or the run's name: what is there, or on to the end."""

from collections.abc import Callable

from cluster.k8s.running import logs, words
from cluster.k8s.running.api import connect
from cluster.k8s.running.follow import TICK, follow
from cluster.k8s.running.jobs import find

Say = Callable[[str], None]


def show(
    name: str,
    namespace: str | None,
    context: str | None,
    followed: bool,
    say: Say,
    write: Say | None = None,
    tick: float = TICK,
) -> int:
    """Write the log so far; `followed`, go on until the job ends. The exit status is that of `follow.follow`, or 0.

    Raises ValueError where there is no such job, and like `api.ask`."""
    api = connect(namespace, context)
    job = find(api, name)
    if followed:
        return follow(api, job["metadata"]["name"], say, write, tick)
    wrote = logs.written(api, job, write or say)
    if not wrote:
        for line in words.tail(job):
            (write or say)(line)
        say("no pod holds the log (any more); the run's own records are in its run_dir")
    say(words.phrase(job))
    return 0
