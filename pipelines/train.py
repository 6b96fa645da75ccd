"""train: fine-tune the pruned model on (prompt, target) rows with Ray Train and FSDP2; full or LoRA.

Interrupted at any instant, by the loss of a worker or of the driver, the same call goes on from the
last whole checkpoint to the same losses.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from cluster import gpus
from pipelines import cards, models
from pipelines.ifp import beginning
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.screen import say
from pipelines.student import Ifp, Student, objective_of
from pipelines.training import checkpoints, fitting, notes, packs

TOLD = "summary.json"
BETWEEN = ("whole", "chooser")  # what masks are cut out of


def train(
    recipe: Recipe, student: Student, pruned: Path, rows: str, out: Path, held: str | None = None
) -> dict[str, Any]:
    """Train `student` from the checkpoint in `pruned` on `rows` (a Parquet file: id, prompt, target; where there are
    such, history, the turns before a question; task, label or rationale; weight, of the row in the loss; family, a word
    for the kind of question). Rows of one id stay in one step. `held`: such a file of validation rows; the weights with
    the least loss over their labels are the ones that are kept.

    Needs a Ray session. Writes `out`/model, `out`/losses.jsonl, `out`/tensorboard and, for LoRA, `out`/adapter; of FFN
    units that the prompt chooses, `out`/masks.json, and `out`/model is a routed model (ifp.routed); of any that are
    chosen `out`/summary.json, what is returned. While it runs, `out`/checkpoints, which every node must see. Tokens in
    losses.jsonl and in the summary are target tokens: prompts carry no loss. `final_loss` is the mean over the last ten
    steps' tokens; `notes` are sentences on what went wrong and was mended. Raises BadInput where the data cannot be
    trained on, and RuntimeError where the training cannot go on."""
    if (out / TOLD).exists():  # a driver was killed while it tidied up
        summary = json.loads((out / TOLD).read_text(encoding="utf8"))
    else:
        summary = _trained(recipe, student, pruned, rows, out, held)
        if student.ifp:  # the trained model goes: from here on nobody could cut it again
            partial = (out / TOLD).with_suffix(".part")
            partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf8")
            partial.replace(out / TOLD)
    for folder in (out / name for name in (*BETWEEN, "checkpoints")):
        if folder.exists():
            shutil.rmtree(folder)
    return summary


def _trained(recipe: Recipe, student: Student, pruned: Path, rows: str, out: Path, held: str | None) -> dict[str, Any]:
    storage, seed = out / "checkpoints", recipe.seed if student.seed is None else student.seed
    storage.mkdir(parents=True, exist_ok=True)
    chooser, reads = beginning.begin(student, pruned, rows, seed, storage)
    before = beginning.texts(student, pruned, seed, storage, reads)
    given = packs.write(pruned, rows, student, seed, storage / "packs", reads=reads)
    asked = beginning.asked(student, pruned, rows, reads)
    whole = student.model_copy(update={"long_rows": "drop"})
    chosen_by = packs.write(pruned, held, whole, seed, storage / "held", True, reads) if held else None
    trained = out / ("whole" if student.ifp else "model")
    if not trained.exists():  # else a driver was killed between here and the end
        config = {
            "seed": seed,
            "pruned": str(pruned.resolve()),
            "chooser": str(chooser.resolve()) if chooser else None,
            "replicas": recipe.cluster.replicas,
            "held": str(chosen_by.folder.resolve()) if chosen_by else None,
            "board": {
                "folder": out.resolve() / "tensorboard",
                "who": (recipe.name, student.name),
                "hook": recipe.cluster.metrics_hook,
            },
        }
        in_order = packs.InOrder([*before, given.folder])
        fitting.fit(student, _workers(recipe, student), in_order, storage, config)
        for name in ("adapter", "losses.jsonl", "chooser", "model"):  # the model last: it says that all is there
            if (storage / checkpoints.FINAL / name).exists():
                _replace(storage / checkpoints.FINAL / name, trained if name == "model" else out / name)
    counts = {name: getattr(given.about, name) for name in ("rows", "too_long", "truncated", "weightless")}
    if chosen_by:
        counts |= {f"validation_{name}": getattr(chosen_by.about, name) for name in ("rows", "too_long", "weightless")}
    summary = {**_summary(student, out, trained), **counts}
    _dress(recipe, student, pruned, summary, trained)
    if student.ifp:
        summary |= _cut(student, asked, seed, out, _called(recipe.teacher.model))
    return summary | {"notes": notes.notes(storage)}


def check(recipe: Recipe, teacher: Path) -> None:
    """Raise ValueError where a student asks for adapters on what the teacher's blocks do not have, or for FFN units
    that they do not have, or that the engines cannot divide.

    Reads its config.json alone."""
    from pipelines import subnetwork
    from pipelines.training import choosers, loading

    model = loading.blank(teacher)
    for student in recipe.student:
        loading.targets(model, student)
        if student.ifp:
            blocks, width = subnetwork.shape(teacher)
            if student.ifp.mask == "prompt":
                choosers.built_in(student.ifp.predictor, blocks)
            student.check_units(width, recipe.teacher.tensor_parallel)


def _cut(student: Student, asked: list[tuple[str, str]], seed: int, out: Path, base: str) -> dict[str, Any]:
    """Cut dense models out of `out`/whole; returns what there is to tell of them. `asked`: beginning.asked."""
    from pipelines.ifp import cutting

    assert student.ifp
    for left in (out / "model", *out.glob(".model.*")):  # of a driver that was killed in what follows
        shutil.rmtree(left, ignore_errors=True)
    told = cutting.cut(student.ifp, out / "whole", out / "chooser", asked, seed, out, base)
    first = out / "model" / "subnetworks" / "0"
    return told | {"parameters": _parameters(first if first.exists() else out / "model")}


def _workers(recipe: Recipe, student: Student) -> int:
    """How many workers train: `cluster.workers`, but on a private cluster, which no node will join, no more than there
    are GPUs, if any. The losses are the same."""
    cluster, there = recipe.cluster, gpus.there()
    if cluster.address != "local" or not 0 < there < cluster.workers:
        return cluster.workers
    fit = there - there % cluster.replicas
    if not fit:
        raise BadInput(f"cluster.replicas = {cluster.replicas}, but this machine has {there} GPU(s); lower it")
    say(f"{student.name}: {fit} of cluster.workers = {cluster.workers}, since this machine has {there} GPU(s)")
    return fit


def _dress(recipe: Recipe, student: Student, pruned: Path, summary: dict[str, Any], model: Path) -> None:
    """Put tokenizer, generation settings, licence and card beside the trained weights, and licence and card
    beside the adapter."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(pruned, local_files_only=True).save_pretrained(model)
    for folder in (model, model.with_name("adapter")):
        models.readable(folder)
    if (pruned / "generation_config.json").exists():
        shutil.copyfile(pruned / "generation_config.json", model / "generation_config.json")
    how = {
        "objective": objective_of(student.name),
        **student.model_dump(exclude={"name", "seed", "compile", "ifp"}),
        **(_masks(student.ifp) if student.ifp else {}),
        **summary,
    }
    facts = {name.replace("_", " "): value for name, value in how.items() if value not in ((), None)}
    base = _called(recipe.teacher.model)
    title = f"{base}, {'trained' if student.ifp else 'pruned and trained'} ({student.name})"
    made = {model: (title, "transformers"), model.with_name("adapter"): (f"{title}: its LoRA adapter", "peft")}
    for folder, (name, library) in made.items():
        if folder.exists():  # an adapter is derived from the teacher as well, and may be passed on alone
            cards.copy_licences(pruned, folder)
            text = cards.card(name, base, facts, cards.licence(pruned), library)
            (folder / "README.md").write_text(text, encoding="utf8")


def _masks(how: Ifp) -> dict[str, Any]:
    """The settings of masks as a card tells them: without the paths of this machine."""
    told = how.model_dump() | {"predictor": _called(how.predictor), "text": how.text and Path(how.text).name}
    return {f"ifp.{name}": value for name, value in told.items()}


def _called(model: str) -> str:
    """What cards call a model: the hub's id, or the directory's name."""
    base = model.partition("@")[0]
    return base if base.count("/") == 1 and not base.startswith((".", "~", "/")) else Path(base).name


def _summary(student: Student, out: Path, trained: Path) -> dict[str, Any]:
    """What the steps and the saved weights in `trained` say."""
    from pipelines.training import loading

    done = checkpoints.read_steps(out / "losses.jsonl")
    seconds, tokens = sum(step["seconds"] for step in done), sum(step["tokens"] for step in done)
    last = done[-10:]
    seen = [step for step in done if "validation_loss" in step]
    chosen = min(seen, key=lambda step: step["validation_loss"]) if seen else None
    return {
        "steps": len(done),
        "tokens": tokens,
        "final_loss": sum(step["loss"] * step["tokens"] for step in last) / sum(step["tokens"] for step in last),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "parameters": _parameters(trained),
        "trainable": loading.trainable(trained, student),
        **({"best_step": chosen["step"] + 1, "validation_loss": chosen["validation_loss"]} if chosen else {}),
    }


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files of `folder`, from their headers; a tied matrix is stored once."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _replace(source: Path, target: Path) -> None:
    """Move a file or folder to `target`, in place of what an earlier attempt left there."""
    if target.is_dir():
        shutil.rmtree(target)
    shutil.move(source, target)
