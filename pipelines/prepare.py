"""Stage prepare: files and named sets into records, bad rows kept aside with their reason."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import families, records, styles
from pipelines.recipe import Dataset, Recipe
from pipelines.records import BadRow, Record

FORMAT = 1
GSM8K = Path(__file__).parent / "recipes" / "gsm8k"


def prepare(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Write `records.parquet` and `bad_rows.jsonl`; returns the counts.

    Raises ValueError where a data set is empty, a file is missing, or more rows are bad than allowed."""
    found: list[Record] = []
    bad: list[BadRow] = []
    for dataset in recipe.dataset:
        good, refused = read(dataset, recipe.seed)
        if len(refused) > dataset.max_bad_rows:
            first = refused[0]
            raise ValueError(
                f"data set {dataset.name!r}: {len(refused)} bad rows, {dataset.max_bad_rows} allowed (max_bad_rows); "
                f"the first is {first.file} line {first.line}: {first.reason}"
            )
        if not good:
            raise ValueError(f"data set {dataset.name!r} ({dataset.source}) has no rows; give a file with rows in it")
        found += good
        bad += refused
    _no_overlap(found)
    pq.write_table(records.table(found), out / "records.parquet")
    (out / "bad_rows.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in bad))
    counts = Counter((record.task, record.split) for record in found)
    return {
        "rows": len(found),
        "bad_rows": len(bad),
        "tasks": [{"task": task, "split": split, "rows": n} for (task, split), n in counts.items()],
    }


def sources(recipe: Recipe) -> list[str]:
    """The external files that the data sets read: their content shapes the artifact."""
    return [url for dataset in recipe.dataset for _, url in urls(dataset)]


def read(dataset: Dataset, seed: int) -> tuple[list[Record], list[BadRow]]:
    """The records of one data set, and the rows that could not be read. Raises ValueError for a missing file."""
    return _tiny(dataset, seed) if dataset.source == "tiny-tasks" else _files(dataset)


def _tiny(dataset: Dataset, seed: int) -> tuple[list[Record], list[BadRow]]:
    unknown = {*dataset.families, *dataset.test_families} - set(families.FAMILIES)
    if unknown:
        known = ", ".join(families.FAMILIES)
        raise ValueError(f"data set {dataset.name!r}: no task family {sorted(unknown)[0]!r}; known are {known}")
    made: list[Record] = []
    seen: Counter[str] = Counter()
    wanted = [(family, "train", _share(dataset, i)) for i, family in enumerate(dataset.families)]
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
    return [("train", dataset.source), *([("test", dataset.test_source)] if dataset.test_source else [])]


def _files(dataset: Dataset) -> tuple[list[Record], list[BadRow]]:
    if dataset.source == "gsm8k-sample":
        dataset = dataset.model_copy(update={"format": "gsm8k"})
    good: list[Record] = []
    bad: list[BadRow] = []
    for split, url in urls(dataset):
        limit = dataset.rows if split == "train" else dataset.test_rows
        rows, refused = records.read(dataset, url, split, limit)
        if not rows and not refused:
            raise ValueError(f"data set {dataset.name!r}: {url} is empty; give a file with rows in it")
        good += rows
        bad += refused
    return good, bad


def _no_overlap(found: list[Record]) -> None:
    """A question that is trained on is never scored: raises ValueError naming the first one."""
    trained = {(record.context, record.input) for record in found if record.split == "train"}
    for record in found:
        if record.split == "test" and (record.context, record.input) in trained:
            raise ValueError(
                f"task {record.task!r}: the test question {record.input[:80]!r} is a train question too; "
                "take it out of one of the files"
            )
