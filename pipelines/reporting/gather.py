"""What the report shows, read from the whole artifacts of a run."""

import io
import json
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from cluster.artifacts import Artifact, versions
from pipelines import conversations, inputs, parts, prompts
from pipelines.recipe import Recipe
from pipelines.reporting.findings import Inputs
from pipelines.rows import contamination
from pipelines.screen import say
from pipelines.steps import Done
from pipelines.student import objective_of

Outs = dict[str, dict[str, Artifact]]


def gather(recipe: Recipe, outs: Outs, done: Done) -> Inputs:
    """The report's inputs, read from the whole artifacts of a run."""
    data, cut = outs["prepare"][""], outs["prune"][recipe.prune.method]
    scored = {name: out for name, out in outs["evaluate"].items() if out.manifest()}
    written = {what or "self_distill": out for what, out in outs.get("generate", {}).items() if out.manifest()}
    generation = [{**_summary(out), "data": what} for what, out in written.items()]
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
        in_domain={row["task"] for row in inputs.records(data, "train")},
        importance=cut.json("importance.json"),
        losses={name: _lines(out.at("losses.jsonl")) for name, out in outs["train"].items() if out.manifest()},
        generation=generation,
        samples=[row for out in written.values() for row in _samples(out.url)],
        stages=done.stages,
        warnings=_warnings(generation, items, shared),
        seed=recipe.seed,
        bootstrap=recipe.evaluate.bootstrap,
        contamination=shared,
        masks=_masks(recipe, outs),
    )


def _warnings(
    generation: list[dict[str, Any]], items: dict[str, list[dict[str, Any]]], shared: dict[str, Any]
) -> list[str]:
    found = contamination.warnings(shared)
    for made in generation:
        share = made["fallback"] / made["rows"] if made["rows"] else 0
        if share > 0.5 and made["data"] == "self_distill":
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
    made = inputs.cuts(recipe, outs["prune"])
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
    size = _pick(cut)
    if student.ifp:  # of one sub-network; every block is there
        size = {"parameters": _summary(outs["train"][name])["parameters"], "removed_layers": []}
    return common | said | size | {"seed": recipe.seed if student.seed is None else student.seed}


def _masks(recipe: Recipe, outs: Outs) -> dict[str, dict[str, Any]]:
    asked = {s.name for s in recipe.student if s.ifp and s.ifp.mask == "prompt"}
    return {name: out.json("masks.json") for name, out in outs["train"].items() if name in asked and out.manifest()}


_CUT = {"angular": "cut by angular distance", "influence": "cut by block influence", "tail": "tail drop"}


def _pick(cut: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": cut["parameters_after"], "removed_layers": cut["removed_layers"]}


def _summary(out: Artifact) -> dict[str, Any]:
    return (out.manifest() or {}).get("summary", {})


def _samples(url: str) -> list[dict[str, Any]]:
    """A few rewrites of every verdict and task, for the report."""
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in parts.rows(url):
        group = taken.setdefault((row["verdict"], row["task"]), [])
        if len(group) < 2:
            shown = {"prompt": conversations.transcript(prompts.of({**parts.own(row), "context": ""}))}
            group.append({key: row[key] for key in ("task", "reference", "text", "verdict")} | shown)
    return [row for group in taken.values() for row in group][:24]


def _table(url: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(storage.read(url))).to_pylist()


def _lines(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read(url).decode().splitlines()]
