"""Rows as token ids: each row group of the data becomes an Arrow file of encoded rows, by a task of Ray Data."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import conversations, prompts
from pipelines.objectives import LABEL, TASKS, TEXT
from pipelines.training import batches, data, reading

SOME = 1000  # rows that are encoded at once
KEPT, TRUNCATED, TOO_LONG, WEIGHTLESS, FAULTY = range(5)  # what became of a row
LEARNED = (KEPT, TRUNCATED)
ENCODED = pa.schema([
    ("id", pa.string()), ("ids", pa.large_list(pa.int32())), ("prompt", pa.int32()), ("task", pa.int8()),
    ("weight", pa.float64()), ("reads", pa.list_(pa.list_(pa.int32()))),
])  # fmt: skip
TOLD = pa.schema([
    ("number", pa.int64()), ("id", pa.string()), ("task", pa.int8()), ("length", pa.int32()), ("state", pa.int8()),
    ("fault", pa.string()),
])  # fmt: skip


def encode(
    batch: pa.Table, first: list[int], pruned: str, file: str, folder: Path, max_length: int, long_rows: str,
    reads: reading.Reads | None = None, chunk: int = 0,
) -> pa.Table:  # fmt: skip
    """Encode one row group of `file`: the only row of `batch` is its number, `first` where each begins. Its rows go to
    `part(folder, group)` (ENCODED; one that is left out has no ids), what is to be told of each is returned (TOLD).
    `reads`: of the mask predictor, where there is one; `chunk`: tokens of a document that it reads at a time."""
    group = batch.column("group")[0].as_py()
    rows, told = data.rows(file, group), []
    with writing(part(folder, group)) as out:
        for start in range(0, len(rows), SOME):
            some = rows[start : start + SOME]
            made = _encoded(_tokenizer(pruned), some, max_length, long_rows, reads, chunk)
            out.write_batch(pa.RecordBatch.from_pylist([row for row, _, _ in made], ENCODED))
            told += [
                {"number": first[group] + start + at, "id": None if given["id"] is None else row["id"],
                 "task": row["task"], "length": len(row["ids"]), "state": state, "fault": fault}
                for at, (given, (row, state, fault)) in enumerate(zip(some, made, strict=True))
            ]  # fmt: skip
    return pa.Table.from_pylist(told, TOLD)


@contextmanager
def writing(target: Path) -> Iterator[Any]:
    """A writer of record batches of ENCODED, whose file gets its name when it is whole."""
    partial = target.with_suffix(".part")
    with partial.open("wb") as sink, pa.ipc.new_file(sink, ENCODED) as out:
        yield out
    partial.replace(target)


def part(folder: Path, group: int) -> Path:
    """The file of a row group's encoded rows."""
    return folder / f"rows-{group:05d}.arrow"


def _encoded(
    tokenizer: Any, rows: list[dict[str, Any]], max_length: int, long_rows: str, reads: reading.Reads | None, chunk: int
) -> list[tuple[dict[str, Any], int, str | None]]:
    """Each row as ENCODED has it, what became of it, and what is wrong with it."""
    asked, faults = [], []
    for row in rows:
        messages, fault = _asked(row)
        asked.append(messages)
        faults.append(fault)
    targets = [row["target"] or "" for row in rows]
    made = []
    for row, messages, fault, (ids, prompt, _) in zip(
        rows, asked, faults, batches.encode_all(tokenizer, asked, targets), strict=True
    ):
        state, read = KEPT, []
        if row.get("task") == TEXT:
            ids, prompt = tokenizer(row["target"], add_special_tokens=False).input_ids[:max_length], chunk
        if fault:
            ids, state = [], FAULTY
        elif len(ids) > max_length:
            cut = long_rows == "truncate" and prompt < max_length
            ids, state = (ids[:max_length], TRUNCATED) if cut else ([], TOO_LONG)  # cut off: the end token as well
        task = 0 if fault else TASKS.index(row.get("task") or LABEL)
        weight = 0.0 if fault else data.weight(row)
        if state in LEARNED and not (weight and len(ids) > max(prompt, 1)):  # no token of it counts in any loss
            ids, state = [], WEIGHTLESS
        if reads and state in LEARNED:
            try:
                text = row.get("task") == TEXT
                read = reading.chunks(reads, tokenizer, ids, chunk) if text else [
                    reading.prompt(reads, tokenizer, messages)
                ]  # fmt: skip
            except ValueError as error:
                ids, state, fault = [], FAULTY, str(error)
        kept = {"id": str(row["id"]), "ids": ids, "prompt": prompt, "task": task, "weight": weight, "reads": read}
        made.append((kept, state, fault))
    return made


def _asked(row: dict[str, Any]) -> tuple[list[prompts.Message], str | None]:
    """The question of a row as messages, or what is wrong with the row."""
    if fault := data.fault(row):
        return prompts.answer(""), fault
    try:
        return prompts.answer(row["prompt"], conversations.load(row.get("history"))), None
    except conversations.Unfit as error:
        return prompts.answer(""), f"history: {error}"


@lru_cache(1)
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
