"""Steps: what a stage makes from what, found and reused where the same work is there already."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.artifacts import Artifact, artifact
from pipelines.screen import say

Work = Callable[[dict[str, Artifact]], Iterator[tuple[str, dict[str, Any]]]]


@dataclass(frozen=True)
class Step:
    """One stage of a run. `outs` names its artifacts, `records` what shapes each; `work` takes those
    not whole yet and yields (name, summary) as each gets done. `ray`: whether the work needs Ray."""

    stage: str
    outs: dict[str, Artifact]
    records: dict[str, dict[str, Any]]
    work: Work
    ray: bool = False

    def pending(self) -> dict[str, Artifact]:
        """The artifacts that are not whole yet."""
        return {name: out for name, out in self.outs.items() if out.manifest() is None}


@dataclass
class Done:
    """What a run did so far: one row a finished artifact, as report.json shows it."""

    stages: list[dict[str, Any]] = field(default_factory=list)

    def add(self, manifest: dict[str, Any], reused: bool) -> None:
        """Note one artifact."""
        row = {"name": manifest["name"], "id": manifest["id"], "seconds": manifest["seconds"], "reused": reused}
        self.stages.append(row)


def step(run_dir: str, stage: str, records: dict[str, dict[str, Any]], work: Work, ray: bool = False) -> Step:
    """A step whose artifacts are named `stage` (where there is one, unnamed) or `stage-who`."""
    outs = {who: artifact(run_dir, f"{stage}-{who}" if who else stage, record) for who, record in records.items()}
    return Step(stage, outs, records, work, ray)


def perform(step: Step, done: Done) -> None:
    """Do what is pending of `step` and commit each artifact as it gets whole."""
    pending = step.pending()
    for name, out in step.outs.items():
        if name not in pending:
            done.add(out.manifest() or {}, reused=True)
    if not pending:
        say(f"{step.stage}: reused ({', '.join(out.id[:8] for out in step.outs.values())})")
        return
    began = time.monotonic()
    for name, summary in step.work(pending):
        manifest = pending[name].commit(step.records[name], time.monotonic() - began, summary)
        done.add(manifest, reused=False)
        say(f"{pending[name].name}: done in {manifest['seconds']:.0f} s ({manifest['id'][:8]})")
        began = time.monotonic()
