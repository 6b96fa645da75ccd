"""The prune stage: measure the teacher's blocks, cut some out, write an ordinary checkpoint.

What it writes is what stock transformers and vLLM load; beside it the whole table of importances
(`importance.json`) and its picture (`importance.svg`).
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import cards, cuts, models, prompts, weights
from pipelines.cuts import Importance
from pipelines.recipe import Recipe
from pipelines.screen import say

REPORT_SECONDS = 5.0
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
CUT, KEPT = "#d1495b", "#30638e"


def check(recipe: Recipe, teacher: Path) -> None:
    """Raise ValueError where `prune.layers` or a student's `last_layers` do not fit the teacher, or it cannot be
    pruned at all.

    Reads its config.json alone, so that a run can be refused before anything starts."""
    check_config(recipe, models.configuration(teacher), str(teacher / "config.json"))


def check_config(recipe: Recipe, config: dict[str, Any], where: str) -> None:
    """The same for the content of a config.json; `where` names it."""
    total = depth(config, where)
    if "quantization_config" in config:
        raise ValueError(
            "teacher.model is a quantized checkpoint; give the unquantized one, students are trained from it"
        )
    cuts.check_count(recipe.prune.layers, total)
    for student in recipe.student:
        if student.last_layers > total - recipe.prune.layers:
            raise ValueError(
                f"student {student.name}: last_layers = {student.last_layers}, but the pruned model has "
                f"{total - recipe.prune.layers} blocks; give at most that many, or 0 to train the whole model"
            )


def depth(config: dict[str, Any], where: str) -> int:
    """The number of decoder blocks that a config.json states. Raises ValueError where it states none."""
    text = config.get("text_config") or config
    found = next((text[key] for key in DEPTHS if isinstance(text.get(key), int)), None)
    if found is None:
        raise ValueError(f"teacher.model: {where} does not say how many layers there are (num_hidden_layers)")
    return found


def measure(recipe: Recipe, teacher: Path, questions: list[list[prompts.Message]]) -> Importance:
    """The importance of the teacher's blocks on `questions`, the messages that ask each."""
    import torch
    from transformers import AutoTokenizer

    from pipelines import layers

    weights.check(teacher)
    texts = _calibration(recipe, AutoTokenizer.from_pretrained(teacher, trust_remote_code=False), questions)
    model = _placed(teacher)
    if (most := max(map(max, texts))) >= (rows := model.get_input_embeddings().num_embeddings):
        raise ValueError(
            f"teacher.model: the tokenizer in {teacher} makes token {most}, but the model's embedding has {rows} rows; "
            "tokenizer and weights are of different models"
        )
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > REPORT_SECONDS:
            said = time.monotonic()
            say(f"prune: measured {done:,} of {total:,} texts")

    try:
        return layers.measure(model, texts, progress=progress)
    finally:
        del model
        torch.cuda.empty_cache()  # what the allocator keeps, an engine on this GPU would miss at its start


def prune(recipe: Recipe, method: str, teacher: Path, importance: Importance, out: Path) -> dict[str, Any]:
    """Cut `recipe.prune.layers` blocks out of `teacher` by `method`, as `importance` tells.

    Writes out/model, out/importance.json and out/importance.svg. `distance` in the summary is the mean
    angular distance that the cut bridges. ValueError for bad counts, or a model whose config cannot
    describe the cut."""
    from transformers import AutoTokenizer

    from pipelines import layers

    check(recipe, teacher)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(teacher, trust_remote_code=False)
    removed = cuts.choose(method, recipe.prune.layers, importance)
    # loaded again, in the checkpoint's own dtype: what is kept is kept to the bit
    model = weights.load(teacher, "auto")
    before, total = _parameters(model), len(importance.influence)
    layers.remove(model, removed)
    if wrong := layers.mismatches(model):
        raise ValueError(
            f"a {model.config.model_type} config cannot describe this model without blocks {removed} "
            f"(it would differ in {', '.join(wrong[:3])}, …); choose other layers or another method"
        )
    summary = {
        "removed_layers": removed,
        "method": method,
        "parameters_before": before,
        "parameters_after": _parameters(model),
        "layers_before": total,
        "layers_after": total - len(removed),
        "distance": cuts.distance(importance, removed),
    }
    _save(recipe, model, tokenizer, teacher, summary, out / "model")
    table = {
        "method": method,
        "layers_removed": len(removed),
        "removed_layers": removed,
        "angular": {str(n): row for n, row in importance.angular.items()},
        "influence": importance.influence,
        "rows": importance.rows,
    }
    (out / "importance.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(importance, removed, method, out / "importance.svg")
    say(f"prune ({method}): removed blocks {removed} of {total}, angular distance {summary['distance']:.4f}")
    return summary


def _calibration(recipe: Recipe, tokenizer: Any, questions: Sequence[list[prompts.Message]]) -> list[list[int]]:
    """Token ids of the questions as the model is asked them; a seeded sample where there are more than
    `prune.calibration_rows`. A prompt that is too long loses its beginning: its last token is measured."""
    rows = recipe.prune.calibration_rows
    if len(questions) > rows:
        questions = random.Random(recipe.seed).sample(list(questions), rows)
    chat = bool(tokenizer.chat_template)
    rendered = [prompts.text(tokenizer, messages) for messages in questions]
    texts = [
        tokenizer(text, add_special_tokens=not chat).input_ids[-recipe.teacher.max_model_len :] for text in rendered
    ]
    if not texts:
        raise ValueError("prune: no train question to calibrate on; give a [[dataset]] with train rows")
    return texts


def _placed(teacher: Path) -> Any:
    """The teacher to be measured: fp32 on the CPU; bf16 on one GPU, or on all where one cannot hold it."""
    import torch

    if not torch.cuda.is_available():
        return weights.load(teacher, torch.float32)
    free, _ = torch.cuda.mem_get_info()
    needed = sum(file.stat().st_size for file in teacher.glob("*.safetensors"))
    spread = needed > 0.9 * free and torch.cuda.device_count() > 1
    return (
        weights.load(teacher, torch.bfloat16, device_map="auto")
        if spread
        else weights.load(teacher, torch.bfloat16).to("cuda")
    )


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # a tied matrix comes once


def _save(recipe: Recipe, model: Any, tokenizer: Any, teacher: Path, summary: dict[str, Any], to: Path) -> None:
    from transformers import GenerationConfig

    asked = teacher / "generation_config.json"
    if asked.exists():  # kept as it is; some published ones would not pass the check on saving
        model.generation_config = GenerationConfig()
    model.save_pretrained(to)
    models.readable(to)
    if asked.exists():
        shutil.copyfile(asked, to / asked.name)
    tokenizer.save_pretrained(to)
    cards.copy_licences(teacher, to)
    named = recipe.teacher.model.partition("@")[0]
    base = named if named.count("/") == 1 and not named.startswith((".", "~", "/")) else Path(named).name
    facts = {name.replace("_", " "): value for name, value in summary.items()}
    facts["calibration rows, at most"] = recipe.prune.calibration_rows
    title = f"{base}, {summary['layers_after']} of {summary['layers_before']} layers"
    (to / "README.md").write_text(cards.card(title, base, facts, cards.licence(teacher)), encoding="utf-8")


def draw(importance: Importance, removed: Sequence[int], method: str, to: Path) -> None:
    """Write the picture of the importances, a deterministic SVG: the distance by start for cuts of the
    chosen size, for cuts of every size, and the influence of every block. The cut is red."""
    import matplotlib
    from matplotlib.figure import Figure

    total, size = len(importance.influence), len(removed)
    contiguous = removed[-1] - removed[0] + 1 == size
    with matplotlib.rc_context({"svg.hashsalt": "regrow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        one, every, each = figure.subplots(1, 3)
        starts = importance.angular[size]
        one.bar(
            range(len(starts)),
            starts,
            color=[CUT if contiguous and start == removed[0] else KEPT for start in range(len(starts))],
        )
        one.set(title=f"cuts of {size} by start", xlabel="first removed block", ylabel="angular distance")
        table = [[*row, *[float("nan")] * (total - len(row))] for row in importance.angular.values()]
        mesh = every.pcolormesh(range(total), list(importance.angular), table, cmap="viridis", shading="nearest")
        if contiguous:
            every.plot([removed[0]], [size], "o", color=CUT, markersize=7)
        every.set(title="cuts of every size", xlabel="first removed block", ylabel="blocks removed")
        figure.colorbar(mesh, ax=every, label="angular distance")
        each.bar(
            range(total), importance.influence, color=[CUT if block in removed else KEPT for block in range(total)]
        )
        each.set(title="influence of each block", xlabel="block", ylabel="1 − cos(in, out)")
        for axes in (one, each):
            axes.spines[["top", "right"]].set_visible(False)
        for axes in (one, every, each):
            axes.xaxis.get_major_locator().set_params(integer=True)
        every.yaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(f"{method}: {size} of {total} blocks removed ({', '.join(map(str, removed))})")
        figure.savefig(to, format="svg", metadata={"Date": None, "Creator": None})
