"""What stages read of one another's artifacts."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.artifacts import Artifact
from pipelines import prompts, shards
from pipelines.recipe import Recipe


def cuts(recipe: Recipe, pruned: dict[str, Artifact]) -> dict[str, Artifact]:
    """The pruned, untrained models by the name they are served and scored under: `pruned` for the cut
    that students start from, the method's name for the others."""
    return {"pruned" if method == recipe.prune.method else method: out for method, out in pruned.items()}


def records(data: Artifact, split: str) -> list[dict[str, Any]]:
    """The records of one split."""
    rows = pq.read_table(io.BytesIO(storage.read(data.at("records.parquet")))).to_pylist()
    return [row for row in rows if row["split"] == split]


def calibration(recipe: Recipe, data: Artifact) -> list[list[prompts.Message]]:
    """The questions that layer importance is measured on: train rows spread evenly over the tasks."""
    rows = records(data, "train") or records(data, "test")
    step = max(1, len(rows) // recipe.prune.calibration_rows)
    chosen = rows[::step][: recipe.prune.calibration_rows]
    return [prompts.of(row) for row in chosen]


def targets(objective: str, data: Artifact, written: Artifact, out: Path) -> str:
    """Write the student's training rows (id, prompt, history, target) and return the file's path: the original
    references for sft, the teacher's rewrites (or, fallen back, references) for sdd."""
    rows = records(data, "train")
    if objective == "sdd":
        said = {row["id"]: row["target"] for row in shards.rewrites(written.url)}
    else:
        said = {row["id"]: row["reference"] for row in rows}
    asked = [
        {
            "id": row["id"],
            "prompt": prompts.question(row["context"], row["input"]),
            "history": row["history"],
            "target": said[row["id"]],
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(asked), out / "data.parquet")
    return str(out / "data.parquet")
