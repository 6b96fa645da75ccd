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
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import answers, conversations
from pipelines.conversations import Unfit
from pipelines.recipe import Dataset


@dataclass(frozen=True)
class Record:
    """One question. `kind` is the answer kind; `answer` the short right answer, "" for kind none.

    `history` holds the turns before the question as JSON text, "" where it opens the conversation."""

    id: str
    task: str
    context: str
    input: str
    reference: str
    answer: str
    kind: str
    split: str
    history: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why. `line` counts rows from 1."""

    file: str
    line: int
    reason: str


SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Record)])


def raw_rows(url: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row) of a JSONL, Parquet or CSV file, gzipped or not; a row that does not parse comes
    as the reason in words. Raises ValueError for a file that is missing or broken, or has an unknown ending."""
    name = url.removesuffix(".gz")
    if not name.endswith((".parquet", ".csv", ".jsonl", ".ndjson")):
        raise ValueError(f"data file {url!r} has an unknown ending; use .jsonl, .parquet or .csv (also .gz)")
    try:
        data = storage.read(url)
        data = gzip.decompress(data) if url.endswith(".gz") else data
        if name.endswith(".parquet"):
            yield from enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1)
        elif name.endswith(".csv"):
            yield from _csv_rows(data.decode("utf-8-sig"))
        else:
            yield from ((n, _json_row(text)) for n, text in enumerate(data.split(b"\n"), 1) if text.strip())
    except (OSError, ValueError, ImportError, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"data file {url!r} cannot be read: {error}") from error


def read(
    dataset: Dataset, url: str, split: str, limit: int | None, trained: bool = True
) -> tuple[list[Record], list[BadRow]]:
    """Records of one file under one data set's column names, `limit` at most; bad rows apart.

    `trained`: students learn from the rows, so that each needs a reference answer."""
    records: list[Record] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for line, row in raw_rows(url):
        if limit is not None and len(records) >= limit:
            break
        try:
            records.append(numbered(_content(dataset, row, split, trained), seen))
        except Unfit as reason:
            bad.append(BadRow(url, line, str(reason)))
    return records, bad


def numbered(content: dict[str, str], seen: Counter[str]) -> Record:
    """The record of `content`; `seen` counts equal contents, so that each gets an id of its own.

    Without a history the id is that of the single question, however it was written down."""
    named = {key: value for key, value in content.items() if value or key != "history"}
    text = json.dumps(named, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
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


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows by the line they end on; one with more or fewer cells than the header is none."""
    csv.field_size_limit(max(csv.field_size_limit(), 4 * conversations.MAX_TEXT))
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        wrong = "more" if None in row else "fewer" if None in row.values() else ""
        yield reader.line_num, f"the row has {wrong} cells than the header" if wrong else row


def _content(dataset: Dataset, row: dict[str, Any] | str, split: str, trained: bool) -> dict[str, str]:
    """The content of a record. Raises Unfit with the reason why the row is bad."""
    if isinstance(row, str):
        raise Unfit(row)
    found = {"context": "", "answer": ""}
    needed = trained or (dataset.kind != "none" and not dataset.answer)
    if dataset.messages:
        found |= _turned(dataset, row, needed)
    else:
        found["input"] = _text(row, dataset.input)
        found["reference"] = _text(row, dataset.reference, needed)
    if not found["input"]:
        raise Unfit(f"column {dataset.input!r} is empty")
    if needed and not found["reference"]:
        raise Unfit(f"column {dataset.reference!r} is empty{'; students learn from it' if trained else ''}")
    if dataset.context:
        found["context"] = "" if row.get(dataset.context, "") is None else _text(row, dataset.context)
    if dataset.answer:
        found["answer"] = _text(row, dataset.answer)
    if dataset.format == "gsm8k":
        found["reference"] = re.sub(r"<<[^<>\n]*>>", "", found["reference"])
    if dataset.kind != "none":
        found["answer"] = _right(dataset, found)
    return {"task": dataset.name, "kind": dataset.kind, "split": split, **found}


def _turned(dataset: Dataset, row: dict[str, Any], needed: bool) -> dict[str, str]:
    """History, input and reference of a row that holds a conversation."""
    assert dataset.messages
    if row.get(dataset.messages) is None:
        raise Unfit(_missing(row, dataset.messages))
    before, question, said = conversations.parts(row[dataset.messages])
    if said is None:
        if needed and row.get(dataset.reference) is None:
            raise Unfit(f"the conversation ends with the user's turn, and {_missing(row, dataset.reference)}")
        said = _text(row, dataset.reference, needed)
    return {"input": question, "reference": said, "history": conversations.dump(before)}


def _text(row: dict[str, Any], column: str, needed: bool = True) -> str:
    value = row.get(column)
    if value is None:
        if needed:
            raise Unfit(_missing(row, column))
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return conversations.fit(text, f"column {column!r}")


def _missing(row: dict[str, Any], column: str) -> str:
    if column in row:
        return f"column {column!r} is null"
    return f"column {column!r} is missing; the row has {', '.join(map(repr, list(row)[:12]))}"


def _right(dataset: Dataset, found: dict[str, str]) -> str:
    """The short right answer, normalised where it can be."""
    right = answers.extract(found["answer"] or found["reference"], dataset.kind) or found["answer"]
    if not right:
        where = f"column {dataset.answer or dataset.messages or dataset.reference!r}"
        raise Unfit(f"no {dataset.kind} answer in {where}")
    return right
