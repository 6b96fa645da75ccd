"""Shards of generated rows: the schema, the verdict on each row, the commit, and the counts.

A shard's Parquet file is made whole in memory and created once under its deterministic name. So what
is there under a final name is whole, and a second writer's copy is thrown away.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import verdicts
from pipelines.steps import QUARANTINE

OURS = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "prompt", "reference", "text", "rationale", "label", "target")]
    + [(name, pa.string()) for name in ("verdict", "finish_reason", "error")]
    + [(name, pa.int64()) for name in ("sample", "prompt_tokens", "completion_tokens")]
)


INPUT = ("id", "task", "context", "input", "kind", "answer", "split", "history")
CARRIED = (*INPUT, "reference", "prompt", "shard", "shard_rows")
GENERATED = ("generated_text", "num_generated_tokens", "num_input_tokens", "__inference_error__")


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
        "quarantined": tally["error"], "prompt_tokens": tokens["prompt"], "completion_tokens": tokens["completion"],
    }  # fmt: skip


def quarantine(url: str) -> None:
    """Write `url/quarantine.jsonl`: the rows that no engine could answer, one a line, each with its reason."""
    held = [row for row in rewrites(url) if row["verdict"] == "error"]
    lines = [
        json.dumps({key: row[key] for key in ("id", "task", "error", "input")}, ensure_ascii=False) for row in held
    ]
    storage.create(storage.join(url, QUARANTINE), "".join(f"{line}\n" for line in lines).encode())


def judge_and_commit(block: pa.Table, max_tokens: int, url: str) -> pa.Table:
    """Judge the rows of whole shards and commit them; returns one row of counts a shard."""
    shards: dict[str, list[dict[str, Any]]] = {}
    for row in block.to_pylist():
        shards.setdefault(row["shard"], []).append(row)
    done = []
    for name, rows in shards.items():
        if len(rows) != rows[0]["shard_rows"]:
            raise RuntimeError(f"shard {name} came with {len(rows)} of {rows[0]['shard_rows']} rows in one block")
        judged = [_judged(row, _generated(row, max_tokens)) for row in sorted(rows, key=lambda row: row["id"])]
        _commit(url, name, judged)
        done.append({"rows": len(rows), **{v: sum(row["verdict"] == v for row in judged) for v in verdicts.VERDICTS}})
    return pa.Table.from_pylist(done)


def _generated(row: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """The engine's part of an output row."""
    error = row["__inference_error__"] or ""
    made = row["num_generated_tokens"] or 0
    reason = "" if error else "length" if made >= max_tokens else "stop"
    tokens = {"prompt_tokens": row["num_input_tokens"] or 0, "completion_tokens": made}
    return {"text": row["generated_text"] or "", "finish_reason": reason, "error": error, **tokens}


def refuse(url: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Commit a shard of rows whose prompts are too long for the engine: errors, which fall back."""
    _commit(url, name, [_judged(row, _refused(row)) for row in rows])


def _refused(row: dict[str, Any]) -> dict[str, Any]:
    error = f"the prompt has {len(row['tokens'])} tokens, too many for teacher.max_model_len less generate.max_tokens"
    return {
        "text": "",
        "finish_reason": "",
        "error": error,
        "prompt_tokens": len(row["tokens"]),
        "completion_tokens": 0,
    }


def _judged(row: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """One output row, as the schema in the reference has it."""
    about = {key: row[key] for key in ("kind", "answer", "prompt", "reference")}
    said = verdicts.verdict(text=made["text"], finish_reason=made["finish_reason"], error=made["error"], **about)
    kept = {key: row[key] for key in INPUT}
    ours = {"sample": 0, "prompt": row["prompt"], "reference": row["reference"], "rationale": None, "label": None}
    return kept | ours | made | {"verdict": said, "target": verdicts.target(said, made["text"], row["reference"])}


def _commit(url: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Create the shard's file, once; a second writer's copy is thrown away."""
    buffer = io.BytesIO()
    extra = [(key, pa.string()) for key in rows[0] if key not in OURS.names]
    schema = pa.schema([*OURS, *(pa.field(key, kind) for key, kind in extra)])
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    storage.create(storage.join(url, name), buffer.getvalue())
