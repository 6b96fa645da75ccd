"""Many independent calls over the cluster, a bounded number in flight."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def spread(call: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> Iterator[tuple[int, Any]]:
    """(place, result) of `call(item, *arguments)` for each of `items`, as they come. Ray tasks, two for each CPU in
    flight, tried again where their process or node dies; an error of `call` itself is raised as it is."""
    import ray

    task = ray.remote(call).options(num_cpus=0.5, max_retries=5)
    shared = [ray.put(argument) for argument in arguments]
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, flying = iter(enumerate(items)), {}
    while True:
        for place, item in waiting:
            flying[task.remote(item, *shared)] = place
            if len(flying) >= most:
                break
        if not flying:
            return
        done, _ = ray.wait(list(flying))
        for reference in done:
            try:
                yield flying.pop(reference), ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
