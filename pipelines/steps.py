"""Steps: what a stage makes from what, found and reused where the same work is there already."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.artifacts import Artifact, artifact
from pipelines.screen import say

QUARANTINE = "quarantine"  # the folder of an artifact that holds rows without an answer
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
    """What a run did so far: one row a finished artifact, as report.json shows it; sentences on rows that are
    in quarantine; and, where the run came to its end, report.json's content."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[str] = field(default_factory=list)
    report: dict[str, Any] | None = None

    def add(self, out: Artifact, manifest: dict[str, Any], reused: bool) -> None:
        """Note one artifact."""
        row = {"name": manifest["name"], "id": manifest["id"], "seconds": manifest["seconds"], "reused": reused}
        self.stages.append(row)
        if held := manifest["summary"].get("quarantined"):
            of = manifest["summary"]["rows"]
            self.quarantine.append(f"{held:,} of {of:,} rows of {out.name}, with their reasons in {out.at(QUARANTINE)}")


def step(run_dir: str, stage: str, records: dict[str, dict[str, Any]], work: Work, ray: bool = False) -> Step:
    """A step whose artifacts are named `stage` (where there is one, unnamed) or `stage-who`."""
    outs = {who: artifact(run_dir, f"{stage}-{who}" if who else stage, record) for who, record in records.items()}
    return Step(stage, outs, records, work, ray)


def perform(step: Step, done: Done) -> None:
    """Do what is pending of `step` and commit each artifact as it gets whole."""
    pending = step.pending()
    for name, out in step.outs.items():
        if name not in pending:
            done.add(out, out.manifest() or {}, reused=True)
    if not pending:
        say(f"{step.stage}: reused ({', '.join(out.id[:8] for out in step.outs.values())})")
        return
    began = time.monotonic()
    for name, summary in step.work(pending):
        manifest = pending[name].commit(step.records[name], time.monotonic() - began, summary)
        done.add(pending[name], manifest, reused=False)
        say(f"{pending[name].name}: done in {manifest['seconds']:.0f} s ({manifest['id'][:8]})")
        began = time.monotonic()
