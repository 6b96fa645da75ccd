"""Rationale and label of a raw output, and the vote over samples, with a slow vote as its reference."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import answers
from pipelines.rationales import split, vote

NEXT = "\n\nPremise: A boy.\nHypothesis: A girl.\nReason: No boy is a girl.\nAnswer: contradic"
SPLIT = [
    # what few-shot prompts teach, run on and cut off
    ("Both are math. So the answer is (d) math problem.\n\nQ: Who?\nA: So the answer is (a) I.",
     ("Both are math.", "math problem")),
    ("84 / 2 = 42. The answer is (84 / 2).\n\nQ: There are 120.\nA: The answer is (120 /",
     ("84 / 2 = 42.", "(84 / 2)")),
    ("Add. The answer is ((15 * 19) + 2).\n\nQ", ("Add.", "((15 * 19) + 2)")),
    ("It runs, so it is awake.\nAnswer: entailment" + NEXT, ("It runs, so it is awake.", "entailment")),
    ("It runs. So the answer is neutral." + NEXT, ("It runs.", "neutral")),
    ("Answer: neutral Premise: A boy. Answer: entailment", ("", "neutral")),
    ("Answer: neutral Premise", ("", "neutral")),
    ("R. So the answer is it is not possible to tell.", ("R.", "it is not possible to tell")),
    ("R.\n#### 1,234\nQ: How many?\n#### 7", ("R.", "1,234")),
    ("R. The answer is contrad", ("R.", "contrad")), ("R. The answer is (120 /", ("R.", "(120 /")),
    ("R. So the answer is (b", ("R.", "(b")),
    # other ways to conclude
    ("3 + 4 = 7, so the answer is 7.", ("3 + 4 = 7", "7")), ("R. Therefore, the answer is 3.5 km.", ("R.", "3.5 km")),
    ("R.\n\n**Answer:** (b) foo", ("R.", "foo")), ("R. **Final Answer**: b) foo bar.", ("R.", "foo bar")),
    ("R.\n\nFinal answer:\n\n(b) foo\n\nI hope this helps.", ("R.", "foo")), ("R.\nLabel: neutral", ("R.", "neutral")),
    ("R. The correct option is (c) foo.", ("R.", "foo")), ("R. So the label is neutral. It is", ("R.", "neutral")),
    ("### Why\nR.\n### Answer\n(b) foo", ("### Why\nR.", "foo")), ("A: R. So the answer is foo.", ("R.", "foo")),
    ("Thus \\boxed{\\frac{1}{2}}.", ("Thus", "\\frac{1}{2}")), ("R. The answer is $\\boxed{18}$.", ("R.", "18")),
    ("<think>the answer is 3</think>R. So the answer is 4.<|im_end|>So", ("R.", "4")),
    ("R.\r\nANSWER: yes\r\n", ("R.", "yes")), ("#### Step 1\nR.\n#### 42", ("#### Step 1\nR.", "42")),
    ("R.\nAnswer B", ("R.", "B")), ("R.\nanswer (b).\n", ("R.", "(b)")), ("R. Correct Option: C", ("R.", "C")),
    # the words of the label
    ("R. So the answer is ] } ].", ("R.", "] } ]")),
    ("R. So the answer is math problem (d).", ("R.", "math problem")), ("R. So the answer is (d).", ("R.", "(d)")),
    ("R. So the answer is “yes”.", ("R.", "yes")), ("R. So the answer is that it rains.", ("R.", "it rains")),
    ("R. The answer is St. Louis. It is", ("R.", "St. Louis")), ("R. The answer is no because x.", ("R.", "no")),
    ("R. So the answer is (e) Washington D.C.", ("R.", "Washington D.C")),
    ("R. So the answer is either (a) x or (e) y.", ("R.", "either (a) x or (e) y")),
    ("R. So the answer is (e) just because.", ("R.", "just because")),
    ("R. So the answer is (e) just because of it.", ("R.", "just")),
    ("R. So the answer is no, because x.", ("R.", "no")),
    # initials of a name are no option, and end no sentence
    ("R. The answer is (e) J. K. Rowling.", ("R.", "J. K. Rowling")),
    ("R. So the answer is J. Edgar.", ("R.", "J. Edgar")),
    ("R. So the answer is C. S. Lewis. He", ("R.", "C. S. Lewis")),
    ("R. So the answer is (b) R. Kelly because he sang.", ("R.", "R. Kelly")),
    ("R. So the answer is J. Edgar Hoover. He was", ("R.", "J. Edgar Hoover")),
    ("R. So the answer is D. math problem.", ("R.", "math problem")), ("R. So the answer is B. Sea.", ("R.", "Sea")),
    ("R. So the answer is H. The sea it is.", ("R.", "The sea it is")),
    ("R. So the answer is (e) vitamin C. The body", ("R.", "vitamin C")),
    ("R. Answer: I. Introduction\nA. Terms", ("R.", "Introduction")),
    # a guess, and a conclusion said behind the verb
    ("R. So the answer should be (b) sea.", ("R.", "sea")), ("R. Thus, the answer must be (b) sea.", ("R.", "sea")),
    ("R. Therefore the answer could be (b) sea.", ("R.", "sea")), ("R. So the answer has to be sea.", ("R.", "sea")),
    ("R. So the answer was (b) sea.", ("R.", "sea")), ("The answer was sea.", None), ("It could be the sea.", None),
    ("The answer should be (b) sea.", None), ("R. So the answer could be found.", None),
    ("So the answer must be wet. So the answer is (b) sea.", ("So the answer must be wet.", "sea")),
    ("R, so the answer must be wet.\n\nThe answer is sea.", ("R, so the answer must be wet.", "sea")),
    ("R. The answer is therefore sea.", ("R.", "sea")), ("R. The answer is thus (c) sea", ("R.", "sea")),
    ("R. The answer is most likely (c) sea", ("R.", "sea")), ("R. The answer is, therefore, sea.", ("R.", "sea")),
    ("R. The answer is most likely.", ("R.", "most likely")), ("R. The answer is therefore", None),
    ("R. The answer is likely to fall.", ("R.", "likely to fall")), ("R. The answer is thusly.", ("R.", "thusly")),
    ("I think the correct answer is not bank. So the answer is (b) sea.",
     ("I think the correct answer is not bank.", "sea")),
    ("The correct answer is not bank.", ("", "not bank")),
    ("R. The correct answer is bank. So the answer is (b) sea.", ("R.", "bank")),
    ("R. So the answer is not entailment. So the answer is x.", ("R.", "not entailment")),
    # heads that are no next question: the question repeated, and a rationale's own
    ("Premise: A man runs.\n\nHypothesis: A man moves.\n\nRunning is moving.\nAnswer: entailment",
     ("Premise: A man runs.\n\nHypothesis: A man moves.\n\nRunning is moving.", "entailment")),
    ("Premise: A.\nHypothesis: B.\nR.\nAnswer: neutral", ("Premise: A.\nHypothesis: B.\nR.", "neutral")),
    ("Premise: A.\n\nHypothesis: B.\n\nR.\n\nHypothesis: C.\nAnswer: neutral", None),
    ("It runs.\n\nHypothesis: B.\nAnswer: neutral", None),
    *((f"It may float.\n\n{head}: ice floats.\n\nSo the answer is (b) ice.",
       (f"It may float.\n\n{head}: ice floats.", "ice")) for head in ("Statement", "Example", "Problem")),
    ("R. The answer is ice.\n\nProblem: x. So the answer is (c) tea.", ("R.", "ice")),
    ("R. Answer:\n\nProblem: x. Answer: 5", None),
    # the next question without white space before it
    ("R. Answer: entailment.Premise: x", ("R.", "entailment")), ("R. Answer: neutralPremise: A", ("R.", "neutral")),
    ("R. Answer: neutralPremise", ("R.", "neutral")), ("R. So the answer is (a) bank.Q: What", ("R.", "bank")),
    ("R. So the answer is (a) bankQ: What", ("R.", "bank")), ("R.Q: x. So the answer is (a) bank.", None),
    ("R. So the answer is (a) an IQ: tests.", ("R.", "an IQ: tests")),
    ("R. So the answer is (a) subQuestion: x.", ("R.", "subQuestion: x")),
    # a mention before the conclusion, and headings
    ("The closest answer is relax. So the answer is (e) relax.", ("The closest answer is relax.", "relax")),
    ("Only answers are filled out. So the answer is (e) answers.", ("Only answers are filled out.", "answers")),
    ("If the answer is yes, x. Thus the answer is no.", ("If the answer is yes, x.", "no")),
    ("Answer: Let's think. 3 + 4 = 7. So the answer is 7.", ("Let's think. 3 + 4 = 7.", "7")),
    ("The answer is 5.\n\nJo had 3. So the answer is 3.", ("", "5")),
    # no answer to this question
    ("16 - 7 = 9 peaches.\n\nQ: There are 15.\nA: The answer is (21 - 15).", None), ("It runs." + NEXT, None),
    ("", None), ("So the answer is", None), ("R. So the answer is (", None), ("R. So the answer is ...", None),
    ("R. Answer:", None),
    ("R. Answer:\n\nPremise: A boy. Answer: neutral", None), ("Answer Choices:\n(a) x\n(b) y", None),
    ("The answer must be a place.", None), ("How many shirts?\nA: The shop sold shirts.", None), ("A: yes", None),
    ("The answer is found by adding.", None), ("R. So the answer is\nthe", None), ("#### Step 1\nAdd.", None),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), SPLIT)
def test_split(raw: str, expected: tuple[str, str] | None) -> None:
    assert split(raw) == expected


UNCLEAR = "The premise doesn't say it, so the answer is unclear."
LINES = [
    (f"{UNCLEAR}\nAnswer: neutral", "label", (UNCLEAR, "neutral")),
    (f"{UNCLEAR}\n\n**Answer:** neutral", "label", (UNCLEAR, "neutral")),
    (f"{UNCLEAR}\nAnswer: neutral", "text", ("The premise doesn't say it", "unclear")),
    (f"{UNCLEAR} Answer: neutral", "label", ("The premise doesn't say it", "unclear")),
    (f"{UNCLEAR}\n\nA boy.\nAnswer: neutral", "label", ("The premise doesn't say it", "unclear")),
    (f"{UNCLEAR}\n\nSo the answer is neutral.", "label", ("The premise doesn't say it", "unclear")),
    (f"{UNCLEAR}{NEXT}", "label", ("The premise doesn't say it", "unclear")),
    ("R.\nAnswer: neutral\nAnswer: entailment", "label", ("R.", "neutral")),
]


@pytest.mark.parametrize(("raw", "kind", "expected"), LINES)
def test_a_line_with_the_label_passes_a_sentence(raw: str, kind: str, expected: tuple[str, str]) -> None:
    assert split(raw, kind) == expected


@pytest.mark.parametrize(
    "end", ["(d) math problem.", "D. math problem", "math problem (d).", "(d)", "d", "(D", "**(d)**"]
)
def test_a_choice_keeps_its_letter(end: str) -> None:
    _, label = split(f"R. So the answer is {end}", "choice") or ("", "")
    assert answers.same(label, "D", "choice")
    assert label.lower().count("(d") <= 1


PIECES = [
    "So the answer is", "the answer is ", "Answer:", "#### ", "\\boxed{", "}", "{", "**", "$", "(b) ", "foo", "7", ".",
    ",", "\n", "\n\n", " ", "Q:", "Premise:", "</think>", "</s>", "because", "## Answer", "\ud800", "½", "'",
    "So the answer must be ", "the answer is thus ", "J. ", "Edgar", "\n\nProblem:", "not ",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
@example("\\BOXED{0\n0}")
@example("A: 7 Answer: 7\r7")
def test_never_raises_and_finds_only_what_is_there(raw: str) -> None:
    for kind in ("text", "choice"):
        if found := split(raw, kind):
            rationale, label = found
            assert label.strip() == label and rationale.strip() == rationale
            assert label.strip(" .([{")
            assert "\n" not in label and (label in raw or kind == "choice")


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=40), st.sampled_from(["foo", "(7 - 2)"])
)
def test_what_the_prompts_teach_is_split_whatever_follows(more: str, said: str) -> None:
    for cue in ("So the answer is {}.", "The answer is {}.", "Answer: {}", "\n#### {}", "\nAnswer: {}\n"):
        text = f"Because it is so. {cue.format(said)}"
        for tail in ("", f"\n\nQ: {more}", f"\n\nPremise: {more}", f"\n\nA line. So the answer is {more}"):
            assert split(text + tail) == ("Because it is so.", said)


HOSTILE = ["(", "9", "####", "\\boxed{", "\\boxed{{}", "\\boxed{{a}{b}", "the answer is ", "the answer is\n", "Answer:",
           "so ", "J. ", ".Q", "aQ", "Premise:\n\nHypothesis:",
           "so the answer must be ", "the answer is most likely ", "\n\nProblem:", "most a ",
           "Q:", " Q:", "\n\n", "*_", " #", "if the answer is ", "because", "#### 1\n"]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_half_a_megabyte_of_anything_is_read_in_time(unit: str) -> None:
    start = time.monotonic()
    split(unit * (500_000 // len(unit)))
    assert time.monotonic() - start < 60  # a tenth of a second, on a machine that does nothing else


VOTES = [
    (["4", "5", "4.0", None], "number", ("4", 0.5)), (["5", "4"], "number", ("5", 0.5)),
    ([None, "(2 + 2)", "4", "8 / 2"], "expression", ("(2 + 2)", 0.75)), (["B", "(a)", "b) x"], "choice", ("B", 2 / 3)),
    (["Yes.", "yes"], "label", ("Yes.", 1.0)), ([None, None], "number", None), ([], "text", None),
    (["(2 * x)", "(2 * x)", "3"], "expression", ("3", 1 / 3)), (["a", "a"], "none", None),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "kind", "expected"), VOTES)
def test_vote(labels: list[str | None], kind: str, expected: tuple[str, float] | None) -> None:
    assert vote(labels, kind) == expected


LABELS = st.sampled_from([None, "4", "4.0", "8/2", "5", "05", "a", "A", "(a)", "b", "a b", "A  b.", "x + 1", "", "0/0"])


@settings(max_examples=300, deadline=None)
@given(st.lists(LABELS, max_size=9), st.sampled_from(answers.KINDS))
def test_vote_as_all_pairs_say(labels: list[str | None], kind: str) -> None:
    agreeing = [
        sum(other is not None and answers.same(label, other, kind) for other in labels) if label is not None else 0
        for label in labels
    ]
    most = max(agreeing, default=0)
    expected = (labels[agreeing.index(most)], most / len(labels)) if most else None
    assert vote(labels, kind) == expected


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown answer kind 'numbr'"):
        vote([], "numbr")
