"""Stage generate: the unpruned teacher rewrites every reference answer, on Ray Data and vLLM.

Rows go in shards. A shard's Parquet file is made whole in memory and created once under its
deterministic name, so a killed run leaves only whole shards, and the next one makes only the others.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import signals, storage
from pipelines import conversations, prompts, shards, verdicts
from pipelines.recipe import Recipe
from pipelines.screen import say


def generate(recipe: Recipe, teacher: Path, rows: list[dict[str, Any]], url: str) -> dict[str, Any]:
    """Write `url/shards/part-*.parquet`, one row for each of `rows` (train records); returns the counts.
    Rows without an answer are also in `url/quarantine.jsonl`, with the reason.

    Shards that are there already are left as they are. Raises RuntimeError where the engine cannot run."""
    began = time.monotonic()
    pending = list(_pending(recipe, teacher, rows, url))
    total = sum(len(shard["rows"]) for shard in pending)
    say(f"generate: {len(rows) - total:,} rows there already, {total:,} to write")
    for shard in (shard for shard in pending if shard["skip"]):
        shards.refuse(url, shard["name"], shard["rows"])
    _watch(recipe, teacher, url, [shard for shard in pending if not shard["skip"]])
    made = shards.counts(url, len(rows))
    if made["quarantined"]:
        shards.quarantine(url)
    return made | {"seconds": round(time.monotonic() - began, 1)}


def _pending(recipe: Recipe, teacher: Path, rows: list[dict[str, Any]], url: str) -> Iterator[dict[str, Any]]:
    """Shards not committed yet: {name, skip, rows}, rows carrying their tokenised prompt."""
    from transformers import AutoTokenizer

    there = storage.files(url)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    room = recipe.teacher.max_model_len - recipe.generate.max_tokens
    asked = [_asked(tokenizer, row) for row in rows]
    for kind, wanted in (("part", False), ("long", True)):
        chosen = [row for row in asked if (len(row["tokens"]) > room) == wanted]
        for start in range(0, len(chosen), recipe.generate.shard_rows):
            name = f"shards/{kind}-{start // recipe.generate.shard_rows:05d}.parquet"
            if name not in there:
                yield {"name": name, "skip": wanted, "rows": chosen[start : start + recipe.generate.shard_rows]}


def _asked(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    question = prompts.question(row["context"], row["input"])
    before = conversations.load(row["history"])
    text = prompts.text(tokenizer, prompts.rewrite(question, row["reference"], before))
    # A chat template writes its own begin token; a second one would shift the whole prompt.
    tokens = tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids
    return {**row, "prompt": text, "tokens": tokens}


def _watch(recipe: Recipe, teacher: Path, url: str, todo: list[dict[str, Any]]) -> None:
    """Run the pipeline over the shards `todo` and print counts, rates and time left."""
    if not todo:
        return
    total, done, tally, began, said = sum(len(s["rows"]) for s in todo), 0, Counter[str](), 0.0, 0.0
    say(f"generate: starting {recipe.generate.engines} engine(s) for {teacher.name}")
    for batch in _pipeline(recipe, teacher, url, todo).iter_batches(batch_size=None, batch_format="pyarrow"):
        now = time.monotonic()
        began = began or now - 1e-3
        for stats in batch.to_pylist():
            done += stats.pop("rows")
            tally.update(stats)
        if now - said > 5 or done == total:
            said, speed = now, done / max(now - began, 1.0)
            kept = ", ".join(f"{tally[v]:,} {v}" for v in verdicts.VERDICTS if tally[v])
            left = f"{speed:.0f} rows/s, {(total - done) / speed:.0f} s left"
            say(f"generate: {done:,} of {total:,} rows ({kept}), {left}")


def _pipeline(recipe: Recipe, teacher: Path, url: str, todo: list[dict[str, Any]]) -> Any:
    """The lazy Ray Data pipeline: shards → vLLM engines → verdicts and commit, one block a shard."""
    import ray.data
    from ray.data.llm import build_processor

    from serving import engine

    settings = recipe.generate
    engines = engine.at_once(settings.engines, recipe.teacher.tensor_parallel)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}

    def before(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": row["prompt"],
            "tokenized_prompt": row["tokens"],
            "sampling_params": _seeded(sampling, row, recipe.seed),
        }

    def after(row: dict[str, Any]) -> dict[str, Any]:
        return {key: row.get(key) for key in (*shards.CARRIED, *shards.GENERATED)}

    with signals.kept():
        processor = build_processor(config(recipe, teacher, engines), preprocess=before, postprocess=after)
    tables = [_table(shard) for shard in todo]
    options = {"max_tokens": settings.max_tokens, "url": url}
    return processor(ray.data.from_arrow(tables)).map_batches(
        shards.judge_and_commit,  # type: ignore[arg-type]  # a function of a table, with keyword arguments
        fn_kwargs=options,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )


def config(recipe: Recipe, teacher: Path, engines: int, gpu: bool | None = None) -> Any:
    """Ray Data's settings of the engine stage; for `gpu` see serving.engine."""
    from ray.data.llm import vLLMEngineProcessorConfig

    from serving import engine

    settings, asked = recipe.generate, recipe.teacher
    return vLLMEngineProcessorConfig(
        model_source=str(teacher.resolve()),
        engine_kwargs=engine.engine_kwargs(
            asked.max_model_len, settings.max_num_seqs, asked.dtype, teacher, asked.tensor_parallel, gpu
        ),
        batch_size=settings.shard_rows,
        max_concurrent_batches=max(2, -(-2 * settings.max_num_seqs // settings.shard_rows)),
        concurrency=(engines, engines),
        accelerator_type=None,
        placement_group_config=engine.placement_group_config(gpu),
        runtime_env={"env_vars": engine.env_vars(engines, gpu)},
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _table(shard: dict[str, Any]) -> pa.Table:
    extra = {"shard": shard["name"], "shard_rows": len(shard["rows"])}
    return pa.Table.from_pylist([{**row, **extra} for row in shard["rows"]])


def _seeded(sampling: dict[str, Any], row: dict[str, Any], seed: int) -> dict[str, Any]:
    """Sampling with a seed of the row's own, so that a row's text does not depend on its neighbours."""
    return sampling if not sampling["temperature"] else {**sampling, "seed": (int(row["id"][:8], 16) + seed) % 2**31}
