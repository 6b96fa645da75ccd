"""From a TOML file (or a packaged recipe's name) and overrides to a `Recipe`, with errors a person can act on."""

import difflib
import json
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster import secrets
from pipelines import few_shot
from pipelines.recipe import NAMED_SETS, Recipe

PACKAGED = Path(__file__).parent / "recipes"


class BadInput(ValueError):
    """What the user gave cannot be used; the message says what, where, and what to write instead."""


def names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def find(recipe: str) -> Path:
    """The file of a packaged recipe's name or of a path. Raises BadInput, with the nearest name."""
    if recipe in names():
        return PACKAGED / f"{recipe}.toml"
    path = Path(recipe)
    if path.suffix == ".toml" or "/" in recipe:
        if path.is_file():
            return path
        raise BadInput(f"recipe file {recipe!r} does not exist; give a .toml file or one of: {', '.join(names())}")
    raise BadInput(f"no recipe named {recipe!r}{nearest(recipe, names())}; packaged recipes: {', '.join(names())}")


def load(recipe: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a name or file with `section.field=value` overrides applied. Raises BadInput."""
    path = find(recipe)
    try:
        content = tomllib.loads(path.read_bytes().decode("utf8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a text file (byte {error.start} is not UTF-8); a recipe is TOML text") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    if not content:
        raise BadInput(f"{path}: the recipe is empty; `regrow recipes show quickstart` prints one to start from")
    _anchor(content, path.parent)
    for override in overrides:
        _override(content, override)
    return check(content, str(path))


def check(content: dict[str, Any], where: str) -> Recipe:
    """`content` as a recipe; every problem in one BadInput, each with its field and remedy. A secret is refused first:
    no message shows it."""
    if seen := [f"{where}: {field} looks like {what}" for field, what in secrets.found(content)]:
        raise BadInput("\n".join([*seen, f"a recipe is kept beside its results and holds no secrets; {secrets.WAY}"]))
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise BadInput("\n".join(f"{where}: {_say(problem)}" for problem in error.errors())) from error


def section_of(path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class that holds the fields at `path` of a recipe, list indices skipped."""
    found: type[BaseModel] = Recipe
    for key in path:
        if isinstance(key, int):
            continue
        field = found.model_fields.get(str(key))
        inner = [t for t in _classes(field.annotation) if issubclass(t, BaseModel)] if field else []
        if not inner:
            return None
        found = inner[0]
    return found


def _classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _classes(part)]


def _say(problem: Any) -> str:
    path = tuple(problem["loc"])
    field = ".".join(map(str, path)) or "recipe"
    if problem["type"] == "extra_forbidden":
        section = section_of(path[:-1])
        known = list(section.model_fields) if section else []
        return f"unknown key {field!r}{nearest(str(path[-1]), known)}; known here: {', '.join(known)}"
    if problem["type"] == "missing":
        section = section_of(path[:-1])
        about = section.model_fields[str(path[-1])].description if section else ""
        return f"{field!r} is missing ({about})"
    message = problem["msg"].removeprefix("Value error, ")
    whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # fields that do not go together
    given = "" if whole else f", got {str(problem['input'])[:60]!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{given}"


def nearest(word: str, known: list[str]) -> str:
    """`, did you mean …?` with the closest of `known`, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def _override(content: dict[str, Any], override: str) -> None:
    """Apply `a.b=value` in place; list entries are named by position or by their `name`."""
    path, sign, text = override.partition("=")
    keys = path.strip().split(".")
    shown = "…" if secrets.kind(path) else path  # what follows the sign may be a secret
    if not sign or not all(keys):
        raise BadInput(f"override {shown!r} is not section.field=value; for example prune.layers=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    at: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(at, list):
            entry = next((i for i, e in enumerate(at) if key in (str(i), str(e.get("name")))), None)
            if entry is None:
                raise BadInput(f"override {shown!r}: {'.'.join(keys[:depth])} has no entry {key!r}")
            at = at[entry]
        elif last:
            at[key] = value
        else:
            at = at.setdefault(key, {})
        if not last and not isinstance(at, dict | list):
            raise BadInput(f"override {shown!r}: {'.'.join(keys[: depth + 1])} is no section")


def _anchor(content: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a recipe file absolute, from the file's folder."""

    def anchored(value: Any, always: bool = False) -> Any:
        if not isinstance(value, str) or "://" in value or not value:
            return value
        looks_local = always or value.startswith(("./", "../", "~")) or (folder / value).exists()
        return str((folder / Path(value).expanduser()).resolve()) if looks_local else value

    if "run_dir" in content:
        content["run_dir"] = anchored(content["run_dir"], always=True)
    if isinstance(content.get("teacher"), dict) and content["teacher"].get("model") != "tiny":
        content["teacher"]["model"] = anchored(content["teacher"].get("model"))
    for dataset in content.get("dataset", []) if isinstance(content.get("dataset"), list) else []:
        if isinstance(dataset, dict):
            for key in {"source", "test_source"} & dataset.keys():
                named = dataset[key] in NAMED_SETS
                dataset[key] = dataset[key] if named else anchored(dataset[key], always=True)
    written = content.get("generate")
    if isinstance(written, dict) and written.get("rationale_prompt") not in (None, *few_shot.PACKAGED):
        written["rationale_prompt"] = anchored(written["rationale_prompt"], always=True)
    for student in content.get("student", []) if isinstance(content.get("student"), list) else []:
        how = student.get("ifp") if isinstance(student, dict) else None
        if isinstance(how, dict):
            how |= {key: anchored(how[key], always=key == "text") for key in {"text", "predictor"} & how.keys()}
    tasks = content.get("evaluate", {}).get("lm_eval", []) if isinstance(content.get("evaluate"), dict) else []
    if isinstance(tasks, list) and tasks:
        # a number of examples may follow the name: tasks/mine.yaml:5
        content["evaluate"]["lm_eval"] = [
            anchored(task, always=bool(re.search(r"\.ya?ml(:\d+)?$", str(task)))) for task in tasks
        ]


def remembered(run: str) -> Recipe:
    """The recipe that a run's directory remembers."""
    from cluster import storage

    tried = [run] if "/" in run or Path(run).is_dir() else [f"runs/{run}", run]
    for place in tried:
        try:
            content = json.loads(storage.read(storage.join(place, "recipe.json")))
        except (FileNotFoundError, NotADirectoryError):
            continue
        return check(content | {"run_dir": place}, storage.join(place, "recipe.json"))
    raise BadInput(f"{run!r} is no run: no recipe.json in it; give the directory that `regrow run` wrote to")
