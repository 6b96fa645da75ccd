"""Files as streams: pieces that share out every row once, bounded memory, and files that break in the middle."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from pipelines.recipe_file import BadInput
from pipelines.rows import files
from pipelines.rows.files import Piece


def cut(path: Path, target: int) -> list[tuple[int, files.Row]]:
    """All rows of a file's pieces with file-wide numbers."""
    found, before = [], 0
    for piece in files.pieces(str(path), path.stat().st_size, target):
        reading = files.read(piece)
        found += [(before + number, row) for number, row in reading]
        before += reading.lines
    return found


LINES = st.lists(st.sampled_from([b'{"a": 1}', b'{"long": "xxxxxxxxxxxxxxxxxxxxxxxxxxx"}', b"", b" ", b"{", b"3"]))


@settings(deadline=None)
@given(lines=LINES, ended=st.booleans(), target=st.integers(1, 60))
def test_byte_ranges_share_out_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool, target: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    whole = list(files.rows(str(path)))
    assert [number for number, _ in whole] == [number for number, _ in expected]
    assert [row for _, row in whole if isinstance(row, dict)] == [
        json.loads(line) for _, line in expected if len(line) > 1
    ]
    assert cut(path, target) == whole


def test_what_is_appended_moves_no_piece_but_the_last() -> None:
    before, after = (files.pieces("a.jsonl", size, 10) for size in (35, 80))
    assert [(piece.start, piece.stop) for piece in before] == [(0, 10), (10, 20), (20, 30), (30, 35)]
    assert after[:3] == before[:3] and sum(piece.size for piece in after) == 80


def test_small_files_are_not_opened() -> None:
    """None of these is there."""
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.jsonl.gz", "a.csv.gz"):
        assert len(files.pieces(f"/nowhere/{name}", 1000)) == 1
    assert len(files.pieces("/nowhere/a.csv", 1 << 40)) == 1
    with pytest.raises(ValueError, match=r"'/nowhere/a\.parquet' cannot be read: .*No such file"):
        files.pieces("/nowhere/a.parquet", 1 << 40)
    with pytest.raises(ValueError, match=r"unknown ending; use \.jsonl"):
        files.pieces("/nowhere/a.txt", 1)


@pytest.mark.parametrize("target", [1, 20_000, 1 << 30])
def test_row_groups_share_out_every_row_once(tmp_path: Path, target: int) -> None:
    rows = [{"a": number, "b": "x" * 100} for number in range(1000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70, use_dictionary=False, compression="none")
    assert len(files.pieces(str(path), path.stat().st_size, target)) == {1: 15, 20_000: 7}.get(target, 1)
    assert cut(path, target) == list(enumerate(rows, 1)) == list(files.rows(str(path)))


def test_parquet_of_no_rows_has_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.int32())}), path)
    reading = files.read(*files.pieces(str(path), path.stat().st_size))
    assert list(reading) == [] and reading.schema == pa.schema([("a", pa.int32())])


def test_gzipped_parquet_reads_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert list(files.rows(str(tmp_path / "a.parquet.gz"))) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_line_that_is_too_long_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever piece it starts in, and whether or not the file ends with it; one of just that length is a row."""
    monkeypatch.setattr(files, "LONGEST", 30)
    fits = b'{"a": "' + b"x" * 21 + b'"}'
    assert len(fits) == 30
    for end in (b"", b"\n", b'\n{"a": 1}'):
        path = tmp_path / "a.jsonl"
        path.write_bytes(fits + b"\n" + b"y" * 5000 + end)
        expected = [(1, {"a": "x" * 21}), (2, "the line is longer than 0 MiB"), (3, {"a": 1})][
            : 3 if b"1" in end else 2
        ]
        assert list(files.rows(str(path))) == cut(path, 7) == cut(path, 40) == cut(path, 100) == expected


def test_a_reason_does_not_follow_the_end_of_the_line(tmp_path: Path) -> None:
    """A row's id is made of it, and a file may get its last line's end later."""
    for end in (b"", b"\n", b"\r\n"):
        (tmp_path / "a.jsonl").write_bytes(b'{"a":' + end)
        assert list(files.rows(str(tmp_path / "a.jsonl"))) == [
            (1, "not JSON: Expecting value: line 1 column 6 (char 5)")
        ]


def test_rows_nested_too_deep_are_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = ['{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}" for levels in (200, 201, 100_000)]
    path.write_text("\n".join([*deep, json.dumps({"a": [{}] * 500})]))
    found = [row for _, row in files.rows(str(path))]
    assert isinstance(found[0], dict) and isinstance(found[3], dict)
    assert found[1] == "nested deeper than 200 levels" and str(found[2]).startswith("not JSON: maximum recursion")


def test_a_value_that_cannot_be_read_spoils_its_row_alone(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 under the type of a string, and a day past the year 9999."""
    texts = pa.array([b"a", b"\xff", b"c", b"d"]).view(pa.string())
    days = pa.array([0, 1, 2, 10_000_000], pa.int32()).view(pa.date32())
    pq.write_table(pa.table({"text": texts, "day": days}), tmp_path / "a.parquet")
    found = list(files.rows(str(tmp_path / "a.parquet")))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [isinstance(row, dict) for _, row in found] == [True, False, True, False]
    assert str(found[1][1]).startswith("a value cannot be read: 'utf-8' codec")


def test_memory_does_not_follow_the_file(tmp_path: Path) -> None:
    """40 MB in lines, one line of 100 MB in a gzipped file, and a CSV cell that never ends."""
    row = json.dumps({"a": "x" * 1000}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(row * 40_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(row + b"x" * (100 << 20) + b"\n" + row, 1))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b'a,b\n1,"' + b"x\n" * (30 << 20), 1))
    peaks = {}
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv.gz"):
        tracemalloc.start()
        try:
            rows = sum(1 for _ in files.rows(str(tmp_path / name)))
        except ValueError as error:
            assert name == "c.csv.gz" and "field larger than field limit" in str(error)
        else:
            assert rows == {"a.jsonl": 40_000, "b.jsonl.gz": 3}[name]
        peaks[name] = tracemalloc.get_traced_memory()[1] >> 20
        tracemalloc.stop()
    assert peaks["a.jsonl"] < 4 and peaks["b.jsonl.gz"] < 3 * 16 and peaks["c.csv.gz"] < 16, peaks


def test_a_csv_line_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in two it would be two rows."""
    monkeypatch.setattr(files, "LONGEST", 30)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n" + "1," * 40 + "\n")
    with pytest.raises(ValueError, match=r"a\.csv' cannot be read: line 3 is longer"):
        list(files.rows(str(tmp_path / "a.csv")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('id,prompt\n1,hello\n2,"broken\n3,x\n4,y\n5,z\n', r"begins in line 3 does not end well: .* \(line 6\)"),
        ('id,prompt\n1,hello\n\n2,"broken\n3,"x"\n', r"begins in line 4 does not end well: .* \(line 5\)"),
        ('id,prompt\n1,"he said "hi" there"\n2,x\n', r"begins in line 2 does not end well: .* \(line 2\)"),
        ('id,"prompt\n1,hello\n', r"begins in line 1 does not end well"),
        ("id,prompt,id\n1,hello,2\n", "the header names the column 'id' twice"),
        ("prompt,,\nhello,,\n", "the header names the column '' twice"),
    ],
)
def test_a_csv_that_cannot_be_taken_apart_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A lost quote would swallow the rows behind it, one of two columns of a name the other's cells."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"a\.csv' cannot be read: .*{said}"):
        list(files.rows(str(tmp_path / "a.csv")))


def test_csv_rows_by_the_line_that_they_end_on(tmp_path: Path) -> None:
    text = 'a,b\n"1\n2",3\n\n4\n"say ""so""",\n'
    (tmp_path / "a.csv").write_text(text)
    reading = files.read(*files.pieces(str(tmp_path / "a.csv"), len(text)))
    fewer = "the row has fewer cells than the header"
    assert list(reading) == [(3, {"a": "1\n2", "b": "3"}), (5, fewer), (6, {"a": 'say "so"', "b": ""})]
    assert reading.lines == 6
    for nothing in ("", "\n", "\n\n", "a,b\n"):
        (tmp_path / "a.csv").write_text(nothing)
        assert list(files.rows(str(tmp_path / "a.csv"))) == []


@pytest.mark.parametrize("name", ["torn.jsonl.gz", "torn.parquet"])
def test_a_file_that_breaks_in_the_middle_gives_rows_and_then_the_reason(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, [{"a": f"{number:0500d}{number}"} for number in range(20_000)]
    if name.endswith(".gz"):
        whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        path.write_bytes(whole[: len(whole) // 2])
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5000, compression="zstd", use_dictionary=False)
        data = bytearray(path.read_bytes())
        middle = pq.read_metadata(path).row_group(2).column(0).data_page_offset
        data[middle : middle + 2000] = bytes(2000)
        path.write_bytes(data)
    found = []
    with pytest.raises(ValueError, match=rf"{name}' cannot be read: "):
        found.extend(files.rows(str(path)))
    assert 1000 < len(found) < 20_000 and found == list(enumerate(rows[: len(found)], 1))


def test_pieces_of_remote_files(bucket: str) -> None:
    rows = [{"a": number, "b": "x" * 50} for number in range(2000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=300, use_dictionary=False)
    data = {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.parquet": sink.getvalue().to_pybytes()}
    for name, content in data.items():
        url = storage.join(bucket, "rows", name)
        assert storage.create(url, content)
        found = [row for piece in files.pieces(url, len(content), 9000) for _, row in files.read(piece)]
        assert found == rows
    with pytest.raises(ValueError, match=r"rows/none\.jsonl' cannot be read"):
        list(files.read(Piece(storage.join(bucket, "rows", "none.jsonl"), 0, 10, 10)))
