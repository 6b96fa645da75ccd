"""`regrow submit --kuberay` and `regrow jobs --kuberay`: a recipe as a RayJob. Thin: renders, calls, words errors.

The log goes to standard output, everything else is said on standard error.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines import screen
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.run import STAGES


def submit(
    recipe: Recipe,
    until: str = STAGES[-1],
    image: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    dry_run: bool = False,
    detach: bool = False,
) -> int:
    """Submit `recipe` and follow it, unless `detach`: the exit status. `dry_run` prints what would be applied, and asks
    the cluster what it thinks of it.

    Raises BadInput where pods cannot run the recipe, where the run is under way, and where the cluster finds an object
    wrong; OSError and RuntimeError where it cannot be reached or does not allow it."""
    from cluster.k8s.rendering import render
    from cluster.k8s.running import api
    from cluster.k8s.running import dry_run as dry
    from cluster.k8s.running import submit as submission
    from pipelines import workloads

    if not image:
        raise BadInput("which image? give --image NAME:TAG, one that the cluster's nodes can pull (docs/image.md)")
    with _bad_input():
        where = api.chosen(namespace, context, needed=not dry_run)
        arguments = ("--until", until) if until != STAGES[-1] else ()
        objects = render.job(workloads.workload(recipe, image, namespace=where, arguments=arguments))
        if dry_run:
            return dry.dry_run(objects, where, context, _say, _write)
        return submission.submit(list(objects.values()), where, context, not detach, _say, _write)


def show(namespace: str | None, context: str | None = None) -> None:
    """Print regrow's RayJobs, the newest first."""
    from cluster.k8s.running import jobs

    with _bad_input():
        rows = jobs.jobs(namespace, context)
    for one in rows:
        state = one.status + (f" ({one.reason})" if one.reason else "")
        state += f", {one.attempts} failed" if one.attempts else ""
        print(f"{one.name:40} {state:40} {one.created:20} {one.ended}".rstrip())
    if not rows:
        _say("no RayJob of regrow in this namespace")


def logs(name: str, namespace: str | None, follow: bool = True, context: str | None = None) -> int:
    """Print the log of the RayJob or run `name`, with `follow` until it ends: the exit status."""
    from cluster.k8s.running import show as showing

    with _bad_input():
        return showing.show(name, namespace, context, follow, _say, _write)


def stop(name: str, namespace: str | None, context: str | None = None) -> int:
    """Stop the RayJob or run `name`: the exit status, 0 once nothing of it runs."""
    from cluster.k8s.running import stop as stopping

    with _bad_input():
        return stopping.stop(name, namespace, context, _say)


@contextmanager
def _bad_input() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(str(error)) from error


def _say(text: str) -> None:
    from rich.markup import escape

    screen.say(escape(text))  # messages of Kubernetes have brackets in them


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
