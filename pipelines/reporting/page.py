"""report.html from a report's inputs and figures: what the template shows, section by section."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipelines.reporting import chosen, plots
from pipelines.reporting.findings import Inputs
from pipelines.reporting.headline import headline
from pipelines.reporting.plots import Bar, Line, Mark

PARTS = {"overall": "All tasks", "in_domain": "In-domain", "out_of_domain": "Out-of-domain"}
SAMPLES = 12
LONGEST = 4000  # characters shown of one text
Made = Mapping[str, Any]


def render(inputs: Inputs, made: Made) -> str:
    """The whole page. Every value from data is escaped; the page holds no script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "short": short, "took": took, "signed": signed}
    title, lead = headline(inputs, made)
    view = {
        "title": _kept_together(title),
        "lead": _kept_together(lead),
        "style": {name: style(inputs, name) for name in (m["name"] for m in inputs.models)},
        "label": {model["name"]: inputs.label(model["name"]) for model in inputs.models},
        "recovery": recovery(inputs, made),
        "comparisons": comparisons(inputs, made),
        "grid": grid(inputs, made),
        "suites": suites(made),
        "seen": seen(inputs),
        "cut": cut(inputs),
        "training": training(inputs),
        "chosen": chosen.chosen(inputs),
        "generation": [{**row, "picture": plots.shares(row)} for row in made["generation"]],
        "samples": samples(inputs),
        "speed": speed(made),
        "stages": stages(made),
        "recipe": recipe(inputs),
        "items": len(next(iter(inputs.items.values()), [])),
    }
    return environment.get_template("report.html.j2").render(made=made, run=inputs.run, parts=PARTS, **view)


def _kept_together(text: str) -> str:
    """`text` with narrow no-break spaces before per cent signs and no break inside `in-domain`."""
    return text.replace(" %", "\u202f%").replace("-domain", "\u2011domain").replace("-of-", "\u2011of\u2011")


def percent(share: float | None, digits: int = 1) -> str:
    """0.914 as `91.4`; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def signed(share: float | None) -> str:
    """0.094 as `+9.4`, with a real minus sign; a dash for None."""
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", "−")


def short(number: float | None) -> str:
    """3,612,345 as `3.61 M`."""
    if number is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def took(seconds: float | None) -> str:
    """3725 as `1 h 2 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def style(inputs: Inputs, name: str) -> str:
    """The colour class of a model: by what it is, the same in every figure."""
    model = next(m for m in inputs.models if m["name"] == name)
    if model["kind"] == "pruned":
        return "m-pruned" if name in inputs.named("pruned")[:1] else "m-cut"
    objective = model.get("objective")
    return "m-teacher" if model["kind"] == "teacher" else f"m-{objective}" if objective in ("sft", "sdd") else "m-other"


def recovery(inputs: Inputs, made: Made) -> dict[str, Markup]:
    """Recovery bars, for all tasks and, where there are both, in and out of domain."""
    drawn = {}
    highest = max([100.0, *(row["ci95"][1] for row in made["recovery"] if row["ci95"])])
    for part in inputs.parts():
        suffix = "" if part == "overall" else f"_{part}"
        rows = []
        for row in made["recovery"]:
            value, ends = row[f"recovery{suffix}"], row[f"ci95{suffix}"]
            text = "–" if value is None else f"{value:.1f} %"
            name, told = row["model"], ends and style(inputs, row["model"]) != "m-teacher"
            text += f"  ({ends[0]:.1f}–{ends[1]:.1f})" if told else ""
            rows.append(Bar(inputs.label(name), value, text, style(inputs, name), ends if told else None))
        drawn[part] = plots.bars(rows, top=highest * 1.01, line=100.0)
    return drawn


def comparisons(inputs: Inputs, made: Made) -> dict[str, Markup]:
    """Differences of averages in points, for every part of the tasks."""
    drawn = {}
    for part in inputs.parts():
        rows = []
        for row in (row for row in made["differences"] if row["part"] == part):
            ends = row["ci95"]
            text = signed(row["difference"]) + (f"  ({signed(ends[0])} to {signed(ends[1])})" if ends else "")
            label = f"{inputs.label(row['a'])} − {inputs.label(row['b'])}"
            rows.append(Bar(label, row["difference"], text, style(inputs, row["a"]), ends))
        if rows:
            drawn[part] = plots.forest(rows)
    return drawn


def grid(inputs: Inputs, made: Made) -> dict[str, Any]:
    """Model × task: accuracy and the share of the teacher's score, tasks trained on first."""
    found = {task for row in made["tasks"].values() for task in row}
    tasks = sorted(found, key=lambda task: (task not in inputs.in_domain, task))
    best = made["tasks"].get(next(iter(inputs.named("teacher")), ""), {})
    rows = []
    for name, scores in made["tasks"].items():
        cells = []
        for task in tasks:
            value = scores.get(task)
            share = value / best[task] if value is not None and best.get(task) else None
            cells.append({"task": task, "value": value, "share": share, "depth": min(share or 0.0, 1.0)})
        rows.append({"model": name, "cells": cells})
    inside = sum(task in inputs.in_domain for task in tasks)
    return {"tasks": tasks, "inside": inside, "rows": rows}


def suites(made: Made) -> list[dict[str, Any]]:
    """Scores of suites that are not the recipe's own: one row a task and metric, one column a model."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in made["scores"]:
        if score["suite"] != "own":
            key = (score["suite"], score["task"], score["metric"])
            row = rows.setdefault(key, {"suite": key[0], "task": key[1], "metric": key[2], "n": score["n"], "by": {}})
            row["by"][score["model"]] = score
    return list(rows.values())


def seen(inputs: Inputs) -> dict[str, Any] | None:
    """How many test questions share words with train rows, in all and by task."""
    found = inputs.contamination
    if not found or not found["tasks"]:
        return None
    sums = {key: sum(task[of] for task in found["tasks"]) for key, of in (("rows", "rows"), ("questions", "question"))}
    return {**found, **sums}


def cut(inputs: Inputs) -> dict[str, Any] | None:
    """The importance figures, with every contiguous cut of a scored model marked."""
    found = inputs.importance
    if not found or not found["angular"].get(str(found["layers_removed"])):
        return None
    size = int(found["layers_removed"])
    row = found["angular"][str(size)]
    starts: dict[int, tuple[list[str], str]] = {}
    for model in (m for m in inputs.models if m["kind"] == "pruned"):
        removed = list(model.get("removed_layers") or [])
        if removed and removed == list(range(removed[0], removed[0] + size)):
            names, _ = starts.setdefault(removed[0], ([], style(inputs, model["name"])))
            names.append(inputs.label(model["name"]))
    marks = [Mark(start, row[start], " = ".join(names), kind) for start, (names, kind) in starts.items()]
    nearest = min(range(len(row)), key=row.__getitem__)
    about = f"Angular distance of cuts of {size} blocks by first block; least at block {nearest} ({row[nearest]:.4f})."
    curve = Line(f"cuts of {size}", list(enumerate(row)), "m-other")
    influence = found.get("influence") or []
    removed = found["removed_layers"]
    told = f"Influence of each block; removed: {', '.join(map(str, removed))}."
    columns = plots.columns(influence, removed, "block", "influence (1 − cosine of input and output)", told)
    return {
        **found,
        "curve": plots.lines([curve], "first removed block", "angular distance (share of a half turn)", about, marks),
        "map": plots.angular_map(found),
        "columns": columns if influence else "",
        "total": len(influence) or size + len(row) - 1,
    }


def training(inputs: Inputs) -> dict[str, Markup] | None:
    """Loss curves of the students, on one pair of axes."""
    curves: list[Line] = []
    for name, rows in inputs.losses.items():
        points = sorted({row["step"]: (float(row["step"]), float(row["loss"])) for row in rows}.values())
        known = any(m["name"] == name for m in inputs.models)
        kind = style(inputs, name) if known else "m-other"
        dash = sum(curve.style == kind for curve in curves)
        curves.append(Line(inputs.label(name), plots.thinned(points), kind, dash))
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    ends = "; ".join(f"{c.label}: {c.points[0][1]:.3f} to {c.points[-1][1]:.3f}" for c in curves)
    figure = plots.lines(curves, "step", "loss (nats a target token)", f"Training loss by step. {ends}.")
    return {"figure": figure, "legend": plots.legend(curves)}


def samples(inputs: Inputs) -> list[dict[str, Any]]:
    """A few generated rows, taking turns over the verdicts, long texts cut."""
    groups = [[row for row in inputs.samples if row["verdict"] == verdict] for verdict in plots.VERDICTS]
    most = max(map(len, groups), default=0)
    turns = [group[turn] for turn in range(most) for group in groups if turn < len(group)][:SAMPLES]

    def shown(text: object) -> str:
        whole = str(text or "")
        return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} … ({len(whole) - LONGEST:,} more characters)"

    keys = ("prompt", "reference", "text")
    return [{**row, **{key: shown(row.get(key)) for key in keys}} for row in turns]


def speed(made: Made) -> Markup:
    """Token rates of generation and training."""
    rows = []
    for row in made["generation"]:
        for key, kind in (("prompt", "plain"), ("completion", "m-sdd")):
            if row["seconds"]:
                rate = row[f"{key}_tokens"] / row["seconds"]
                rows.append(Bar(f"{row['data']}: {key} tokens", rate, f"{rate:,.0f} tokens/s", kind))
    for name, told in made["losses"].items():
        rate = told["tokens_per_second"]
        rows.append(Bar(f"train {name}: target tokens", rate, f"{rate or 0:,.0f} tokens/s", "m-sft"))
    return plots.bars(rows)


def stages(made: Made) -> Markup:
    """Seconds of every stage; those found and reused are hollow and cost this run nothing."""
    rows = []
    for stage in made["stages"]:
        told = took(stage["seconds"]) + (" (reused)" if stage["reused"] else "")
        kind = "reused" if stage["reused"] else "plain"
        rows.append(Bar(stage["name"], stage["seconds"], told, kind, note=str(stage["id"])))
    return plots.bars(rows)


def recipe(inputs: Inputs) -> str:
    """The resolved recipe as the TOML that repeats the run."""
    from pipelines import recipe_file, reference

    content = inputs.run.get("recipe")
    return reference.render(recipe_file.check(content, "run.recipe")) if content else ""
