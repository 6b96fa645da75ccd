"""What travels with a Ray job: the recipe, this project's code, and the recipe's files that are on this machine.

The job's working directory holds `recipe.toml`, `cluster/`, `serving/` and `pipelines/`, and `files/`. Ray hands it to
every node. What is large, or on storage that the cluster sees too, stays where it is.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import storage
from pipelines import few_shot, reference
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput, check

CODE = Path(__file__).parents[1]
ROOMS = ("cluster", "serving", "pipelines")
MOST = 200 << 20  # bytes of a job's files: Ray takes 512 MiB, and they go over the wire before anything starts
RECIPE = "recipe.toml"
NAMED = ("tiny-tasks", "gsm8k-sample")


def pack(recipe: Recipe, folder: Path, code: bool, there: tuple[str, ...] = ()) -> list[str]:
    """Fill the empty directory `folder`; returns what a user may want to know, a sentence each. `code`: this project's
    code goes along, else the cluster's nodes have it. Paths below one of `there` are the cluster's own.

    Raises BadInput where a file is too large, or the run directory would be lost with the job."""
    said, sent, left = [check_run_dir(recipe)], dict[Path, Path](), MOST

    def shipped(path: str, whole_folder: bool = False) -> str:
        nonlocal left
        source = Path(path)
        if any(source.is_relative_to(one) for one in there) or not source.exists():
            said.append(f"{path}: taken for a path of the cluster's nodes")
            return path
        what = source.parent if whole_folder else source
        if what in sent:
            return str(sent[what] / source.name if whole_folder else sent[what])
        left -= (size := _size(what))
        if left < 0:
            raise BadInput(
                f"{path}: {size / 2**20:,.0f} MiB, more than what travels with a job ({MOST >> 20} MiB in all); put it "
                f"on s3:// or, where the nodes see it under this very path, say --cluster-path {what}"
            )
        sent[what] = target = Path("files", str(len(sent)), what.name)
        (shutil.copytree if what.is_dir() else _copy)(what, folder / target)
        return str(target / source.name if whole_folder else target)

    moved = _moved(recipe, shipped)
    (folder / RECIPE).write_text(reference.render(moved), encoding="utf8")
    if code:
        for room in ROOMS:
            shutil.copytree(CODE / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return said


def check_run_dir(recipe: Recipe) -> str:
    """What to say of where the run's artifacts go. Raises BadInput where they would be lost with the job."""
    if not recipe.run_dir:
        raise BadInput(
            f"a run on a cluster needs a run_dir that outlives it: give run_dir=s3://BUCKET/{recipe.name}, or a "
            "directory that every node sees under the same path"
        )
    if storage.is_local(recipe.run_dir):
        return f"run_dir {recipe.run_dir}: every node must see this directory"
    return f"run_dir {recipe.run_dir}"


def _moved(recipe: Recipe, shipped: Callable[..., str]) -> Recipe:
    """The recipe with paths of this machine as `shipped` says they are called in the job's working directory."""

    def local(text: str | None, named: tuple[str, ...] = ()) -> bool:
        return bool(text) and text not in named and Path(str(text)).is_absolute()

    content: dict[str, Any] = recipe.model_dump(mode="json")
    if local(content["teacher"]["model"]):
        content["teacher"]["model"] = shipped(content["teacher"]["model"])
    for dataset in content["dataset"]:
        for key in ("source", "test_source"):
            if local(dataset[key], NAMED):
                dataset[key] = shipped(dataset[key])
    if local(content["generate"]["rationale_prompt"], tuple(few_shot.PACKAGED)):
        content["generate"]["rationale_prompt"] = shipped(content["generate"]["rationale_prompt"])
    tasks = []
    for task in content["evaluate"]["lm_eval"]:
        path, examples = re.fullmatch(r"(.*?)(:\d+)?", task).groups()  # type: ignore[union-attr]
        tasks.append(f"{shipped(path, True)}{examples or ''}" if local(path) else task)
    content["evaluate"]["lm_eval"] = tasks
    return check(content, recipe.name)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
