"""Generate: a teacher answers every row of the input once, on Ray Data and vLLM, through whatever dies on the way.

Rows go in shards. A shard's Parquet file is made whole in memory and created once under a name that follows from its
rows, so a killed job leaves only whole shards, and the next go makes only the others.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.spread import spread
from pipelines import parts
from pipelines.generation import (  # fmt: skip
    asking,
    board,
    columns,
    flow,
    rereading,
    settling,
    shards,
    source,
)
from pipelines.generation import job as jobs
from pipelines.generation.job import Job
from pipelines.generation.progress import Progress
from pipelines.generation.tally import Tally
from pipelines.recipe_file import BadInput
from pipelines.rows import files as rows_files
from pipelines.screen import say

SCANNED_HERE = 32 << 20  # bytes of input that are scanned without spreading


def generate(
    job: Job, files: dict[str, int], folder: Path | None, new: bool = False, price: float | None = None,
    finish: Callable[[dict[str, Any]], None] = lambda done: None, retry: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Answer the rows of `files` (URL → size) and commit them below the job's output; returns Tally's counts and
    `seconds`, with the `job` as it was done, its `output` and `fingerprint`. Needs a Ray session (cluster.session).
    What says that the output is whole is the caller's to write: a run's manifest, or, in `finish` while nobody else may
    write there, finishing.write.

    Args: `folder`, the model's directory, None where an endpoint or echo answers; `new`, see settling.settle;
    `price` of an hour of one GPU, for the cost shown; `retry`: rows in quarantine are asked again. Raises BadInput for
    input or an output that do not fit, RuntimeError where engines or endpoint are gone for good, OSError where storage
    is."""
    began = time.monotonic()
    say(f"generate: reading {len(files):,} file(s), {sum(files.values()) / 1e6:,.1f} MB")
    units = source.units(files)
    scanned = _scanned(units, job.columns.id)
    types: columns.Types = {}
    for one in scanned:
        types = columns.merge(types, one.columns)
    if not types and any(sum(one.rows) for one in scanned):
        raise BadInput(f"no row of the input can be read as one with columns; the first: {_first(units)}")
    job = asking.settled(job, types)
    _check_ids(job, scanned)
    fingerprint = jobs.fingerprint(job, folder, types)
    if types:  # an input without rows binds its output to nothing
        job = settling.settle(job, fingerprint, new)
    with settling.claimed(job.output):
        if retry:
            _free(job)
        tally = Tally(job.output)
        stale = tally.take(rereading.mark(job))
        there = {*tally.taken, *stale}
        rereading.reread(job, stale)
        planned = shards.plan(scanned, units, job.shard_rows, shards.SHARD_BYTES, job.limit, there, _ids_in(job))
        say(f"generate: {planned.done:,} of {planned.rows:,} rows there already, {planned.pending:,} to write")
        del scanned  # some 20 bytes a row
        if planned.pending:
            storage.remove(storage.join(job.output, parts.MANIFEST))
            _write(job, folder, types, planned, price)
        storage.tidy(storage.join(job.output, parts.DATA))  # workers of a killed driver may have died at their writing
        tally.take()
        counts = tally.counts()
        _audit(job, planned, counts)
        about = {"output": job.output, "job": job, "fingerprint": fingerprint}
        done = counts | about | {"seconds": round(time.monotonic() - began, 1)}
        finish(done)
    return done


def _free(job: Job) -> None:
    """Take the rows in quarantine out of it, so that they are missing as if nobody had asked them."""
    freed = 0
    for name, about in list(parts.footers(job.output, [*parts.names(job.output)])):
        if about["quarantine"]:
            storage.remove(storage.join(job.output, parts.QUARANTINE, f"{name}.jsonl"))  # else written anew
            parts.free(job.output, name, about["parser"])
            freed += len(about["quarantine"])
    say(f"generate: {freed:,} row(s) out of quarantine, to be asked again")


def _ids_in(job: Job) -> Callable[[str], list[str]]:
    column = job.columns.id
    return lambda name: [source.stored(one, column if read else None) for one, read in parts.ids(job.output, name)]


def _first(units: list[source.Unit]) -> str:
    """Where the first row of the input is, and what is wrong with it."""
    for piece in (piece for unit in units for piece in unit.pieces):
        for line, row in rows_files.read(piece):
            return f"{piece.url}, line {line}: {row if isinstance(row, str) else 'it has no column'}"
    return "there is none"


def _check_ids(job: Job, scanned: list[source.Scanned]) -> None:
    """Raise BadInput where the rows' own ids are not unique."""
    if job.columns.id is None or not len(twice := shards.occurrences([one.digests for one in scanned])):
        return
    raise BadInput(
        f"--id {job.columns.id}: {len(twice):,} rows have an id that a row before them has, the first of them "
        f"row {twice[0][0] + 1:,} of the input; without --id, ids are made of each row's content"
    )


def _scanned(units: list[source.Unit], id_column: str | None) -> list[source.Scanned]:
    """What is in each unit, small inputs here and now, large ones over the cluster."""
    if sum(piece.size for unit in units for piece in unit.pieces) <= SCANNED_HERE:
        return [source.scan(unit, id_column) for unit in units]
    found: list[Any] = [None] * len(units)
    said, began, rows = time.monotonic(), time.monotonic(), 0
    for number, (place, scanned) in enumerate(spread(source.scan, units, id_column), 1):
        found[place] = scanned
        rows += len(scanned.digests)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"generate: {rows:,} rows seen in {number} of {len(units)} pieces, {rows / (said - began):,.0f} rows/s")
    return found


def _write(job: Job, folder: Path | None, types: dict[str, str], planned: shards.Plan, price: float | None) -> None:
    who = f"{job.engines} engine(s) for {job.model}" if job.local else job.endpoint or job.model
    say(f"generate: starting {who}")
    here = board.put_up()
    with Progress(job, planned.rows, planned.done, here, price) as progress:
        for counts in flow.run(job, folder, types, planned.work, here):
            progress.add(counts)


def _audit(job: Job, planned: shards.Plan, counts: dict[str, Any]) -> None:
    """Raise RuntimeError unless each row of the input is there once, answered or in quarantine."""
    missing = planned.rows + (planned.orphans or 0) - counts["rows"]
    if missing if planned.orphans is not None else missing > 0:
        raise RuntimeError(
            f"{job.output} holds {counts['rows']:,} rows, {counts['rows'] + missing:,} expected: did somebody remove "
            f"or add files below {parts.DATA}/? The same command goes on from what is there"
        )
    if more := counts["rows"] - planned.rows:
        input_ = f"the input's first {job.limit:,} rows are not" if job.limit else "the input no longer has"
        say(f"generate: {more:,} rows are there that {input_}; they are left alone")
