"""What a job's output directory is bound to: its settings, written once, and compared at each later go."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import lease, lock, storage
from pipelines import parts
from pipelines.generation import job as jobs
from pipelines.generation.job import Job
from pipelines.recipe_file import BadInput


def settle(job: Job, fingerprint: dict[str, Any], new: bool) -> Job:
    """`job` with the output it is to write to: its own where that is empty or holds texts of the same fingerprint.

    Raises BadInput where it holds texts made otherwise and `new` is False, with what differs; with `new` the job
    goes to a directory beside it, named after the fingerprint, which the same command finds again."""
    there = settings(job.output)
    if there is None:
        content: dict[str, Any] = {
            "fingerprint": fingerprint,
            "settings": job.model_dump(mode="json"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if storage.create(storage.join(job.output, parts.SETTINGS), json.dumps(content, indent=2).encode()):
            return job
        there = settings(job.output) or content
    lines = jobs.differences(there["fingerprint"], fingerprint)
    if not lines:
        return job
    if new:
        beside = f"{job.output.rstrip('/')}-{jobs.name_of(fingerprint)}"
        return settle(job.model_copy(update={"output": beside}), fingerprint, new=False)
    listed = "".join(f"\n  {line}" for line in lines)
    raise BadInput(
        f"{job.output} holds texts that were made otherwise, and the two are not mixed:{listed}\n"
        "give the settings of then, another --output, or --new to start beside it"
    )


def settings(output: str) -> dict[str, Any] | None:
    """What `settle` wrote there, None where nothing is."""
    try:
        return json.loads(storage.read(storage.join(output, parts.SETTINGS)))
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def claimed(output: str) -> Iterator[None]:
    """This process's alone for the length of the block: by a lock on a disk, by a lease on S3. Raises BadInput."""
    with contextlib.ExitStack() as stack:
        try:
            if storage.is_local(output):
                stack.enter_context(lock.held(Path(output.removeprefix("file://"))))
            else:
                stack.enter_context(lease.held(output))
        except lock.Busy as error:
            raise BadInput(f"{error}; wait for it, stop it, or give another --output") from None
        yield
