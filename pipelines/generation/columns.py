"""Types of the input's own columns, found over all rows before the first output is written. Pure.

A type is the text of an Arrow type, so it can stand in JSON. Types form a tree: what two of them have in common is
where their paths to the root meet, so the order in which rows and files are looked at does not matter. The root is
`string`, which holds strings as they are and everything else as JSON.
"""

import contextlib
import datetime
import decimal
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Types = dict[str, str]  # column → type, in the order in which they were seen
MOST = 2_000  # columns; more are keys that hold data
NULL = "null"  # only nulls so far: below every type
LARGEST, LEAST = 2**63 - 1, -(2**63)
PARENT = {
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16", "uint32"), "int64"),
    **dict.fromkeys(("int64", "float", "halffloat"), "double"),
}
JSON = {bool: "bool", int: "int64", float: "double", str: "string", type(None): NULL}
KEPT = {
    str(kind): kind
    for kind in (
        *(pa.bool_(), pa.string(), pa.binary(), pa.date32(), pa.date64()),
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
        *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    )
}


def of(seen: Iterable[tuple[str, type]]) -> Types:
    """The types of columns in rows of JSON or CSV, by the Python types of their values."""
    return merge({}, ((name, JSON.get(kind, "string")) for name, kind in seen))


def of_schema(schema: pa.Schema) -> Types:
    """The types of a Parquet file's columns. Strings of all kinds are `string`, and so is what is nested."""
    return merge({}, ((field.name, _text(field.type)) for field in schema))


def merge(known: Types, more: Types | Iterable[tuple[str, str]]) -> Types:
    """The types of columns that hold both kinds of values; associative, and commutative but for the columns' order.

    Raises ValueError past 2,000 columns. A name that is no Unicode text (half a surrogate pair) gives no column."""
    merged = dict(known)
    for name, kind in more.items() if isinstance(more, Mapping) else more:
        merged[name] = wider(merged.get(name, NULL), kind)
    for name in [name for name in merged if not storable(name)]:
        del merged[name]
    if len(merged) > MOST:
        some = ", ".join(map(repr, [*merged][-3:]))
        raise ValueError(f"the rows have more than {MOST:,} columns ({some}, …); put such keys into one nested column")
    return merged


def stored(types: Types) -> Types:
    """`types` as files hold them: a column without a value yet is one of strings."""
    return {name: "string" if kind == NULL else kind for name, kind in types.items()}


def wider(one: str, other: str) -> str:
    """The narrowest type that holds the values of both."""
    if NULL in (one, other) or one == other:
        return other if one == NULL else one
    above = _above(one)
    return next(kind for kind in _above(other) if kind in above)


def arrow(kind: str) -> pa.DataType:
    """The Arrow type of the text `kind`; `null` is stored as string."""
    if kind == NULL:
        return pa.string()
    if zoned := re.fullmatch(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", kind):
        return pa.timestamp(zoned[1], zoned[2])
    if exact := re.fullmatch(r"decimal(128|256)\((\d+), (-?\d+)\)", kind):
        make = pa.decimal128 if exact[1] == "128" else pa.decimal256
        return make(int(exact[2]), int(exact[3]))
    return KEPT[kind]


def cell(value: Any, kind: str) -> Any:
    """`value` as a column of the type `kind` takes it. In a string column a string stays as it is (half a surrogate
    pair becomes `?`), dates and decimals are written plainly, and everything else is JSON."""
    if value is None:
        return None
    if kind in ("string", NULL):
        return _clean(value if isinstance(value, str) else _spelt(value))
    return float(value) if kind == "double" else value


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """`values` as a column of the type `kind`: each as `cell` makes it."""
    if kind == pa.string() and {type(value) for value in values} <= {str, type(None)}:
        with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair
            return pa.array(values, kind)
    name = str(kind)
    return pa.array([cell(value, name) for value in values] if name in ("string", "double") else values, kind)


def plain(value: Any) -> Any:
    """What JSON can hold of a value that it has no type for: ISO text of dates and times, digits of a decimal, text
    of bytes, lists and numbers of NumPy's arrays and scalars, else its own text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf8", "backslashreplace")
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _spelt(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal | bytes):
        return str(plain(value))
    return json.dumps(value, ensure_ascii=False, default=plain)


def _clean(text: str) -> str:
    return text if storable(text) else text.encode("utf8", "replace").decode()


def storable(text: str) -> bool:
    """Whether `text` is Unicode: no half surrogate pair, which JSON can spell and nothing can store."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def _above(kind: str) -> list[str]:
    """`kind` and the types above it, up to the root."""
    path = [kind]
    while kind != "string":
        kind = PARENT.get(kind, "string")
        path.append(kind)
    return path


def _text(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return NULL
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or str(kind) == "binary_view":
        return "binary"
    try:
        return str(kind) if arrow(str(kind)) == kind else "string"
    except KeyError:
        return "string"
