"""The reader of published outputs on shapes that the excerpt does not have, and what it refuses."""

import json
from pathlib import Path

import pytest

from pipelines.rows import published

NLI = "A dog cannot be a cat.\nAnswer: contradiction\n\nPremise: A man\nHypothesis: A person\nAnswer: entailm"
PAIR = {"premise": "A dog runs.", "hypothesis": "A cat runs."}


def read(tmp_path: Path, *rows: object, **options: object) -> tuple:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return published.read(str(path), "t", "train", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gold", [2, "2", "contradiction"])
def test_relations_by_name_or_number(tmp_path: Path, gold: object) -> None:
    (row,), _ = read(tmp_path, {**PAIR, "label": gold, "palm_raw": NLI})
    assert (row.prompt, row.reference) == ("Premise: A dog runs.\nHypothesis: A cat runs.", "contradiction")
    assert (row.rationale, row.label, row.verdict) == ("A dog cannot be a cat.", "contradiction", "match")
    (row,), _ = read(tmp_path, {**PAIR, "label": gold, "out": "So the answer is neutral."}, column="out")
    assert (row.rationale, row.label, row.verdict) == ("", "neutral", "mismatch")


def test_a_question_with_choices_is_written_with_letters(tmp_path: Path) -> None:
    row = {"question": "Q?", "choices": ["x", "y"], "answer": "y", "palm_raw": "R. So the answer is (b) y."}
    (found,), _ = read(tmp_path, row)
    assert found.prompt == "Q?\nAnswer Choices:\n(a) x\n(b) y"
    assert (found.kind, found.label, found.verdict) == ("text", "y", "match")


def test_a_short_label_and_an_expression(tmp_path: Path) -> None:
    said = [
        ("yes", "Answer: Yes", "mismatch"),
        ("yes", "Answer: yes.", "match"),
        ("yes", "Hm.", "unparsable"),
        ("( 6.0 / 2.0 )", "The answer is (9 - 6).", "match"),
        ("3", "The answer is (x - 6).", "mismatch"),
    ]
    rows, bad = read(tmp_path, *({"input": "I?", "label": gold, "palm_raw": raw} for gold, raw, _ in said))
    assert not bad
    assert [row.verdict for row in rows] == [verdict for _, _, verdict in said]
    loose, _ = read(tmp_path, {"input": "I?", "label": "yes", "palm_raw": "Answer: Yes"}, exact=False)
    assert loose[0].verdict == "match"


def test_equal_rows_stay_two_rows_with_the_same_ids_each_time(tmp_path: Path) -> None:
    row = {"input": "I?", "label": "3", "palm_raw": "The answer is 3."}
    first, second = ([found.id for found in read(tmp_path, row, row)[0]] for _ in range(2))
    assert first == second
    assert len(set(first)) == 2


BAD = [
    ({"input": "I?", "label": "3"}, "column 'palm_raw' is missing; the row has 'input', 'label'"),
    ({"input": "I?", "label": None, "palm_raw": "x"}, "column 'label' is null or no text"),
    ({"premise": "P", "label": 1, "palm_raw": "x"}, "column 'hypothesis' is missing"),
    ({"question": "Q", "answer": "a", "choices": ["a"], "palm_raw": "x"}, "no list of 2 to 10"),
    ({"question": "Q", "answer": "a", "choices": "a", "palm_raw": "x"}, "no list of 2 to 10"),
    ("[1]", "a JSON object is needed"), ("{", "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_kept_apart_with_line_and_reason(tmp_path: Path, row: object, reason: str) -> None:
    rows, bad = read(tmp_path, {"input": "I?", "label": "3", "palm_raw": "#### 3"}, row)
    assert [row.verdict for row in rows] == ["match"]
    assert [one.line for one in bad] == [2]
    assert reason in bad[0].reason


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        published.read(str(tmp_path / "nowhere.jsonl"), "t", "train")
