"""What a job's output directory is bound to: its settings, written once, and compared at each later go."""

import contextlib
import datetime
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import lease, lock, storage
from pipelines import parts
from pipelines.generation import job as jobs
from pipelines.generation.job import Job
from pipelines.recipe_file import BadInput

OWN = re.compile(  # the names that a job writes, below its output or one beside it
    r"(|-[0-9a-f]{8})/(?:settings\.json|manifest\.json|README\.md|data/part-[^/]+\.parquet|"
    r"(?:quarantine|messages)/part-[^/]+\.jsonl)"
)


def settle(job: Job, fingerprint: dict[str, Any], new: bool) -> Job:
    """`job` with the output it is to write to: its own where that is empty or holds texts of the same fingerprint.

    Raises BadInput where it holds texts made otherwise and `new` is False, with what differs; with `new` the job
    goes to a directory beside it, named after the fingerprint, which the same command finds again. Raises BadInput as
    `check` does before anything is written."""
    there = check(job.output)
    if there is None:
        content: dict[str, Any] = {
            "fingerprint": fingerprint,
            "settings": job.model_dump(mode="json"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if storage.create(storage.join(job.output, parts.SETTINGS), json.dumps(content, indent=2).encode()):
            return job
        there = settings(job.output) or content
    lines = jobs.differences(jobs.renewed(there["fingerprint"]), fingerprint)
    if not lines:
        return job
    if new:
        return settle(job.model_copy(update={"output": _beside(job.output, fingerprint)}), fingerprint, new=False)
    listed = "".join(f"\n  {line}" for line in lines)
    raise BadInput(
        f"{job.output} holds texts that were made otherwise, and the two are not mixed:{listed}\n"
        "give the settings of then, another --output, or --new to start beside it"
    )


def settings(output: str) -> dict[str, Any] | None:
    """What `settle` wrote there, None where nothing is. Raises BadInput where another program's file stands there, or
    a damaged one."""
    url = storage.join(output, parts.SETTINGS)
    try:
        there = json.loads(storage.read(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise parts.strange(url, f"not JSON: {error}") from error
    if not isinstance(there, dict) or not isinstance(there.get("fingerprint"), dict):
        raise parts.strange(url, "no fingerprint in it")
    return there


def check(output: str) -> dict[str, Any] | None:
    """The settings there, as `settings`; where there are none, raises BadInput also for files in their places that are
    none of ours."""
    there = settings(output)
    if there is None:
        _no_strangers(output)
        for _ in parts.footers(output, [*parts.names(output)]):
            pass
    return there


def _no_strangers(output: str) -> None:
    """Raise BadInput where a card or a manifest would be written over that is another program's."""
    card, manifest = (storage.join(output, name) for name in (parts.CARD, parts.MANIFEST))
    if storage.exists(manifest):
        try:
            ours = "fingerprint" in json.loads(storage.read(manifest))
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise parts.strange(manifest, "no fingerprint in it")
    elif storage.exists(card):
        raise parts.strange(card, "there is nothing of ours beside it")


def others(files: dict[str, int], output: str) -> dict[str, int]:
    """`files` (URL → size) of an input without those that jobs wrote to `output`, or beside it with --new, in earlier
    goes: where the output is below the input's folder, it is no input."""
    real, known = functools.cache(os.path.realpath), functools.cache(_known)

    def whole(url: str) -> str:
        if storage.on_s3(url):
            return url.partition("://")[2]
        folder, name = os.path.split(url.removeprefix("file://"))
        return os.path.join(real(folder), name)  # noqa: PTH118 — an input may have a million of them

    def own(url: str) -> bool:
        found = OWN.fullmatch(whole(url).removeprefix(root)) if whole(url).startswith(root) else None
        return found is not None and known(f"{output.rstrip('/')}{found[1]}") is not None

    root = whole(output.rstrip("/"))
    return {url: size for url, size in files.items() if storage.on_s3(url) != storage.on_s3(output) or not own(url)}


def _known(output: str) -> dict[str, Any] | None:
    """The settings there, None also where another program's file stands in their place."""
    with contextlib.suppress(BadInput):
        return settings(output)
    return None


def _beside(output: str, fingerprint: dict[str, Any]) -> str:
    """Where a job with other settings than those of `output` goes: the directory beside it that has its own already,
    though a fingerprint of then may have another name, else one named after the fingerprint."""
    root = output.rstrip("/")
    named = f"{root}-{jobs.name_of(fingerprint)}"
    for url in () if _known(named) else storage.beside(root):
        there = _known(url) if re.fullmatch("-[0-9a-f]{8}", url.removeprefix(root)) else None
        if there and not jobs.differences(jobs.renewed(there["fingerprint"]), fingerprint):
            return url
    return named


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
