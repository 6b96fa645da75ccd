"""A recipe as a workload on Kubernetes: GPUs, sizes of pods, what it may read there, and the endpoint of its models."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.jobs.submit import run_id
from cluster.k8s.rendering.workload import LONGEST, PACKAGED, Endpoint, Size, Volume, Workload, cut, hashed
from pipelines import few_shot, lm_tasks, needs, recipe_file, reference
from pipelines.recipe import NAMED_SETS, Recipe
from pipelines.recipe_file import BadInput

GIB = 1 << 30
MOST = 8  # GPUs of one node, as they are mostly built
REMEDY = "put it on s3://, hf:// or a volume that pods mount (--volume NAME=CLAIM:/path)"
KEYS = "/etc/regrow-keys/keys.txt"


def workload(
    recipe: Recipe,
    image: str,
    *,
    name: str = "",
    gpus_per_node: int | None = None,
    volumes: tuple[Volume, ...] = (),
    models: dict[str, str] | None = None,
    **options: Any,
) -> Workload:
    """The workload that `recipe` is. `models`: name → s3:// URL of what the endpoint serves; None: the trained students
    of this run, where their addresses follow from what is on this machine. `options`: any other field of Workload.

    Raises BadInput where the recipe reads or writes what pods do not see, or asks for what no node has."""
    _check_places(recipe, volumes)
    total = max(needs.gpus(recipe), recipe.cluster.gpus or 0) if needs.wants_gpus(recipe) else 0
    split = recipe.teacher.tensor_parallel
    each = min(total, MOST) if gpus_per_node is None else min(gpus_per_node, total)
    if total and each < split:
        raise BadInput(
            f"teacher.tensor_parallel = {split}, but a node has {each} GPUs (--gpus-per-node): an engine's weights are "
            "split within one node; lower it, or take larger nodes"
        )
    nodes = max(-(-total // each), -(-(total // split) // (each // split))) if total else 0
    text, packaged = _written(recipe)
    fields: dict[str, Any] = {
        "name": name or called(recipe.name), "run": run_id(recipe.name, recipe.run_dir), "recipe": text,
        "run_dir": recipe.run_dir, "image": image, "gpus": total, "gpus_per_node": each, "gpu_nodes": nodes,
        "packaged_tasks": packaged, "volumes": volumes,
    }  # fmt: skip
    try:
        made = Workload(**(fields | _sizes(recipe, total, each) | options))
        return replace(made, endpoint=_endpoint(recipe, _served(recipe, models), total > 0))
    except ValueError as error:
        raise BadInput(str(error)) from error


def called(name: str) -> str:
    """A recipe's name as that of a Kubernetes object: `quickstart` as it is, `llama-3.1-8b` → `llama-3-1-8b-7b6335`.

    One that has to be changed or cut gets a hash, so that two recipes never have the same objects; and so does one that
    ends like what is added for an endpoint or a cluster to work on."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    made = made if made[:1].isalpha() else f"r-{made}"
    if made == name and not made.endswith(("-api", "-ray")):
        return cut(name, LONGEST)
    return hashed(made[: LONGEST - 7], name)


def _check_places(recipe: Recipe, volumes: tuple[Volume, ...]) -> None:
    """Raise BadInput for every path of this machine that the recipe reads, and for a run directory that would be gone
    with its pod."""
    wrong = []
    for field, place in _read(recipe):
        if storage.is_local(place) and not _on(volumes, place):
            wrong.append(f"{field} = {place!r} is a path of this machine, which no pod has; {REMEDY}")
    kept = recipe.run_dir and (storage.on_s3(recipe.run_dir) or _on(volumes, recipe.run_dir))
    if not kept:
        where = repr(recipe.run_dir) if recipe.run_dir else "not set"
        wrong.append(
            f"run_dir is {where}: in a pod it would be gone with the pod; set run_dir=s3://BUCKET/NAME, or a directory "
            "on a volume (--volume NAME=CLAIM:/path)"
        )
    if wrong:
        raise BadInput("\n".join(wrong))


def _read(recipe: Recipe) -> list[tuple[str, str]]:
    """(field, place) of what the recipe reads and its image does not hold."""
    from pipelines import models

    model, found = recipe.teacher.model, []
    if model != "tiny" and not models.on_hub(model):
        found.append(("teacher.model", model))
    for data in recipe.dataset:
        named = {"source": data.source, "test_source": data.test_source}
        found += [
            (f"dataset {data.name}, {key}", place) for key, place in named.items() if place not in (*NAMED_SETS, None)
        ]
    written = recipe.generate.rationale_prompt
    if written not in (None, *few_shot.PACKAGED):
        found.append(("generate.rationale_prompt", written))
    tasks = [lm_tasks.named(task)[0] for task in recipe.evaluate.lm_eval]
    found += [("evaluate.lm_eval", task) for task in tasks if "/" in task and not _packaged(task)]
    return [(field, place) for field, place in found if place]


def _on(volumes: tuple[Volume, ...], place: str) -> bool:
    return any(volume.holds(place) for volume in volumes)


def _packaged(task: str) -> bool:
    return Path(task).is_relative_to(recipe_file.PACKAGED)


def _written(recipe: Recipe) -> tuple[str, bool]:
    """The recipe as TOML, with the packaged lm-eval tasks by their path in the image, and whether it has such."""
    tasks = recipe.evaluate.lm_eval
    there = tuple(
        f"{PACKAGED}/{Path(task).relative_to(recipe_file.PACKAGED)}" if _packaged(task) else task for task in tasks
    )
    moved = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"lm_eval": there})})
    return reference.render(moved), there != tasks


def _sizes(recipe: Recipe, total: int, each: int) -> dict[str, Any]:
    """Pods and disk by the teacher's size. The head prunes, in fp32 and in its main memory; the disk holds the model,
    the cuts and the students, and while one is trained, its checkpoints. A teacher that cannot be looked at is taken
    for one of 8 billion parameters."""
    from pipelines import models
    from pipelines.planning import architecture

    try:
        source = models.describe(recipe.teacher.model)
        numbers = float(architecture.read(source.config, source.where).parameters())
    except (ValueError, OSError):
        numbers = 8e9
    whole = 4 * numbers / GIB
    large = numbers > 20e9
    at_once = max(recipe.generate.engines, recipe.serve.models_at_a_time, recipe.cluster.workers)
    return {
        "head": Size(16 if large else 4 if numbers < 1e9 else 8, _even(8 + 1.15 * whole)),
        "gpu_pod": Size(8 * each, max(48 * each, _even(whole * 0.65)), each),
        "cpu_pod": Size(4, 16) if total else Size(8, _even(16 + whole * at_once)),
        "scratch_gib": max(20, 10 * round(5 * whole / 10)),
    }


def _even(gib: float) -> int:
    return 8 * -(-int(gib) // 8)


def _served(recipe: Recipe, models: dict[str, str] | None) -> dict[str, str]:
    if models is not None:
        return models
    at_hand = recipe.teacher.model == "tiny" and all(data.source in NAMED_SETS for data in recipe.dataset)
    if not at_hand or not recipe.trained:
        return {}
    from pipelines import run

    trained = next(step for step in run.steps(recipe) if step.stage == "train").outs
    return {name: out.at("model") for name, out in trained.items()}


def _endpoint(recipe: Recipe, models: dict[str, str], gpu: bool) -> Endpoint | None:
    """The Serve application of `models`, bounded as the recipe says, for those who have a key."""
    from serving import config_file
    from serving.listening import Http
    from serving.settings import Bounds
    from serving.settings import Endpoint as Settings

    if not models:
        return None
    lengths = {name: getattr(recipe.teacher, name) for name in ("max_model_len", "dtype", "tensor_parallel")}
    bounds = recipe.serve.model_dump(include=set(Bounds.model_fields))
    settings = Settings.model_validate({"models": models, **lengths, **bounds, "keys": KEYS})
    config = config_file.content(settings, Http("0.0.0.0"))
    return Endpoint(config, len(models) * settings.max_replicas, settings.tensor_parallel if gpu else 0)
