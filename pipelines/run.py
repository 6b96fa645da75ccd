"""The story of a run on one page: the stages in order, what each reads and what it writes.

prepare ─┬─ prune ──────────┬─ train (one a student) ─┬─ evaluate (one a model) ─ report
         └─ generate (SDD) ─┘                         └─ teacher, pruned, other cuts
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.artifacts import Artifact
from cluster.session import session
from pipelines import ids, inputs, models, objectives, place, prepare, report
from pipelines.generation import finishing, job
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput, nearest
from pipelines.screen import say
from pipelines.steps import Done, Step, perform, step

STAGES = ("prepare", "prune", "generate", "train", "evaluate", "report")
Summary = dict[str, Any]
Made = Iterator[tuple[str, Summary]]


def run(recipe: Recipe, until: str = "report") -> Done:
    """Do every stage up to `until`, reusing what is there; returns what was done, the report among it at the end."""
    check(recipe)
    done, story = Done(), steps(recipe)
    if until == "report" and story[-1].pending():
        from pipelines import evaluate

        evaluate.check(recipe)
    with place.claimed(place.home(recipe)):
        place.remember(recipe)
        with ExitStack() as stack:
            for stage in STAGES[: STAGES.index(until) + 1]:
                for todo in (s for s in story if s.stage == stage):
                    if todo.ray and todo.pending():
                        stack.enter_context(session(recipe.cluster.address, recipe.cluster.cpus, recipe.cluster.gpus))
                    perform(todo, done)
        if until != "report":
            say(f"stopped after {until}, as asked")
        else:
            done.report = report.report(recipe, {s.stage: s.outs for s in story}, done)
    return done


def again(recipe: Recipe) -> dict[str, Any] | None:
    """The report of what a run has scored so far, written again; None where nothing is scored."""
    done, story = Done(), steps(recipe)
    for out in (out for s in story for out in s.outs.values()):
        if manifest := out.manifest():
            done.add(out, manifest, reused=True)
    outs = {s.stage: s.outs for s in story}
    return report.report(recipe, outs, done) if any(out.manifest() for out in outs["evaluate"].values()) else None


def servable(recipe: Recipe, only: list[str]) -> dict[str, Path]:
    """Model name → checkpoint directory of what a run has made, the teacher first. Raises BadInput."""
    outs = {s.stage: s.outs for s in steps(recipe)}
    made = inputs.cuts(recipe, outs["prune"]) | outs["train"]
    found = {"teacher": models.resolve(recipe.teacher.model)}
    found |= {name: out.local() / "model" for name, out in made.items() if out.manifest()}
    for name in only:
        if name not in found:
            raise BadInput(f"run has no model {name!r}; it has: {', '.join(found)}")
    return {name: found[name] for name in only} if only else found


def check_stage(name: str) -> None:
    """Raise BadInput, with the nearest name, where no stage is called so."""
    if name not in STAGES:
        raise BadInput(f"no stage {name!r}{nearest(name, list(STAGES))}; stages are: {', '.join(STAGES)}")


def check(recipe: Recipe) -> None:
    """Cheap refusals before dear work. Raises BadInput."""
    from pipelines import prune
    from serving import engine

    try:
        teacher = models.resolve(recipe.teacher.model)
        prune.check(recipe, teacher)
        if any(student.lora_targets or student.ifp for student in recipe.student):  # importing torch takes seconds
            from pipelines import train

            train.check(recipe, teacher)
        engine.check_split(models.configuration(teacher), recipe.teacher.tensor_parallel)
    except ValueError as error:
        raise BadInput(str(error)) from error


def steps(recipe: Recipe) -> list[Step]:
    """Every stage of the run with its artifacts; ids follow from the recipe alone, nothing is made yet."""
    home, shaped = place.home(recipe), ids.Shaped(recipe)
    teacher = models.resolve(recipe.teacher.model)

    def prepared(outs: dict[str, Artifact]) -> Made:
        with outs[""].writing() as out:
            yield "", prepare.prepare(recipe, out)

    data_step = step(home, "prepare", {"": shaped.prepare()}, prepared)
    data = data_step.outs[""]

    def pruned(outs: dict[str, Artifact]) -> Made:
        from pipelines import prune

        importance = prune.measure(recipe, teacher, inputs.calibration(recipe, data))
        for method, out in outs.items():
            with out.writing() as folder:
                yield method, prune.prune(recipe, method, teacher, importance, folder)

    prune_step = step(home, "prune", {m: shaped.prune(m, data) for m in recipe.prune.methods}, pruned)
    cut = prune_step.outs[recipe.prune.method]

    def generated(outs: dict[str, Artifact]) -> Made:
        from pipelines import generate

        for what, out in outs.items():
            asked = job.of_recipe(recipe, out.url, what or "self_distill")
            yield what, finishing.figures(generate.generate(asked, inputs.learned(recipe, data), teacher))

    students = {s.name: s for s in recipe.trained}
    # Rewrites are the artifact `generate`, rationales `generate-rationale`.
    read = {s.name: mode.replace("self_distill", "") for s in recipe.trained if (mode := objectives.writes(s))}
    asked = {what: shaped.generate(what or "self_distill", data) for what in read.values()}
    generate_step = step(home, "generate", asked, generated, ray=True)
    written = {name: generate_step.outs[what] for name, what in read.items()}

    def trained(outs: dict[str, Artifact]) -> Made:
        from pipelines import train

        for name, out in outs.items():
            with out.writing() as folder:
                rows, held = inputs.targets(students[name], data, written.get(name), folder)
                start = teacher if students[name].ifp else _checkpoint(cut, teacher)
                yield name, train.train(recipe, students[name], start, rows, folder, held)

    shapes = {name: shaped.train(s, cut, [written.get(name, data)]) for name, s in students.items()}
    train_step = step(home, "train", shapes, trained, ray=True)

    scored: dict[str, Artifact | None] = {"teacher": None, **inputs.cuts(recipe, prune_step.outs), **train_step.outs}

    def evaluated(outs: dict[str, Artifact]) -> Made:
        from pipelines import evaluate

        paths = {name: _checkpoint(scored[name], teacher) for name in outs}
        yield from evaluate.evaluate(recipe, paths, inputs.records(data, "test"), outs)

    tested = {name: shaped.evaluate(made, data) for name, made in scored.items()}
    evaluate_step = step(home, "evaluate", tested, evaluated, ray=True)
    return [data_step, prune_step, *([generate_step] if read else []), train_step, evaluate_step]


def _checkpoint(made: Artifact | None, teacher: Path) -> Path:
    return teacher if made is None else made.local() / "model"
