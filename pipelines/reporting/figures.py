"""What stages read of one another's artifacts, and what the report gathers from all of them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.artifacts import Artifact, versions
from pipelines import prompts, shards
from pipelines.recipe import Recipe, objective_of
from pipelines.rows import contamination, conversations
from pipelines.screen import say
from pipelines.steps import Done

Outs = dict[str, dict[str, Artifact]]


def home(recipe: Recipe) -> str:
    """Where the run's artifacts and report go."""
    place = recipe.run_dir or f"runs/{recipe.name}"
    return str(Path(place).resolve()) if storage.is_local(place) else place  # workers have a folder of their own


def remember(recipe: Recipe) -> None:
    """Write the resolved recipe to the run's directory, for `status` and `report`."""
    fs, path = storage.filesystem(storage.join(home(recipe), "recipe.json"))
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, recipe.model_dump_json(indent=2).encode())


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


def report(recipe: Recipe, outs: Outs, done: Done) -> dict[str, Any]:
    """Write report.json and report.html into the run's directory; returns report.json's content."""
    from pipelines import report as page

    inputs = gather(recipe, outs, done)
    place = Artifact("report", "report", home(recipe))
    with place.writing() as folder:
        return page.report(inputs, folder)


def gather(recipe: Recipe, outs: Outs, done: Done) -> Any:
    """The report's inputs, read from the whole artifacts of a run."""
    from pipelines.reporting.findings import Inputs

    data, cut = outs["prepare"][""], outs["prune"][recipe.prune.method]
    scored = {name: out for name, out in outs["evaluate"].items() if out.manifest()}
    written = outs.get("generate", {}).get("")
    generation = [{**_summary(written), "data": "self_distill"}] if written and written.manifest() else []
    items = {name: _table(out.at("items.parquet")) for name, out in scored.items()}
    shared = data.json("contamination.json")
    return Inputs(
        run={
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "versions": versions(),
        },
        models=[_model(name, recipe, outs) for name in scored],
        items=items,
        scores={name: out.json("scores.json") for name, out in scored.items()},
        in_domain={row["task"] for row in records(data, "train")},
        importance=cut.json("importance.json"),
        losses={name: _lines(out.at("losses.jsonl")) for name, out in outs["train"].items() if out.manifest()},
        generation=generation,
        samples=_samples(written.url) if generation and written else [],
        stages=done.stages,
        warnings=_warnings(generation, items, shared),
        seed=recipe.seed,
        bootstrap=recipe.evaluate.bootstrap,
        contamination=shared,
    )


def _warnings(
    generation: list[dict[str, Any]], items: dict[str, list[dict[str, Any]]], shared: dict[str, Any]
) -> list[str]:
    found = contamination.warnings(shared)
    for made in generation:
        share = made["fallback"] / made["rows"] if made["rows"] else 0
        if share > 0.5:
            found.append(
                f"{share:.0%} of the rewrites fell back to their reference: SDD is then SFT under another name."
            )
    rows = items.get("teacher", [])
    if rows and sum(row["correct"] for row in rows) < 0.05 * len(rows):
        found.append("The teacher itself scores near zero on these tasks: recovery means nothing here.")
    refused = sum(row["finish_reason"] == "refused" for row in rows)
    if refused:
        found.append(f"{refused} of {len(rows)} test questions are too long for the models and count as wrong.")
    for text in found:
        say(f"[yellow]warning[/yellow]: {text}")
    return found


def _model(name: str, recipe: Recipe, outs: Outs) -> dict[str, Any]:
    """One row of the report's models."""
    made = cuts(recipe, outs["prune"])
    cut = _summary(made["pruned"])
    common = {"name": name, "label": name, "seed": recipe.seed, "objective": None, "removed_layers": []}
    if name == "teacher":
        return common | {"kind": "teacher", "parameters": cut["parameters_before"], "checkpoint": recipe.teacher.model}
    if name in made:
        summary = _summary(made[name])
        said = {"kind": "pruned", "label": _CUT.get(name, "pruned, untrained"), "objective": "none"}
        return common | said | _pick(summary) | {"checkpoint": made[name].at("model")}
    student = next(s for s in recipe.student if s.name == name)
    said = {"kind": "student", "objective": objective_of(name), "checkpoint": outs["train"][name].at("model")}
    return common | said | _pick(cut) | {"seed": recipe.seed if student.seed is None else student.seed}


_CUT = {"angular": "cut by angular distance", "influence": "cut by block influence", "tail": "tail drop"}


def _pick(cut: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": cut["parameters_after"], "removed_layers": cut["removed_layers"]}


def _summary(out: Artifact) -> dict[str, Any]:
    return (out.manifest() or {}).get("summary", {})


def _samples(url: str) -> list[dict[str, Any]]:
    """A few rewrites of every verdict and task, for the report."""
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in shards.rewrites(url):
        group = taken.setdefault((row["verdict"], row["task"]), [])
        if len(group) < 2:
            shown = {"prompt": conversations.transcript(prompts.of({**row, "context": ""}))}
            group.append({key: row[key] for key in ("task", "reference", "text", "verdict")} | shown)
    return [row for group in taken.values() for row in group][:24]


def _table(url: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(storage.read(url))).to_pylist()


def _lines(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read(url).decode().splitlines()]
