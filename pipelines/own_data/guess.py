"""Guesses about somebody else's rows: which column is the question, which the answer, and of what kind. Pure.

Every guess comes with its reason, so that a person can overrule it. Names of columns are those of public
data sets (GSM8K, Alpaca, Dolly, SVAMP, BoolQ, MMLU and others), compared without case.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines import answers, conversations

QUESTION = ("question", "instruction", "prompt", "query", "problem", "input", "text", "context")
CONTEXT = ("context", "passage", "document", "background", "body", "input")
WORKED = ("solution", "rationale", "explanation", "reasoning", "response", "output", "completion", "continuation",
          "best answer", "reference")  # fmt: skip
SHORT = ("final_answer", "short_answer", "answer", "label", "target", "gold", "correct", "answerkey")
OPTIONS = ("choices", "options", "endings")
NEARLY = 0.95
# How a text announces its final answer, or is nothing else.
CUE = re.compile(r"####|\\boxed|\banswers?\b[*_]{0,2}\s*(?:is|are|:)|^\s*A:", re.IGNORECASE | re.MULTILINE)
SHORT_WORDS = 8
MARKS = re.compile(r"<<[^<>\n]*>>")


class Guess(NamedTuple):
    """`fields` of a recipe's data set, and why each has its value."""

    fields: dict[str, str]
    why: dict[str, str]


def columns(rows: Sequence[Mapping[str, Any]], told: Mapping[str, str]) -> Guess:
    """The columns of question, reference, and what else there is, out of the first rows of a file.

    `told`: fields the user has named. Raises ValueError where no column fits, or one that was named is missing."""
    held = Counter(column for row in rows for column in row if row[column] is not None)
    for field, column in told.items():
        if column not in held:
            raise ValueError(f"--{field} {column}: no such column; the rows have {_named(held)}")
    there = [column for column in held if held[column] >= NEARLY * len(rows)]
    said = f"the first {len(rows)} rows" if len(rows) > 1 else "the first row"
    found: dict[str, str] = dict(told)
    why: dict[str, str] = dict.fromkeys(told, "as told")

    def choose(field: str, names: Sequence[str]) -> None:
        by_name = {column.casefold(): column for column in there if column not in found.values()}
        if field not in found and (name := next((name for name in names if name in by_name), None)):
            found[field], why[field] = by_name[name], f"column {by_name[name]!r} is in {said}"

    chats = [column for column in there if _chats(rows, column)]
    if chats and not {"messages", "input"} & told.keys():
        found["messages"], why["messages"] = chats[0], f"column {chats[0]!r} holds lists of turns in {said}"
    if "messages" not in found:
        choose("input", QUESTION)
        choose("context", CONTEXT)
    choose("reference", WORKED)
    if "reference" in found and ("messages" not in found or "reference" in told):
        choose("answer", SHORT)
    else:
        choose("reference", SHORT)
    if "messages" not in found:
        _by_place(found, why, [column for column in there if any(isinstance(row.get(column), str) for row in rows)])
        _needed(found, held, rows)
    left = [column for column in there if column.casefold() in OPTIONS and column not in found.values()]
    if left and "input" in why:
        why["input"] += f"; column {left[0]!r} is not asked: where it holds choices, write them into the question"
    return Guess(found, why)


def kind(said: Sequence[str]) -> tuple[str, str]:
    """The answer kind of reference texts (or short answers), and why. `none` where they are open-ended."""
    closed = sum(bool(CUE.search(text)) or len(text.split()) <= SHORT_WORDS for text in said)
    if closed < NEARLY * len(said):
        loose = f"{len(said) - closed} of {len(said)} references"
        return "none", f'{loose} neither say where their answer is ("####", "the answer is") nor are short: open-ended'
    for name, fits in (("number", bool), ("choice", _letters), ("label", _few), ("list", _several), ("text", bool)):
        found = [(text, answer) for text in said if (answer := answers.extract(text, name))]
        if len(found) >= NEARLY * len(said) and fits(found):
            shown = ", ".join(repr(answer) for answer in dict.fromkeys(answer for _, answer in found[:3]))
            return name, f"{len(found)} of {len(said)} references have such an answer: {shown}"
    return "none", "no kind of answer was found in the references: open-ended"


def has_marks(said: Sequence[str]) -> bool:
    """Whether references are written as GSM8K's are, with `<<48/2=24>>` annotations and a `####` line."""
    return sum("####" in text and bool(MARKS.search(text)) for text in said) > len(said) / 2


def _chats(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    def chat(value: Any) -> bool:
        try:
            conversations.parts(value)
        except conversations.Unfit:
            return False
        return True

    return sum(chat(row.get(column)) for row in rows) >= NEARLY * len(rows)


def _by_place(found: dict[str, str], why: dict[str, str], texts: list[str]) -> None:
    """Two columns of text under unknown names are question and answer, in this order."""
    if not {"input", "reference"} & found.keys() and len(texts) == 2:
        for field, column, place in zip(("input", "reference"), texts, ("first", "second"), strict=True):
            found[field], why[field] = column, f"column {column!r} is the {place} of two columns of text: a guess"


def _needed(found: Mapping[str, str], held: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> None:
    for field, about in (("input", "question"), ("reference", "reference answer")):
        if field not in found:
            turns = next(
                (c for c in held if isinstance(v := rows[0].get(c), list) and v and isinstance(v[0], dict)), None
            )
            hint = f"; turns (column {turns!r}) are read where each has role and content" if turns else ""
            raise ValueError(
                f"no column looks like the {about}; name one with --{field}: the rows have {_named(held)}{hint}"
            )


def _named(held: Mapping[str, int]) -> str:
    return ", ".join(map(repr, list(held)[:20])) or "no columns"


def _letters(found: list[tuple[str, str]]) -> bool:
    return len({answer for _, answer in found}) > 1


def _few(found: list[tuple[str, str]]) -> bool:
    """Labels come from a short list, again and again."""
    distinct = len({answer for _, answer in found})
    return 2 <= distinct <= 20 and 3 * distinct <= len(found)


def _several(found: list[tuple[str, str]]) -> bool:
    """Most answers hold several items, set apart by more than the spaces between words."""

    def apart(text: str, answer: str) -> bool:
        items = answer.split(", ") if ", " in answer else answer.split()
        return len(items) > 1 and (
            any(sign in text for sign in ",;") or all(re.fullmatch(r"-?[\d.]+", i) for i in items)
        )

    return sum(apart(*pair) for pair in found) >= 0.8 * len(found)
