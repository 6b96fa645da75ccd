"""The training loop: fetch, forward-backward, reduce, clip, step. One process or many, same losses.

A global step is a list of forward passes for this rank. The loss is a weighted sum over the target tokens of all
ranks and passes, with weights that follow from the step's rows alone (batches.weights), so neither the number of
workers nor the way rows fall into packs changes what is learned.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pipelines.objectives import TASKS
from pipelines.training import faults
from pipelines.training.batches import Batch, Planned
from pipelines.training.losses import ByToken
from pipelines.training.optimizers import Together

Optimizer = torch.optim.Optimizer | Together


class Step(NamedTuple):
    """What one optimizer step reports. `loss` is nats per target token, where there are several tasks the weighted sum
    of their losses, which `loss_by_task` holds one by one; `tokens` are target tokens, `all_tokens` those of prompts
    too, both over all ranks; `seconds` is wall time, from the fetch of its rows on."""

    step: int
    loss: float
    loss_by_task: dict[str, float]
    tokens: int
    grad_norm: float
    learning_rate: float
    seconds: float
    all_tokens: int


def learning_rate(schedule: str, peak: float, done: float, warmup: float = 0.03) -> float:
    """The rate after the share `done` of training, in [0, 1].

    `cosine`: linear warm-up, then half a cosine down to zero. `flat-linear`: linear warm-up, flat up
    to one half, then straight down to zero."""
    if done < warmup:
        return peak * max(done, 1e-3) / warmup
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    return peak * min(1.0, 2 * (1 - done))


@cache
def halved(device: str) -> bool:
    """Whether matrix products run in bf16: on a GPU, and on a CPU that has instructions for it (AMX, AVX512_BF16, Arm's
    bf16). On another one they take three times as long as in fp32."""
    there = torch.cpu.get_capabilities()
    return device != "cpu" or any(there.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def run_step(
    model: torch.nn.Module, optimizer: Optimizer, passes: Iterable[Batch], clip: float = 1.0, step: int = 0
) -> tuple[list[float], float]:
    """One optimizer step, of the number `step`, over this rank's passes: each task's part of the global loss, and the
    gradient norm. Raises faults.NotFinite, on all ranks alike and before the weights change, where one is no number.

    `model` as losses.ByToken makes it. Every target token comes with its weight in the step's loss, and the gradients
    of a sharded model arrive summed over the ranks (`parallel.parallelize` sees to that)."""
    device = next(model.parameters()).device
    total = torch.zeros(len(TASKS), dtype=torch.double, device=device)
    for batch in passes:
        parts = _forward(model, batch, device)
        parts.sum().backward()
        total += parts.detach()
    losses = _all_sum(total, device).tolist()
    norm = _clip([p.grad for p in model.parameters() if p.grad is not None], clip, device)
    if not (math.isfinite(sum(losses)) and math.isfinite(norm)):
        raise faults.NotFinite(step, sum(losses), norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses, norm


@torch.no_grad()
def validate(model: torch.nn.Module, passes: Iterable[Batch]) -> float:
    """The loss over this rank's passes and all other ranks', as in a step, with nothing learned from it."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.double, device=device)
    model.eval()
    for batch in passes:
        total += _forward(model, batch, device).sum()
    model.train()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root stays gathered after a forward pass, in wait of a backward one
    return _all_sum(total, device).item()


def _forward(model: torch.nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """Each task's part of the loss, (tasks,)."""
    placed = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.inputs.items()}
    half = next(model.parameters()).dtype != torch.float64 and halved(device.type)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        nats = model(**placed)
    return batch.weights.to(nats) @ nats


def _clip(gradients: list[torch.Tensor], limit: float, device: torch.device) -> float:
    """Scale `gradients` to a global 2-norm of at most `limit`; returns the norm before.

    Works on the local shards: one number is reduced, and no DTensor operation is dispatched."""
    sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    square = torch.nn.utils.get_total_norm(local).double().cpu() ** 2
    norm = (_all_sum(square / _copies(gradients), device) if sharded else square).sqrt().item()
    if norm > limit:
        for gradient in local:
            gradient.mul_(limit / (norm + 1e-6))
    return norm


def _copies(gradients: list[torch.Tensor]) -> int:
    """How many ranks hold the same shard: one, or as many as there are replicas (parallel.mesh)."""
    found = next(gradient for gradient in gradients if isinstance(gradient, DTensor))
    return math.prod(found.device_mesh.size(i) for i, place in enumerate(found.placements) if place.is_replicate())


def steps(
    model: ByToken, optimizer: Optimizer, plan: Iterable[Planned], schedule: str, peak: float, first: int = 0
) -> Iterator[Step]:
    """Run one optimizer step for each of `plan`, and report it."""
    model.train()
    began = time.perf_counter()
    for step, planned in enumerate(plan, first):
        rate = learning_rate(schedule, peak, planned.done)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        model.begin(planned.done)
        parts, norm = run_step(model, optimizer, planned.passes, step=step)
        seconds = time.perf_counter() - began
        by_task = _by_task(parts, planned.shares)
        yield Step(step, sum(parts), by_task, planned.tokens, norm, rate, seconds, planned.all_tokens)
        began = time.perf_counter()  # what the caller does with a step is none of it


def _by_task(parts: Sequence[float], shares: Sequence[float]) -> dict[str, float]:
    """The losses of the tasks from their parts of the whole; of a single task, nothing."""
    found = {name: part / share for name, part, share in zip(TASKS, parts, shares, strict=True) if share and part}
    return found if len(found) > 1 else {}


def _all_sum(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not dist.is_initialized():
        return value
    value = value.to(device)
    dist.all_reduce(value)
    return value.cpu()
