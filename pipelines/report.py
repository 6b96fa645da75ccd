"""The report of a run: report.json and report.html, one file that asks nothing of the network."""

import json
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact
from pipelines import place
from pipelines.recipe import Recipe
from pipelines.reporting import findings, page
from pipelines.reporting.gather import Outs, gather
from pipelines.steps import Done


def report(recipe: Recipe, outs: Outs, done: Done) -> dict[str, Any]:
    """Write report.json and report.html into the run's directory; returns report.json's content."""
    with Artifact("report", "report", place.home(recipe)).writing() as folder:
        return write(gather(recipe, outs, done), folder)


def write(inputs: findings.Inputs, out: Path) -> dict[str, Any]:
    """Write `out`/report.json and `out`/report.html; returns report.json's content.

    Raises ValueError where two models were not asked the same test items."""
    made = findings.content(inputs)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(made, indent=2, allow_nan=False, ensure_ascii=False), encoding="utf8")
    (out / "report.html").write_text(page.render(inputs, made), encoding="utf8")
    return made
