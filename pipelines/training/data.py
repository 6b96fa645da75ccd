"""The file of rows that a student learns from: what it must hold, and its rows a group at a time."""

from typing import Any

import numpy as np

from pipelines.objectives import LABEL, TASKS
from pipelines.recipe_file import BadInput, nearest

TEXT, NUMBER = ("id", "prompt", "target"), "weight"
MORE = ("history", "task", NUMBER)  # where they are there


def groups(file: str) -> list[int]:
    """The rows of each row group of a Parquet file (train.train says which columns), from its footer. Raises BadInput
    with the file, the column, and what is needed."""
    import pyarrow as pa
    from pyarrow import parquet

    from cluster import storage

    fs, path = storage.filesystem(file)
    try:
        if fs.isdir(path):
            raise BadInput(f"training data {file} are a folder; a single Parquet file is needed")
        with fs.open(path, "rb") as opened:
            footer = parquet.ParquetFile(opened)
            names = footer.schema_arrow.names
            fields = {field.name: field.type for field in footer.schema_arrow}
            sizes = [footer.metadata.row_group(group).num_rows for group in range(footer.num_row_groups)]
    except FileNotFoundError as error:
        raise BadInput(f"training data {file} do not exist") from error
    except pa.ArrowInvalid as error:
        raise BadInput(f"training data {file} are not a Parquet file that can be read: {error}") from error
    for name in (*TEXT, *(name for name in MORE if name in fields)):
        if names.count(name) > 1:
            raise BadInput(f"training data {file} have {names.count(name)} columns {name!r}; which one is meant?")
        _check_column(file, name, fields)
    if not sum(sizes):
        raise BadInput(f"nothing to train on in {file}: there are no rows")
    return [size for size in sizes if size]


def rows(file: str, group: int) -> list[dict[str, Any]]:
    """The rows of the row group of that number among those that `groups` tells of. Raises OSError and RuntimeError
    where it is damaged, with the file."""
    import pyarrow as pa
    from pyarrow import parquet

    from cluster import storage

    fs, path = storage.filesystem(file)
    with fs.open(path, "rb") as opened:
        footer = parquet.ParquetFile(opened)
        filled = [at for at in range(footer.num_row_groups) if footer.metadata.row_group(at).num_rows]
        needed = [*TEXT, *(name for name in MORE if name in footer.schema_arrow.names)]
        try:
            table = footer.read_row_group(filled[group], columns=needed)
            table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            kind = OSError if isinstance(error, OSError) else RuntimeError
            raise kind(f"training data {file} are damaged in row group {filled[group]}: {error}") from None
        return table.to_pylist()


def fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, if anything: a column without a value, a task that is none, a weight that cannot be
    one."""
    if missing := [name for name in TEXT if row[name] is None]:
        return f"no {missing[0]}; every row needs one"
    if (row.get("task") or LABEL) not in TASKS:
        return f"no task {row['task']!r}; there are {', '.join(TASKS)}"
    if not 0 <= weight(row) < np.inf:
        return f"the weight {row[NUMBER]}; one is a number from 0 up"
    return None


def weight(row: dict[str, Any]) -> float:
    """Of a row in its loss; 1 where none is given."""
    return 1.0 if row.get(NUMBER) is None else float(row[NUMBER])


def _check_column(file: str, name: str, fields: dict[str, Any]) -> None:
    """Raise BadInput where a column is missing, or holds another kind (a number will do for an id)."""
    from pyarrow import types

    if name not in fields:
        close = nearest(name, list(fields))
        raise BadInput(f"training data {file} lack the column {name!r}{close}; needed: id, prompt, target (text)")
    kind = fields[name].value_type if types.is_dictionary(fields[name]) else fields[name]
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    fits = (number, "a number") if name == NUMBER else (text or (name == "id" and types.is_integer(kind)), "text")
    if not (fits[0] or types.is_null(kind)):
        raise BadInput(f"training data {file}: the column {name!r} holds {kind}; {fits[1]} is needed")
