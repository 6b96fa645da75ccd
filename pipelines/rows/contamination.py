"""Contamination: evaluation rows that share a run of words with what students are trained on. Pure.

The rule is GPT-3's (Brown et al., arXiv 2005.14165, appendix C): texts are lower-cased words without
punctuation, and a test row is dirty where any n words in a row (n = 13 there) occur in a training row.
A question of fewer than n words is dirty where a whole training question is the same words; a short
reference ("18", "yes") never is. Unlike GPT-3, no row is taken out: the share of dirty rows is reported.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines import prompts

WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")  # kana and Chinese characters are words of their own
EXAMPLES = 6
SHOWN = 400  # characters of a question in an example
Words = tuple[str, ...]


class Texts(NamedTuple):
    """One row: what is asked, and the reference answer."""

    question: str
    reference: str


class Hit(NamedTuple):
    """A dirty test row: which of its texts, the words it shares, and the number of the first training row
    that holds them."""

    field: str
    words: Words
    train: int


def words(text: str) -> Words:
    """The lower-cased words of `text`, punctuation left out."""
    return tuple(WORD.findall(text.lower()))


def hits(test: Iterable[Texts], train: Iterable[Texts], n: int) -> list[list[Hit]]:
    """For every test row its hits, at most one a text, the first in reading order.

    Runs of words are compared by their 64-bit hashes first and then word by word, so that memory follows
    the test rows, however many training rows there are; a collision of hashes could hide a hit, not make one."""
    tested = [_hashed(row, n) for row in test]
    wanted = {key for row in tested for _, _, keys in row for key in keys}
    found: dict[int, tuple[Words, int]] = {}
    for number, row in enumerate(train):
        for _, said, keys in _hashed(row, n):
            if wanted.isdisjoint(keys):
                continue
            for place, key in enumerate(keys):
                if key in wanted and key not in found:
                    found[key] = (said[place : place + n], number)
    return [[hit for text in row for hit in _first(text, found, n)] for row in tested]


def check(rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """What the test rows of `rows` (records) share with the train rows: `words` (n), per task the test rows
    and how many of their questions and references are dirty, and a few examples, of questions first.

    A question counts with its context and earlier turns, but without the system turn, which all rows share."""
    tested = [row for row in rows if row["split"] == "test"]
    trained = [row for row in rows if row["split"] == "train"]
    asked = map(texts, trained if tested else [])
    tasks: dict[str, dict[str, Any]] = {}
    examples: list[dict[str, Any]] = []
    for row, found in zip(tested, hits(map(texts, tested), asked, n), strict=True):
        counts = tasks.setdefault(row["task"], {"task": row["task"], "rows": 0, **dict.fromkeys(Texts._fields, 0)})
        counts["rows"] += 1
        for hit in found:
            counts[hit.field] += 1
            if counts[hit.field] <= 2:
                examples.append(_example(row, hit, trained[hit.train]))
    examples.sort(key=lambda example: example["field"] != "question")
    return {"words": n, "tasks": list(tasks.values()), "examples": examples[:EXAMPLES]}


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Sentences that warn of dirty questions, one a task that has any. Dirty references alone are no reason:
    answers written after a pattern share its words."""
    said = []
    for task in found["tasks"]:
        if n := task["question"]:
            share = f"{n} of {task['rows']} test questions of {task['task']} ({n / task['rows']:.0%}) share"
            said.append(f"{share} {found['words']} words in a row with a train row: their scores may be memory.")
    return said


def texts(row: Mapping[str, Any]) -> Texts:
    """The texts of a record that are compared."""
    turns = [turn["content"] for turn in prompts.of(row) if turn["role"] != "system"]
    return Texts("\n".join(turns), row["reference"])


def _hashed(row: Texts, n: int) -> list[tuple[str, Words, list[int]]]:
    """(field, words, hash of each run of n words) of a row's texts."""
    made = []
    for field, text in zip(Texts._fields, row, strict=True):
        said = words(text)
        keys = [hash(run) for run in zip(*(said[start:] for start in range(n)), strict=False)]
        if field == "question" and 0 < len(said) < n:
            keys = [hash(said)]
        made.append((field, said, keys))
    return made


def _first(text: tuple[str, Words, list[int]], found: Mapping[int, tuple[Words, int]], n: int) -> Iterator[Hit]:
    field, said, keys = text
    for place, key in enumerate(keys):
        if key in found and found[key][0] == said[place : place + n]:
            yield Hit(field, *found[key])
            return


def _example(row: Mapping[str, Any], hit: Hit, trained: Mapping[str, Any]) -> dict[str, Any]:
    shared = {"task": row["task"], "field": hit.field, "words": " ".join(hit.words)}
    return shared | {
        "id": row["id"],
        "test": row["input"][:SHOWN],
        "train_id": trained["id"],
        "train": trained["input"][:SHOWN],
    }
