"""SoftTopK: which k of d units stay on, as numbers that a gradient reaches.

The mask of instruction-following pruning (arXiv 2501.02086): λ = g(z), m = λ ⊙ Top(λ, k), where g is the operator of
CoDA and CoLT5 (arXiv 2304.04947, 2303.09752),

    maximise  s·λ + ε H(λ)   subject to  0 ≤ λ ≤ 1,  Σ λ = k,     H(λ) = −Σ λ log λ, ε the temperature.

Those papers iterate towards it, 20 to 50 times. Here the solution itself is computed: λ_i = min(1, w_i / x) with
w_i = exp((s_i − p) / ε), p the k-th largest score, and x the one number for which the sum is k. Two facts bound it:

- x is in [1, D], D = d − k + 1. Below 1 the k largest would all be at 1, and others above 0. And the k − 1 above the
  k-th sum to at most k − 1, so that it and those below, D units and none larger, sum to 1 or more: 1/x ≥ 1/D.
  So w above D may be cut to D, such a unit is at 1 in any case: no exponential overflows, however far the scores are
  from 0 and from each other.
- Only units above the k-th can be at 1. With n of them there, x = (Σ w of all others) / (k − n).

x is found by Newton's method on Σ min(1, t w_i) = k in t = 1/x, which is concave and piecewise linear: from the left,
each step puts the units with w > x to 1 and solves for the others; once the units at 1 are the right ones, x is exact.
A step takes at least a factor 4 off residual × slope (`_steps`), so their number is bounded by d, k and the dtype: 32
in fp32 for k = 6,656 of 24,576; normal scores need 2 to 10. Eager code stops there, compiled code does them all.
"""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor


def soft_top_k(scores: Tensor, k: int, temperature: float) -> Tensor:
    """λ: the shape of `scores` (…, d), each in [0, 1], the last dimension sums to `k`. The hard top-k is `mask`'s.

    In fp32 at least: scores in bf16 or fp16 give fp32, under autocast too, float64 stays. Towards temperature 0 it is
    the indicator of the k largest (where scores tie for the last places, these share them), towards ∞ k/d. A constant
    added to the scores changes nothing. The gradient is the solution's own (implicit function theorem); a unit at 1 has
    none. It is written in differentiable operations, so second derivatives are right as well.

    ValueError where `k` is not in 1 … d, the temperature not above 0, or a score not a finite number. Compiled code
    cannot raise: there a row with such a score is NaN."""
    return _solved(scores, k, temperature)[0]


def mask(scores: Tensor, k: int, temperature: float) -> Tensor:
    """m = λ ⊙ Top(λ, k): λ at the k largest scores of each row, of equal ones the first, and exact zeros elsewhere.

    Never fewer than k are non-zero: λ is at least 1 / (d − k + 1) there. The gradient passes through λ alone; it knows
    the units outside by λ's sum. Dtype and errors as in `soft_top_k`."""
    soft, last = _solved(scores, k, temperature)
    wide = scores.detach().to(soft.dtype)
    above, level = wide > last, wide == last
    places = k - above.sum(-1, keepdim=True)
    kept = above | (level & (level.cumsum(-1, dtype=torch.int32) <= places))
    return torch.where(kept, soft, 0)


def indices(masks: Tensor) -> Tensor:
    """The units that masks (…, d) keep, ascending, as int64 (…, k). ValueError where rows keep different numbers."""
    counts = (masks != 0).sum(-1)
    if counts.numel() and counts.min() != counts.max():
        raise ValueError(
            f"rows keep {int(counts.min())} to {int(counts.max())} units; indices need the same number in each row, "
            "as pipelines.masks.mask makes them"
        )
    k = int(counts.max()) if counts.numel() else 0
    return masks.nonzero()[:, -1].view(*masks.shape[:-1], k)


def mask_hash(masks: Tensor) -> str:
    """A name for the sub-network that masks (…, d) cut out: sha256 over shape, kept units and their λ in fp32.

    λ belongs to it, since it is folded into the weights that stay. The units alone: `mask_hash(masks != 0)`."""
    here = masks.detach().cpu()
    units = indices(here)
    values = here.float().gather(-1, units)
    shape = "×".join(map(str, (*here.shape, units.shape[-1])))
    digest = hashlib.sha256(shape.encode())
    digest.update(units.numpy().astype("<i8").tobytes())
    digest.update(values.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def overlap(some: Tensor, others: Tensor | None = None) -> Tensor:
    """The mean share of units that two inputs have in common, in [0, 1], the measure of arXiv 2501.02086.

    For masks (N, …, d) of `some` inputs and (M, …, d) of `others` over all N × M pairs; for `some` alone over all pairs
    of two different inputs. Of shape (…): masks of L layers give one number a layer. Each row must keep equally many.

    ValueError where there is no pair."""
    if not len(some) or (len(some) < 2 if others is None else not len(others)):
        raise ValueError("an overlap needs masks of two inputs at least, the inputs along the first dimension")
    often = (some != 0).double().mean(0)
    k = often.sum(-1)
    if others is not None:
        return (often * (others != 0).double().mean(0)).sum(-1) / k
    return paired(often, k, len(some))


def paired(often: Tensor, k: Tensor | int, number: float) -> Tensor:
    """`overlap` over all pairs of `number` inputs, each of which keeps k of d units: from the share of inputs (…, d)
    that keep a unit."""
    return ((often.square().sum(-1) / k) * number - 1) / (number - 1)


def variance(often: Tensor, k: int) -> float:
    """Of a unit over inputs, each of which keeps k of d units, as a share of the most there can be, in [0, 1]; 0 where
    all are kept. From the share of inputs (…, d) that keep a unit."""
    share = k / often.shape[-1]
    return float((often * (1 - often)).mean()) / (share * (1 - share)) if share < 1 else 0.0


def _solved(scores: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """λ (…, d), and the k-th largest score (…, 1)."""
    if not scores.dim() or not scores.is_floating_point():
        raise ValueError(f"scores are {scores.dtype} of shape {tuple(scores.shape)}; give floats, the units last")
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k = {k} of {scores.shape[-1]} units; choose k from 1 to {scores.shape[-1]}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; choose a number above 0 (public code of CoLT5: 0.02 to 4)")
    return _SoftTopK.apply(scores, k, temperature)


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
        """λ and the k-th largest score, for arguments that are right but for scores that are not finite."""
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        info = torch.finfo(wide.dtype)
        ctx.temperature = temperature = min(max(temperature, info.tiny), info.max)  # as a number of this dtype
        largest = wide.topk(k, sorted=False).values
        last = largest.amin(-1, keepdim=True)
        most = math.log(wide.shape[-1] - k + 1)
        weights = _weights(wide, last, temperature, most)
        # the sum without the k largest, which may tie with others at 1: never a small difference of large sums
        below = (weights < 1).to(wide.dtype)
        tied = wide.shape[-1] - k - below.sum(-1, keepdim=True)
        rest = below.mul_(weights).sum(-1, keepdim=True) + tied
        del below
        x = _level(_weights(largest, last, temperature, most), rest, _steps(k, wide.shape[-1], info.eps))
        x = torch.where(_finite(wide), x, torch.nan)
        soft = weights.div_(x).clamp_(max=1)
        ctx.save_for_backward(soft)
        ctx.mark_non_differentiable(last)
        return soft, last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """ds_i = λ_i (g_i − mean of g) / ε over the units below 1, the mean weighted with λ: their sum stays."""
        (soft,) = ctx.saved_tensors
        moving = soft * (soft < 1).to(soft.dtype)  # on a CPU quicker than where() and masked_fill()
        total = moving.sum(-1, keepdim=True).clamp(min=torch.finfo(soft.dtype).tiny)
        mean = (moving * gradients[0]).sum(-1, keepdim=True) / total
        return (gradients[0] - mean).mul_(moving).div_(ctx.temperature), None, None


def _weights(scores: Tensor, last: Tensor, temperature: float, most: float) -> Tensor:
    return (scores - last).div_(temperature).clamp_(max=most).exp_()


def _level(largest: Tensor, rest: Tensor, steps: int) -> Tensor:
    """x (…, 1), from the weights of the k largest (…, k), each 1 at least, and the sum of all others (…, 1)."""
    x = (rest + largest.sum(-1, keepdim=True)) / largest.shape[-1]
    for _ in range(steps):
        free = (largest <= x).to(x.dtype)
        lower = (rest + (largest * free).sum(-1, keepdim=True)) / free.sum(-1, keepdim=True)
        lower = lower.clamp_(min=1).minimum(x)  # the k-th, 1, is never above it
        if not torch.compiler.is_compiling() and torch.equal(lower, x):
            break
        x = lower
    return x


def _steps(k: int, d: int, precision: float) -> int:
    """How many steps of Newton's method are enough, `precision` the dtype's epsilon.

    For h = k − g(t), g concave with slope m, a step leaves h'/h + m'/m ≤ 1, so that h m falls to a quarter at least. It
    begins below k (k D + d). At the end h shall be below precision: m is 1 at least (the k-th unit's weight), and the
    relative error of t is h / (m t) at most, m t the sum of λ below 1, which is 1 at least."""
    return math.ceil(math.log2(k * (k * (d - k + 1) + d) / precision) / 2)


def _finite(scores: Tensor) -> Tensor:
    """Whether each row (…, 1) has finite scores alone. ValueError where one has not, except in compiled code."""
    finite = scores.amin(-1, keepdim=True).isfinite() & scores.amax(-1, keepdim=True).isfinite()
    if not torch.compiler.is_compiling() and not finite.all():
        raise ValueError(
            f"{int((~scores.isfinite()).sum())} of {scores.numel()} scores are not finite (NaN or infinite); "
            "look for a diverged predictor, or an overflow in its dtype"
        )
    return finite
