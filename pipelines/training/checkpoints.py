"""Training state on disk: sharded weights and optimizer (DCP), and the steps so far. Any number of ranks reads it.

A checkpoint's step is the number of lines in its `losses.jsonl`; there is no other counter to disagree with it.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)  # LoRA: the base is read from where it came


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this rank's shards of the trained weights and of the optimizer's state. Every rank calls it."""
    weights, moments = get_state_dict(model, optimizer, options=OPTIONS)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read a checkpoint, written by any number of ranks, into `model` and `optimizer`. Every rank calls it."""
    weights, moments = get_state_dict(model, optimizer, options=OPTIONS)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=OPTIONS)


def write_steps(file: Path, steps: list[dict[str, Any]]) -> None:
    """One JSON line a step."""
    file.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf8")


def read_steps(file: Path) -> list[dict[str, Any]]:
    """The steps that `write_steps` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
