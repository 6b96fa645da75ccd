"""The Ray Data pipeline of a job: read and ask → engines → read the answers and commit; one row a shard."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import dataflow
from pipelines import parts, verdicts
from pipelines.generation import columns, engines, metrics, rereading, shaping, source
from pipelines.generation.job import Job
from pipelines.generation.shards import Work
from serving import engine

AT_ONCE = 4  # shards that an engine holds at least: while one is at its last row, others keep the seats filled


def run(job: Job, folder: Path | None, types: dict[str, str], work: list[Work], board: Any) -> Iterator[dict[str, Any]]:
    """Answer and commit the pending shards of `work`; yields the counts of each as
    it is committed. Raises RuntimeError or OSError with the first reason why it cannot go on."""
    for batch in dataflow.run(_pipeline(job, folder, types, work, board)):
        yield from batch.to_pylist()


def _pipeline(job: Job, folder: Path | None, types: dict[str, str], work: list[Work], board: Any) -> Any:
    import ray.data

    count = engine.at_once(job.engines, job.tensor_parallel) if job.local else job.engines
    model = str(folder.resolve()) if folder else ""
    data = ray.data.from_items([{"work": place} for place in range(len(work))], override_num_blocks=len(work))
    data.context.target_max_block_size = 1  # a block ends after each shard: none waits for others to fill it
    shared = [ray.put(part) for part in work]  # each reading task fetches its own and no other
    packets = data.map_batches(
        functools.partial(_packets, job=job, folder=model, types=types, work=shared),
        batch_size=1, batch_format="pyarrow", num_cpus=0.5,
        compute=ray.data.TaskPoolStrategy(size=min(len(work), max(2, count))),
    )  # fmt: skip
    answered = packets.map_batches(
        engines.Engine,
        fn_constructor_args=(job.model_dump_json(), model, _kwargs(job, folder), board),
        batch_size=1, batch_format="pyarrow", **_place(job, count),
    )  # fmt: skip
    return answered.map_batches(
        functools.partial(_commit, job=job, mark=rereading.mark(job)),
        batch_size=1, batch_format="pyarrow", num_cpus=0.5,
        compute=ray.data.TaskPoolStrategy(size=min(sum(len(part.shards) for part in work), max(2, count))),
    )  # fmt: skip


def _packets(batch: pa.Table, job: Job, folder: str, types: dict[str, str], work: list[Any]) -> Iterator[pa.Table]:
    import ray

    part: Work = ray.get(work[batch.column("work")[0].as_py()])
    typed = {name: columns.arrow(kind) for name, kind in types.items()}
    for shard, rows in source.read(part.unit, part.shards, part.lines_before, job.columns.id):
        yield shaping.packet(job, folder, typed, shard.name, rows)


def _commit(batch: pa.Table, job: Job, mark: str) -> pa.Table:
    """Commit one answered shard under rereading's `mark` of the job; returns its counts."""
    table, held = shaping.table(job, batch)
    name = batch.column("name")[0].as_py()
    try:
        ours = parts.commit(job.output, name, table, held, mark)
    except OSError as error:  # in one argument: into the others Ray writes its own words
        where = parts.file(job.output, name)
        raise OSError(str(error) if where in str(error) else f"{where}: {error}") from error
    said = table.column("verdict").to_pylist()
    tally = {f"verdict {v}": said.count(v) for v in verdicts.VERDICTS}
    if ours:  # another's copy is counted there
        for verdict in verdicts.VERDICTS:
            metrics.count("regrow_generate_samples", said.count(verdict), verdict=verdict)
        metrics.count("regrow_generate_quarantined", len(held))
    return pa.Table.from_pylist([{"rows": len(table.column("id").unique()), "held": len(held), **tally}])


def _place(job: Job, count: int, gpu: bool | None = None) -> dict[str, Any]:
    """Ray's side of the engine actors; `gpu` as in serving.engine."""
    import ray.data

    at_once = max(AT_ONCE, -(-2 * engines.seats(job) // job.shard_rows))
    pool = ray.data.ActorPoolStrategy(
        size=count, max_tasks_in_flight_per_actor=at_once, max_concurrent_calls_per_actor=at_once
    )
    placed: dict[str, Any] = {"compute": pool}
    if not job.local:
        given = {name: value for name, value in os.environ.items() if name == "REGROW_ECHO_SECONDS"}
        return placed | {"num_cpus": 0.5, "runtime_env": {"env_vars": given}}
    gpu = engine.has_gpu() if gpu is None else gpu
    placed["runtime_env"] = {"env_vars": engine.env_vars(count, gpu)}
    return placed | ({"num_gpus": job.tensor_parallel} if gpu else {"num_cpus": engine.CPU_BUNDLE})


def _kwargs(job: Job, folder: Path | None, gpu: bool | None = None) -> dict[str, Any]:
    """vLLM's side of them."""
    if not job.local:
        return {}
    made = engine.engine_kwargs(job.max_model_len, job.max_num_seqs, job.dtype, folder, job.tensor_parallel, gpu)
    # Inside a Ray actor vLLM would else spread its workers over Ray, which waits for resources that the actor holds.
    return made | ({"distributed_executor_backend": "mp"} if made.get("tensor_parallel_size", 1) > 1 else {})
