"""Records: one question each, with its reference answer, made of the rows of files.

A record's id is the hash of its content and its occurrence number, so two equal rows stay two rows and the
same file gives the same ids on every machine.
"""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from pipelines import answers, conversations
from pipelines.conversations import Unfit
from pipelines.recipe import Dataset
from pipelines.rows import files


@dataclass(frozen=True)
class Record:
    """One question. `kind` is the answer kind; `answer` the short right answer, "" for kind none.

    `history` holds the turns before the question as JSON text, "" where it opens the conversation; `weight` that of
    the row in the loss, "" for 1."""

    id: str
    task: str
    context: str
    input: str
    reference: str
    answer: str
    kind: str
    split: str
    history: str = ""
    weight: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why. `line` counts rows from 1."""

    file: str
    line: int
    reason: str


SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Record)])


def read(
    dataset: Dataset, url: str, split: str, limit: int | None, trained: bool = True, labelled: bool = True
) -> tuple[list[Record], list[BadRow]]:
    """Records of one file under one data set's column names, `limit` at most; bad rows apart.

    `trained`: students learn from the references, so that each row needs one. `labelled`: each needs a right answer."""
    records: list[Record] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for line, row in files.rows(url):
        if limit is not None and len(records) >= limit:
            break
        try:
            records.append(numbered(_content(dataset, row, split, trained, labelled), seen))
        except Unfit as reason:
            bad.append(BadRow(url, line, str(reason)))
    return records, bad


def numbered(content: dict[str, str], seen: Counter[str]) -> Record:
    """The record of `content`; `seen` counts equal contents, so that each gets an id of its own.

    Without a history the id is that of the single question, however it was written down."""
    named = {key: value for key, value in content.items() if value or key not in ("history", "weight")}
    text = json.dumps(named, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    seen[digest] += 1
    identity = hashlib.sha256(f"{digest}/{seen[digest]}".encode()).hexdigest()[:20]
    return Record(id=identity, **content)


def table(records: list[Record]) -> pa.Table:
    """`records` as an Arrow table of strings, one column a field."""
    return pa.Table.from_pylist([asdict(record) for record in records], SCHEMA)


def _content(dataset: Dataset, row: dict[str, Any] | str, split: str, trained: bool, labelled: bool) -> dict[str, str]:
    """The content of a record. Raises Unfit with the reason why the row is bad."""
    if isinstance(row, str):
        raise Unfit(row)
    found = {"context": "", "answer": ""}
    needed = trained or (labelled and dataset.kind != "none" and not dataset.answer)
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
        found["answer"] = _text(row, dataset.answer, labelled)
    if dataset.weight and split == "train":
        found["weight"] = _weight(row, dataset.weight)
    if dataset.format == "gsm8k":
        found["reference"] = re.sub(r"<<[^<>\n]*>>", "", found["reference"])
    if dataset.kind != "none" and (labelled or found["answer"] or found["reference"]):
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


def _weight(row: dict[str, Any], column: str) -> str:
    """A row's weight in the loss, as text; "" for 1."""
    if column not in row:
        raise Unfit(_missing(row, column))
    try:
        weight = float(1.0 if row[column] is None else row[column])
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < math.inf:
        raise Unfit(f"column {column!r} holds {str(row[column])[:40]!r}; a weight is a number from 0 up")
    return "" if weight == 1 else repr(weight)


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
