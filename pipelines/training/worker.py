"""What one training worker does: load, shard, step, checkpoint; at the end rank 0 writes an ordinary model.

Everything a worker writes goes below one folder, on a disk that driver and workers share.
"""

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.student import Student
from pipelines.training import (  # fmt: skip
    checkpoints,
    choosers,
    collapse,
    faults,
    feed,
    loading,
    loop,
    metrics,
    notes,
    optimizers,
    packs,
    parallel,
    saving,
)
from pipelines.training.best import Best
from pipelines.training.losses import ByToken
from pipelines.training.masked import Masked

PROGRESS_SECONDS = 1.0
# torch keeps 1,024 kernels for bf16 products on CPUs, twice over, each for one length of a pack: more than a GB that is
# hardly used again. These are enough for a model's own shapes.
KERNELS = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


def train(config: dict[str, Any]) -> None:
    """Run by Ray Train on every worker.

    config: `student` (fields of a Student), `pruned` (model directory), `packs` (their folders, in order), `held` (that
    of the validation rows, or None), `chooser` (what choosers.start wrote, or None), `gpu` (whether each worker has
    one), `seed`, `replicas`, `board` (of metrics.Board: folder, who, hook),
    `storage` (folder of checkpoints, progress and the finished model), `start` (the checkpoint to go on from, or
    None), `attempt` (a name that no other start of the workers has). Raises faults.NotFinite and faults.Stopped."""
    import ray.train

    student, storage = Student(**config["student"]), Path(config["storage"])
    if not storage.is_dir():
        raise faults.Stopped(f"{storage} is not there on every node: run_dir must be on a disk that all nodes see")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settle(ray.train.get_context().get_local_world_size())
    mesh = parallel.mesh("cuda" if config["gpu"] else "cpu", ranks, config["replicas"])
    shell = _shell(student, config["chooser"])
    model = loading.sharded(config["pruned"], student, config["seed"], mesh, partial(notes.tell, storage), shell)
    apart = {"chooser.": student.ifp.predictor_learning_rate or student.learning_rate} if student.ifp else {}
    optimizer = optimizers.adamw(model, student.learning_rate, student.weight_decay, apart)
    start = Path(config["start"]) if config["start"] else None
    done = checkpoints.read_steps(start / "losses.jsonl") if start else []
    best = Best(model, done)
    if start:
        checkpoints.load(start, model, optimizer, best.weights)
    given = packs.InOrder([Path(folder) for folder in config["packs"]])
    total, ahead = len(given), feed.read(given, student, config["seed"], len(done), rank, ranks)
    held = feed.held(packs.Packs(Path(config["held"])), student, rank, ranks) if config["held"] else None
    cost = metrics.cost(model, metrics.device(), ranks)
    board = metrics.Board(done=done, tell=partial(notes.tell, storage), **config["board"]) if rank == 0 else None
    told = 0.0
    with checkpoints.Saver(storage, config["attempt"], start) as saver:
        for step in loop.steps(model, optimizer, ahead, student.schedule, student.learning_rate, len(done)):
            done.append(metrics.figures(step, total, cost) | model.figures())
            if student.ifp:
                collapse.check(student, done)
            if held is not None and (len(done) % student.validation_steps == 0 or len(done) == total):
                loss = done[-1]["validation_loss"] = loop.validate(model, held)
                if not math.isfinite(loss):
                    raise faults.NotFinite(step.step, loss, None)
                best.see(loss)
            if board:
                board.tell(done[-1])
            if board and time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                _tell(storage / "progress.json", done, total)
            if len(done) % student.checkpoint_steps == 0 and len(done) < total:
                saver.save(done, model, optimizer, best.weights)
    if board:
        board.close()
    best.take()
    finished = storage / f"{checkpoints.FINAL}-{config['attempt']}"
    saving.save(finished, config["pruned"], student, model)
    if student.ifp:
        choosers.save(finished / "chooser", Path(config["chooser"]), model)
    if rank == 0:
        checkpoints.write_steps(finished / "losses.jsonl", done)
        finished.rename(storage / checkpoints.FINAL)  # the name says that all is there
    dist.barrier()  # a worker that is done first is not taken for all


def _shell(student: Student, chooser: str | None) -> Callable[[Any], ByToken]:
    """What a model is trained in: with masks where the student has them."""
    if not student.ifp:
        return ByToken
    how, made = student.ifp, choosers.load(Path(str(chooser)), student.ifp)
    return lambda model: Masked(model, made, how)


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


def settle(local_ranks: int) -> None:
    """On a CPU, give each of this machine's workers its share of the cores, and bound what torch keeps of kernels.

    To be called before the first product: torch reads the bounds then."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
        for name, entries in KERNELS.items():
            os.environ.setdefault(name, entries)
