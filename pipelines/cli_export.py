"""`regrow export-mask`: its options, and the dense checkpoint of a task's sub-network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow export-mask runs/mine --student ifp --prompt 'You are an expert in SQL. Write a query for each "
    "question.' --out models/sql` · `regrow export-mask runs/mine --student ifp --rows sql.jsonl --save-mask "
    "sql.safetensors --tensor-parallel 4 --out models/sql` · `regrow export-mask models/routed --prompt-file task.txt "
    "--out models/task` · `regrow export-mask meta-llama/Llama-3.1-8B --mask sql.safetensors --out models/sql`; then "
    "`vllm serve models/sql`"
)
Model = Annotated[
    str, typer.Argument(help="A run (with --student), a routed model's directory, or, with --mask, any checkpoint.")
]
Out = Annotated[Path, Opt(help="Directory of the new checkpoint; not there yet, or empty.")]
Student = Annotated[str | None, Opt(help="The run's student that was trained with instruction-following pruning.")]
Prompt = Annotated[str | None, Opt(help="A task's description, or one prompt, as a user would write it.")]
PromptFile = Annotated[Path | None, Opt(help="The same, as a text file.")]
Rows = Annotated[str | None, Opt(help="JSONL, Parquet or CSV with a column `prompt` or `messages`: their mean mask.")]
Mask = Annotated[Path | None, Opt(help="A mask that --save-mask wrote.")]
Save = Annotated[Path | None, Opt("--save-mask", help="Write the mask to this file as well.")]
Units = Annotated[int | None, Opt(min=1, help="FFN units of each block that stay; else as many as in training.")]
Parallel = Annotated[int, Opt("--tensor-parallel", min=1, help="GPUs the checkpoint shall be served on; checked.")]
Raw = Annotated[bool, Opt("--raw", help="Show prompts to the predictor without the model's chat template.")]


def export_mask(
    model: Model, out: Out, student: Student = None, prompt: Prompt = None, prompt_file: PromptFile = None,
    rows: Rows = None, mask: Mask = None, save_mask: Save = None, units: Units = None, tensor_parallel: Parallel = 1,
    raw: Raw = False,
) -> None:  # fmt: skip
    """Write the sub-network of a task, chosen by a mask on FFN units, as an ordinary dense checkpoint."""
    from pipelines.recipe_file import BadInput

    given = {"--prompt": prompt, "--prompt-file": prompt_file, "--rows": rows, "--mask": mask}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise BadInput(f"give one of {', '.join(given)}" + (f"; these are {' and '.join(named)}" if named else ""))
    if mask and (raw or units):
        raise BadInput(f"--mask says which units stay; leave out {'--units' if units else '--raw'}")
    if save_mask and save_mask.is_dir():
        raise BadInput(f"--save-mask {save_mask} is a directory; name a file, for example {save_mask}/mask.safetensors")
    try:
        found, base = _found(model, student)
        made = _made(found, given, units or 0, raw, out, tensor_parallel)
        _write(found, base, made, out, save_mask)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(str(error)) from error


def _found(word: str, student: str | None) -> tuple[Path, str]:
    """The directory of a routed model or of a checkpoint, and what a card calls it. Raises ValueError."""
    from cluster import copies, storage
    from pipelines import models, recipe_file
    from pipelines import run as story

    if student:
        recipe = recipe_file.remembered(word)
        return story.servable(recipe, [student])[student], f"{recipe.name}, student {student}"
    if storage.on_s3(word):
        return copies.local(word), word
    if Path(word, "recipe.json").is_file() or Path("runs", word, "recipe.json").is_file():
        students = recipe_file.remembered(word).trained
        names = [one.name for one in students if one.ifp and one.ifp.mask == "prompt"]
        has = f"; it has {', '.join(names)}" if names else ", and it has none with a mask predictor"
        raise recipe_file.BadInput(f"{word} is a run: name one of its students with --student{has}")
    folder = Path(word) if _routed(Path(word)) else models.resolve(word)
    return folder, word if models.on_hub(word) else folder.resolve().name


def _routed(folder: Path) -> bool:
    from pipelines.ifp import routed

    return any((folder / name).exists() for name in (routed.ABOUT, routed.PREDICTOR, routed.WHOLE))


def _whole(folder: Path) -> Path:
    """The checkpoint that masks of the model in `folder` are cut out of. Raises ValueError."""
    from pipelines.ifp import routed
    from pipelines.recipe_file import BadInput

    if not _routed(folder):
        return folder
    if not (folder / routed.WHOLE).is_dir():
        raise BadInput(
            f"{folder} has no {routed.WHOLE}/, the model that masks are cut out of; give the directory that training "
            "wrote, with everything in it"
        )
    return folder / routed.WHOLE


def _made(folder: Path, given: dict[str, Any], units: int, raw: bool, out: Path, tensor_parallel: int) -> "Tensor":
    """The mask that is asked for, checked against the model and what it is for. Raises ValueError."""
    from pipelines import cuts, masks, models, subnetwork
    from pipelines.ifp import routed
    from pipelines.recipe_file import BadInput
    from serving import engine, predictor

    whole = _whole(folder)
    subnetwork.free(out)
    subnetwork.shape(whole)
    if tensor_parallel > 1:
        engine.check_split(models.configuration(whole), tensor_parallel)
    if given["--mask"]:
        mask = subnetwork.load_mask(given["--mask"], whole)
        cuts.check_units(masks.indices(mask).shape[1], mask.shape[1], tensor_parallel)
    elif not _routed(folder):
        raise BadInput(f"{folder} has no mask predictor; give a model trained with one, or a mask with --mask")
    else:
        reader = predictor.load(folder / routed.PREDICTOR)
        routed.check_model(reader, whole)
        cuts.check_units(units or reader.about.units, reader.about.width, tensor_parallel)
        mask = routed.per_task(reader, _prompts(given, whole, raw), units)
    return mask


def _prompts(given: dict[str, Any], whole: Path, raw: bool) -> list[str]:
    """The texts that the predictor reads. Raises ValueError for files that cannot be read, and where there is none."""
    from transformers import AutoTokenizer

    from pipelines import prompts
    from pipelines.recipe_file import BadInput

    if given["--rows"] is not None:
        asked = _asked(given["--rows"])
    else:
        text, file = given["--prompt"], given["--prompt-file"]
        try:
            text = file.read_text(encoding="utf8").strip() if file else text.strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--prompt-file {file}: {error}") from error
        asked = [prompts.answer(text)]
    if empty := [messages for messages in asked if not messages[-1]["content"]]:
        raise BadInput(f"the prompt is empty{f' in {len(empty)} rows' if len(asked) > 1 else ''}; write what is asked")
    if raw:
        return ["\n\n".join(message["content"] for message in messages) for messages in asked]
    tokenizer = AutoTokenizer.from_pretrained(whole, local_files_only=True)
    return [prompts.text(tokenizer, messages) for messages in asked]


def _asked(url: str) -> list[list[dict[str, str]]]:
    """What each row asks first: its system message, if any, and the first of its user. Raises ValueError."""
    from pipelines import conversations, prompts
    from pipelines.recipe_file import BadInput
    from pipelines.rows import files
    from serving.choosing import opening

    found = []
    for line, row in files.rows(url):
        where = f"--rows {url}, line {line}"
        if isinstance(row, str):
            raise BadInput(f"{where}: {row}")
        try:
            if (messages := row.get("messages")) is not None:
                parts = conversations.parts(messages)
                found.append(opening(prompts.answer(parts.question, parts.before)))
            elif isinstance(text := row.get("prompt"), str):
                found.append(prompts.answer(text.strip()))
            else:
                raise BadInput(f"no column `prompt` of text or `messages`; columns are {', '.join(row)}")
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from error
    if not found:
        raise BadInput(f"--rows {url} has no row; give some prompts of the task")
    return found


def _write(folder: Path, base: str, mask: "Tensor", out: Path, save_mask: Path | None) -> None:
    from pipelines import masks, subnetwork

    whole = _whole(folder)
    subnetwork.export(whole, mask, out, base)
    if save_mask:
        subnetwork.save_mask(save_mask, mask, whole)
        typer.echo(f"the mask: {save_mask}")
    (blocks, width), t = mask.shape, masks.indices(mask).shape[1]
    typer.echo(f"{blocks} blocks of {t:,} of {width:,} FFN units, mask {masks.mask_hash(mask)[:12]}: {out}")
    typer.echo(f"serve it: vllm serve {out}, or regrow serve {out}")
