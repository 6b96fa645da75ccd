"""What is reported of shared words: counts by task, examples, warnings; and what does not count."""

import json
from pathlib import Path

from pipelines import prepare, recipe_file
from pipelines.rows import contamination

LONG = "how many litres of water does the old blue pump move in an hour and a half"


def row(split: str, text: str, reference: str = "", history: str = "", task: str = "t") -> dict:
    return {"id": text[:9], "task": task, "split": split, "context": "", "input": text, "reference": reference,
            "history": history}  # fmt: skip


def test_counts_examples_and_warnings() -> None:
    rows = [
        row("train", f"Tell me: {LONG}?", "It moves 90."),
        row("train", "Why not?", f"Because {LONG}."),
        row("test", f"{LONG.upper()} today?", "It moves 90."),  # the short reference alone counts for nothing
        row("test", "Why, not!"),
        row("test", "Who?", f"I asked {LONG}."),
        row("test", "Nothing like it.", task="u"),
    ]
    found = contamination.check(rows, 13)
    assert found["tasks"] == [
        {"task": "t", "rows": 3, "question": 2, "reference": 1},
        {"task": "u", "rows": 1, "question": 0, "reference": 0},
    ]
    assert [(e["field"], e["train"]) for e in found["examples"]] == [
        ("question", f"Tell me: {LONG}?"), ("question", "Why not?"), ("reference", f"Tell me: {LONG}?")]  # fmt: skip
    assert found["examples"][0]["words"] == " ".join(LONG.split()[:13])
    assert contamination.warnings(found) == [
        "2 of 3 test questions of t (67%) share 13 words in a row with a train row: their scores may be memory."
    ]


def test_a_system_turn_that_all_rows_share_is_left_out_and_earlier_turns_are_not() -> None:
    def history(role: str) -> str:
        return json.dumps([{"role": role, "content": LONG}])

    def dirty(role: str) -> int:
        rows = [row("train", "What then?", history=history(role)), row("test", "And now?", history=history(role))]
        return contamination.check(rows, 13)["tasks"][0]["question"]

    assert (dirty("system"), dirty("user"), dirty("assistant")) == (0, 1, 1)


def test_characters_are_words_where_no_spaces_part_them() -> None:
    assert contamination.words("Don't panic_now: 東京は12 km") == (
        "don",
        "t",
        "panic",
        "now",
        "東",
        "京",
        "は",
        "12",
        "km",
    )


def test_thirteen_words_leave_the_tiny_families_clean(tmp_path: Path) -> None:
    """Their questions share templates and few numbers; fewer words would call them dirty."""

    def dirty(words: int) -> int:
        made = prepare.prepare(recipe_file.load("quickstart", [f"evaluate.overlap_words={words}"]), tmp_path)
        return made["contaminated"]

    assert dirty(13) == 0
    assert dirty(6) > 40
