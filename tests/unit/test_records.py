"""Readers: ids, bad rows, formats, and what is refused."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ids, prepare
from pipelines.recipe import Dataset, Prune, Recipe
from pipelines.rows import records
from pipelines.student import Student

ROWS = [
    {"question": f"What is {i} + 1?", "answer": f"It is {i} + 1 = {i + 1}. The answer is {i + 1}."} for i in range(5)
]


def recipe(student: str = "", **dataset: object) -> Recipe:
    data = Dataset(name="d", **dataset)  # type: ignore[arg-type]
    students = (Student(name=student),) if student else ()
    return Recipe(name="r", dataset=(data,), prune=Prune(layers=1), student=students)


def written(folder: Path) -> list[dict]:
    """What prepare wrote there, each row in the file of its split."""
    found = {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    assert all(row["split"] == split for split, rows in found.items() for row in rows)
    return [row for rows in found.values() for row in rows]


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
    wrong = {
        "{broken": "not JSON",
        "[1]": "a JSON object is needed, this is a list",
        '{"question": "?"}': "column 'answer' is missing; the row has 'question'",
        '{"question": "?", "answer": null}': "column 'answer' is null",
        '{"question": " ", "answer": "It is 1."}': "column 'question' is empty",
        '{"question": "q", "answer": "no idea"}': "no number answer in column 'answer'",
        '{"question": "\\ud800", "answer": "It is 1."}': "column 'question' holds half a surrogate pair at character 0",
        '{"question": "' + "x" * 200_001 + '", "answer": "It is 1."}': "column 'question' has 200,001 characters",
        "\xff": "not JSON",
    }
    path = jsonl(tmp_path / "a.jsonl", [ROWS[0], *wrong, ROWS[1]])
    Path(path).write_bytes(Path(path).read_text().encode("latin-1"))
    made = prepare.prepare(recipe(source=path, max_bad_rows=len(wrong)), tmp_path)
    bad = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert (made["rows"], made["bad_rows"]) == (2, len(wrong))
    assert [row["line"] for row in bad] == list(range(2, 2 + len(wrong)))
    for row, said in zip(bad, wrong.values(), strict=True):
        assert row["reason"].startswith(said)
    with pytest.raises(ValueError, match=r"9 bad rows, 8 allowed.*a\.jsonl line 2: not JSON"):
        prepare.prepare(recipe(source=path, max_bad_rows=len(wrong) - 1), tmp_path)


def test_csv_rows_with_other_cells_than_the_header_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"1 + 1?\nSay it.",It is 2.\n1 + 2?,It is 3.,more\n1 + 3?\n1 + 4?,It is 5.\n')
    found, bad = records.read(Dataset(name="d", source="x"), str(path), "train", None)
    assert [record.input for record in found] == ["1 + 1?\nSay it.", "1 + 4?"]
    assert [(row.line, row.reason) for row in bad] == [
        (4, "the row has more cells than the header"),
        (5, "the row has fewer cells than the header"),
    ]


def test_a_data_set_of_test_rows_only(tmp_path: Path) -> None:
    """It is asked, never trained on: out-of-domain."""
    path, other = jsonl(tmp_path / "a.jsonl", ROWS), jsonl(tmp_path / "b.jsonl", [{"question": "?", "answer": "9"}])
    for given, rows in (
        ({"source": path}, 5),
        ({"source": path, "test_rows": 2}, 2),
        ({"source": path, "test_source": other}, 1),
    ):
        made = prepare.prepare(recipe("sft", rows=0, **given), tmp_path)
        assert made["tasks"] == [{"task": "d", "split": "test", "rows": rows}]
    made = prepare.prepare(recipe("sft", rows=0, source="tiny-tasks", families=("sort",), test_rows=3), tmp_path)
    assert {(row["split"], row["rows"]) for row in made["tasks"]} == {("test", 3)}


@pytest.mark.parametrize("student", ["sft", "sdd-r8"])
def test_students_need_references(tmp_path: Path, student: str) -> None:
    """Rows that only calibrate or are only asked need none."""
    rows = [{"question": "How are you?", "answer": "Well."}, {"question": "Why?"}, {"question": "When?", "answer": ""}]
    path, test = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "t.jsonl", [{"question": "Who?"}])
    made = prepare.prepare(recipe(source=path, test_source=test, kind="none"), tmp_path)
    assert (made["rows"], made["bad_rows"]) == (4, 0)
    with pytest.raises(ValueError, match=r"2 bad rows, 0 allowed.*a\.jsonl line 2: column 'answer' is missing"):
        prepare.prepare(recipe(student, source=path, test_source=test, kind="none"), tmp_path)
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: column 'answer' is empty; students learn from it"):
        path = jsonl(tmp_path / "a.jsonl", [rows[0], rows[2]])
        prepare.prepare(recipe(student, source=path, kind="none"), tmp_path)


def test_rows_are_held_out_by_their_questions(tmp_path: Path) -> None:
    """The same questions for any order and number of train rows; equal questions together; none left over."""
    rows = [{"question": f"{i // 2} + 1?", "answer": f"It is {i // 2 + 1}, way {i}."} for i in range(40)]

    def split(given: list, **dataset: object) -> tuple[set[str], set[str]]:
        path = jsonl(tmp_path / "a.jsonl", given)
        prepare.prepare(recipe("sft", source=path, **{"kind": "none", "test_rows": 7, **dataset}), tmp_path)
        made = written(tmp_path)
        assert len({row["id"] for row in made}) == len(made)
        train, test = ({row["input"] for row in made if row["split"] == split} for split in ("train", "test"))
        return train, test

    train, test = split(rows)
    assert len(test) == 4 and len(train) == 16 and not train & test
    assert split(rows[::-1]) == (train, test)
    fewer, same = split(rows, rows=5)
    assert same == test and fewer < train
    with pytest.raises(ValueError, match="test_rows = 40 leaves none of 40 rows to train on"):
        split(rows, test_rows=40)


def test_the_id_follows_the_content_of_both_files(tmp_path: Path) -> None:
    """Train and test files of one name, in two folders: a change in either is other work; a move is not."""

    def digests() -> dict[str, str]:
        paths = {f"{key}source": str(tmp_path / name / "rows.jsonl") for key, name in (("", "a"), ("test_", "b"))}
        shaped = ids.Shaped(recipe(**paths)).prepare()
        return shaped["digests"]

    for name in "ab":
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "rows.jsonl", [name])
    first = digests()
    assert set(first) == {"d/train", "d/test"} and len(set(first.values())) == 2
    jsonl(tmp_path / "a" / "rows.jsonl", ["other"])
    second = digests()
    assert second["d/test"] == first["d/test"] and second["d/train"] != first["d/train"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.jsonl", "cannot be read"),
        ("empty.jsonl", "is empty"),
        ("x.xls", "unknown ending"),
        ("torn.jsonl.gz", r"torn\.jsonl\.gz' cannot be read: Compressed file ended"),
        ("plain.jsonl.gz", "plain.jsonl.gz' cannot be read: Not a gzipped file"),
        ("torn.parquet", "torn.parquet' cannot be read: .* Parquet magic bytes"),
        ("latin.csv", "latin.csv' cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_missing_empty_and_unknown_files(tmp_path: Path, name: str, said: str) -> None:
    for empty in ("empty.jsonl", "x.xls"):
        (tmp_path / empty).touch()
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"question": "?"}\n' * 99)[:-12])
    (tmp_path / "plain.jsonl.gz").write_text('{"question": "?"}')
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "torn.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "torn.parquet").read_bytes()[:-9])
    (tmp_path / "latin.csv").write_bytes("question,answer\nWie gro\xdf?,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        prepare.prepare(recipe(source=str(tmp_path / name)), tmp_path)


def test_a_trained_question_is_never_scored(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError, match="is a train question too"):
        prepare.prepare(recipe(source=path, test_source=path), tmp_path)


def test_gsm8k_sample_reads_whole_and_without_calculator_marks(tmp_path: Path) -> None:
    made = prepare.prepare(recipe(source="gsm8k-sample"), tmp_path)
    rows = written(tmp_path)
    assert (made["rows"], made["bad_rows"]) == (300, 0)
    assert sum(row["split"] == "train" for row in rows) == 200
    assert not any("<<" in row["reference"] for row in rows)
    assert all(row["reference"].rsplit("#### ", 1)[1].replace(",", "") == row["answer"] for row in rows)


def test_tiny_tasks_have_the_rows_asked_for(tmp_path: Path) -> None:
    prepare.prepare(recipe(source="tiny-tasks", families=("story", "sort"), rows=101, test_rows=20), tmp_path)
    rows = written(tmp_path)
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 101 and {row["task"] for row in train} == {"story", "sort"}
    assert len(rows) - 101 == 8 * 20 and len({row["id"] for row in rows}) == len(rows)
