"""Prompt files: what is packaged is right and reads back; templates are filled, or refused with a reason."""

import numpy as np
import pytest

from pipelines import answers, few_shot, rationales
from pipelines.rows import published

ROWS = {
    "choice": {"question": "Where is a {book}?", "choices": ["shelf", "pond"]},
    "arithmetic": {"input": "How many are 2 and 3?"},
    "nli": {"premise": "A dog runs.", "hypothesis": "An animal moves."},
}
ENDS = {"choice": "Q: Where is a {book}?\nAnswer Choices:\n(a) shelf\n(b) pond\nA:",
        "arithmetic": "Q: How many are 2 and 3?\nA:",
        "nli": "Premise: A dog runs.\nHypothesis: An animal moves.\n"
               "Say entailment, neutral or contradiction.\nReason:"}  # fmt: skip


@pytest.mark.parametrize("name", few_shot.PACKAGED)
def test_a_packaged_prompt_ends_with_the_row(name: str) -> None:
    template = few_shot.packaged(name)
    assert few_shot.columns(template) == list(ROWS[name])
    text = few_shot.render(template, {**ROWS[name], "id": "1"})
    assert text.endswith("\n\n" + ENDS[name])
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("name", few_shot.PACKAGED)
def test_every_packaged_example_is_read_back_and_right(name: str) -> None:
    head = "Reason:" if name == "nli" else "\nA:"
    *shown, _ = few_shot.packaged(name).split("\n\n")
    said = []
    for at, example in enumerate(shown):
        asked, written = example.split(head)
        # A teacher that has learnt the form writes the same, and runs on into the next question.
        rationale, label = rationales.split(f"{written}\n\n{shown[(at + 1) % len(shown)]}") or ("", "")
        assert len(rationale.split()) > 8
        said.append(label)
        if name == "choice":
            assert f") {label}\n" in asked + "\n"
            letter = answers.extract(written, "choice")
            assert letter and f"({letter.lower()}) {label}" in asked
        elif name == "arithmetic":
            value = rationale.rpartition("=")[2]
            assert answers.same(label, str(answers.extract(f"#### {value}", "number")), "expression")
        else:
            assert label in published.RELATIONS
    if name == "nli":
        assert {said.count(label) for label in ("entailment", "neutral", "contradiction")} == {2}
    if name == "choice":  # no letter is to be guessed from the examples
        assert len({example.split("answer is (")[1][0] for example in shown}) == 5


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(ValueError, match="no packaged prompt 'math'; there are arithmetic, choice, nli"):
        few_shot.packaged("math")


FILLED = [
    ("{a}\n", {"a": "x"}, "x"), ("{ a }{a}", {"a": 3}, "33"), ("{{{a}}}", {"a": "{b}"}, "{{b}}"),
    ('{{"q": "{q}"}}', {"q": "{{"}, '{"q": "{{"}'), ("{input.prompt}", {"input.prompt": "x"}, "x"),
    ("{c}", {"c": ("x", 2)}, "(a) x\n(b) 2"), ("{c}", {"c": np.array(["x", "y"], dtype=object)}, "(a) x\n(b) y"),
    ("{n}", {"n": np.int64(7)}, "7"), ("{a}", {"a": "\\1 \ud800"}, "\\1 \ud800"), ("{a}", {"a": ""}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("template", "row", "expected"), FILLED)
def test_filled(template: str, row: dict, expected: str) -> None:
    assert few_shot.render(template, row) == expected


REFUSED = [
    ("Q: {question}", {"input": "x", "id": "1"}, "the prompt needs column 'question'; the row has 'input', 'id'"),
    ("Q: {question}", {}, "the row has none"), ("Q: no place", {"a": 1}, "names no column"),
    ("{a.__class__}", {"a": 1}, "needs column 'a.__class__'"), ("{a!r}", {"a": 1}, "needs column 'a!r'"),
    ("{a}\nx {", {"a": 1}, "line 2 of the prompt has a lone '{'; write '{{'"), ("{a}}", {"a": 1}, "a lone '}'"),
    ("{}{a}", {"a": 1}, "a lone '{'"), ("{a}", {"a": None}, "column 'a' is null"),
    ("{a}", {"a": {"b": 1}}, "column 'a' is dict, not text"), ("{a}", {"a": []}, "a list of 0"),
    ("{a}", {"a": ["x"] * 27}, "a list of 27"), ("{a}", {"a": ["x", None]}, "column 'a' is null"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "row", "reason"), REFUSED)
def test_refused_with_the_reason(template: str, row: dict, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        few_shot.render(template, row)
    assert reason in str(error.value)
