"""The verdict on a rewrite, and the target that follows."""

import pytest

from pipelines.verdicts import target, verdict

REFERENCE = "five and seven are 12"
PROMPT = f"Q: what is 5 + 7? Reference answer: {REFERENCE}"
ABOUT = {"kind": "number", "answer": "12", "prompt": PROMPT, "reference": REFERENCE}


@pytest.mark.parametrize(
    ("text", "reason", "error", "kind", "expected"),
    [
        ("5 + 7 = 12\n#### 12", "stop", "", "number", "match"),
        ("5 + 7 = 13\n#### 13", "stop", "", "number", "mismatch"),
        ("I do not know.", "stop", "", "number", "unparsable"),
        ("", "stop", "", "number", "unparsable"),
        ("As the reference answer says, #### 12", "stop", "", "number", "unparsable"),
        ("5 + 7 = 12\n#### 12", "length", "", "number", "truncated"),
        ("", "", "engine died", "number", "error"),
        ("Seven and five make twelve.", "stop", "", "none", "unchecked"),
        ("what is 5 + 7?", "stop", "", "none", "unparsable"),
        ("x" * 1000, "stop", "", "none", "unparsable"),
    ],
)
def test_verdicts(text: str, reason: str, error: str, kind: str, expected: str) -> None:
    assert verdict(text=text, finish_reason=reason, error=error, **{**ABOUT, "kind": kind}) == expected


@pytest.mark.parametrize(
    ("text", "kind", "answer", "prompt", "expected"),
    [
        ("yes", "label", "yes", "Is water wet? Answer yes or no.", "match"),
        ("18", "number", "18", "Tom has 18 eggs and eats none. How many are left?", "match"),
        ("contradiction", "label", "neutral", "Say entailment, neutral or contradiction.", "mismatch"),
        ("How many are left?", "none", "", "Tom has 18 eggs. How many are left?", "unparsable"),
        ("Tom has 18 eggs, eats 3 and gives away 4 eggs.", "none", "",
         "Tom has 18 eggs, eats 3 and gives away 4 eggs. How many are left?", "unparsable"),
    ],
)  # fmt: skip
def test_a_short_answer_that_the_prompt_names_is_no_copy(
    text: str, kind: str, answer: str, prompt: str, expected: str
) -> None:
    about = {"answer": answer, "prompt": prompt, "reference": "He ate none, so 18 are left there, it says."}
    assert verdict(text=text, finish_reason="stop", error="", kind=kind, **about) == expected


def test_only_kept_rewrites_become_targets() -> None:
    assert target("match", " mine ", "theirs") == "mine"
    assert target("unchecked", "mine", "theirs") == "mine"
    for other in ("mismatch", "unparsable", "truncated", "error"):
        assert target(other, "mine", "theirs") == "theirs"
