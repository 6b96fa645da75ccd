"""What one training worker does: load, shard, step, checkpoint; at the end rank 0 writes an ordinary model.

Everything a worker writes goes through Ray Train's storage as a checkpoint, the finished model too, so
nothing depends on a disk that driver and workers share beyond that storage.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

from pipelines.recipe import Student
from pipelines.training import batches, checkpoints, loop, optimizers, parallel

PROGRESS_SECONDS = 1.0


def train(config: dict[str, Any]) -> None:
    """Run by Ray Train on every worker.

    config: `student` (fields of a Student), `pruned` (model directory), `rows` (reference to
    batches.Packed), `seed`, `pad` (token id), `progress` (file that rank 0 keeps current)."""
    import ray
    import ray.train

    start = ray.train.get_checkpoint()
    student = Student(**config["student"])
    rank, ranks = dist.get_rank(), dist.get_world_size()
    _settle(ray.train.get_context().get_local_world_size())
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks,))
    model = load(config["pruned"], student, config["seed"])
    parallel.parallelize(model, mesh, student.activation_checkpointing)
    optimizer = optimizers.adamw(model, student.learning_rate, student.weight_decay)
    done: list[dict[str, Any]] = []
    if start:
        with start.as_directory() as folder:
            done = checkpoints.read_steps(Path(folder) / "losses.jsonl")
            if (Path(folder) / "model").exists():  # killed between the last report and the driver's copy
                return
            checkpoints.load(Path(folder), model, optimizer)
    rows: batches.Packed = ray.get(config["rows"])
    plan = batches.global_steps(rows.lengths(), student.batch_tokens, student.epochs, config["seed"])
    ahead = _batches(plan, rows, student, config, len(done), rank, ranks)
    told = 0.0
    for step in loop.steps(model, optimizer, ahead, student.schedule, student.learning_rate, len(done)):
        done.append(step._asdict())
        if rank == 0 and time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            _tell(Path(config["progress"]), done, len(plan))
        if len(done) % student.checkpoint_steps == 0 and len(done) < len(plan):
            with tempfile.TemporaryDirectory(prefix="regrow-") as folder:
                checkpoints.save(Path(folder), model, optimizer)
                _report(Path(folder), done, f"step-{len(done):08d}", rank == 0)
    weights: Any = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    )
    with tempfile.TemporaryDirectory(prefix="regrow-") as folder:
        if rank == 0:
            save(Path(folder), config["pruned"], student, weights)
        _report(Path(folder), done, "final", rank == 0)


def load(pruned: str, student: Student, seed: int) -> Any:
    """The pruned model on the CPU, in the dtype it is stored in, with fresh adapters where LoRA is on."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return adapted(AutoModelForCausalLM.from_pretrained(pruned, dtype="auto", local_files_only=True), student, seed)


def adapted(model: Any, student: Student, seed: int) -> Any:
    """`model` with fresh adapters on every linear map of its blocks, where the student asks for LoRA."""
    if not student.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in parallel.blocks(model).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    torch.manual_seed(seed)  # every rank draws the same adapters
    config = LoraConfig(
        r=student.lora_rank, lora_alpha=student.lora_alpha, target_modules=sorted(linear), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def save(folder: Path, pruned: str, student: Student, weights: dict[str, torch.Tensor]) -> None:
    """Write `folder`/model, an ordinary checkpoint in the dtype of `pruned`, and for LoRA `folder`/adapter."""
    from transformers import GenerationConfig

    model = load(pruned, student, 0)
    stored = model.dtype
    model.float()
    left = model.load_state_dict(weights, strict=False).unexpected_keys
    if left:
        raise RuntimeError(f"trained weights that the model does not know: {left[:3]}")
    if student.lora_rank:
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.generation_config = GenerationConfig()  # the driver copies the original; some would not pass the check here
    model.to(stored).save_pretrained(folder / "model")


def _batches(
    plan: list[list[int]],
    rows: batches.Packed,
    student: Student,
    config: dict[str, Any],
    first: int,
    rank: int,
    ranks: int,
) -> Iterator[tuple[float, list[loop.Batch]]]:
    lengths = rows.lengths()
    for step in range(first, len(plan)):
        torch.manual_seed(config["seed"] * 1_000_003 + step * ranks + rank)  # dropout, if any, is resumed exactly
        parts = batches.shared(plan[step], lengths, student.micro_tokens, rank, ranks)
        yield (
            (step + 0.5) / len(plan),
            [batches.collate([rows.row(row) for row in part], config["pad"]) for part in parts],
        )


def _report(folder: Path, done: list[dict[str, Any]], name: str, first_rank: bool) -> None:
    """Hand this rank's files of a checkpoint to Ray Train, which puts the ranks' files together."""
    import ray.train

    if first_rank:
        checkpoints.write_steps(folder / "losses.jsonl", done)
    checkpoint = ray.train.Checkpoint.from_directory(folder) if any(folder.iterdir()) else None
    ray.train.report({"step": len(done)}, checkpoint=checkpoint, checkpoint_dir_name=name)


def _tell(file: Path, done: list[dict[str, Any]], total: int) -> None:
    recent = done[-20:]
    seconds = sum(step["seconds"] for step in recent)
    line = {
        "step": len(done),
        "steps": total,
        "loss": sum(step["loss"] for step in recent) / len(recent),
        "tokens_per_second": sum(step["tokens"] for step in recent) / seconds,
        "seconds_left": seconds / len(recent) * (total - len(done)),
    }
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(line))
    partial.replace(file)


def _settle(local_ranks: int) -> None:
    """On a CPU, give each of this machine's workers its share of the cores."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
