"""Column types: one answer whatever the order, and cells that always make an Arrow array."""

import datetime
import decimal
from itertools import permutations
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation import columns

TEXTS = ["null", "bool", "int8", "int64", "uint64", "float", "double", "string", "date32[day]", "binary"]
TEXTS += ["timestamp[us]", "timestamp[us, tz=UTC]", "decimal128(10, 2)"]


def test_types_meet_in_any_order() -> None:
    for some in permutations(TEXTS, 3):
        a, b, c = some
        assert columns.wider(a, b) == columns.wider(b, a)
        assert columns.wider(columns.wider(a, b), c) == columns.wider(a, columns.wider(b, c))
        assert columns.wider(a, a) == a and columns.wider("null", a) == a


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("int64", "double", "double"), ("int8", "int64", "int64"), ("int8", "int32", "int64"),
        ("float", "int32", "double"), ("bool", "int64", "string"), ("uint64", "int64", "string"),
        ("date32[day]", "timestamp[us]", "string"), ("string", "double", "string"),
    ],
)  # fmt: skip
def test_what_two_types_have_in_common(one: str, other: str, both: str) -> None:
    assert columns.wider(one, other) == both


def test_parquet_types_go_through_text() -> None:
    kept = [*columns.KEPT.values(), pa.timestamp("ns", "Europe/Berlin"), pa.decimal128(38, -2), pa.decimal256(50, 3)]
    schema = pa.schema([(f"c{number}", kind) for number, kind in enumerate(kept)])
    assert [columns.arrow(kind) for kind in columns.of_schema(schema).values()] == kept
    others = {pa.large_string(): "string", pa.dictionary(pa.int8(), pa.string()): "string", pa.null(): "null"}
    others |= {pa.list_(pa.int64()): "string", pa.struct([("a", pa.int8())]): "string", pa.binary(4): "binary"}
    for kind, text in others.items():
        assert columns.of_schema(pa.schema([("c", kind)])) == {"c": text}
    assert columns.arrow("null") == pa.string()


def test_a_column_of_nulls_is_stored_as_strings() -> None:
    types = {"a": "null", "b": "int64", "c": "string"}
    assert columns.stored(types) == {"a": "string", "b": "int64", "c": "string"} and types["a"] == "null"
    assert {name: columns.arrow(kind) for name, kind in types.items()} == {
        name: columns.arrow(kind) for name, kind in columns.stored(types).items()
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.lists(JSON | st.integers(2**62, 2**65), max_size=5))
def test_cells_of_json_make_an_array_of_their_columns_type(values: list[Any]) -> None:
    within = {int: lambda v: columns.LEAST <= v <= columns.LARGEST}
    seen = [("c", type(v) if within.get(type(v), lambda v: True)(v) else str) for v in values]
    kind = columns.of(seen).get("c", "null")
    made = pa.array([columns.cell(value, kind) for value in values], columns.arrow(kind))
    made.validate(full=True)
    assert [value is None for value in values] == [value is None for value in made.to_pylist()]
    for value, stored in zip(values, made.to_pylist(), strict=True):
        if isinstance(value, str):
            assert stored == value.encode("utf8", "replace").decode()
        elif type(value) in (bool, int) and kind != "string":
            assert stored == value or kind == "double"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"), ("\ud800b", "?b"), (True, "true"), (3, "3"), ([{"ü": None}], '[{"ü": null}]'), ({}, "{}"),
        (datetime.date(2026, 1, 2), "2026-01-02"), (decimal.Decimal("1.50"), "1.50"), (b"a\xff", "a\\xff"),
        ([decimal.Decimal(1), datetime.time(1)], '["1", "01:00:00"]'), (["\ud800"], '["?"]'),
        (datetime.timedelta(hours=1), "1:00:00"),
    ],
)  # fmt: skip
def test_cells_of_a_string_column(value: Any, text: str) -> None:
    assert columns.cell(value, "string") == text


def test_keys_that_hold_data_are_refused() -> None:
    many = {f"c{number}": "bool" for number in range(columns.MOST)}
    assert len(columns.merge(many, {"c1": "int64"})) == columns.MOST
    with pytest.raises(ValueError, match=r"more than 2,000 columns.*'other'"):
        columns.merge(many, {"other": "bool"})
    assert columns.merge({"a": "bool"}, {"\ud800": "bool", "b": "bool"}) == {"a": "bool", "b": "bool"}


def test_cells_of_parquet_make_an_array_of_their_columns_type() -> None:
    """And in a column that they share with another type."""
    for kind in [*columns.KEPT.values(), pa.timestamp("ns", "Europe/Berlin"), pa.decimal128(25, 2)]:
        one = {pa.date64(): 86_400_000, pa.time64("ns"): 1000}.get(kind, 1)  # a day; what Python's time can hold
        raw = pa.array([0, one, None], pa.int64())
        given = pa.array(["a", "b", None]) if kind == pa.string() else raw.cast(pa.string())
        if kind not in (pa.string(), pa.binary()):
            given = raw.cast(pa.int32()) if kind in (pa.date32(), pa.time32("s"), pa.time32("ms")) else raw
        given = given.cast(kind)
        (text,) = columns.of_schema(pa.schema([("c", kind)])).values()
        values = given.to_pylist()
        assert pa.array([columns.cell(value, text) for value in values], columns.arrow(text)) == given
        for other in ("double", "bool", "date32[day]"):
            both = columns.wider(text, other)
            if both != text:
                made = pa.array([columns.cell(value, both) for value in values], columns.arrow(both))
                assert made.null_count == 1
