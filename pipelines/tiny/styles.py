"""One solution in several voices: the tiny teacher's own style and the styles of foreign authors.

`own` is what the teacher writes by itself: bare steps, then `#### answer`. `prose` and `notes` stand
for human reference answers. They keep the order of the steps (every result still follows its
operands) and change words and layout, so that a student can learn them as well as the own style:
an honest opponent for self-distilled data.
"""

from pipelines.tiny.families import Problem

STYLES = ("own", "prose", "notes", "explain")
FOREIGN = ("prose", "notes")


def render(problem: Problem, style: str) -> str:
    """The worked solution of `problem` in `style`."""
    lines = _LINES[problem.family](problem.steps, _VOICES[style])
    if style == "own":
        return "\n".join([*lines, f"#### {problem.answer}"])
    if style == "prose":
        return " ".join([*lines, f"The answer is {_listed(problem)}."])
    if style == "notes":
        return "; ".join([*lines, f"answer: {problem.answer}"])
    return " ".join([*lines, f"So the answer is {problem.answer}."])


def is_own(text: str) -> bool:
    """Whether `text` is laid out in the own style: step lines, then one `####` line at the end."""
    *steps, last = text.strip().split("\n")
    return bool(steps) and last.startswith("#### ") and not any("####" in s or s.endswith(".") for s in steps)


def _listed(problem: Problem) -> str:
    return problem.answer.replace(" ", ", ") if problem.kind == "list" else problem.answer


_VOICES: dict[str, dict[str, str]] = {
    "own": {
        "add": "{a} + {b} = {c}",
        "take": "{a} - {b} = {c}",
        "multiples": "up to {all}",
        "least": "least of {left} is {low}",
        "greater": "{a} > {b}",
        "place": "{i} {word}",
    },
    "prose": {
        "add": "We begin with {a} and put {b} on top, which brings us to {c}.",
        "take": "We begin with {a} and take {b} off, which brings us to {c}.",
        "multiples": "Counting upwards we pass {all} and have to stop.",
        "least": "Looking through {left} we find that the smallest one is {low}.",
        "greater": "Between the two, {a} beats {b}.",
        "place": "In place {i} stands {word}.",
    },
    "notes": {
        "add": "{a} plus {b} makes {c}",
        "take": "{a} minus {b} makes {c}",
        "multiples": "multiples {all}",
        "least": "from {left} pick {low}",
        "greater": "{a} over {b}",
        "place": "no. {i}: {word}",
    },
    "explain": {
        "add": "{a} and {b} are {c}.",
        "take": "{a} less {b} is {c}.",
        "multiples": "Its multiples are {all}.",
        "least": "The least of {left} is {low}.",
        "greater": "{a} is more than {b}.",
        "place": "Word {i} is {word}.",
    },
}


def _sum(step: tuple[int, int, int], voice: dict[str, str]) -> str:
    a, change, c = step
    return voice["add" if change > 0 else "take"].format(a=a, b=abs(change), c=c)


def _sums(steps: tuple, voice: dict[str, str]) -> list[str]:
    return [_sum(step, voice) for step in steps]


def _modulo(steps: tuple, voice: dict[str, str]) -> list[str]:
    multiples, number, rest = steps
    return [
        voice["multiples"].format(all=" ".join(map(str, multiples))),
        voice["take"].format(a=number, b=multiples[-1], c=rest),
    ]


def _sort(steps: tuple, voice: dict[str, str]) -> list[str]:
    return [voice["least"].format(left=" ".join(map(str, left)), low=low) for left, low in steps]


def _compare(steps: tuple, voice: dict[str, str]) -> list[str]:
    high, low = sorted((steps[0][2], steps[1][2]), reverse=True)
    return [*_sums(steps, voice), voice["greater"].format(a=high, b=low)]


def _places(steps: tuple, voice: dict[str, str]) -> list[str]:
    return [voice["place"].format(i=i, word=word) for i, word in enumerate(steps, 1)]


def _sequence(steps: tuple, voice: dict[str, str]) -> list[str]:
    first, second, step, last, following = steps
    return [
        voice["take"].format(a=second, b=first, c=step),
        voice["add"].format(a=last, b=step, c=following),
    ]


_LINES = {
    "story": _sums,
    "addition": _sums,
    "modulo": _modulo,
    "sort": _sort,
    "compare": _compare,
    "reverse": _places,
    "position": _places,
    "sequence": _sequence,
}
