"""Data and scoring of the two small lm-eval tasks: held-out problems of the generated families.

`python tiny.py` writes tiny_answers.jsonl and tiny_choices.jsonl again, byte for byte."""

import json
import random
import re
from pathlib import Path
from typing import Any

from pipelines.tiny import families, styles

HERE = Path(__file__).parent
SEED, EACH = 2026, 25  # problems a family; eight families


def answers() -> list[dict[str, Any]]:
    """Questions with their right answers."""
    return [{"question": p.question, "answer": p.answer, "kind": p.kind} for p in _problems(SEED)]


def choices() -> list[dict[str, Any]]:
    """Questions with four worked solutions each, one of them right; `label` is its place."""
    rows = []
    for problem in _problems(SEED + 1):
        rng = random.Random(problem.question)
        solution = styles.render(problem, "own")
        options = [solution, *(_with(solution, problem.answer, wrong) for wrong in _wrong(problem, rng))]
        rng.shuffle(options)
        rows.append({"question": problem.question, "choices": options, "label": options.index(solution)})
    return rows


def _problems(seed: int) -> list[families.Problem]:
    return [p for family in families.FAMILIES for p in families.distinct(family, "test", seed, EACH)]


def _wrong(problem: families.Problem, rng: random.Random) -> list[str]:
    """Three different answers near the right one."""
    if problem.kind == "number":
        near = [d for d in (-10, -2, -1, 1, 2, 10, 20) if int(problem.answer) + d >= 0]
        return [str(int(problem.answer) + d) for d in rng.sample(near, 3)]
    items = problem.answer.split(" ")
    if len(items) == 1:  # a word of the question's list: another one
        return rng.sample([w for w in problem.question.rstrip("?").split() if w in families.WORDS and w != items[0]], 3)
    found: list[str] = []
    while len(found) < 3:
        items = problem.answer.split(" ")
        i, j = rng.sample(range(len(items)), 2)
        items[i], items[j] = items[j], items[i]
        if " ".join(items) not in (problem.answer, *found):
            found.append(" ".join(items))
    return found


def _with(solution: str, right: str, wrong: str) -> str:
    """`solution` with another answer, in its last step too where that step states it as its result."""
    *steps, last, _ = solution.split("\n")
    return "\n".join([*steps, re.sub(rf"(?<= ){re.escape(right)}$", wrong, last), f"#### {wrong}"])


def dataset(file: str, **_: Any) -> dict[str, Any]:
    """The test split in `file`, beside this module; called by lm-eval."""
    import datasets

    lines = (HERE / file).read_text(encoding="utf8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the final answer in the generated text is the right one; called by lm-eval."""
    from pipelines import answers as judge

    said = judge.extract(results[0], doc["kind"])
    return {"exact_match": float(said is not None and judge.same(said, doc["answer"], doc["kind"]))}


def render(rows: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for name, made in (("tiny_answers", answers()), ("tiny_choices", choices())):
        (HERE / f"{name}.jsonl").write_text(render(made), encoding="utf8")
