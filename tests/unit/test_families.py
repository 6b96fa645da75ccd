"""Generated problems: right answers, no overlap of train and held-out, every style says the same answer."""

import re

import pytest

from pipelines import answers
from pipelines.tiny import families, styles

SOLVED = {
    "story": lambda q: eval_sum(q),
    "addition": lambda q: sum(map(int, re.findall(r"\d+", q))),
    "modulo": lambda q: (lambda a, b: a % b)(*map(int, re.findall(r"\d+", q))),
    "sort": lambda q: " ".join(map(str, sorted(map(int, re.findall(r"\d+", q))))),
    "compare": lambda q: (lambda a, b, c, d: max(a + b, c - d))(*map(int, re.findall(r"\d+", q))),
    "reverse": lambda q: " ".join(reversed(q.split(": ")[1].split())),
    "position": lambda q: q.split(": ")[1].rstrip("?").split()[int(re.search(r"\d+", q)[0]) - 1],
    "sequence": lambda q: (lambda a: a[-1] + a[1] - a[0])([int(n) for n in re.findall(r"\d+", q)]),
}


def eval_sum(question: str) -> int:
    total = 0
    for number, sentence in enumerate(question.split(".")[:-1]):
        amount = int(re.search(r"\d+", sentence)[0])  # type: ignore[index]
        total += -amount if number and re.search("gives away|loses|sells", sentence) else amount
    return total


@pytest.mark.parametrize("family", families.FAMILIES)
def test_answers_are_right_by_an_independent_solver(family: str) -> None:
    for problem in families.distinct(family, "train", 3, 200):
        assert problem.answer == str(SOLVED[family](problem.question)), problem.question


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_style_ends_in_the_right_answer(family: str) -> None:
    for problem in families.distinct(family, "test", 5, 50):
        for style in styles.STYLES:
            said = styles.render(problem, style)
            found = answers.extract(said, problem.kind)
            assert found is not None and answers.same(found, problem.answer, problem.kind), (style, said)
            assert styles.is_own(said) == (style == "own")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_train_and_held_out_never_share_a_question(family: str) -> None:
    train = {p.question for p in families.distinct(family, "train", 0, 600)}
    held_out = {p.question for p in families.distinct(family, "test", 0, 90)}
    assert not train & held_out
    assert all(families.split_of(question) == "test" for question in held_out)


def test_same_seed_same_problems() -> None:
    assert families.distinct("sort", "train", 1, 20) == families.distinct("sort", "train", 1, 20)
    assert families.distinct("sort", "train", 1, 20) != families.distinct("sort", "train", 2, 20)


def test_too_many_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="modulo"):
        families.distinct("modulo", "test", 0, 5000)
