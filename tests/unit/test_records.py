"""Readers: ids, bad rows, formats, and what is refused."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import prepare, records
from pipelines.recipe import Dataset, Prune, Recipe

ROWS = [
    {"question": f"What is {i} + 1?", "answer": f"It is {i} + 1 = {i + 1}. The answer is {i + 1}."} for i in range(5)
]


def recipe(**dataset: object) -> Recipe:
    return Recipe(name="r", dataset=(Dataset(name="d", **dataset),), prune=Prune(layers=1))  # type: ignore[arg-type]


def jsonl(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_all_formats_give_the_same_records(tmp_path: Path) -> None:
    dataset = Dataset(name="d", source="x")
    first = jsonl(tmp_path / "rows.jsonl", ROWS)
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(Path(first).read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    lines = ["question,answer", *(f'"{row["question"]}","{row["answer"]}"' for row in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    expected, _ = records.read(dataset, first, "train", None)
    for name in ("rows.jsonl.gz", "rows.parquet", "rows.csv"):
        assert records.read(dataset, str(tmp_path / name), "train", None) == (expected, [])
    assert [r.answer for r in expected] == ["1", "2", "3", "4", "5"]


def test_equal_rows_stay_two_rows(tmp_path: Path) -> None:
    found, _ = records.read(Dataset(name="d", source="x"), jsonl(tmp_path / "a.jsonl", [ROWS[0]] * 3), "train", None)
    assert len({record.id for record in found}) == 3


def test_bad_rows_are_set_aside_with_line_and_reason(tmp_path: Path) -> None:
    rows = [ROWS[0], "{broken", json.dumps([1]), {"question": "?"}, {"question": "q", "answer": "no idea"}, ROWS[1]]
    path = jsonl(tmp_path / "a.jsonl", rows)
    made = prepare.prepare(recipe(source=path, max_bad_rows=4), tmp_path)
    bad = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert (made["rows"], made["bad_rows"], [row["line"] for row in bad]) == (2, 4, [2, 3, 4, 5])
    assert "not JSON" in bad[0]["reason"] and "'answer' is missing" in bad[2]["reason"]
    with pytest.raises(ValueError, match=r"4 bad rows, 3 allowed.*a\.jsonl line 2: not JSON"):
        prepare.prepare(recipe(source=path, max_bad_rows=3), tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("none.jsonl", "cannot be read"), ("empty.jsonl", "is empty"), ("x.xls", "unknown ending")]
)
def test_missing_empty_and_unknown_files(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "x.xls").touch()
    with pytest.raises(ValueError, match=said):
        prepare.prepare(recipe(source=str(tmp_path / name)), tmp_path)


def test_a_trained_question_is_never_scored(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError, match="is a train question too"):
        prepare.prepare(recipe(source=path, test_source=path), tmp_path)


def test_gsm8k_sample_reads_whole_and_without_calculator_marks(tmp_path: Path) -> None:
    made = prepare.prepare(recipe(source="gsm8k-sample"), tmp_path)
    rows = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert (made["rows"], made["bad_rows"]) == (300, 0)
    assert sum(row["split"] == "train" for row in rows) == 200
    assert not any("<<" in row["reference"] for row in rows)
    assert all(row["reference"].rsplit("#### ", 1)[1].replace(",", "") == row["answer"] for row in rows)


def test_tiny_tasks_have_the_rows_asked_for(tmp_path: Path) -> None:
    prepare.prepare(recipe(source="tiny-tasks", families=("story", "sort"), rows=101, test_rows=20), tmp_path)
    rows = pq.read_table(tmp_path / "records.parquet").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 101 and {row["task"] for row in train} == {"story", "sort"}
    assert len(rows) - 101 == 8 * 20 and len({row["id"] for row in rows}) == len(rows)
