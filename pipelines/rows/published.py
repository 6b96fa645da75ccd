"""Published outputs of a teacher, read as if this run had generated them.

The outputs of PaLM 540B that came with Distilling Step-by-Step (arXiv 2305.02301, §4) are files of rows, each with
the question's own columns, the gold label and the teacher's raw text. The columns tell what a row asks:

- `question`, `choices`, `answer`: multiple choice by the words of the choice (CommonsenseQA);
- `premise`, `hypothesis`, `label`: one of three relations, by name or number (e-SNLI, ANLI);
- `input`, `label`: an arithmetic expression, compared by its value (SVAMP), else a short label.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipelines import answers, arithmetic, conversations, few_shot, rationales
from pipelines.conversations import Unfit
from pipelines.rows import files, records
from pipelines.rows.records import BadRow

RELATIONS = ("entailment", "neutral", "contradiction")  # by the numbers of the original data sets
MOST_CHOICES = 10


@dataclass(frozen=True)
class Published:
    """One row. `reference` is the gold label, `text` the raw output, `rationale` and `label` what the teacher said
    ("" where it gave no answer), `verdict` match, mismatch or unparsable; names as in generated Parquet."""

    id: str
    task: str
    prompt: str
    reference: str
    text: str
    rationale: str
    label: str
    verdict: str
    kind: str


def read(
    url: str, task: str, split: str, column: str = "palm_raw", exact: bool = True
) -> tuple[list[Published], list[BadRow]]:
    """Rows of one file (JSONL, Parquet or CSV, gzipped or not, local or s3://); rows that do not fit apart.

    `task` and `split` name the data, for ids as `records` makes them; `column` holds the raw output. With `exact`,
    the original's metric, a label of words must equal the gold one letter for letter; without, by `answers.same`
    alone, which passes over capitals and punctuation ("Istanbul" is "istanbul").
    Raises ValueError for a file that is missing or broken."""
    rows: list[Published] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for line, row in files.rows(url):
        try:
            if isinstance(row, str):
                raise Unfit(row)
            prompt, gold, kind = _asked(row)
            raw = _text(row, column)
            content = {"task": task, "context": "", "input": prompt, "reference": gold, "answer": gold}
            identity = records.numbered({**content, "kind": kind, "split": split}, seen).id
            rationale, label = rationales.split(raw, kind) or ("", "")
            verdict = judge(label, gold, kind, exact)
            rows.append(Published(identity, task, prompt, gold, raw, rationale, label, verdict, kind))
        except Unfit as reason:
            bad.append(BadRow(url, line, str(reason)))
    return rows, bad


def judge(label: str, gold: str, kind: str, exact: bool = False) -> str:
    """match, mismatch, or unparsable where `label` is "". A label that is there and cannot be read under `kind`
    ("(some - 8)") is an answer, and a wrong one."""
    if not label:
        return "unparsable"
    right = answers.same(label, gold, kind)
    if exact and kind not in ("number", "expression"):
        right = right and label == gold
    return "match" if right else "mismatch"


def _asked(row: dict[str, Any]) -> tuple[str, str, str]:
    """(prompt, gold label, answer kind) of a row. Raises Unfit with what it lacks."""
    if "choices" in row:
        question, gold, choices = _text(row, "question"), _text(row, "answer"), row["choices"]
        if not isinstance(choices, list) or not 1 < len(choices) <= MOST_CHOICES:
            raise Unfit(f"column 'choices' is no list of 2 to {MOST_CHOICES}")
        return f"{question}\nAnswer Choices:\n{few_shot.lettered(choices)}", gold, "text"
    if "premise" in row:
        premise, hypothesis = _text(row, "premise"), _text(row, "hypothesis")
        gold = _text(row, "label").strip()
        named = RELATIONS[int(gold)] if gold in ("0", "1", "2") else gold
        return f"Premise: {premise}\nHypothesis: {hypothesis}", named, "label"
    asked, gold = _text(row, "input"), _text(row, "label")
    return asked, gold, "label" if arithmetic.well_formed(gold) is None else "expression"


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str | int) or isinstance(value, bool):
        state = "null or no text" if column in row else f"missing; the row has {', '.join(map(repr, list(row)[:12]))}"
        raise Unfit(f"column {column!r} is {state}")
    return conversations.fit(str(value), f"column {column!r}")
