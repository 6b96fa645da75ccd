"""PaLM's published outputs, against another parser's reading of them and against the known shares.

The excerpt in tests/data is always tested; whole files where `REGROW_DATA` or ../shared/data has them."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from pipelines import rationales
from pipelines.rows import published

ROOT = Path(__file__).parents[2]
EXCERPT = ROOT / "tests" / "data" / "published"
WHOLE = Path(os.environ.get("REGROW_DATA") or ROOT.parent / "shared" / "data") / "distilling_step_by_step"
# Per cent of rows with an answer and with the right one; words letter for letter, expressions by value.
SHARES = [
    ("cqa", "train", 9741, 100.0, 74.3), ("cqa", "test", 1221, 100.0, 77.2),
    ("svamp", "train", 800, 98.6, 74.2), ("svamp", "test", 200, 99.0, 77.5),
]  # fmt: skip


def file(task: str, split: str) -> Path:
    path = WHOLE / task / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here; REGROW_DATA names the folder of distilling_step_by_step")
    return path


@pytest.mark.parametrize(("task", "split", "rows", "parsed", "right"), SHARES)
def test_shares_of_the_whole_files(task: str, split: str, rows: int, parsed: float, right: float) -> None:
    found, bad = published.read(str(file(task, split)), task, split)
    assert (len(found), bad) == (rows, [])
    assert len({row.id for row in found}) == rows
    verdicts = Counter(row.verdict for row in found)
    assert 100 * (1 - verdicts["unparsable"] / rows) == pytest.approx(parsed, abs=0.051)
    assert 100 * verdicts["match"] / rows == pytest.approx(right, abs=0.051)


@pytest.mark.parametrize(("split", "right"), [("train", 75.3), ("test", 78.2)])
def test_capitals_count_only_where_they_are_to(split: str, right: float) -> None:
    found, _ = published.read(str(file("cqa", split)), "cqa", split, exact=False)
    assert 100 * sum(row.verdict == "match" for row in found) / len(found) == pytest.approx(right, abs=0.051)


@pytest.mark.parametrize(("task", "split"), [row[:2] for row in SHARES])
def test_every_row_of_the_whole_files_as_another_parser_reads_it(task: str, split: str) -> None:
    with gzip.open(file(task, split), "rt", encoding="utf8") as lines:
        compare([json.loads(line) for line in lines])


@pytest.mark.parametrize("name", ["commonsense_qa", "svamp"])
def test_every_row_of_the_excerpt_as_another_parser_reads_it(name: str) -> None:
    compare([json.loads(line) for line in (EXCERPT / f"{name}.jsonl").read_text("utf8").splitlines()])


def compare(rows: list[dict]) -> None:
    assert rows
    for row in rows:
        other = None if row["palm_label"] is None else (row["palm_rationale"], row["palm_label"])
        assert rationales.split(row["palm_raw"]) == other


@pytest.mark.parametrize(
    ("name", "exact", "verdicts"),
    [
        ("commonsense_qa", True, {"match": 16, "mismatch": 16}),
        ("commonsense_qa", False, {"match": 19, "mismatch": 13}),
        ("svamp", True, {"match": 13, "mismatch": 19, "unparsable": 3}),
    ],
)
def test_verdicts_of_the_excerpt(name: str, exact: bool, verdicts: dict[str, int]) -> None:
    rows, bad = published.read(str(EXCERPT / f"{name}.jsonl"), name, "train", exact=exact)
    assert not bad
    assert Counter(row.verdict for row in rows) == verdicts
    for row in rows:
        assert bool(row.label) == (row.verdict != "unparsable")
        assert row.rationale in row.text and row.label in row.text
