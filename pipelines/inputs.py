"""What stages read of one another's artifacts."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.artifacts import Artifact
from pipelines import objectives, parts, prompts
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.student import Student

ROWS = pa.schema([(name, pa.string()) for name in ("id", "task", "prompt", "history", "target", "family")] + [
    ("weight", pa.float64())
])  # fmt: skip

ENCODED_AT_ONCE = 20_000  # rows of a task that encodes them


def cuts(recipe: Recipe, pruned: dict[str, Artifact]) -> dict[str, Artifact]:
    """The pruned, untrained models by the name they are served and scored under: `pruned` for the cut
    that students start from, the method's name for the others."""
    return {"pruned" if method == recipe.prune.method else method: out for method, out in pruned.items()}


def records(data: Artifact, split: str) -> list[dict[str, Any]]:
    """The records of one split."""
    return pq.read_table(io.BytesIO(storage.read(data.at(f"{split}.parquet")))).to_pylist()


def calibration(recipe: Recipe, data: Artifact) -> list[list[prompts.Message]]:
    """The questions that layer importance is measured on: train rows spread evenly over the tasks."""
    rows = records(data, "train") or records(data, "test")
    step = max(1, len(rows) // recipe.prune.calibration_rows)
    chosen = rows[::step][: recipe.prune.calibration_rows]
    return [prompts.of(row) for row in chosen]


def learned(recipe: Recipe, data: Artifact) -> dict[str, int]:
    """URL → size of the files of rows that the teacher writes about."""
    held = any(dataset.validation_rows for dataset in recipe.dataset)
    files = [storage.find(data.at(f"{split}.parquet")) for split in ("train", *["validation"] * held)]
    return {url: size for found in files for url, size in found.items()}


def targets(student: Student, data: Artifact, written: Artifact | None, out: Path) -> tuple[str, str | None]:
    """Write the student's rows (objectives.rows) and return the files' paths: those it learns from and, where some
    were held out, those its best checkpoint is chosen by. `written`: what the teacher wrote. Raises BadInput where
    nothing can be made of the rows that were held out."""
    said = {row["id"]: row for row in parts.rows(written.url)} if written else {}

    def written_down(split: str) -> tuple[int, int]:
        found = records(data, split)
        rows = [
            {**row, "family": one["task"]}  # `task` of a row is which loss it counts in
            for one in found
            for row in objectives.rows(student, one, said.get(one["id"]))
        ]
        pq.write_table(pa.Table.from_pylist(rows, ROWS), out / f"{split}.parquet", row_group_size=ENCODED_AT_ONCE)
        return len(found), len(rows)

    written_down("train")
    apart, held = written_down("validation")
    if apart and not held:
        or_else = "name the column of the labels (dataset.answer)"
        if student.labels == "teacher":
            or_else = "look at what the teacher wrote: no label could be read from it (generate.rationale_prompt)"
        raise BadInput(
            f"student {student.name}: none of the {apart:,} rows that dataset.validation_rows holds out has a label to "
            f"choose the best checkpoint by; set it to 0, or {or_else}"
        )
    return str(out / "train.parquet"), str(out / "validation.parquet") if held else None
