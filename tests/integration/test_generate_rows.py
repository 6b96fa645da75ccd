"""What people feed to `regrow generate`: odd rows, odd files, and inputs that change between two goes. Every row that
can be asked is answered once, every other one is in quarantine with its file, line and reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from pipelines import parts
from pipelines.generation import asking, board, flow, shards, source
from tests import generated

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("ray_session")]
Lines = list[tuple[Any, str]]  # a row or line, and a piece of the reason why it is held, "" where it is answered

ODD: Lines = [
    ({"prompt": "", "mark": 1}, "empty"),
    ({"prompt": " \t\n", "mark": 2}, "empty"),
    ({"prompt": None, "mark": 3}, "null"),
    ({"mark": 4}, "missing"),
    ({"prompt": ["a"], "mark": 5}, "list, not text"),
    ({"prompt": {"a": 1}, "mark": 6}, "dict, not text"),
    ({"prompt": True, "mark": 7}, "bool, not text"),
    ({"prompt": 3, "mark": 8}, ""),
    ({"prompt": 2.5, "mark": 9}, ""),
    ({"prompt": "a\u0000b", "mark": 10}, ""),
    (r'{"prompt": "half \ud800 pair", "mark": 11}', "half a surrogate pair at character 5"),
    (r'{"prompt": "fine", "mark": 12, "note": "half \ud800 pair"}', ""),
    ({"prompt": "x" * (1 << 20), "mark": 13}, "1,048,576 characters, more than 200,000"),
    ({"prompt": "fine", "mark": 14, "note": "y " * (1 << 19)}, ""),
    ({"prompt": "twice", "mark": 15}, ""),
    ({"prompt": "twice", "mark": 15}, ""),
    ("", "blank"),
    ('["a", "list"]', "a JSON object is needed, this is a list"),
    ('"text"', "this is a str"),
    ("null", "this is a NoneType"),
    ("not JSON at all", "not JSON"),
    ('{"prompt": "good, then half a pair \\ud83d\\ude00", "mark": 16}', ""),
    ('{"prompt": "' + "z" * 40 + '", "deep": ' + "[" * 300 + "]" * 300 + "}", "nested deeper"),
]


def test_odd_rows(tmp_path: Path) -> None:
    """Each kind of odd row, in a file that ends in half a line: answered, or held with its line and the reason."""
    given = tmp_path / "odd.jsonl"
    given.write_text(generated.lines(one for one, _ in ODD) + '{"prompt": "the file ends he', encoding="utf8")
    expected = {number: why for number, (_, why) in enumerate(ODD, 1) if why and why != "blank"}
    expected[len(ODD) + 1] = "not JSON: Unterminated string"
    marks = [json.loads(one)["mark"] if isinstance(one, str) else one["mark"] for one, why in ODD if not why]

    status, said = generated.command(given, tmp_path / "out", "--shard-rows", "6", "--max-tokens", "1000000")
    assert status == 3 and f"{len(expected)} of {len(ODD)} rows are in quarantine" in said, said
    there = {row["mark"]: row for row in generated.check(tmp_path / "out", marks, len(expected))}
    aside = {row["line"]: row for row in generated.held(tmp_path / "out")}
    assert {line: why for line, why in expected.items() if why not in aside[line]["reason"]} == {}
    assert {row["file"] for row in aside.values()} == {str(given)}
    assert there[10]["text"] == "a\0b" and there[12]["note"] == "half ? pair" and len(there[14]["note"]) == 1 << 20
    assert generated.command(given, tmp_path / "out", "--shard-rows", "6", "--max-tokens", "1000000")[0] == 3


def test_every_row_bad(tmp_path: Path) -> None:
    """A column of the right name that is never filled: all rows held, nothing asked, status 3, a table that reads."""
    given = generated.write(tmp_path / "in.jsonl", [{"prompt": None, "mark": n} for n in range(20)])
    status, said = generated.command(given, tmp_path / "out")
    assert status == 3 and "20 of 20 rows are in quarantine" in said
    generated.check(tmp_path / "out", [], 20)
    assert pq.read_table(tmp_path / "out/data").num_rows == 0


def test_a_file_without_a_single_row_is_refused(tmp_path: Path) -> None:
    """It has no columns to bind an output to: another file was meant."""
    given = generated.write(tmp_path / "text.jsonl", ["no row", "at all"])
    status, said = generated.command(given, tmp_path / "none")
    assert (
        status == 2 and f"no row of the input can be read as one with columns; the first: {given}, line 1: not" in said
    )
    assert not (tmp_path / "none").exists()


def test_columns_named_like_ours(tmp_path: Path) -> None:
    """An input's own columns all come out, whatever their names, and the quarantine tells the true place."""
    own = {"id": 7, "text": "t", "input.prompt": "p", "input.id": "i", "input.input.id": "ii", "input.else": "e",
           "_file": "f", "_line": -1, "sample": "s", "verdict": "v", "error": "e", "": "no name"}  # fmt: skip
    rows = [*generated.rows(5, **own), {"prompt": None, "mark": 5, **own}]
    given = generated.write(tmp_path / "in.jsonl", rows)
    assert generated.run(given, tmp_path / "out")["quarantined"] == 1
    there = generated.check(tmp_path / "out", range(5), 1)
    for row in there:
        kept = parts.own(row)
        assert kept == {**own, "prompt": row["prompt"], "mark": row["mark"]}
        assert row["id"] != 7 and row["text"] == row["prompt"] and row["verdict"] == "unchecked"
    (aside,) = generated.held(tmp_path / "out")
    assert (aside["file"], aside["line"]) == (str(given), 6)


def test_types_that_change(tmp_path: Path) -> None:
    """A column's type follows from all rows of all files, so that parts of one table agree on it."""
    values = [1, 2.5, None, "word", [1, {"a": None}], {"b": 1}, True, 2**70, "é"]
    generated.write(
        tmp_path / "in/a.jsonl", [{"prompt": "p", "mark": n, "any": v, "n": n} for n, v in enumerate(values)]
    )
    generated.write(tmp_path / "in/b.jsonl", [{"prompt": "p", "mark": 9, "n": 0.5, "big": 2**63}])
    table = pa.table(
        {"prompt": ["p"], "mark": pa.array([10], pa.int32()), "any": [[1, 2]], "n": pa.array([3], pa.int8())}
    )
    pq.write_table(table, tmp_path / "in/c.parquet")
    generated.run(tmp_path / "in", tmp_path / "out", shard_rows=2)
    there = {row["mark"]: row for row in generated.check(tmp_path / "out", range(11))}
    said = ["1", "2.5", None, "word", '[1, {"a": null}]', '{"b": 1}', "true", str(2**70), "é", None, "[1, 2]"]
    assert [there[n]["any"] for n in range(11)] == said
    assert [there[n]["n"] for n in range(11)] == [*map(float, range(9)), 0.5, 3.0] and there[9]["big"] == str(2**63)
    schemas = {str(pq.read_schema(path).remove_metadata()) for path in (tmp_path / "out/data").iterdir()}
    assert len(schemas) == 1 and len(list((tmp_path / "out/data").iterdir())) >= 6


def test_own_ids(tmp_path: Path) -> None:
    """With --id a row keeps its id; rows that lack one are held, two rows of one id are refused before any work."""
    rows = [*generated.rows(4), {"prompt": "no id"}, {"prompt": "empty", "mark": ""}]
    given = generated.write(tmp_path / "in.jsonl", rows)
    assert generated.command(given, tmp_path / "out", "--id", "mark")[0] == 3
    there = generated.check(tmp_path / "out", range(4), 2)
    assert sorted(row["id"] for row in there) == ["0", "1", "2", "3"]
    before = generated.bytes_of(tmp_path / "out")
    generated.write(given, [*rows, *generated.rows(3, start=4)])
    assert generated.command(given, tmp_path / "out", "--id", "mark")[0] == 3
    generated.check(tmp_path / "out", range(7), 2, before)
    twice = generated.write(tmp_path / "twice.jsonl", [*rows, {"prompt": "another", "mark": 2}])
    status, said = generated.command(twice, tmp_path / "other", "--id", "mark")
    assert status == 2 and "1 rows have an id that a row before them has" in said and "row 7 " in said
    status, said = generated.command(given, tmp_path / "third", "--id", "name")
    assert status == 2 and "no column 'name' (--id); it has 'prompt', 'mark'" in said


def test_formats_in_one_job(tmp_path: Path) -> None:
    """JSONL, CSV, Parquet, gzipped, with byte-order marks and CRLF, in folders: one input; what is not asked for by
    the pattern is left out."""
    folder, at = tmp_path / "in", generated.rows
    generated.write(folder / "a.jsonl", at(3))
    generated.write(folder / "deep/er/b.jsonl.gz", at(3, 3))
    generated.write(folder / "_SUCCESS", ["not data"])
    generated.write(folder / ".hidden.jsonl", at(3, 100))
    (folder / "c.ndjson").write_bytes(b"\xef\xbb\xbf" + generated.lines(at(3, 6)).replace("\n", "\r\n").encode())
    (folder / "d.csv").write_bytes(
        b'\xef\xbb\xbfprompt,mark\r\n"two\r\nlines, one cell",9\r\nplain,10\r\n"say ""so""",11\r\n'
    )
    pq.write_table(pa.Table.from_pylist(at(3, 12)), folder / "e.parquet")
    status, said = generated.command(folder, tmp_path / "out")
    assert status == 0, said
    there = {int(row["mark"]): row["prompt"] for row in generated.check(tmp_path / "out", range(15))}
    assert there[9] == "two\r\nlines, one cell" and there[11] == 'say "so"' and there[6] == "What is 6 + 6?"

    # A pattern takes part of the same files: those rows are there already, so that nothing is generated.
    before = generated.bytes_of(tmp_path / "out")
    status, said = generated.command(f"{folder}/*.jsonl", tmp_path / "out", "--input", str(folder / "d.csv"))
    assert (status == 2 and "input columns" in said) or status == 0, said
    assert generated.bytes_of(tmp_path / "out") == before
    generated.write(folder / "f.txt", ["text"])
    status, said = generated.command(folder, tmp_path / "out")
    assert status == 2 and "f.txt' has an unknown ending; use .jsonl, .parquet or .csv" in said
    status, said = generated.command(f"{folder}/*.json", tmp_path / "out")
    assert status == 2 and "nothing found" in said


def test_nothing_and_little(tmp_path: Path) -> None:
    """Inputs without rows are done at once; one row is a job like any other."""
    (tmp_path / "zero.jsonl").touch()
    (tmp_path / "head.csv").write_text("prompt,mark\n")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    for name in ("zero.jsonl", "head.csv", "none.parquet"):
        out = tmp_path / name.partition(".")[0]
        status, said = generated.command(tmp_path / name, out)
        assert status == 0 and "0 rows" in said, said
        generated.check(out, [])
    (tmp_path / "torn.parquet").touch()
    status, said = generated.command(tmp_path / "torn.parquet", tmp_path / "out")
    assert status == 2 and "torn.parquet" in said and "no whole Parquet file" in said
    given = generated.write(tmp_path / "one.jsonl", generated.rows(1))
    assert generated.run(given, tmp_path / "one")["rows"] == 1
    generated.check(tmp_path / "one", [0])


def test_ten_thousand_files(tmp_path: Path) -> None:
    """Ten thousand files of a row are some shards of many rows, not as many tasks."""
    for n in range(10_000):
        generated.write(tmp_path / f"in/{n % 100:02}/{n:05}.jsonl", generated.rows(1, n))
    counts = generated.run(tmp_path / "in", tmp_path / "out", shard_rows=1024)
    assert counts["rows"] == 10_000 and counts["parts"] <= 20
    generated.check(tmp_path / "out", range(10_000))


def test_input_that_changes_between_goes(tmp_path: Path) -> None:
    """A limit raised, rows appended, a row edited: only the new rows are written, the parts of before stay."""
    given = generated.write(tmp_path / "in.jsonl", generated.rows(20))
    generated.run(given, tmp_path / "out", limit=10)
    before = generated.bytes_of(tmp_path / "out")
    generated.check(tmp_path / "out", range(10))
    generated.run(given, tmp_path / "out", limit=14)
    generated.check(tmp_path / "out", range(14), before=before)

    generated.write(given, generated.rows(30))
    before = generated.bytes_of(tmp_path / "out")
    generated.run(given, tmp_path / "out")
    generated.check(tmp_path / "out", range(30), before=before)

    edited = [*generated.rows(3), {"prompt": "edited", "mark": "new"}, *generated.rows(26, 4)]
    generated.write(given, edited)
    before = generated.bytes_of(tmp_path / "out")
    status, said = generated.command(given, tmp_path / "out", "--shard-rows", "8")
    assert status == 2 and "mark" in said, "the column's type has changed with the edit"
    edited[3]["mark"] = 30
    generated.write(given, edited)
    status, said = generated.command(
        given, tmp_path / "out", "--shard-rows", "8", "--max-model-len", str(generated.LONG)
    )
    assert status == 0 and "1 rows are there that the input no longer has" in said, said
    generated.check(tmp_path / "out", range(31), before=before)


def test_input_that_changes_under_the_job(tmp_path: Path) -> None:
    """A file that is gone, or another, when its rows are to be read: an error that names it, and nothing torn or
    wrong; with the file back, the job goes on."""
    kept = generated.write(tmp_path / "in/a.jsonl", generated.rows(8))
    moved = generated.write(tmp_path / "in/b.jsonl", generated.rows(8, 8))
    planned = _planned(tmp_path)
    moved.rename(tmp_path / "aside")
    with pytest.raises(RuntimeError, match=r"b\.jsonl.*cannot be read"):
        _run(tmp_path, planned)
    generated.write(moved, generated.rows(8, 80))
    with pytest.raises(RuntimeError, match=r"b\.jsonl' has changed since its rows were planned; run the command again"):
        _run(tmp_path, planned)
    generated.write(moved, generated.rows(4, 8))
    with pytest.raises(RuntimeError, match=r"b\.jsonl' has lost rows"):
        _run(tmp_path, planned)
    before = generated.bytes_of(tmp_path / "out")
    shutil.move(tmp_path / "aside", moved)
    assert generated.run(tmp_path / "in", tmp_path / "out")["rows"] == 16
    generated.check(tmp_path / "out", range(16), before=before)
    assert kept.exists()


def _planned(tmp_path: Path) -> tuple[dict[str, str], list[shards.Work]]:
    """Types and work of the input in `tmp_path`/in, as `generate` plans them."""
    units = [source.units({url: size})[0] for url, size in storage.find(str(tmp_path / "in")).items()]
    scanned = [source.scan(unit) for unit in units]
    planned = shards.plan(scanned, units, 8, shards.SHARD_BYTES, None, set(), lambda name: [])
    return scanned[0].columns, planned.work


def _run(tmp_path: Path, planned: tuple[dict[str, str], list[shards.Work]]) -> list[dict[str, Any]]:
    types, work = planned
    job = asking.settled(generated.job(tmp_path / "out"), types)
    return list(flow.run(job, None, types, work, board.put_up()))
