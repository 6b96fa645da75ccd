"""What a run has found, in figures: the content of report.json (schema 1)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.reporting import recovery
from pipelines.reporting.recovery import Interval
from pipelines.student import DISTILLED
from pipelines.verdicts import VERDICTS

SCHEMA = 1
Rows = list[dict[str, Any]]
MODEL_KEYS = ("name", "label", "kind", "objective", "parameters", "removed_layers", "checkpoint", "seed")
COUNTS = ("rows", *VERDICTS, "fallback", "quarantined", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Inputs:
    """What a report is made of, all of it plain data.

    `models` lists the teacher, then the cut that students were trained from, then other cuts, then
    students. `items` and `scores` go by model name, `losses` by student name. `in_domain` holds the
    tasks with train rows. `bootstrap` is the number of resamples behind every interval. `contamination` is
    what test rows share with train rows (pipelines.rows.contamination.check), None where not looked for. `masks`:
    student → masks.json (ifp.cutting), where the prompt chooses the FFN units."""

    run: dict[str, Any]
    models: Rows
    items: dict[str, Rows]
    scores: dict[str, Rows]
    in_domain: set[str]
    importance: dict[str, Any] | None
    losses: dict[str, Rows]
    generation: Rows
    samples: Rows
    stages: Rows
    warnings: list[str]
    seed: int
    bootstrap: int
    contamination: dict[str, Any] | None = None
    masks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def named(self, kind: str) -> list[str]:
        """The scored models of one kind, in order."""
        return [m["name"] for m in self.models if m["kind"] == kind and self.items.get(m["name"])]

    def objective(self, objective: str) -> list[str]:
        """The scored students of one objective, in order."""
        wanted = {m["name"] for m in self.models if m.get("objective") == objective}
        return [name for name in self.named("student") if name in wanted]

    def label(self, name: str) -> str:
        """What a model is called in pictures and sentences."""
        return next((str(m.get("label") or name) for m in self.models if m["name"] == name), name)

    def parts(self) -> dict[str, set[str] | None]:
        """Part of the tasks → its tasks: all of them (None), those trained on, the others."""
        tasks = {str(row["task"]) for rows in self.items.values() for row in rows}
        found: dict[str, set[str] | None] = {"overall": None}
        if tasks & self.in_domain and tasks - self.in_domain:
            found |= {"in_domain": tasks & self.in_domain, "out_of_domain": tasks - self.in_domain}
        return found


def content(inputs: Inputs) -> dict[str, Any]:
    """report.json: schema 1 and, beside it, `differences`, `tasks`, `losses`, `masks`, `contamination` and `warnings`.

    Averages are shares of right answers in [0, 1] and recovery is in per cent; what is not defined
    (or not finite) is null."""
    keys = ("suite", "task", "metric", "value", "n", "stderr")
    made = {
        "schema": SCHEMA,
        "run": inputs.run,
        "models": [{key: model.get(key) for key in MODEL_KEYS} for model in inputs.models],
        "scores": [
            {"model": model, **{key: row.get(key) for key in keys}}
            for model, rows in inputs.scores.items()
            for row in rows
        ],
        "recovery": [recovered(inputs, model) for model in inputs.models if inputs.items.get(model["name"])],
        "differences": differences(inputs),
        "tasks": {name: recovery.means(rows) for name, rows in inputs.items.items()},
        "in_domain": sorted(inputs.in_domain),
        "losses": {name: summed(rows) for name, rows in inputs.losses.items()},
        "masks": inputs.masks,
        "generation": [counted(row, inputs.stages) for row in inputs.generation],
        "stages": inputs.stages,
        "contamination": inputs.contamination,
        "warnings": inputs.warnings,
        "bootstrap": {"resamples": inputs.bootstrap, "seed": inputs.seed, "level": recovery.LEVEL},
    }
    return _finite(made)


def recovered(inputs: Inputs, model: Mapping[str, Any]) -> dict[str, Any]:
    """One model's row of `recovery`: averages, recovery and the 95 % intervals of both."""
    teacher = next(iter(inputs.named("teacher")), None)
    settings = {"seed": inputs.seed, "resamples": inputs.bootstrap}
    rows = inputs.items[model["name"]]
    tasks = {"in_domain": inputs.in_domain, "out_of_domain": {row["task"] for row in rows} - inputs.in_domain}
    row: dict[str, Any] = {"model": model["name"], "seed": model.get("seed")}
    row |= {"average": recovery.average(rows)} | {part: recovery.average(rows, of) for part, of in tasks.items()}
    theirs = inputs.items[teacher] if teacher else None
    for part, of in {"overall": None, **tasks}.items():
        suffix = "" if part == "overall" else f"_{part}"
        found = recovery.recovery(theirs, rows, of, **settings) if theirs else recovery.NOTHING
        row |= {f"recovery{suffix}": found.value, f"ci95{suffix}": found.ends}
        mean = recovery.interval(rows, of, **settings)
        row["average_ci95" if part == "overall" else f"{part}_ci95"] = mean.ends
    return row


def differences(inputs: Inputs) -> Rows:
    """Differences of averages that the run was made to see, each overall and in and out of domain:
    SDD − SFT, DSBS − its baselines, units that the prompt chooses − the same units for all, student − untrained
    cut, the chosen cut − other cuts of its size."""
    cuts = inputs.named("pruned")
    pairs = [(a, b) for a in inputs.objective("sdd") for b in inputs.objective("sft")]
    pairs += [(a, b) for a in inputs.objective("dsbs") for base in DISTILLED[1:] for b in inputs.objective(base)]
    ifp = inputs.objective("ifp")
    pairs += [(a, b) for a in ifp if a in inputs.masks for b in ifp if b not in inputs.masks]
    pairs += [(student, cut) for student in inputs.named("student") for cut in cuts[:1]]
    pairs += [(cuts[0], other) for other in cuts[1:]]
    return [
        {"a": a, "b": b, "part": part, "difference": found.value, "ci95": found.ends}
        for a, b in pairs
        for part, of in inputs.parts().items()
        for found in [difference(inputs, a, b, of)]
    ]


def difference(inputs: Inputs, a: str, b: str, tasks: set[str] | None = None) -> Interval:
    """Average of model `a` less that of model `b`, with its paired interval."""
    settings = {"seed": inputs.seed, "resamples": inputs.bootstrap}
    return recovery.difference(inputs.items[a], inputs.items[b], tasks, **settings)


def summed(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A student's training in a few figures. A step that a resumed run did twice counts once."""
    steps = list({row["step"]: row for row in rows}.values())
    tokens, seconds = sum(row["tokens"] for row in steps), sum(row["seconds"] for row in steps)
    losses = [row["loss"] for row in steps]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(steps),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "first_loss": sum(losses[:tenth]) / tenth if losses else None,
        "final_loss": sum(losses[-tenth:]) / tenth if losses else None,
    }


def counted(row: Mapping[str, Any], stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry of `generation`; its seconds are the stage's where it brings none."""
    took = next((stage["seconds"] for stage in stages if stage["name"].startswith("generate")), None)
    entry = {"data": row.get("data"), **{key: int(row.get(key) or 0) for key in COUNTS}}
    return entry | {"seconds": row.get("seconds", took)}


def _finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold as None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
