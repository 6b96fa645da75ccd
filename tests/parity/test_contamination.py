"""Shared runs of words against a brute-force search over strings, on texts drawn to collide often."""

import random
import re

import pytest

from pipelines.rows import contamination
from pipelines.rows.contamination import Hit, Texts


def slow(test: list[Texts], train: list[Texts], n: int) -> list[list[Hit]]:
    """The rule as a reader would apply it: every run of every test text is looked for, as a string between
    word boundaries, in every training text in turn."""

    def line(text: str) -> str:
        return " " + " ".join(re.sub(r"[^a-z0-9]", " ", text.lower()).split()) + " "

    found = []
    for row in test:
        hits = []
        for field, text in zip(("question", "reference"), row, strict=True):
            said = line(text).split()
            if field == "question" and 0 < len(said) < n:
                same = [i for i, other in enumerate(train) if line(other.question) == line(text)]
                hits += [Hit(field, tuple(said), same[0])] if same else []
                continue
            for start in range(len(said) - n + 1):
                run = said[start : start + n]
                holds = [i for i, other in enumerate(train) if any(f" {' '.join(run)} " in line(t) for t in other)]
                if holds:
                    hits.append(Hit(field, tuple(run), holds[0]))
                    break
        found.append(hits)
    return found


def draw(rng: random.Random, rows: int) -> list[Texts]:
    def text(longest: int) -> str:
        said = [rng.choice(["a", "B", "cat", "7", "it's", "3.5"]) for _ in range(rng.randint(0, longest))]
        return "".join(word + rng.choice([" ", ", ", "\n", ". "]) for word in said)

    return [Texts(text(9), text(30)) for _ in range(rows)]


@pytest.mark.parametrize("n", [4, 5, 8, 13])
def test_the_hits_are_those_of_a_search_over_strings(n: int) -> None:
    rng = random.Random(n)
    test, train = draw(rng, 60), draw(rng, 60)
    found = contamination.hits(test, train, n)
    assert found == slow(test, train, n)
    if n < 8:
        assert 10 < sum(map(bool, found)) < 60, "the texts have to collide, and not all of them"


def test_one_changed_word_in_thirteen_is_clean() -> None:
    said = [f"w{i}" for i in range(13)]
    question = " ".join(said)
    for place in range(13):
        other = " ".join([*said[:place], "x", *said[place + 1 :]])
        assert contamination.hits([Texts(question, "")], [Texts(other, "")], 13) == [[]]
    assert contamination.hits([Texts(question, "")], [Texts("", f"so, {question.upper()}!")], 13) != [[]]
