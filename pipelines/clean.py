"""Clean a run's directory of the artifacts that nothing refers to any more.

What is kept is the recipe that was run last in that directory (its `recipe.json`): every artifact it
names today, whole or half-written (the same command goes on from those). All other artifacts are left
over: whole ones of other settings, data, models or formats, and half-written ones. Only directories
with an artifact's name, right below `artifacts/`, are ever removed.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import folders, storage
from cluster.artifacts import MANIFEST
from cluster.folders import Folder
from pipelines import place
from pipelines import run as story
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput

SHAPE = re.compile(rf"(?:{'|'.join(story.STAGES)})(?:-[a-z0-9][a-z0-9._-]{{0,62}})?-[0-9a-f]{{16}}")


@dataclass(frozen=True)
class Findings:
    """What is in a run's directory: `kept` is named by the last recipe, `left` by nothing; `others` are names that
    are no artifact's."""

    home: str
    kept: list[Folder]
    left: list[Folder]
    others: list[str]


def clean(recipe: Recipe, yes: bool) -> Iterator[str]:
    """Tell what is left over in the run's directory and, where `yes`, remove it. Yields lines to print.

    Raises BadInput while a run works there, and where nothing at all would be kept; OSError where
    something cannot be removed."""
    home = place.home(recipe)
    named = {f"{out.name}-{out.id}" for step in story.steps(recipe) for out in step.outs.values()}
    with place.claimed(home):
        found = look(home, named)
        yield from tell(found)
        if not found.left:
            yield "nothing to remove"
            return
        if not found.kept:
            raise BadInput(
                f"{home}: nothing of its last recipe is there, so all {len(found.left)} artifacts would go. Its data, "
                "teacher or settings have changed since, or regrow has; `regrow run` it again first, or delete the "
                "directory yourself"
            )
        size = _size(sum(folder.size for folder in found.left))
        if not yes:
            yield f"nothing was removed; with --yes these {len(found.left)} go and free {size}"
            return
        for folder in found.left:
            folders.remove(folder, MANIFEST)
        yield f"removed {len(found.left)}, {size} freed"


def look(home: str, named: set[str]) -> Findings:
    """What is in the run's directory `home`, where the artifacts `named` are referred to."""
    artifacts = storage.join(home, "artifacts")
    if storage.is_local(home) and Path(artifacts).is_symlink():
        raise BadInput(f"{artifacts} is a link to {Path(artifacts).resolve()}; clean follows none out of the run")
    there, others = folders.below(artifacts, MANIFEST)
    ours = [folder for folder in there if SHAPE.fullmatch(folder.name)]
    others += [folder.name for folder in there if folder not in ours]
    left = [folder for folder in ours if folder.name not in named]
    kept = [folder for folder in ours if folder.name in named]
    return Findings(home, kept, left, others)


def tell(found: Findings) -> Iterator[str]:
    """One line an artifact that is left over, and what is kept."""
    unfinished = [folder.name for folder in found.kept if not folder.whole]
    about = f", unfinished: {', '.join(unfinished)}" if unfinished else ""
    yield f"{found.home}: kept {len(found.kept)}, {_size(sum(folder.size for folder in found.kept))}{about}"
    for folder in found.left:
        state = "older" if folder.whole else "half-written"
        yield f"  {state:12}  {folder.name:44}  {_size(folder.size):>9}  {_age(folder)}"
    for name in found.others:
        yield f"  left alone: {name} (no artifact's name, or a link)"


def runs(here: Path) -> list[str]:
    """The run directories under `here`/runs. Raises BadInput where there is none."""
    found = sorted(str(path.parent) for path in here.glob("runs/*/recipe.json"))
    if not found:
        raise BadInput(f"no run under {here / 'runs'}; give the directory that `regrow run` wrote to")
    return found


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _age(folder: Folder) -> str:
    if folder.changed is None:
        return "empty"
    seconds = (datetime.datetime.now(datetime.UTC) - folder.changed).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "a moment ago"
