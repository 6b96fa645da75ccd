"""Stage prepare: files and named sets into records, bad rows kept aside with their reason."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.markup import escape

from pipelines.recipe import Dataset, Recipe
from pipelines.rows import contamination, records, splits
from pipelines.rows.records import BadRow, Record
from pipelines.screen import say
from pipelines.tiny import families, styles

SPLITS = ("train", "validation", "test")
GSM8K = Path(__file__).parent / "recipes" / "gsm8k"


def prepare(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Write a Parquet file for each of SPLITS, `bad_rows.jsonl` and `contamination.json`; returns the counts.

    Raises ValueError where a data set is empty, a file is missing, more rows are bad than allowed, or a test
    question is a train question too."""
    found: list[Record] = []
    bad: list[BadRow] = []
    for dataset in recipe.dataset:
        good, refused = read(dataset, recipe.seed, learned_from(recipe), labelled(recipe))
        if len(refused) > dataset.max_bad_rows:
            raise ValueError(
                f"data set {dataset.name!r}: {len(refused)} bad rows, {dataset.max_bad_rows} allowed (max_bad_rows); "
                f"the first is {refused[0].file} line {refused[0].line}: {refused[0].reason}"
            )
        if not good:
            raise ValueError(f"data set {dataset.name!r} ({dataset.source}) has no rows; give a file with rows in it")
        if refused:
            first = f"{refused[0].file} line {refused[0].line}: {refused[0].reason}"
            say(escape(f"prepare: bad rows of {dataset.name} set aside: {len(refused)}; the first is {first}"))
        found += _validated(dataset, good)
        bad += refused
    splits.apart(found)
    shared = contamination.check([vars(record) for record in found], recipe.evaluate.overlap_words)
    for warning in contamination.warnings(shared):
        say(f"[yellow]warning[/yellow]: {escape(warning)}")
    (out / "contamination.json").write_text(json.dumps(shared, indent=1, ensure_ascii=False), encoding="utf8")
    for split in SPLITS:
        pq.write_table(records.table([record for record in found if record.split == split]), out / f"{split}.parquet")
    (out / "bad_rows.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in bad))
    counts = Counter((record.task, record.split) for record in found)
    return {
        "rows": len(found),
        "bad_rows": len(bad),
        "tasks": [{"task": task, "split": split, "rows": n} for (task, split), n in counts.items()],
        "contaminated": sum(task["question"] for task in shared["tasks"]),
    }


def _validated(dataset: Dataset, good: list[Record]) -> list[Record]:
    """`good` with the data set's validation rows held out of the train rows."""
    if not dataset.validation_rows:
        return good
    train = [record for record in good if record.split == "train"]
    left, held = splits.held_out(train, dataset.validation_rows, "validation")
    if not left:
        raise ValueError(
            f"data set {dataset.name!r}: validation_rows = {dataset.validation_rows} leaves none of {len(train)} rows "
            "to train on"
        )
    return [*left, *held, *(record for record in good if record.split != "train")]


def learned_from(recipe: Recipe) -> bool:
    """Whether students are trained on the references, on their answers, or on what is written after them."""
    return any(student.labels == "gold" for student in recipe.trained)


def labelled(recipe: Recipe) -> bool:
    """Whether train rows need a right answer: not where every student takes the teacher's labels."""
    return learned_from(recipe) or not recipe.trained


def sources(recipe: Recipe) -> dict[str, str]:
    """`data set/split` → the external file read for it: its content shapes the artifact."""
    return {f"{dataset.name}/{split}": url for dataset in recipe.dataset for split, url in urls(dataset)}


def read(dataset: Dataset, seed: int, trained: bool = True, labelled: bool = True) -> tuple[list[Record], list[BadRow]]:
    """The records of one data set, and the rows that could not be read; `trained`: train rows need a reference,
    `labelled`: they need a right answer.

    Raises ValueError for a missing file."""
    return _tiny(dataset, seed) if dataset.source == "tiny-tasks" else _files(dataset, trained, labelled)


def _tiny(dataset: Dataset, seed: int) -> tuple[list[Record], list[BadRow]]:
    unknown = {*dataset.families, *dataset.test_families} - set(families.FAMILIES)
    if unknown:
        known = ", ".join(families.FAMILIES)
        raise ValueError(f"data set {dataset.name!r}: no task family {sorted(unknown)[0]!r}; known are {known}")
    made: list[Record] = []
    seen: Counter[str] = Counter()
    trained = dataset.families if dataset.rows != 0 else ()
    wanted = [(family, "train", _share(dataset, i)) for i, family in enumerate(trained)]
    tested = dataset.test_families or tuple(families.FAMILIES)
    wanted += [(family, "test", dataset.test_rows or 50) for family in tested]
    for family, split, n in wanted:
        for problem in families.distinct(family, split, seed, n):
            content = {
                "task": family, "context": "", "input": problem.question, "split": split,
                "reference": styles.render(problem, dataset.style), "answer": problem.answer, "kind": problem.kind,
            }  # fmt: skip
            made.append(records.numbered(content, seen))
    return made, []


def _share(dataset: Dataset, index: int) -> int:
    """How many of the data set's rows family number `index` gets: equal shares, the rest to the first ones."""
    rows, n = dataset.rows or 1000, len(dataset.families)
    return rows // n + (index < rows % n)


def urls(dataset: Dataset) -> list[tuple[str, str]]:
    """(split, file) of a data set that reads files."""
    if dataset.source == "tiny-tasks":
        return []
    if dataset.source == "gsm8k-sample":
        return [("train", str(GSM8K / "train.jsonl")), ("test", str(GSM8K / "test.jsonl"))]
    if dataset.rows == 0:
        return [("test", dataset.test_source or dataset.source)]
    return [("train", dataset.source), *([("test", dataset.test_source)] if dataset.test_source else [])]


def _files(dataset: Dataset, trained: bool, labelled: bool) -> tuple[list[Record], list[BadRow]]:
    if dataset.source == "gsm8k-sample":
        dataset = dataset.model_copy(update={"format": "gsm8k"})
    good: list[Record] = []
    bad: list[BadRow] = []
    files = urls(dataset)
    hold_out = dataset.test_rows if [split for split, _ in files] == ["train"] else None
    for split, url in files:
        limit = dataset.rows if split == "train" else dataset.test_rows
        needed = (trained and split == "train", labelled or split == "test" or bool(hold_out))
        rows, refused = records.read(dataset, url, split, None if hold_out else limit, *needed)
        if not rows and not refused:
            raise ValueError(f"data set {dataset.name!r}: {url} is empty; give a file with rows in it")
        if hold_out and rows:
            train, test = splits.held_out(rows, hold_out)
            if not train:
                raise ValueError(
                    f"data set {dataset.name!r}: test_rows = {hold_out} leaves none of {len(rows)} rows to train on"
                )
            rows = [*train[: dataset.rows], *test]
        good += rows
        bad += refused
    return good, bad
