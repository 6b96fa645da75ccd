"""Answers found in text and compared: every kind, real rows, hostile text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.answers import KINDS, extract, same

NUMBERS = [
    # cues
    ("#### 18", "18"), ("####18", "18"), ("#### $1,080.00", "1080"), ("#### -5", "-5"), ("#### 18 eggs", "18"),
    ("The answer is 18.", "18"), ("The final answer is: $18$. I hope it is correct.", "18"), ("A: 18", "18"),
    ("Answer: 18", "18"), ("**Answer:** 18", "18"), ("**Answer: 18**", "18"), ("Ans: 18", "18"), ("A:\n\n18", "18"),
    ("### Final Answer\n\n**18 eggs**", "18"), ("Final Answer\n18", "18"), ("The answer is\n\n$$18$$", "18"),
    ("so the answer must be 18", "18"), ("The answer is x = 18.", "18"),
    ("The answer is approximately 18.5 feet.", "18.5"),
    # LaTeX and Markdown
    ("\\boxed{18}", "18"), ("\\boxed{\\$18}", "18"), ("$\\boxed{18\\text{ eggs}}$", "18"),
    ("\\boxed{\\text{18 dollars}}", "18"),
    ("\\boxed{\\frac{1}{2}}", "0.5"), ("\\boxed{-\\dfrac{2}{3}}", "-2/3"), ("\\boxed{1{,}234}", "1234"),
    ("\\boxed{30\\%}", "30"),
    ("\\[ 9 \\times 2 = \\boxed{18} \\]\n\nSo it takes 3 days.", "18"),
    ("The total is \\(9 \\times 2 = 18\\) dollars.", "18"),
    ("**18**", "18"), ("So Janet makes **$18** every day for 7 days.", "18"),
    ("**Step 3:** She pays 18 dollars.", "18"),
    # forms of numbers
    ("The answer is £18", "18"), ("The answer is 18€.", "18"), ("The answer is Rs. 1,680.", "1680"), ("$18.00.", "18"),
    ("1,234,567", "1234567"), ("The answer is $18 000.", "18000"), ("0.50", "0.5"), (".5", "0.5"), ("1/2", "0.5"),
    ("½", "0.5"),
    ("The answer is 3/4.", "0.75"), ("2/3", "2/3"), ("4/6", "2/3"), ("The answer is 1 3/4 cups", "1.75"), ("1½", "1.5"),
    ("The answer is 30%", "30"), ("The answer is −5.", "-5"), ("She needs $-5.", "-5"), ("She owes -$5.", "-5"),
    ("x=-2", "-2"),
    ("１８", "18"), ("The answer is\u00a018\u202feggs", "18"), ("١٨", "18"), ("1e5", "100000"), ("1.2 × 10^3", "1200"),
    ("The answer is 1.5 million.", "1500000"), ("the answer is twelve eggs", "12"), ("He arrives at 7:00 pm", "7"),
    # expressions and equations behind a cue
    ("The answer is (84 / 2)", "42"), ("The answer is 5 - 3", "2"), ("The answer is 18/2=9", "9"),
    ("The answer is 25% of 40 = 10.", "10"), ("The answer is 9 eggs * $2 = $18 per day, since 3+3=6", "18"),
    ("The answer is 18, because 9*2=19.", "18"), ("The answer is 18 (since 9*2=19).", "18"),
    ("The answer is 12 because 3 x 4 = 12.", "12"), ("The answer is 12 since 3 x 4 = 12.", "12"),
    ("The answer is 5 as 2 + 3 = 5.", "5"), ("The answer is 12 so 3 are left.", "12"),
    ("The answer is 12 because of the 3 boxes.", "12"), ("The answer is 12 eggs because he and 3 others ate.", "12"),
    ("The answer is 12 minus 3", None), ("The answer is 12 eggs and 3 pans because", None),
    ("The answer is 5 times as many", None), ("The answer is 3 eggs if boiled and 5 if not", None),
    ("The answer is 3 quarters of 4", None),
    # the answer in the prose
    ("So she makes 9*2 = $18 every day.", "18"), ("So he has 14 apples in total.", "14"), ("x = 18", "18"),
    ("She will have 350 pills left after 2 weeks.", "350"), ("Nine cakes need 57 more eggs than 5 pies.", "57"),
    ("He can skip 4 classes because 10 - 4 = 6", "4"), ("we get 10 = b", "10"), ("3 - 5 = -2", "-2"),
    ("#### 48/2 = <<48/2=24>>", "24"), ("She has 48/2 = <<48/2=24>>24 left", "24"),
    ("That's 3+4=7. I hope this helps!", "7"),
    # which cue
    ("The answer is 5. Wait.\nThe answer is 6.", "6"), ("The answer is 18. So the answer is correct.", "18"),
    ("#### 18\n#### 20", "18"), ("#### 18\nWait, a mistake.\n#### 20", "20"), ("The answer is 18\n####", "18"),
    ("#### Step 1: add\n3+4=7\n#### Step 2: double\n7*2=14", "14"),
    ("#### 1. Do this\n3+4=7\n#### 2. Do that\n7+7=14", "14"),
    ("Answer: Let's think. He has 3 pens and 4 cups.\nSo he has 3+4=7 things.", "7"),
    ("A: She sold 48/2 = 24 clips in May. She sold 48+24 = 72 clips altogether.", "72"),
    ("Answer: 5 apples cost $10. So 10 apples cost $20.", "20"),
    ("Answer: $18 per day.\n\nExplanation: 3+4 = 7.", "18"),
    ("The answer is as follows:\n3+4 = 7 apples.", "7"), ("A $5 toy and a 3$ toy are 5 + 3 = 8 dollars.", "8"),
    # text that runs on
    ("#### 18\n\nQ: foo 5\nA: 7", "18"), ("18\n\nQuestion: foo 5\nAnswer: 7", "18"), ("It is 18.</s> It is 20.", "18"),
    ("Question: a?\nAnswer: It is 7.\nQuestion: b?\nAnswer: 9", "7"), ("Answer: 18\n\nProblem: 3\nAnswer: 5", "18"),
    ("<think>maybe the answer is 4</think>The answer is 5.", "5"),
    # none to be had
    ("", None), ("####", None), ("#### ", None), ("####\n18", None), ("The answer is unknown", None),
    ("I do not know.", None),
    ("She has 5. The answer is unknown.", None), ("The answer is 3 or 4", None),
    ("The answer is between 3 and 5", None),
    ("The answer is 2 hours and 30 minutes", None), ("The answer is 5 feet 6 inches", None),
    ("The answer is 7:30", None),
    ("The answer is 12/14/2020", None), ("The answer is 20 000", None), ("The answer is 12,5", None), ("1, 2, 3", None),
    ("The answer is 3 more than 5", None), ("5 - 3", None), ("They made 87 * 95 dollars.", None), ("\\boxed{x}", None),
    ("He had 20 apples. So he has eight left.", None), ("The answer is 1e999999", None), ("#### 1/0", None),
    ("x2", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_numbers(text: str, expected: str | None) -> None:
    assert extract(text, "number") == expected


OTHERS = [
    ("choice", "(B)", "B"), ("choice", "B.", "B"), ("choice", "B)", "B"), ("choice", "b", "B"),
    ("choice", "B) 20%", "B"),
    ("choice", "The answer is B", "B"), ("choice", "answer: (b)", "B"), ("choice", "**B**", "B"),
    ("choice", "ANSWER:C", "C"),
    ("choice", "\\boxed{B}", "B"), ("choice", "\\boxed{\\text{(B)}}", "B"), ("choice", "The correct option is C.", "C"),
    ("choice", "D is the correct choice", "D"), ("choice", "Answer: Option B", "B"), ("choice", "x = 61\nE)", "E"),
    ("choice", "So the answer is (d) math problem.\n\nQ: What?\nA: the answer is (a)", "D"),
    ("choice", "The answer is a", "A"),
    ("choice", "answer.A", "A"), ("choice", "I", "I"), ("choice", "Thus A", "A"), ("choice", "A man walked home", None),
    *(("choice", text.format(letter), letter) for letter in "ABI" for text in (
        "{} is the correct answer.", "Therefore, {} is correct.", "Option {} is correct.", "Option {} is the best.",
        "So {} is the right choice, not C.")),
    ("choice", "The answer is A as it floats", "A"), ("choice", "The answer is B as it floats", "B"),
    ("choice", "A dog is the answer.", None), ("choice", "The answer is A dog", None),
    ("choice", "The answer is A dog as it barks", None), ("choice", "A is not the correct answer.", None),
    ("choice", "A is taller than B.", None), ("choice", "A is right of B.", None),
    ("choice", "I as a person do.", None), ("choice", "The answer is A as well as B", None),
    ("choice", "Option A is wrong.", None),
    ("choice", "The answer is a as it floats", None), ("choice", "a is the correct answer", None),
    ("choice", "The answer is A man.", None), ("choice", "I think so", None),
    ("choice", "The answer is I think 5", None),
    ("choice", "So the answer is either (d) plan or (e) game.", None), ("choice", "The answer is (A) or (B)", None),
    ("choice", "A) 3\nB) 4\nC) 5", None), ("choice", "#### ", None), ("choice", "(K)", None),
    ("label", "So the answer is yes.", "yes"), ("label", "Yes", "yes"), ("label", "Answer: **True**", "true"),
    ("label", "The label is 'contradiction'", "contradiction"), ("label", "Answer: Yes, because he can.", "yes"),
    ("label", "He is a liar.\n\nEntailment.", "entailment"), ("label", "he said no to the man and left", None),
    ("text", "So the answer is (d) Math  Problem.", "math problem"), ("text", "The answer is St. Louis.", "st louis"),
    ("text", "Paris", "paris"), ("text", "The answer is New Year's Eve.", "new years eve"),
    ("text", "Answer: The sun", "the sun"),
    ("text", "So the answer is (b) find answer.", "find answer"),
    ("text", "So long", "so long"),
    ("list", "We sort.\n3 7 22 81", "3 7 22 81"),
    ("list", "We sort 3.\nHe then went home again", None),
    ("choice", "A=P(1+r)", None),
    ("text", "So the answer is (c) wrong house.\n\nQ: What?", "wrong house"),
    ("text", "One line.\nAnd one more.", None), ("text", "Answer: 3.5 kg", "3.5 kg"), ("text", "", None),
    ("list", "3, 7, 22 and 81", "3 7 22 81"), ("list", "3 7 22 81", "3 7 22 81"),
    ("list", "tree, sun, dog", "tree sun dog"),
    ("list", "So the answer is [3, 7].", "3 7"), ("list", "We sort 9 4.\nThe answer is Tree sun.", "tree sun"),
    ("list", "The answer is New York, Paris and Rome.", "new york, paris, rome"), ("list", "#### cat dog", "cat dog"),
    ("list", "no. 1: x; answer: 3 7 22", "3 7 22"), ("list", "The answer is 3.0, 7, and 22", "3 7 22"),
    ("list", "####", None),
    ("expression", "7+3=10", "7+3"), ("expression", "( 6.0 / 2 )", "(6/2)"),
    ("expression", "The answer is (7 × 3) ÷ 2", "(7*3)/2"),
    ("expression", "x = 3+4", "3+4"), ("expression", "The answer is 1/0", "1/0"),
    ("expression", "the answer is (some - 3)", None),
    ("expression", "The answer is ((3 - 1) and (4 - 2)).", None), ("expression", "1 +", None),
    ("none", "#### 18", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), OTHERS)
def test_other_kinds(kind: str, text: str, expected: str | None) -> None:
    assert extract(text, kind) == expected


SAME = [
    ("number", "18.00", "18", True), ("number", "0.5", "1/2", True), ("number", "1,080", "$1080", True),
    ("number", "0.30", "30%", False),
    ("number", "0.3333", "1/3", False), ("number", "-5", "5", False), ("number", "", "", False),
    ("number", "x", "x", False),
    ("choice", "(b)", "B", True), ("choice", "A", "B", False), ("label", "Yes.", "yes", True),
    ("label", "no", "yes", False),
    ("text", "The  Sun!", "the sun", True), ("text", "sun", "the sun", False), ("text", "c++", "c", False),
    ("list", "3, 7, 22 and 81", "3 7 22 81", True), ("list", "tree, sun, dog", "tree sun dog", True),
    ("list", "3 7", "7 3", False),
    ("list", "new york, rome", "new, york rome", False), ("expression", "(7 + 3) * 2", "20", True),
    ("expression", "0.1+0.2", "0.3", True),
    ("expression", "84 / 2", "( 84.0 / 2.0 )", True), ("expression", "1/0", "1/0", False),
    ("expression", "1/(2-2)", "0", False),
    ("expression", "2-(3-4)*-2", "0", True), ("none", "a", "a", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "a", "b", "expected"), SAME)
def test_same(kind: str, a: str, b: str, expected: bool) -> None:
    assert same(a, b, kind) is expected
    assert same(b, a, kind) is expected


# Ends of GSM8K solutions with their golds; the `####` line is cut off in the second test.
GSM8K = [
    ("She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer’s market.", "18"),
    ("So, their bikes cost $356 + $712 = $<<356+712=1068>>1068 in total.", "1068"),
    ("If 80% is equal to $500, then 100% is equals 100%/80% * $500 = $625", "625"),
    ("The percentage of hot sauce is 25% because .25 x 100 = <<.25*100=25>>25", "25"),
    ("Adding 30 to both sides, we find that Mark had X = $180 when he entered the first store.", "180"),
    ("Each basket contains an equal amount of fruits which is 18/2 = <<18/2=9>>9 fruits", "9"),
    ("Thus, Shiela will pay $765/3 = $<<765/3=255>>255 each month.", "255"),
    ("Mr. Tan's net proceeds is $400 000 - $282 000 = $118 000.", "118000"),
    ("Cape May has 8 more sharks than that which is 24+8=<<24+8=32>>32", "32"),
    ("he wants to place 20 more than double the number of books, he wants to place 20+72=92 books.", "92"),
    ("multiply by 100% to get the percentage: 9 / 27 * 100% = 33.333%, which rounds down to 33%", "33"),
    (
        "A 20% tip is 12.\nSo the meal is $60.00, the tip is $12.00 for a total of 60+12 = $<<60+12=72.00>>72.00",
        "72",
    ),
    ("Thus, he has a profit of $80,000 - $10,000 = $<<80000-10000=70000>>70,000", "70,000"),
    ("There are 8-5 = <<8-5=3>>3 more red marbles than yellow marbles", "3"),
    ("Subtracting 2b from both sides, we get 10 = b", "10"),
    ("There are 33 ounces of cereal in those 3 boxes.", "33"),
    ("It would take 840 minutes to groom 5 dogs and 3 cats", "840"),
    ("Therefore, she has worked 190 / 10 = <<190/10=19>>19 hours.", "19"),
]


@pytest.mark.parametrize(("solution", "gold"), GSM8K)
def test_real_solutions_with_and_without_their_last_line(solution: str, gold: str) -> None:
    assert same(extract(f"{solution}\n#### {gold}", "number") or "", gold, "number")
    assert same(extract(solution, "number") or "", gold, "number")


PALM = [
    ("84 / 2 = 42. The answer is (84 / 2).\n\nQ: There are 120.\nA: The answer is (120 /", "( 84.0 / 2.0 )"),
    ("17 + 15 + 2 = 34 kids. The answer is (17 + 15 + 2).\n\nQ: There are 15 trees", "( ( 17.0 + 15.0 ) + 2.0 )"),
    ("777622 - 202958 = 574664. The answer is (777622 - 202958).\n\nQ: There were 21 trees", "574664"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold"), PALM)
def test_palm_runs_on_into_the_next_question(text: str, gold: str) -> None:
    for kind in ("expression", "number"):
        assert same(extract(text, kind) or "", gold, kind)


PIECES = [
    "The answer is ", "#### ", "\\boxed{", "}", "{", "**", "$", "\\frac{1}{2}", "Answer: ", "A: ", "Q:", "\n", " ", ".",
    ",", "=", "18", "1,234", "-", "/", "(", ")", "*", "<<1+1=2>>", "and", "or", "A", "B", "yes", "½", "٣", "\ud800",
    "e9", "%",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(KINDS))
@example("The answer is 0.3333333333333333", "number")
@example('ANSWER"IS', "label")
@example("\\\x1f0", "label")
@example("->A and ½,", "list")
@example("#### 1" + "0" * 58 + "*1" + "0" * 58, "number")
def test_never_raises_and_finds_its_own_answer_again(text: str, kind: str) -> None:
    found = extract(text, kind)
    if found is not None:
        assert extract(f"#### {found}", kind) == found
        assert same(found, text, kind) in (True, False)
        assert same(found, found, kind) or kind == "expression"


HOSTILE = ["(", "9", ",", "####", "\\boxed{", "the answer is ", "9,", "1/", "#### 1\n", "<<", "a ", "\n", "** 1"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything_is_read(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    extract(text, "number")
    same(text, "1", "number")
    for kind in KINDS:
        extract(f"The answer is {text[:100_000]}", kind)


def test_deep_and_long_expressions_have_no_value() -> None:
    assert not same("(" * 500 + "1" + ")" * 500, "1", "expression")
    assert not same("1+" * 1000 + "1", "1001", "expression")
    assert not same("9" * 5000, "9" * 5000, "number")


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown answer kind"):
        extract("18", "numbr")
    with pytest.raises(ValueError, match="unknown answer kind"):
        same("18", "18", "")
