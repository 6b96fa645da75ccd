"""What travels with a Ray job: the recipe, this project's code, and the recipe's files that are on this machine.

The job's working directory holds `recipe.toml`, `cluster/`, `serving/` and `pipelines/`, and `files/`. Ray hands it to
every node. What is large, or on storage that the cluster sees too, stays where it is.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import secrets, storage
from pipelines import few_shot, reference
from pipelines.recipe import NAMED_SETS, Recipe
from pipelines.recipe_file import BadInput, check
from pipelines.student import BUILT_IN

CODE = Path(__file__).parents[1]
ROOMS = ("cluster", "serving", "pipelines")
MOST = 200 << 20  # bytes of a job's files: Ray takes 512 MiB, and they go over the wire before anything starts
READ = 256 << 10  # bytes; larger files are data, in which no secret is looked for
RECIPE = "recipe.toml"


def pack(recipe: Recipe, folder: Path, code: bool, there: tuple[str, ...] = ()) -> list[str]:
    """Fill the empty directory `folder`; returns what a user may want to know, a sentence each. `code`: this project's
    code goes along, else the cluster's nodes have it. Paths below one of `there` are the cluster's own.

    Raises BadInput where a file is too large or a secret, or the run directory would be lost with the job."""
    said, sent, left = [check_run_dir(recipe)], dict[Path, Path](), MOST

    def shipped(path: str, whole_folder: bool = False) -> str:
        nonlocal left
        source = Path(path).absolute()
        if any(source.is_relative_to(one) for one in there) or (Path(path).is_absolute() and not source.exists()):
            said.append(f"{path}: taken for a path of the cluster's nodes")
            return path
        if not source.exists():
            raise BadInput(f"{path}: there is no such file here; a path of the cluster's nodes begins with /")
        what = source.parent if whole_folder else source
        if what not in sent:
            sent[what] = Path("files", str(len(sent)), what.name)
            left -= (size := _copy(what, folder / sent[what], left))
            said.append(f"{what}: goes along, {size / 2**20:,.1f} MiB")
        return str(sent[what] / source.name if whole_folder else sent[what])

    moved = _moved(recipe, shipped)
    (folder / RECIPE).write_text(reference.render(moved), encoding="utf8")
    if code:
        for room in ROOMS:
            copy_code(room, folder)
    return said


def copy_code(room: str, folder: Path, *without: str) -> None:
    """Copy one of this project's packages below `folder`, without bytecode and names that match `without`."""
    shutil.copytree(CODE / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", *without))


def check_run_dir(recipe: Recipe) -> str:
    """What to say of where the run's artifacts go. Raises BadInput where they would be lost with the job."""
    local = storage.is_local(recipe.run_dir)
    if local and not Path(recipe.run_dir.removeprefix("file://")).is_absolute():
        raise BadInput(
            f"a run on a cluster needs a run_dir that outlives it: give run_dir=s3://BUCKET/{recipe.name}, or a "
            "directory that every node sees, by its whole path"
        )
    return f"run_dir {recipe.run_dir}" + (": every node must see this directory" if local else "")


def _moved(recipe: Recipe, shipped: Callable[..., str]) -> Recipe:
    """The recipe with paths of this machine as `shipped` says they are called in the job's working directory."""

    def is_path(text: str | None, others: tuple[str, ...] = ()) -> bool:
        return bool(text) and text not in others and "://" not in str(text)

    content: dict[str, Any] = recipe.model_dump(mode="json")
    model = content["teacher"]["model"]
    if is_path(model, ("tiny",)) and (Path(model).is_absolute() or Path(model).exists()):  # else one of the hub's
        content["teacher"]["model"] = shipped(model)
    for dataset in content["dataset"]:
        for key in ("source", "test_source"):
            if is_path(dataset[key], NAMED_SETS):
                dataset[key] = shipped(dataset[key])
    if is_path(content["generate"]["rationale_prompt"], tuple(few_shot.PACKAGED)):
        content["generate"]["rationale_prompt"] = shipped(content["generate"]["rationale_prompt"])
    for how in (student["ifp"] for student in content["student"] if student["ifp"]):
        if is_path(how["text"]):
            how["text"] = shipped(how["text"])
        if not re.fullmatch(BUILT_IN, how["predictor"]) and Path(how["predictor"]).exists():  # else one of the hub's
            how["predictor"] = shipped(how["predictor"])
    tasks = []
    for task in content["evaluate"]["lm_eval"]:
        path, examples = re.fullmatch(r"(.*?)(:\d+)?", task).groups()  # type: ignore[union-attr]
        local = path.endswith((".yaml", ".yml"))  # with what lies beside it: its rows, its functions
        tasks.append(f"{shipped(path, True)}{examples or ''}" if local else task)
    content["evaluate"]["lm_eval"] = tasks
    return check(content, recipe.name)


def _copy(what: Path, target: Path, room: int) -> int:
    """Copy a file, or a folder without what is hidden in it; returns the bytes. Raises BadInput."""
    files = [what]
    if what.is_dir():
        below = (path for path in sorted(what.rglob("*")) if path.is_file())
        files = [path for path in below if not any(part.startswith(".") for part in path.relative_to(what).parts)]
    size = sum(file.stat().st_size for file in files)
    if size > room:
        raise BadInput(
            f"{what}: {size / 2**20:,.0f} MiB, more than what travels with a job ({MOST >> 20} MiB in all); put it on "
            f"s3:// or, where the nodes see it under this very path, say --cluster-path {what}"
        )
    for file in files:
        beside = file.relative_to(what) if file != what else Path()
        if file != what and file.stat().st_size < READ and (kind := secrets.kind(file.read_text(errors="ignore"))):
            raise BadInput(f"{file} holds {kind}, and all of its folder would go along; move it elsewhere")
        (target / beside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / beside)
    return size
