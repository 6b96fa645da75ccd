"""A first recipe for somebody's own rows and model: `regrow recipes init`.

What the file and the model's config say decides the columns, the answer kind, how many blocks to cut, which
rows are held out, and the lengths in tokens. Each choice stands in the recipe with its reason above it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines import answers, models, recipe_file, reference
from pipelines.own_data import guess, sizing
from pipelines.own_data.sizing import Model, Notes
from pipelines.recipe import Dataset, Evaluate, Generate, Prune, Recipe, Teacher
from pipelines.recipe_file import BadInput
from pipelines.rows import files, records
from pipelines.rows.records import Record

LOOKED_AT = 200  # rows whose columns and answers are looked at
READ = 20_000  # rows that are read as the run will read them


def write(
    path: Path,
    data: str,
    test_data: str | None,
    model: str,
    told: Mapping[str, str],
    answer_kind: str | None,
    force: bool,
) -> Notes:
    """Write a recipe for the rows in `data` and the teacher `model` to `path`; returns what was chosen and why.

    `told`: columns the user has named. Raises BadInput where the file is there already, or data or model do
    not serve."""
    if path.suffix != ".toml":
        raise BadInput(f"{str(path)!r} is no name for a recipe; give one that ends in .toml")
    if path.exists() and not force:
        raise BadInput(f"{path} is there already; --force writes over it")
    if not path.parent.is_dir():
        raise BadInput(f"there is no directory {path.parent}; make it first")
    if answer_kind and answer_kind not in answers.KINDS:
        raise BadInput(f"--kind {answer_kind}: no such kind; known are {', '.join(answers.KINDS)}")
    notes: Notes = {}
    try:
        known = sizing.look_at(model)
        dataset, rows = described(path, data, test_data, told, answer_kind, notes)
    except ValueError as error:
        raise BadInput(str(error)) from error
    recipe = assembled(path, model, known, dataset, rows, notes)
    head = (
        f"# Written by `regrow recipes init` from {Path(data).name} and {model}. Check what it chose, then:\n"
        f"#   regrow run {path.name} --until prune    # reads the rows, cuts the model\n"
        f"#   regrow run {path.name}\n"
    )
    part = path.with_name(f".{path.stem}.part.toml")
    try:
        part.write_text(head + reference.render(recipe, notes) + "\n", encoding="utf8")
        recipe_file.load(str(part.resolve()))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return notes


def described(
    path: Path, data: str, test_data: str | None, told: Mapping[str, str], answer_kind: str | None, notes: Notes
) -> tuple[Dataset, list[Record]]:
    """The recipe's data set, and the rows that the run will read; the reasons go to `notes`."""
    first = [row for _, row in islice(files.rows(data), LOOKED_AT) if isinstance(row, dict)]
    if not first:
        raise ValueError(f"{data} has no row that can be read; give a file with rows in it")
    found = guess.columns(first, told)
    notes |= {f"dataset.{field}": why for field, why in found.why.items()}
    fields: dict[str, Any] = {"name": _slug(Path(data).name.split(".")[0]), **found.fields}
    fields |= {"source": _beside(path, data), "test_source": test_data and _beside(path, test_data), "kind": "none"}
    looked, _ = records.read(Dataset(**fields), data, "train", LOOKED_AT)
    said = _answers(first, looked, found.fields)
    fields["kind"], notes["dataset.kind"] = (answer_kind, "as told") if answer_kind else guess.kind(said)
    if guess.has_marks(said):
        fields["format"], notes["dataset.format"] = (
            "gsm8k",
            "the references hold <<…>> annotations, which are taken out",
        )
    rows, bad = records.read(Dataset(**fields), data, "train", READ)
    if not rows:
        raise ValueError(f"{data}: no row serves; line {bad[0].line}: {bad[0].reason}")
    notes["dataset.max_bad_rows"] = f"all of the {len(rows):,} rows that were read serve"
    if bad:
        told_of = f"{len(bad)} rows do not serve (line {bad[0].line}: {bad[0].reason})"
        notes["dataset.max_bad_rows"] = f"{told_of}; the run stops at them unless max_bad_rows = {len(bad)}"
    if test_data:
        tests, unfit = records.read(Dataset(**fields), test_data, "test", READ, trained=False)
        if not tests:
            raise ValueError(f"{test_data}: no row serves; " + (unfit[0].reason if unfit else "the file is empty"))
        notes["dataset.test_source"] = f"{len(tests):,} of its rows serve, {len(unfit):,} do not"
    elif len(rows) > 1:
        fields["test_rows"] = min(200, max(1, len(rows) // 5))
        error = 50 / fields["test_rows"] ** 0.5  # of a share of one half, where it is greatest
        notes["dataset.test_rows"] = (
            f"{fields['test_rows']} of {len(rows):,} rows are held out, by the hash of their questions; "
            f"one standard error of a score is then at most {error:.1f} points"
        )
    return Dataset(**fields), rows


def assembled(path: Path, model: str, known: Model, dataset: Dataset, rows: Sequence[Record], notes: Notes) -> Recipe:
    """The whole recipe: what data and model ask for, everything else as it is by default."""
    layers = max(1, round(known.layers / 4)) if known.layers else 8
    blocks = f"the model's {known.layers} blocks" if known.layers else "32 blocks (this model was not fetched)"
    notes["prune.layers"] = f"about a quarter of {blocks}; arXiv 2410.09982 tries 2 to 10 of 32"
    found = sizing.lengths(rows, known)
    whole, reply = sizing.context(known, found, notes)
    local = model != "tiny" and not models.on_hub(model)
    return Recipe(
        name=_slug(path.stem),
        teacher=Teacher(model=_dotted(_beside(path, model)) if local else model, max_model_len=whole),
        dataset=(dataset,),
        prune=Prune(layers=layers),
        generate=Generate(max_tokens=reply),
        student=sizing.students(known, found, whole, notes),
        evaluate=Evaluate(max_tokens=reply),
    )


def _answers(first: Sequence[Mapping[str, Any]], looked: Sequence[Record], fields: Mapping[str, str]) -> list[str]:
    """The texts that answers are taken from: short answers, where there is a column of them, else references."""
    if column := fields.get("answer"):
        return [str(row[column]).strip() for row in first if row.get(column) is not None]
    return [record.reference for record in looked]


def _beside(path: Path, place: str) -> str:
    """`place` as a recipe at `path` names it: relative where it was given so."""
    if "://" in place or Path(place).expanduser().is_absolute():
        return place
    return Path(os.path.relpath(place, path.parent)).as_posix()


def _dotted(place: str) -> str:
    """A relative directory with its dot in front, so that it is never taken for a hub id."""
    return place if place.startswith((".", "/", "~")) else f"./{place}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:63] or "mine"
