"""Losses of the trainer, as sums: the caller divides once by the global number of target tokens."""

import torch
import torch.nn.functional as F

IGNORED = -100


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of every target token, in fp32.

    logits: (B, T, V), any float type. labels: (B, T), `IGNORED` where no loss is wanted; the label
    at position t is predicted by the logits at t - 1. Returns a scalar in nats.
    """
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    wanted = labels != IGNORED
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits[wanted].to(dtype), labels[wanted], reduction="sum")


def target_count(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of `labels` (B, T) carry loss, as a scalar float64 tensor."""
    return (labels[:, 1:] != IGNORED).sum().double()
