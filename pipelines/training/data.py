"""The rows that a student learns from, read from their file and encoded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines import conversations, prompts
from pipelines.objectives import LABEL, TASKS
from pipelines.recipe_file import BadInput, nearest
from pipelines.training import batches

TEXT, NUMBER = ("id", "prompt", "target"), "weight"
MORE = ("history", "task", NUMBER)  # where they are there
SOME = 1000  # rows that are encoded at once


class Data(NamedTuple):
    """Training rows in the order of their ids, of which rows of one group have one in common. `too_long`: how many
    were set aside; `truncated`: how many were cut off; `pad`: the padding token."""

    rows: batches.Rows
    ids: list[str]
    too_long: int
    truncated: int
    pad: int


def read(pruned: Path, file: str, max_length: int, long_rows: str = "drop") -> Data:
    """The rows of a Parquet file (train.train says which columns) encoded; of those longer than `max_length` tokens
    becomes what `long_rows` says (`drop`, `truncate`). Raises BadInput with the file, the column or row, and what is
    needed."""
    from transformers import AutoTokenizer

    given = _table(file)
    tokenizer = AutoTokenizer.from_pretrained(pruned, local_files_only=True)
    kept: list[batches.Encoded] = []
    of: list[dict[str, Any]] = []
    truncated = 0
    for row, encoded in zip(given, _encoded(tokenizer, file, given), strict=True):
        if len(encoded.ids) > max_length:
            if long_rows == "drop" or encoded.prompt >= max_length:
                continue
            encoded = encoded._replace(ids=encoded.ids[:max_length])  # the end token is cut off as well
            truncated += 1
        kept.append(encoded)
        of.append(row)
    if not kept:
        long = f"all {len(given)} rows are longer than max_length = {max_length} tokens"
        raise BadInput(f"nothing to train on in {file}: {long if given else 'there are no rows'}")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = [str(row["id"]) for row in of]
    return Data(_flat(kept, of, ids), ids, len(given) - len(kept), truncated, pad)


def _flat(kept: list[batches.Encoded], of: list[dict[str, Any]], ids: Sequence[str]) -> batches.Rows:
    tasks = [TASKS.index(row.get("task") or LABEL) for row in of]
    weights = [1.0 if (weight := row.get(NUMBER)) is None else float(weight) for row in of]
    groups = np.cumsum([False, *(a != b for a, b in zip(ids[1:], ids, strict=False))])
    return batches.flat(kept, tasks, weights, groups.tolist())


def _encoded(tokenizer: Any, file: str, rows: list[dict[str, Any]]) -> Iterator[batches.Encoded]:
    for start in range(0, len(rows), SOME):
        some = rows[start : start + SOME]
        yield from batches.encode_all(tokenizer, [_asked(file, r) for r in some], [r["target"] for r in some])


def _asked(file: str, row: dict[str, Any]) -> list[conversations.Message]:
    try:
        return prompts.answer(row["prompt"], conversations.load(row.get("history")))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"training data {file}, row {row['id']}: history is not the JSON text of a list of turns: {error}"
        ) from error


def _table(file: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file by their ids and tasks, every one with id, prompt and target. Raises BadInput."""
    import pyarrow as pa
    from pyarrow import parquet

    from cluster import storage

    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as opened:
            fields = {field.name: field.type for field in parquet.read_schema(opened)}
            needed = [*TEXT, *(name for name in MORE if name in fields)]
            for name in needed:
                _check_column(file, name, fields)
            order = [(name, "ascending") for name in ("id", "task") if name in fields]
            table = parquet.read_table(opened, columns=needed).sort_by(order)
    except FileNotFoundError as error:
        raise BadInput(f"training data {file} do not exist") from error
    except pa.ArrowInvalid as error:
        raise BadInput(f"training data {file} are not a Parquet file that can be read: {error}") from error
    for name in TEXT:
        if table[name].null_count:
            raise BadInput(f"training data {file}: {table[name].null_count} rows have no {name}; every row needs one")
    return _checked(file, table.to_pylist())


def _checked(file: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raise BadInput for a task that is none, and for a weight that cannot be one."""
    for row in rows:
        if (row.get("task") or LABEL) not in TASKS:
            raise BadInput(
                f"training data {file}, row {row['id']}: no task {row['task']!r}; there are {', '.join(TASKS)}"
            )
        if not 0 <= (1.0 if row.get(NUMBER) is None else row[NUMBER]) < np.inf:
            raise BadInput(
                f"training data {file}, row {row['id']}: the weight {row[NUMBER]}; one is a number from 0 up"
            )
    return rows


def _check_column(file: str, name: str, fields: dict[str, Any]) -> None:
    """Raise BadInput where a column is missing, or holds another kind (a number will do for an id)."""
    from pyarrow import types

    if name not in fields:
        close = nearest(name, list(fields))
        raise BadInput(f"training data {file} lack the column {name!r}{close}; needed: id, prompt, target (text)")
    kind = fields[name].value_type if types.is_dictionary(fields[name]) else fields[name]
    text = types.is_string(kind) or types.is_large_string(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    fits = (number, "a number") if name == NUMBER else (text or (name == "id" and types.is_integer(kind)), "text")
    if not (fits[0] or types.is_null(kind)):
        raise BadInput(f"training data {file}: the column {name!r} holds {kind}; {fits[1]} is needed")
