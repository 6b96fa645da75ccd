"""Ray Data, run for its results: what comes out of it, and the one reason why it could not go on."""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

RETRIED = "\nFailed to apply UDF transform after"  # where Ray's own words begin in a message
NOISE = "For further information visit"  # pydantic's, after each of its reasons
MOST = 3  # lines of a message that are told
LOUD = ("ray.data._internal.execution.streaming_executor_state", "ray.data.exceptions")  # print what `run` raises


def each(items: list[dict[str, Any]], work: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """What `work` makes of every item, each a table of one row and a task of its own, as they get done. Raises as
    `run` does."""
    import ray.data

    data = ray.data.from_items(items, override_num_blocks=len(items))
    return run(data.map_batches(work, batch_size=1, batch_format="pyarrow"))


def run(data: Any) -> Iterator[pa.Table]:
    """The blocks of a dataset as they get done. Raises RuntimeError or OSError with the first reason why it cannot go
    on."""
    import ray

    if not os.environ.get("REGROW_DEBUG"):
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    data.context.raise_original_map_exception = True  # Ray's own says nothing of the reason
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise _plain(error) from error


def _plain(error: BaseException) -> Exception:
    """The innermost reason of one of Ray's errors, without what Ray puts into the message."""
    found: BaseException = error
    while (cause := getattr(found, "cause", None) or found.__cause__) is not None and cause is not found:
        found = cause
    said = _reason(str(found).partition(RETRIED)[0], type(found).__module__.startswith("ray."))
    if isinstance(found, OSError):
        return OSError(said)
    return RuntimeError(said if isinstance(found, RuntimeError | ValueError) else f"{type(found).__name__}: {said}")


def _reason(text: str, of_ray: bool) -> str:
    """The first lines of a message, as one; of a traceback, those of its exception; of Ray's own words, the last."""
    lines = text.strip().splitlines()
    code = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    after = list(itertools.dropwhile(lambda line: line.startswith("    "), lines[code[-1] + 1 :])) if code else lines
    kept = [line.strip() for line in after if line.strip() and not line.strip().startswith(NOISE)]
    if not kept or (of_ray and not code):
        return (kept or lines or [""])[-1]
    return " ".join(kept[:MOST])
