"""What the prompt chooses, drawn: how much the units of tasks have in common, and how that came about in training."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.reporting import plots
from pipelines.reporting.findings import Inputs
from pipelines.reporting.plots import Line, element


def chosen(inputs: Inputs) -> list[dict[str, Any]]:
    """A section for each student whose units the prompt chooses: its figures, and four pictures."""
    return [
        {
            "name": inputs.label(name),
            **{key: table[key] for key in ("units", "units_before", "prompts", "overlap", "unused", "sizes", "shared")},
            "between": overlap_map(table["tasks"], table["between"]),
            "blocks": by_block(table),
            "training": over_training(inputs.losses.get(name, [])),
            "table": list(zip(table["tasks"], table["between"], strict=True)),
        }
        for name, table in inputs.masks.items()
    ]


def overlap_map(tasks: Sequence[str], between: Sequence[Sequence[float]]) -> Markup:
    """The share of units that prompts of two tasks have in common; stronger is more."""
    if not tasks:
        return Markup("")
    values = [value for row in between for value in row]
    low, span, size = min(values), (max(values) - min(values)) or 1.0, 100 / len(tasks)
    drawn = []
    for y, (task, row) in enumerate(zip(tasks, between, strict=True)):
        middle = f"{(y + 0.5) * size:.2f}%"
        drawn.append(element("text", task, x=-10, y=middle, dy="0.35em", text_anchor="end"))
        for x, value in enumerate(row):
            tip = element("title", f"{task} and {tasks[x]}: {value:.3f}")
            box = {"x": f"{x * size:.2f}%", "y": f"{y * size:.2f}%", "width": f"{size:.2f}%", "height": f"{size:.2f}%"}
            depth = f"{0.06 + 0.94 * (value - low) / span:.2f}"
            drawn.append(element("rect", tip, class_="cell", fill_opacity=depth, **box))
    for x, task in enumerate(tasks):
        at = f"{(x + 0.5) * size:.2f}%"
        drawn.append(element("text", task[:9], x=at, y="100%", dy=18, text_anchor="middle"))
    about = (
        f"Share of FFN units that prompts of two tasks have in common, from {low:.2f} to {low + span:.2f}; table below."
    )
    return plots.framed(drawn, "task", "task", about, height=max(180, 30 * len(tasks)))


def by_block(table: Mapping[str, Any]) -> Markup:
    """Overlap of two prompts and share of units that no prompt keeps, by block."""
    curves = [
        Line("shared by two prompts", list(enumerate(table["by_block"])), "m-sdd"),
        Line("kept for no prompt", list(enumerate(table["unused_by_block"])), "m-other", 1),
    ]
    about = f"By block: overlap {_told(table['by_block'])}; unused {_told(table['unused_by_block'])}."
    return plots.legend(curves) + plots.lines(curves, "block", "share of units", about)


def over_training(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """Overlap and variance of the masks by step."""
    curves = []
    for key, label, kind, dash in (
        ("mask_overlap", "shared by two prompts", "m-sdd", 0),
        ("mask_variance", "variance over prompts, of the most there can be", "m-sft", 1),
    ):
        points = [(float(row["step"]), float(row[key])) for row in steps if row.get(key) is not None]
        curves += [Line(label, plots.thinned(points), kind, dash)] if points else []
    if not curves:
        return Markup("")
    ends = "; ".join(f"{c.label}: {c.points[0][1]:.3f} to {c.points[-1][1]:.3f}" for c in curves)
    return plots.legend(curves) + plots.lines(curves, "step", "share", f"Masks by step. {ends}.")


def _told(values: Sequence[float]) -> str:
    return json.dumps([round(value, 3) for value in values])
