"""Generated task families for the tiny teacher: small problems, each with one right answer.

Every family is a function from a random generator to a `Problem`. A problem carries its worked
steps as data, so that `styles` can say the same solution in the teacher's own words or in the words
of a foreign author. Pure: the same seed gives the same problems on every machine.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NAMES = "Tom Anna Ben Lucy Max Emma Sam Nina Paul Rosa Leo Mia".split()
THINGS = "apples books coins stamps shells cards pens eggs".split()
WORDS = "cat dog sun tree fish moon bird rain star leaf ship bell cake drum frog gold".split()


@dataclass(frozen=True)
class Problem:
    """One problem. `steps` holds the family's own worked steps, rendered by `styles`."""

    family: str
    question: str
    steps: tuple
    answer: str
    kind: str  # answer kind of pipelines.answers: "number" or "list"


def story(rng: random.Random) -> Problem:
    """A word problem of two or three gains and losses."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(5, 40)
    said, steps = [f"{name} has {total} {thing}."], []
    for _ in range(rng.randint(2, 3)):
        if total > 10 and rng.random() < 0.5:
            change = -rng.randint(2, min(20, total - 1))
            said.append(f"{name} {rng.choice(('gives away', 'loses', 'sells'))} {-change}.")
        else:
            change = rng.randint(2, 20)
            said.append(f"{name} {rng.choice(('buys', 'finds', 'gets'))} {change} more.")
        steps.append((total, change, total + change))
        total += change
    said.append(f"How many {thing} does {name} have now?")
    return Problem("story", " ".join(said), tuple(steps), str(total), "number")


def addition(rng: random.Random) -> Problem:
    """The sum of three or four whole numbers."""
    terms = [rng.randint(2, 25) for _ in range(rng.randint(3, 4))]
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append((total, term, total + term))
        total += term
    return Problem("addition", f"What is {' + '.join(map(str, terms))}?", tuple(steps), str(total), "number")


def modulo(rng: random.Random) -> Problem:
    """The remainder of a division: the multiples up to the number, then what is left."""
    divisor = rng.randint(4, 16)
    number = rng.randint(divisor + 1, min(120, 12 * divisor))
    multiples = tuple(range(divisor, number + 1, divisor))
    question = f"What is the remainder when {number} is divided by {divisor}?"
    steps = (multiples, number, number - multiples[-1])
    return Problem("modulo", question, steps, str(number - multiples[-1]), "number")


def sort(rng: random.Random) -> Problem:
    """Four or five different numbers, smallest first."""
    left = rng.sample(range(100), rng.randint(4, 5))
    question = f"Sort these numbers from small to large: {' '.join(map(str, left))}"
    answer, steps = " ".join(map(str, sorted(left))), []
    while len(left) > 1:
        steps.append((tuple(left), min(left)))
        left = [number for number in left if number != min(left)]
    return Problem("sort", question, tuple(steps), answer, "list")


def compare(rng: random.Random) -> Problem:
    """The larger value of a sum and a difference."""
    while True:
        a, b, d = rng.randint(5, 60), rng.randint(2, 20), rng.randint(2, 20)
        c = rng.randint(d + 5, 80)
        if a + b != c - d:
            break
    question = f"Which value is larger: {a} + {b} or {c} - {d}?"
    steps = ((a, b, a + b), (c, -d, c - d))
    return Problem("compare", question, steps, str(max(a + b, c - d)), "number")


def reverse(rng: random.Random) -> Problem:
    """Four to six words in the opposite order."""
    words = rng.sample(WORDS, rng.randint(4, 6))
    question = f"Write these words in reverse order: {' '.join(words)}"
    return Problem("reverse", question, tuple(words), " ".join(reversed(words)), "list")


def position(rng: random.Random) -> Problem:
    """The word at a place of a list, counted from one."""
    words = rng.sample(WORDS, rng.randint(4, 6))
    place = rng.randint(2, len(words))
    question = f"Which word stands at place {place}: {' '.join(words)}?"
    return Problem("position", question, tuple(words[:place]), words[place - 1], "list")


def sequence(rng: random.Random) -> Problem:
    """The next number of a rising sequence with a constant step."""
    first, step, length = rng.randint(1, 50), rng.randint(2, 15), rng.randint(3, 4)
    shown = [first + step * i for i in range(length)]
    question = f"Which number comes next: {' '.join(map(str, shown))}?"
    steps = (shown[0], shown[1], step, shown[-1], shown[-1] + step)
    return Problem("sequence", question, steps, str(shown[-1] + step), "number")


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    f.__name__: f for f in (story, addition, modulo, sort, compare, reverse, position, sequence)
}


def split_of(question: str) -> str:
    """`"test"` for one question in ten, else `"train"`: decided by the question's hash alone,
    so that no training set, whatever its seed or size, can hold a held-out question."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] < 26 else "train"


def problems(family: str, split: str, seed: int) -> Iterator[Problem]:
    """Endless problems of one family and split, no question twice in a row of draws."""
    rng = random.Random(f"{family}/{split}/{seed}")
    while True:
        problem = FAMILIES[family](rng)
        if split_of(problem.question) == split:
            yield problem


def distinct(family: str, split: str, seed: int, n: int) -> list[Problem]:
    """The first `n` problems with different questions.

    Raises ValueError where the family has fewer than `n` (after 50 draws a problem)."""
    found: dict[str, Problem] = {}
    for drawn, problem in enumerate(problems(family, split, seed)):
        found.setdefault(problem.question, problem)
        if len(found) == n:
            return list(found.values())
        if drawn > 50 * n + 1000:
            raise ValueError(f"family {family!r} has only about {len(found)} different {split} problems, {n} asked for")
    raise AssertionError("problems() is endless")
