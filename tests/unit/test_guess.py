"""Guesses about columns and answer kinds, on rows shaped like those of public data sets."""

import pytest

from pipelines.own_data import guess

TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"question": "?", "answer": "#### 1"}, {"input": "question", "reference": "answer"}),
        ({"prompt": "?", "response": "!", "id": "7"}, {"input": "prompt", "reference": "response"}),
        ({"instruction": "?", "input": "", "output": "!"},
         {"input": "instruction", "context": "input", "reference": "output"}),
        ({"instruction": "?", "context": "c", "response": "!", "category": "qa"},
         {"input": "instruction", "context": "context", "reference": "response"}),
        ({"problem": "?", "solution": "so 1", "answer": "1"},
         {"input": "problem", "reference": "solution", "answer": "answer"}),
        ({"question": "?", "rationale": "so A", "correct": "A"},
         {"input": "question", "reference": "rationale", "answer": "correct"}),
        ({"ID": "1", "Body": "b", "Question": "?", "Answer": "51.0"},
         {"input": "Question", "context": "Body", "reference": "Answer"}),
        ({"context": "25 - 7 =", "continuation": " 18"}, {"input": "context", "reference": "continuation"}),
        ({"question": "?", "passage": "p", "idx": 0, "label": False},
         {"input": "question", "context": "passage", "reference": "label"}),
        ({"id": 1, "messages": TURNS}, {"messages": "messages"}),
        ({"chat": TURNS[:1], "answer": "!"}, {"messages": "chat", "reference": "answer"}),
        ({"Frage": "?", "Antwort": "!", "nr": 3}, {"input": "Frage", "reference": "Antwort"}),
    ],
)  # fmt: skip
def test_columns(row: dict, fields: dict) -> None:
    found = guess.columns([row] * 3, {})
    assert found.fields == fields and found.why.keys() == fields.keys()


def test_what_is_told_counts_and_is_checked() -> None:
    row = {"question": "?", "answer": "1", "reply": "!", "messages": TURNS}
    assert guess.columns([row], {"input": "question", "reference": "reply"}).fields == {
        "input": "question", "reference": "reply", "answer": "answer"}  # fmt: skip
    with pytest.raises(ValueError, match="--input ask: no such column; the rows have 'question', 'answer'"):
        guess.columns([row], {"input": "ask"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": "x", "b": "y", "c": "z"}, "like the question; name one with --input: the rows have 'a', 'b', 'c'"),
        ({"prompt": "x", "n": 3}, "no column looks like the reference answer; name one with --reference"),
        ({"conversations": [{"from": "human", "value": "?"}]}, "turns .column 'conversations'. are read where"),
        ({}, "the rows have no columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_is_asked_for(row: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        guess.columns([row] * 2, {})


def test_choices_outside_the_question_are_pointed_out() -> None:
    assert (
        "'choices' is not asked" in guess.columns([{"question": "?", "choices": ["a"], "answer": "A"}], {}).why["input"]
    )


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ([f"It is {i} + 1 = {i + 1}.\n#### {i + 1}" for i in range(20)], "number"),
        ([f"{i},000" for i in range(20)], "number"),
        ([f"Since it rains, the answer is ({letter})." for letter in "ABCDABCD"], "choice"),
        (["true", "false", "false", "true", "true", "false"], "label"),
        ([f"The answer is {i}, {i + 3}, {2 * i}." for i in range(9)], "list"),
        (["Paris", "Rio de Janeiro", "the Nile", "Onion", "Horse"], "text"),
        (["A river in Africa, more than six thousand kilometres long, is the Nile." for _ in range(9)], "none"),
        ([f"In the year {i} there were many people who went to live in other towns." for i in range(9)], "none"),
        (["#### 3"] * 18 + ["Who could ever say what this one may be, or when?"] * 2, "none"),
    ],
)
def test_kinds(said: list[str], kind: str) -> None:
    assert guess.kind(said)[0] == kind


def test_gsm8k_marks() -> None:
    assert guess.has_marks(["48/2 = <<48/2=24>>24\n#### 24"] * 3)
    assert not guess.has_marks(["48/2 = 24\n#### 24", "a << b >> c"])
