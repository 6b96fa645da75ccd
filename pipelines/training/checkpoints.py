"""Training state on disk: sharded weights and optimizer (DCP), and the steps so far. Any number of ranks reads it.

A checkpoint is a folder `step-N-attempt` that every rank writes its own files to, beside the training's steps. Its
manifest.json (name → size and sha256) comes last: without one it is half-written, and one that its files do not match
is damaged. Nothing else says what there is. A checkpoint's step is the number of lines in its `losses.jsonl`.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from pipelines.training import faults

OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)  # LoRA: the base is read from where it came
FINAL = "final"  # the folder beside them that the finished model gets, whole by its name
KEPT = 2  # whole checkpoints: the second to fall back on
FULL = (errno.ENOSPC, errno.EDQUOT)
LAST_WRITE = 300.0  # seconds that a failing worker gives to the checkpoint it is still writing
Optimizer = torch.optim.Optimizer
Weights = dict[str, torch.Tensor]


class Saver:
    """Writes checkpoints while training goes on. Every rank makes one and calls it at the same steps.

    The state is copied to the CPU's memory, which training waits for; a thread writes the copy, speaking to the other
    ranks through a group of its own, since NCCL has no place for objects and gloo none for two threads. In a `with`
    block: what is being written is written before the block is left. `start`: the checkpoint that training goes on
    from. Raises faults.Stopped where the disk is full, and where `attempt` is not the last one that began: workers
    outlive a killed driver for some seconds, and are not to remove what the next one goes on from."""

    def __init__(self, storage: Path, attempt: str, start: Path | None = None) -> None:
        self.storage, self.attempt = storage, attempt
        self.whole = [start] if start else []
        self.group = dist.new_group(backend="gloo")
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.finish()
        elif self.pending:
            wait([self.pending], LAST_WRITE)
        self.thread.shutdown(wait=kind is None)
        self.stager.close()

    def save(
        self, steps: Sequence[dict[str, Any]], model: torch.nn.Module, optimizer: Optimizer, best: Weights | None = None
    ) -> None:
        """Begin to write the state after `steps`, once the checkpoint before is written. `best`: of the weights so far
        (best.Best), where they are chosen."""
        self.finish()
        staged: Any = self.stager.stage(_state(model, optimizer, best))
        self.pending = self.thread.submit(self._write, staged, list(steps))

    def finish(self) -> None:
        """Wait for what is being written."""
        pending, self.pending = self.pending, None
        try:
            if pending:
                pending.result()
        except CheckpointException as error:
            raise _plain(_first(error)) from None
        except OSError as error:
            raise _plain(error) from None

    def _write(self, state: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        folder = self.storage / f"step-{len(steps):08d}-{self.attempt}"
        dcp.save(state, checkpoint_id=folder, process_group=self.group)
        mine, first = [f"__{dist.get_rank()}_*"], dist.get_rank() == 0
        if first:
            write_steps(folder / "losses.jsonl", steps)
            mine += [".metadata", "losses.jsonl"]
        files = {file.name: digest(file) for pattern in mine for file in folder.glob(pattern)}
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.gather_object(files, found if first else None, group=self.group)
        if first:
            if attempt(self.storage) != self.attempt:
                raise faults.Stopped("another driver goes on with this training")
            commit(folder, {name: file for part in found for name, file in part.items()})
            self.whole = [*self.whole, folder][-KEPT:]
            _drop_old(self.storage, step(self.whole[0]))
        dist.barrier(self.group)  # no rank fails, and has Ray end the others, before the manifest is there


def load(folder: Path, model: torch.nn.Module, optimizer: Optimizer, best: Weights | None = None) -> None:
    """Read a checkpoint, written by any number of ranks, into `model`, `optimizer` and `best`. Every rank calls it.
    Raises RuntimeError where that is not possible though it is whole."""
    state = _state(model, optimizer, best)
    try:
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:
        why = " ".join(str(_first(error)).split())
        raise RuntimeError(
            f"the checkpoint {folder} could not be read: {why} (delete it to go on from the one before)"
        ) from None
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=OPTIONS
    )


def _state(model: torch.nn.Module, optimizer: Optimizer, best: Weights | None) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer, options=OPTIONS)
    return {"model": weights, "optimizer": moments, **({"best": best} if best else {})}


def begin(storage: Path) -> str:
    """The name of a new attempt at the training in `storage`. From here on no earlier one commits anything."""
    name = secrets.token_hex(3)
    partial = storage / f"attempt-{name}"
    partial.write_text(name)
    partial.replace(storage / "attempt")
    return name


def attempt(storage: Path) -> str:
    """The name of the last attempt that began."""
    return (storage / "attempt").read_text()


def step(folder: Path | None) -> int:
    """How many steps are in a checkpoint, by its name; 0 for none."""
    return int(folder.name.split("-")[1]) if folder else 0


def newest(storage: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with each newer one that was whole once."""
    damaged: list[str] = []
    for folder in reversed(_committed(storage)):
        wrong = damage(folder)
        if not wrong:
            return folder, damaged
        damaged.append(f"the checkpoint of step {step(folder)} is damaged: {wrong}")
    return None, damaged


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, by its manifest; nothing where it is whole. Reads all of it."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf8"))["files"]
        with ThreadPoolExecutor(8) as threads:
            there = threads.map(lambda name: digest(folder / name), files)
            for (name, file), found in zip(files.items(), there, strict=True):
                if found["size"] != file["size"]:
                    return f"{name} has {found['size']:,} bytes of {file['size']:,}"
                if found != file:
                    return f"the content of {name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    return ""


def digest(file: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    with file.open("rb") as opened:
        return {"size": os.fstat(opened.fileno()).st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def commit(folder: Path, files: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint whose files are all there. Raises faults.Stopped where some are not."""
    if apart := sorted(name for name in files if not (folder / name).exists()):
        raise faults.Stopped(
            f"{folder} lacks {apart[0]}, which another node wrote: run_dir must be on a disk that every node sees"
        )
    partial = folder / "manifest.part"
    with partial.open("w", encoding="utf8") as opened:
        json.dump({"files": files}, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(folder / "manifest.json")


def _committed(storage: Path) -> list[Path]:
    return sorted((manifest.parent for manifest in storage.glob("step-*/manifest.json")), key=step)


def _drop_old(storage: Path, oldest: int) -> None:
    """Remove what has fewer steps, whole or not."""
    for folder in storage.glob("step-*"):
        if step(folder) < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _first(error: CheckpointException) -> BaseException:
    """What went wrong on the first rank where something did; torch's own error is of no kind that `except Exception`
    knows."""
    return next(iter(error.failures.values()))[0]


def _plain(error: BaseException) -> Exception:
    kind = faults.Stopped if isinstance(error, OSError) and error.errno in FULL else RuntimeError
    return kind(f"a checkpoint could not be written: {error}")


def write_steps(file: Path, steps: Sequence[dict[str, Any]]) -> None:
    """One JSON line a step."""
    file.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf8")


def read_steps(file: Path) -> list[dict[str, Any]]:
    """The steps that `write_steps` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
