"""Stage generate: the unpruned teacher rewrites every reference answer, on Ray Data and vLLM.

Rows go in shards. A shard's Parquet file is made whole in memory and created once under its
deterministic name, so a killed run leaves only whole shards, and the next one makes only the others.
"""

import io
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import prompts, verdicts
from pipelines.recipe import Generate, Recipe
from pipelines.screen import say

FORMAT = 1
OURS = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "prompt", "reference", "text", "rationale", "label", "target")]
    + [(name, pa.string()) for name in ("verdict", "finish_reason", "error")]
    + [(name, pa.int64()) for name in ("sample", "prompt_tokens", "completion_tokens")]
)


def generate(recipe: Recipe, teacher: Path, rows: list[dict[str, Any]], url: str) -> dict[str, Any]:
    """Write `url/shards/part-*.parquet`, one row for each of `rows` (train records); returns the counts.

    Shards that are there already are left as they are. Raises RuntimeError where the engine cannot run."""
    began = time.monotonic()
    pending = list(_pending(recipe, teacher, rows, url))
    total = sum(len(shard["rows"]) for shard in pending)
    say(f"generate: {len(rows) - total:,} rows there already, {total:,} to write")
    too_long = [shard for shard in pending if shard["skip"]]
    for shard in too_long:
        _commit(url, shard["name"], [_judged(row, _refused(row)) for row in shard["rows"]])
    _watch(recipe, teacher, url, [shard for shard in pending if not shard["skip"]])
    return counts(url, len(rows)) | {"seconds": round(time.monotonic() - began, 1)}


def rewrites(url: str) -> Iterator[dict[str, Any]]:
    """The committed rows below `url`, shard after shard."""
    for name in storage.files(url):
        if name.startswith("shards/") and name.endswith(".parquet"):
            yield from pq.read_table(io.BytesIO(storage.read(storage.join(url, name)))).to_pylist()


def counts(url: str, expected: int) -> dict[str, Any]:
    """Rows, verdicts, fallbacks and tokens of the committed shards.

    Raises RuntimeError unless there are exactly `expected` rows with different ids."""
    found, tally, tokens = Counter[str](), Counter[str](), Counter[str]()
    for row in rewrites(url):
        found[row["id"]] += 1
        tally[row["verdict"]] += 1
        tokens["prompt"] += row["prompt_tokens"]
        tokens["completion"] += row["completion_tokens"]
    if len(found) != expected or found.total() != expected:
        raise RuntimeError(f"{url} holds {found.total()} rows with {len(found)} ids, {expected} expected")
    fallback = sum(tally[v] for v in verdicts.VERDICTS if v not in verdicts.KEPT)
    return {
        "data": "self_distill", "rows": expected, **{v: tally[v] for v in verdicts.VERDICTS}, "fallback": fallback,
        "quarantined": 0, "prompt_tokens": tokens["prompt"], "completion_tokens": tokens["completion"],
    }  # fmt: skip


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
    text = prompts.text(tokenizer, prompts.rewrite(question, row["reference"]))
    # A chat template writes its own begin token; a second one would shift the whole prompt.
    tokens = tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids
    return {**row, "prompt": text, "tokens": tokens}


def _watch(recipe: Recipe, teacher: Path, url: str, shards: list[dict[str, Any]]) -> None:
    """Run the pipeline over `shards` and print counts, rates and time left."""
    if not shards:
        return
    total, done, tally, began, said = sum(len(s["rows"]) for s in shards), 0, Counter[str](), 0.0, 0.0
    say(f"generate: starting {recipe.generate.engines} engine(s) for {teacher.name}")
    for batch in _pipeline(recipe, teacher, url, shards).iter_batches(batch_size=None, batch_format="pyarrow"):
        now = time.monotonic()
        began = began or now - 1e-3
        for stats in batch.to_pylist():
            done += stats.pop("rows")
            tally.update(stats)
        if now - said > 5 or done == total:
            said, speed = now, done / max(now - began, 1.0)
            kept = ", ".join(f"{tally[v]:,} {v}" for v in verdicts.VERDICTS if tally[v])
            say(f"generate: {done:,} of {total:,} rows ({kept}), {speed:.0f} rows/s, {(total - done) / speed:.0f} s left")


def _pipeline(recipe: Recipe, teacher: Path, url: str, shards: list[dict[str, Any]]) -> Any:
    """The lazy Ray Data pipeline: shards → vLLM engines → verdicts and commit, one block a shard."""
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from serving import engine

    settings = recipe.generate
    config = vLLMEngineProcessorConfig(
        model_source=str(teacher),
        engine_kwargs=engine.engine_kwargs(recipe.teacher.max_model_len, settings.max_num_seqs, recipe.teacher.dtype),
        batch_size=settings.shard_rows,
        max_concurrent_batches=max(2, -(-2 * settings.max_num_seqs // settings.shard_rows)),
        concurrency=(settings.engines, settings.engines),
        accelerator_type=None,
        placement_group_config=engine.placement_group_config(),
        runtime_env={"env_vars": engine.env_vars()},
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}

    def before(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["prompt"], "tokenized_prompt": row["tokens"], "sampling_params": _seeded(sampling, row, recipe.seed)}

    def after(row: dict[str, Any]) -> dict[str, Any]:
        return {key: row.get(key) for key in (*_CARRIED, *_GENERATED)}

    processor = build_processor(config, preprocess=before, postprocess=after)
    tables = [_table(shard) for shard in shards]
    options = {"settings": settings, "url": url}
    return processor(ray.data.from_arrow(tables)).map_batches(
        _judge_and_commit, fn_kwargs=options, batch_size=None, batch_format="pyarrow", num_cpus=0.5
    )


_CARRIED = ("id", "task", "context", "input", "reference", "answer", "kind", "split", "prompt", "shard", "shard_rows")
_GENERATED = ("generated_text", "num_generated_tokens", "num_input_tokens", "__inference_error__")


def _table(shard: dict[str, Any]) -> pa.Table:
    extra = {"shard": shard["name"], "shard_rows": len(shard["rows"])}
    return pa.Table.from_pylist([{**row, **extra} for row in shard["rows"]])


def _seeded(sampling: dict[str, Any], row: dict[str, Any], seed: int) -> dict[str, Any]:
    """Sampling with a seed of the row's own, so that a row's text does not depend on its neighbours."""
    return sampling if not sampling["temperature"] else {**sampling, "seed": (int(row["id"][:8], 16) + seed) % 2**31}


def _judge_and_commit(block: pa.Table, settings: Generate, url: str) -> pa.Table:
    """Judge the rows of whole shards and commit them; returns one row of counts a shard."""
    shards: dict[str, list[dict[str, Any]]] = {}
    for row in block.to_pylist():
        shards.setdefault(row["shard"], []).append(row)
    done = []
    for name, rows in shards.items():
        if len(rows) != rows[0]["shard_rows"]:
            raise RuntimeError(f"shard {name} came with {len(rows)} of {rows[0]['shard_rows']} rows in one block")
        judged = [_judged(row, _generated(row, settings)) for row in sorted(rows, key=lambda row: row["id"])]
        _commit(url, name, judged)
        done.append({"rows": len(rows), **{v: sum(row["verdict"] == v for row in judged) for v in verdicts.VERDICTS}})
    return pa.Table.from_pylist(done)


def _generated(row: dict[str, Any], settings: Generate) -> dict[str, Any]:
    """The engine's part of an output row."""
    error = row["__inference_error__"] or ""
    made = row["num_generated_tokens"] or 0
    reason = "" if error else "length" if made >= settings.max_tokens else "stop"
    tokens = {"prompt_tokens": row["num_input_tokens"] or 0, "completion_tokens": made}
    return {"text": row["generated_text"] or "", "finish_reason": reason, "error": error, **tokens}


def _refused(row: dict[str, Any]) -> dict[str, Any]:
    error = f"the prompt has {len(row['tokens'])} tokens, too many for teacher.max_model_len less generate.max_tokens"
    return {"text": "", "finish_reason": "", "error": error, "prompt_tokens": len(row["tokens"]), "completion_tokens": 0}


def _judged(row: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """One output row, as the schema in the reference has it."""
    about = {key: row[key] for key in ("kind", "answer", "prompt", "reference")}
    said = verdicts.verdict(text=made["text"], finish_reason=made["finish_reason"], error=made["error"], **about)
    kept = {key: row[key] for key in ("id", "task", "context", "input", "kind", "answer", "split")}
    ours = {"sample": 0, "prompt": row["prompt"], "reference": row["reference"], "rationale": None, "label": None}
    return kept | ours | made | {"verdict": said, "target": verdicts.target(said, made["text"], row["reference"])}


def _commit(url: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Create the shard's file, once; a second writer's copy is thrown away."""
    buffer = io.BytesIO()
    extra = [(key, pa.string()) for key in rows[0] if key not in OURS.names]
    schema = pa.schema([*OURS, *(pa.field(key, kind) for key, kind in extra)])
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    storage.create(storage.join(url, name), buffer.getvalue())
