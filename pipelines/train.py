"""train: fine-tune the pruned model on (prompt, target) rows with Ray Train and FSDP2; full or LoRA.

Interrupted at any instant, by the loss of a worker or of the driver, the same call goes on from the
last whole checkpoint to the same losses.
"""

import contextlib
import json
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cards, conversations, models, prompts
from pipelines.recipe import Recipe, Student, objective_of
from pipelines.screen import say
from pipelines.training import batches, checkpoints

if TYPE_CHECKING:
    from ray.train import Result

SHOW_SECONDS = 5.0
ENVIRONMENT = {  # Ray Train's own settings, unless the user has set them
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the default of 2 s is waited for at start, checkpoint and end
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # on a busy machine the default of 60 s starts over for ever
}


def train(recipe: Recipe, student: Student, pruned: Path, data: str, out: Path) -> dict[str, Any]:
    """Train `student` from the checkpoint in `pruned` on `data` (Parquet: id, prompt, target, and where
    questions stand in conversations, history).

    Needs a Ray session. Writes `out`/model, `out`/losses.jsonl and, for LoRA, `out`/adapter; while it
    runs, `out`/checkpoints, which every node must see. Tokens in losses.jsonl and in the summary are
    target tokens: prompts carry no loss. `final_loss` is the mean over the last ten steps' tokens.
    Raises ValueError where the data hold no row that can be trained on."""
    rows, too_long, pad = read(pruned, data, student.max_length)
    storage = out / "checkpoints"
    storage.mkdir(parents=True, exist_ok=True)
    _drop_torn(storage / "run")
    seed = recipe.seed if student.seed is None else student.seed
    if not (out / "model").exists():  # else a driver was killed between here and the end
        result = _fit(student, recipe.cluster.workers, pruned, rows, storage, {"seed": seed, "pad": pad})
        if result.checkpoint is None:
            raise RuntimeError(f"{student.name}: the training ended without a checkpoint")
        with result.checkpoint.as_directory() as folder:
            for name in ("adapter", "losses.jsonl", "model"):  # the model last: it says that all is there
                if (Path(folder) / name).exists():
                    _replace(Path(folder) / name, out / name)
    summary = {**_summary(student, out), "rows": len(rows.ends), "too_long": too_long}
    _dress(recipe, student, pruned, summary, out / "model")
    shutil.rmtree(storage)
    return summary


def read(pruned: Path, data: str, max_length: int) -> tuple[batches.Packed, int, int]:
    """The rows of `data` encoded, in the order of their ids; how many were longer than `max_length`
    tokens and set aside; the padding token. Raises ValueError with the column that is missing or empty."""
    from pyarrow import parquet
    from transformers import AutoTokenizer

    from cluster import storage

    fs, path = storage.filesystem(data)
    columns = ["id", "prompt", "target"]
    with fs.open(path, "rb") as file:
        there = parquet.read_schema(file).names
        missing = set(columns) - set(there)
        if missing:
            raise ValueError(f"training data {data} lack the column {sorted(missing)[0]!r}; needed: id, prompt, target")
        table = parquet.read_table(file, columns=columns + ["history"] * ("history" in there)).sort_by("id")
    for name in columns:
        if table[name].null_count:
            raise ValueError(f"training data {data}: {table[name].null_count} rows have no {name}")
    tokenizer = AutoTokenizer.from_pretrained(pruned, local_files_only=True)
    rows = [
        batches.encode(tokenizer, prompts.answer(row["prompt"], conversations.load(row.get("history"))), row["target"])
        for row in table.to_pylist()
    ]
    kept = [row for row in rows if len(row.ids) <= max_length]
    if not kept:
        why = f"all {len(rows)} rows are longer than max_length = {max_length} tokens" if rows else "there are no rows"
        raise ValueError(f"nothing to train on in {data}: {why}")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return batches.pack(kept), len(rows) - len(kept), pad


def _fit(
    student: Student, workers: int, pruned: Path, rows: batches.Packed, storage: Path, config: dict[str, Any]
) -> "Result":
    """Run the workers while showing progress. Ray Train runs in a thread of its own: in the main thread
    it would put its own SIGINT handler in place and leave it there."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from pipelines.training import worker

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gpu = ray.cluster_resources().get("GPU", 0) >= workers  # of the cluster: the driver's node may have none
    progress = storage / "progress.json"
    trainer = TorchTrainer(
        worker.train,
        train_loop_config={
            **config,
            "student": student.model_dump(),
            "pruned": str(pruned.resolve()),
            "rows": ray.put(rows),
            "progress": str(progress.resolve()),
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=None if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(
            name="run",
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    ended: list[Any] = []

    def fit() -> None:
        try:
            ended.append(trainer.fit())
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name=f"train-{student.name}", daemon=True)
    say(f"{student.name}: {len(rows.ends)} rows, {len(rows.ids):,} tokens, {workers} workers")
    thread.start()
    shown = 0.0
    while thread.is_alive():
        thread.join(0.2)
        if time.monotonic() - shown > SHOW_SECONDS and _show(student.name, progress):
            shown = time.monotonic()
    if not ended:
        raise RuntimeError(f"training {student.name} ended without a result; see Ray's logs")
    if isinstance(ended[0], BaseException):
        cause = next(iter(getattr(ended[0], "worker_failures", {}).values()), ended[0])
        raise RuntimeError(f"training {student.name} failed: {str(cause).strip().splitlines()[-1]}") from ended[0]
    return ended[0]


def _show(name: str, progress: Path) -> bool:
    """Say where the training stands; False while there is nothing to say."""
    with contextlib.suppress(FileNotFoundError):
        at = json.loads(progress.read_text())
        say(
            f"{name}: step {at['step']}/{at['steps']}, loss {at['loss']:.3f}, "
            f"{at['tokens_per_second']:,.0f} target tokens/s, {at['seconds_left']:.0f} s left"
        )
        progress.unlink()
        return True
    return False


def _drop_torn(run: Path) -> None:
    """Start afresh where a driver was killed while Ray Train wrote its list of whole checkpoints, or
    where another version of Ray wrote it: Ray would refuse to begin."""
    import ray

    snapshot = run / "checkpoint_manager_snapshot.json"
    if not snapshot.exists():
        shutil.rmtree(run, ignore_errors=True)  # at most a half-written first checkpoint
        return
    try:
        whole = json.loads(snapshot.read_text()).get("ray_version") == ray.__version__
    except json.JSONDecodeError:
        whole = False
    if not whole:
        say("the training's checkpoints cannot be read, it starts from the beginning")
        shutil.rmtree(run)


def _dress(recipe: Recipe, student: Student, pruned: Path, summary: dict[str, Any], model: Path) -> None:
    """Put tokenizer, generation settings, licence and card beside the trained weights, and licence and card
    beside the adapter."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(pruned, local_files_only=True).save_pretrained(model)
    for folder in (model, model.with_name("adapter")):
        models.readable(folder)
    if (pruned / "generation_config.json").exists():
        shutil.copyfile(pruned / "generation_config.json", model / "generation_config.json")
    how = {"objective": objective_of(student.name), **student.model_dump(exclude={"name", "seed"}), **summary}
    facts = {name.replace("_", " "): value for name, value in how.items()}
    base = recipe.teacher.model.partition("@")[0]
    base = base if base.count("/") == 1 and not base.startswith((".", "~", "/")) else Path(base).name
    title = f"{base}, pruned and trained ({student.name})"
    made = {model: (title, "transformers"), model.with_name("adapter"): (f"{title}: its LoRA adapter", "peft")}
    for folder, (name, library) in made.items():
        if folder.exists():  # an adapter is derived from the teacher as well, and may be passed on alone
            cards.copy_licences(pruned, folder)
            text = cards.card(name, base, facts, cards.licence(pruned), library)
            (folder / "README.md").write_text(text, encoding="utf8")


def _summary(student: Student, out: Path) -> dict[str, Any]:
    """What the steps and the saved weights say."""
    done = checkpoints.read_steps(out / "losses.jsonl")
    seconds, tokens = sum(step["seconds"] for step in done), sum(step["tokens"] for step in done)
    last = done[-10:]

    parameters = _parameters(out / "model")
    return {
        "steps": len(done),
        "tokens": tokens,
        "final_loss": sum(step["loss"] * step["tokens"] for step in last) / sum(step["tokens"] for step in last),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "parameters": parameters,
        "trainable": _parameters(out / "adapter") if student.lora_rank else parameters,
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
