"""The input of a generation job: digests, units, what a scan finds, and rows read shard by shard."""

import datetime
import decimal
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.generation import shards, source

ROWS = [{"prompt": f"Wie groß ist {i}?", "n": i, "x": i / 3, "of": [{"a": None}]} for i in range(50)]


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return str(path)


def sizes(*urls: str) -> dict[str, int]:
    return {url: Path(url).stat().st_size for url in urls}


def planned(*urls: str, rows: int = 7) -> shards.Plan:
    units = source.units(sizes(*urls))
    return shards.plan([source.scan(unit) for unit in units], units, rows, 1 << 20, None, set(), lambda name: [])


def read(plan: shards.Plan) -> list[source.Row]:
    return [
        row for work in plan.work for _, rows in source.read(work.unit, work.shards, work.lines_before) for row in rows
    ]


def test_the_formats_give_the_same_digests(tmp_path: Path) -> None:
    names = ("a.jsonl", "a.jsonl.gz", "a.parquet")
    found = [source.scan(*source.units(sizes(written(tmp_path, name, ROWS)))) for name in names]
    for each in found[1:]:
        assert np.array_equal(each.digests, found[0].digests) and np.array_equal(each.sizes, found[0].sizes)
    assert found[0].columns == found[2].columns == {"prompt": "string", "n": "int64", "x": "double", "of": "string"}


def test_digests_stay_what_they_are() -> None:
    """Committed rows are known by them: these hold for every later version."""
    row = {"z": 1, "a": ["ü", None, True, 1.5, float("nan")], "half": "\ud800"}
    text = b'{"a":["\\u00fc",null,true,1.5,NaN],"half":"\\ud800","z":1}'
    assert source.canonical(row) == text == source.canonical(dict(reversed(row.items())))
    digest = hashlib.sha256(text).digest()[:16]
    assert source.digest(text) == digest
    assert source.identity(digest, 3) == hashlib.sha256(digest + bytes(7) + b"\x03").digest()[:10]
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    other = {"d": day, "n": decimal.Decimal("1.50"), "b": b"\xff", "i": np.int8(3), "l": np.arange(2), "u": 2**70}
    assert json.loads(source.canonical(other)) == {
        "d": "2026-01-02T00:00:00+00:00", "n": "1.50", "b": {"bytes": "ff"}, "i": 3, "l": [0, 1], "u": 2**70,
    }  # fmt: skip
    assert source.canonical({"b": b"ff"}) != source.canonical({"b": "ff"})


def test_units_hold_neighbours_and_grow_at_the_end() -> None:
    found = {f"{number:05d}.jsonl": 1000 for number in range(2500)} | {"big.jsonl": 200 << 20, "z.csv": 90 << 20}
    units = source.units(found)
    assert [len(unit.pieces) for unit in units] == [1000, 1000, 500, 1, 1, 1, 1, 1]
    assert [piece.url for unit in units for piece in unit.pieces if piece.start == 0] == list(found)
    assert source.units(found | {"zz.jsonl": 1})[:-1] == units


def test_a_scan_counts_rows_lines_and_what_does_not_parse(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{\n[]\n{"a": 2.5, "b": null}\n\n\n')
    (tmp_path / "b.csv").write_text("c,a\nx,1\ny\n")
    (tmp_path / "c.jsonl").write_text(f'{{"big": {2**63}}}\n{{"big": {2**63 - 1}}}')
    (unit,) = source.units(sizes(*(str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.jsonl"))))
    found = source.scan(unit)
    assert (found.rows, found.lines, found.unreadable) == ([4, 2, 2], [7, 3, 2], 3)
    assert found.columns == {"a": "string", "b": "null", "c": "string", "big": "string"}
    assert found.digests.shape == (8, 2) and len(np.unique(found.digests, axis=0)) == 8
    assert found.sizes[0] == len('{"a":1}')


def test_rows_come_with_file_line_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are the file's, also where pieces and units cut it."""
    monkeypatch.setattr(source, "UNIT_BYTES", 100)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"a": number, "b": "x" * (number % 30)}) if number % 5 else "{" for number in range(60)]
    path.write_text("\n\n".join(lines))
    other = written(tmp_path, "b.jsonl", ROWS[:2])
    plan = planned(str(path), other)
    assert len(plan.work) > 10 and plan.pending == plan.rows == 62
    rows = read(plan)
    assert [(row.url, row.line) for row in rows[:60]] == [(str(path), 2 * number + 1) for number in range(60)]
    assert [row.content if isinstance(row.content, str) else json.dumps(row.content) for row in rows[:60]] == [
        line if line != "{" else rows[0].content for line in lines
    ]
    assert str(rows[0].content).startswith("not JSON") and [(row.line, row.content) for row in rows[60:]] == [
        (1, ROWS[0]), (2, ROWS[1]),
    ]  # fmt: skip
    digests = [source.scan(unit).digests for unit in source.units(sizes(str(path)))]
    assert len(np.unique(np.concatenate(digests), axis=0)) == 60, "each unreadable row is one of a kind"


@pytest.mark.parametrize("change", ["other", "fewer"])
def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path: Path, change: str) -> None:
    """Else rows would be written under ids that are not theirs."""
    path = written(tmp_path, "a.jsonl", ROWS)
    plan = planned(path)
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"n": 20', '"n": 21') if change == "other" else text[: len(text) // 2])
    with pytest.raises(RuntimeError, match=r"a\.jsonl' has (changed|lost rows) since"):
        read(plan)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", ROWS)
    plan = planned(path)
    Path(path).unlink()
    with pytest.raises(ValueError, match=r"a\.jsonl' cannot be read: .*No such file"):
        read(plan)


def test_rows_keep_ids_of_their_own(tmp_path: Path) -> None:
    """With an id column a row is known by its id alone, whatever else it says; without a usable id it is none."""
    rows = [{"key": "a", "prompt": "one"}, {"key": 7, "prompt": "two"}, {"prompt": "none"}, {"key": "\ud800"}]
    units = source.units(sizes(written(tmp_path, "a.jsonl", rows)))
    scanned = source.scan(units[0], "key")
    plan = shards.plan([scanned], units, 10, 1 << 20, None, set(), lambda name: [])
    found = [row for _, some in source.read(units[0], plan.work[0].shards, 0, "key") for row in some]
    assert [row.id for row in found[:2]] == ["a", "7"]
    assert "is empty or missing" in found[2].content and "no Unicode" in found[3].content
    other = source.units(sizes(written(tmp_path, "b.jsonl", [{**rows[0], "prompt": "else"}])))
    assert np.array_equal(source.scan(other[0], "key").digests[0], scanned.digests[0])
    part = plan.work[0].shards[0].name
    stored = [source.stored(row.id, "key") for row in found[:2]]
    again = shards.plan([scanned], units, 2, 1 << 20, None, {part}, lambda name: stored)
    assert again.done == 2 and again.pending == 2
