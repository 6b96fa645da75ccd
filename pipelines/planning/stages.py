"""A plan's stages: what each reads and makes, and whether that is there already."""

from pathlib import Path
from typing import Any

from cluster import storage
from pipelines import objectives, place
from pipelines.planning import amounts
from pipelines.planning.architecture import BYTES
from pipelines.planning.costs import WRITTEN, rewrite
from pipelines.planning.known import Known

Row = dict[str, Any]


def stages(k: Known) -> tuple[list[Row], str]:
    """One row an artifact, {stage, artifact, reads, makes, state}, and why the state could not be told, or ""."""
    done, why = _there(k)
    rows = [_row(*row, done) for row in _order(k)]
    last = {"stage": "report", "artifact": "report", "reads": "all of them", "makes": "report.html, report.json"}
    return [*rows, last | {"state": "written by every run"}], why


def _order(k: Known) -> list[tuple[str, str, str, str]]:
    """(stage, whose, reads, makes) in the order of the run."""
    train, test = sum(a.train for a in k.rows), sum(a.test for a in k.rows)
    stored = BYTES[k.teacher.dtype]
    size = _size(k.teacher.parameters(k.kept) * stored)
    sets = ", ".join(f"{a.name} {a.train:,}{f' + {a.test:,} test' if a.test else ''}" for a in k.rows)
    rows = [("prepare", "", sets, f"{train + test:,} records")]
    calibration = min(train or test, k.recipe.prune.calibration_rows)
    for cut in k.recipe.prune.methods:
        rows.append(("prune", cut, f"teacher, {calibration:,} questions", f"checkpoint of {k.kept} blocks, {size}"))
    for mode in k.writes:
        written = f"{train:,} {WRITTEN[mode]}, {sum(a.train * rewrite(k, a) for a in k.rows) / 1e6:,.2f} M tokens"
        rows.append(("generate", mode.replace("self_distill", ""), f"teacher, {train:,} rows", written))
    for s in k.students:
        targets = WRITTEN[mode] if (mode := objectives.writes(s) or "") else "references"
        adapters = k.teacher.lora(s.lora_rank, k.blocks(s), s.lora_targets) / 1e6
        adapter = f", adapter of {adapters:,.1f} M" if s.lora_rank else ""
        reads, makes = f"pruned model, {train:,} {targets}", f"checkpoint, {size}{adapter}"
        if s.ifp:
            model, blocks = k.scored[s.name]
            number = s.ifp.subnetworks if s.ifp.mask == "prompt" else 1
            each = _size(model.parameters(blocks) * stored)
            reads = f"teacher, {train:,} {targets}"
            what = f"{s.ifp.units:,} of {k.teacher.intermediate:,} FFN units"
            makes = f"{number} sub-network(s) of {what}, {each} each{adapter}"
        rows.append(("train", s.name, reads, makes))
    tasks = [task.rsplit("/", 1)[-1] for task in k.recipe.evaluate.lm_eval]
    asked = ", ".join([*([f"{test:,} test rows"] if test else []), *tasks])
    rows += [("evaluate", name, asked, "scores, answers") for name in k.scored]
    return rows


def _size(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"


def _row(stage: str, who: str, reads: str, makes: str, done: dict[str, bool]) -> Row:
    name = f"{stage}-{who}" if who else stage
    state = "there already" if done.get(name) else "to do"
    return {"stage": stage, "artifact": name, "reads": reads, "makes": makes, "state": state}


def _there(k: Known) -> tuple[dict[str, bool], str]:
    """Artifact → whether it is whole, where that can be told from this machine alone; else why not."""
    from pipelines import run

    home = place.home(k.recipe)
    if storage.is_local(home) and not (Path(home) / "artifacts").is_dir():
        return {}, ""
    if not storage.is_local(home):
        return {}, f"what {home} holds already was not looked up: a plan asks no network"
    if k.source.folder is None or not any(k.source.folder.glob("*.safetensors")):
        return {}, f"what {home} holds already cannot be told: the teacher's weights are not on this machine"
    if not all(map(amounts.at_hand, k.recipe.dataset)):
        return {}, f"what {home} holds already was not looked up: some data are not on this machine, or large"
    teacher = k.recipe.teacher.model_copy(update={"model": str(k.source.folder)})  # a hub id would ask the hub
    found = run.steps(k.recipe.model_copy(update={"teacher": teacher}))
    return {out.name: out.manifest() is not None for step in found for out in step.outs.values()}, ""
