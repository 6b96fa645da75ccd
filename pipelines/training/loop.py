"""The training loop: fetch, forward-backward, reduce, clip, step. One process or many, same losses.

A global step is a list of micro-batches for this rank. The loss is the sum over target tokens divided
by the global number of target tokens (over ranks and micro-batches), so neither the number of workers
nor the way rows fall into micro-batches changes what is learned.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from pipelines.training.losses import next_token_loss, target_count
from pipelines.training.optimizers import Together

Batch = dict[str, torch.Tensor]
Optimizer = torch.optim.Optimizer | Together


class Step(NamedTuple):
    """What one optimizer step reports. `loss` is nats per target token; `seconds` is wall time."""

    step: int
    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float
    seconds: float


def learning_rate(schedule: str, peak: float, done: float, warmup: float = 0.03) -> float:
    """The rate after the share `done` of training, in [0, 1].

    `cosine`: linear warm-up, then half a cosine down to zero. `flat-linear`: linear warm-up, flat up
    to one half, then straight down to zero."""
    if done < warmup:
        return peak * max(done, 1e-3) / warmup
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    return peak * min(1.0, 2 * (1 - done))


def run_step(
    model: torch.nn.Module, optimizer: Optimizer, batches: Iterable[Batch], clip: float = 1.0
) -> tuple[float, int, float]:
    """One optimizer step over this rank's micro-batches: global loss, target tokens, gradient norm.

    Every micro-batch's loss sum is divided by the global count of target tokens, and the gradients of
    a sharded model arrive summed over the ranks (`parallel.parallelize` sees to that)."""
    device = next(model.parameters()).device
    batches = [{k: v.to(device) for k, v in batch.items()} for batch in batches]
    tokens = _all_sum(sum((target_count(b["labels"]) for b in batches), torch.zeros((), dtype=torch.double)), device)
    if not tokens:
        raise ValueError("a step without a single target token: every row's target is empty")
    total = torch.zeros((), dtype=torch.double)
    half = next(model.parameters()).dtype != torch.float64
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        loss = next_token_loss(logits, batch["labels"])
        (loss / tokens.to(loss)).backward()
        total += loss.detach().double().cpu()
    norm = _clip([p.grad for p in model.parameters() if p.grad is not None], clip, device)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return (_all_sum(total, device) / tokens).item(), int(tokens.item()), norm


def _clip(gradients: list[torch.Tensor], limit: float, device: torch.device) -> float:
    """Scale `gradients` to a global 2-norm of at most `limit`; returns the norm before.

    Works on the local shards: one number is reduced, and no DTensor operation is dispatched."""
    sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    square = torch.nn.utils.get_total_norm(local).double().cpu() ** 2
    norm = (_all_sum(square, device) if sharded else square).sqrt().item()
    if norm > limit:
        for gradient in local:
            gradient.mul_(limit / (norm + 1e-6))
    return norm


def steps(
    model: torch.nn.Module,
    optimizer: Optimizer,
    plan: Iterable[tuple[float, Iterable[Batch]]],
    schedule: str,
    peak: float,
    first: int = 0,
) -> Iterator[Step]:
    """Run one optimizer step for every (share done, micro-batches) of `plan`, and report each."""
    model.train()
    for step, (done, batches) in enumerate(plan, first):
        began, rate = time.perf_counter(), learning_rate(schedule, peak, done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, tokens, norm = run_step(model, optimizer, batches)
        yield Step(step, loss, tokens, norm, rate, time.perf_counter() - began)


def _all_sum(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not dist.is_initialized():
        return value
    value = value.to(device)
    dist.all_reduce(value)
    return value.cpu()
