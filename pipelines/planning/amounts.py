"""How many rows and tokens a recipe's data sets hold: counted where the data are at hand, assumed elsewhere."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from cluster import storage
from pipelines import prepare, prompts
from pipelines.planning.assumptions import Assumptions
from pipelines.recipe import Dataset, Recipe

AT_HAND = 64 << 20  # bytes of a data file that a plan still reads


class Amount(NamedTuple):
    """One data set: rows, and mean tokens of a question (with its context) and of a reference answer.

    `known`: "counted" from the rows themselves, "as stated" (`rows` of the recipe), or "assumed"."""

    name: str
    train: int
    test: int
    question: float
    reference: float
    known: str


def amounts(recipe: Recipe, assumed: Assumptions) -> list[Amount]:
    """Every data set of the recipe. Raises ValueError where local data cannot be read."""
    return [_counted(d, recipe.seed, assumed) if at_hand(d) else _assumed(d, assumed) for d in recipe.dataset]


def at_hand(dataset: Dataset) -> bool:
    """Whether the rows are generated, packaged, or in local files small enough to be read for a plan."""
    files = [Path(url) for _, url in prepare.urls(dataset) if storage.is_local(url)]
    small = all(not file.exists() or file.stat().st_size <= AT_HAND for file in files)
    return small and len(files) == len(prepare.urls(dataset))


def _counted(dataset: Dataset, seed: int, assumed: Assumptions) -> Amount:
    rows, _ = prepare.read(dataset, seed)
    train = [row for row in rows if row.split == "train"]
    asked = _mean([sum(len(turn["content"]) for turn in prompts.of(asdict(row))) for row in train or rows])
    told = _mean([len(row.reference) for row in train or rows])
    by = assumed.characters_per_token
    return Amount(dataset.name, len(train), len(rows) - len(train), asked / by, told / by, "counted")


def _assumed(dataset: Dataset, assumed: Assumptions) -> Amount:
    test = 0 if dataset.test_source is None else dataset.test_rows or assumed.test_rows
    stated = dataset.rows is not None and (not test or dataset.test_rows is not None)
    known = "as stated" if stated else "assumed"
    return Amount(
        dataset.name,
        assumed.rows if dataset.rows is None else dataset.rows,
        test,
        assumed.question_tokens,
        assumed.reference_tokens,
        known,
    )


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 0.0
