"""Records: one question each, with its reference answer, and the readers that make them.

Pure but for opening files. A record's id is the hash of its content and its occurrence number, so two
equal rows stay two rows and the same file gives the same ids on every machine.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import answers
from pipelines.recipe import Dataset

MAX_TEXT = 200_000  # characters of one field; a longer one is a bad row


@dataclass(frozen=True)
class Record:
    """One question. `kind` is the answer kind; `answer` the short right answer, "" for kind none."""

    id: str
    task: str
    context: str
    input: str
    reference: str
    answer: str
    kind: str
    split: str


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why. `line` counts rows from 1."""

    file: str
    line: int
    reason: str


SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Record)])


def raw_rows(url: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row) of a JSONL, Parquet or CSV file, gzipped or not; a row that does not parse comes
    as the reason in words. Raises ValueError for a missing file or an unknown ending."""
    name = url.removesuffix(".gz")
    try:
        data = storage.read(url)
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, ImportError) as error:
        raise ValueError(f"data file {url!r} cannot be read: {error}") from error
    if url.endswith(".gz"):
        data = gzip.decompress(data)
    if name.endswith(".parquet"):
        for line, row in enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1):
            yield line, row
    elif name.endswith(".csv"):
        yield from enumerate(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))), 2)
    elif name.endswith((".jsonl", ".ndjson")):
        for line, text in enumerate(data.split(b"\n"), 1):
            if text.strip():
                yield line, _json_row(text)
    else:
        raise ValueError(f"data file {url!r} has an unknown ending; use .jsonl, .parquet or .csv (also .gz)")


def read(dataset: Dataset, url: str, split: str, limit: int | None) -> tuple[list[Record], list[BadRow]]:
    """Records of one file under one data set's column names, `limit` at most; bad rows apart."""
    records: list[Record] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for line, row in raw_rows(url):
        if limit is not None and len(records) >= limit:
            break
        made = row if isinstance(row, str) else _record(dataset, row, split)
        if isinstance(made, str):
            bad.append(BadRow(url, line, made))
        else:
            records.append(numbered(made, seen))
    return records, bad


def numbered(content: dict[str, str], seen: Counter[str]) -> Record:
    """The record of `content`; `seen` counts equal contents, so that each gets an id of its own."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()
    seen[digest] += 1
    identity = hashlib.sha256(f"{digest}/{seen[digest]}".encode()).hexdigest()[:20]
    return Record(id=identity, **content)


def table(records: list[Record]) -> pa.Table:
    """`records` as an Arrow table of strings, one column a field."""
    return pa.Table.from_pylist([asdict(record) for record in records], SCHEMA)


def _json_row(text: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON object is needed, this is a {type(row).__name__}"


def _record(dataset: Dataset, row: dict[str, Any], split: str) -> dict[str, str] | str:
    """The content of a record, or the reason why the row is bad."""
    columns = {"input": dataset.input, "reference": dataset.reference}
    columns |= {"context": dataset.context} if dataset.context else {}
    columns |= {"answer": dataset.answer} if dataset.answer else {}
    found: dict[str, str] = {"context": "", "answer": ""}
    for field, column in columns.items():
        value = row.get(column)
        if value is None:
            return f"column {column!r} is missing; the row has {', '.join(map(repr, list(row)[:12]))}"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > MAX_TEXT:
            return f"column {column!r} has {len(text):,} characters, more than {MAX_TEXT:,}"
        found[field] = text.strip()
    if not found["input"]:
        return f"column {dataset.input!r} is empty"
    if dataset.format == "gsm8k":
        found["reference"] = re.sub(r"<<[^<>\n]*>>", "", found["reference"])
    if dataset.kind != "none":
        right = answers.extract(found["answer"] or found["reference"], dataset.kind)
        if right is None and found["answer"]:
            right = found["answer"]
        if right is None:
            return f"no {dataset.kind} answer in column {dataset.answer or dataset.reference!r}"
        found["answer"] = right
    return {"task": dataset.name, "kind": dataset.kind, "split": split, **found}
