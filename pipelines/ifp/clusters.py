"""A few sub-networks for mixed traffic: the masks of calibration prompts in K clusters, one mask a cluster.

arXiv 2501.02086 serves a mask for each input, or one for a task. Between the two stand K sub-networks that are made
beforehand, of which a prompt takes the one that has the most units in common with its own mask: then requests with the
same sub-network make a batch, and nothing is gathered while they are served. K = 1 is the mask of the whole set.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines import masks, units

STARTS = 8  # of K-means, the best of which counts


class Assigned(NamedTuple):
    """`which` (N), the sub-network of each prompt; `shared` (N), the share of the prompt's own units that it keeps, in
    [0, 1]; `sizes`, the prompts of each sub-network."""

    which: Tensor
    shared: Tensor
    sizes: list[int]


def cluster(some: Tensor, k: int, seed: int) -> Tensor:
    """The masks (k, L, d_ffn), fp32, of k sub-networks for prompts with the masks `some` (N, L, d_ffn), each of which
    is the nearest (`assign`) for one of them at least.

    K-means on the masks, λ and all, and the `middle` of each cluster. Where a middle has lost all its prompts to
    others, the prompt that is furthest from its sub-network takes its place: what prompts share with theirs grows by
    each such step. ValueError where fewer than k prompts differ in their units, and as in `check`."""
    check(some)
    apart = different(some)
    if not 1 <= k <= apart:
        raise ValueError(
            f"{k} sub-networks of {len(some)} calibration prompts, {apart} of which differ in their units; choose "
            f"from 1 to {apart}, or give more prompts, of more kinds (if all share one mask, the predictor is "
            "collapsed)"
        )
    groups = _groups(some, k, seed)
    made = torch.stack([middle(some[groups == number]) for number in range(k)])
    while 0 in (found := assign(some, made)).sizes:
        made[found.sizes.index(0)] = some[found.shared.argmin()]
    return made


def different(some: Tensor) -> int:
    """How many of the masks `some` (N, L, d_ffn) differ in their units."""
    return len({masks.mask_hash(own != 0) for own in some})


def middle(some: Tensor | Iterable[Tensor]) -> Tensor:
    """The mask (L, d_ffn) that stands for `some` (N, L, d_ffn), or for several such tensors, fp32: the t units with the
    largest mean in each block, of equal ones the first, at the mean λ of those prompts that keep the unit.

    ValueError as in `check`, and where two tensors keep different numbers of units."""
    pieces = [some] if isinstance(some, Tensor) else some
    total, often, widths = torch.zeros(()), torch.zeros(()), set()
    for piece in pieces:
        widths.add(check(piece))
        total = total + piece.sum(0, dtype=torch.float64)
        often = often + (piece != 0).sum(0)
    if len(widths) != 1:
        raise ValueError(f"masks keep {sorted(widths)} units; give one at least, all of the same number")
    return (units.top(total, widths.pop()) * total / often.clamp(min=1)).float()


def assign(some: Tensor, subnetworks: Tensor) -> Assigned:
    """For each of the masks `some` (N, L, d_ffn) the nearest of the masks `subnetworks` (K, L, d_ffn): the one that
    keeps the most of its units, summed over blocks; of equal ones the first. λ does not count.

    ValueError where they are of different shape or keep different numbers of units, and as in `check`."""
    t, other = check(some), check(subnetworks)
    if some.shape[1:] != subnetworks.shape[1:] or t != other:
        raise ValueError(
            f"masks of {t} of {some.shape[2]} units in {some.shape[1]} blocks, sub-networks of {other} of "
            f"{subnetworks.shape[2]} in {subnetworks.shape[1]}; give masks that the same predictor made"
        )
    # whole numbers below 2²⁴: exact in fp32
    common = (some != 0).flatten(1).float() @ (subnetworks != 0).flatten(1).float().T
    most, which = common.max(1)
    sizes = which.bincount(minlength=len(subnetworks)).tolist()
    return Assigned(which, most.double() / (t * some.shape[1]), sizes)


def check(some: Tensor) -> int:
    """t, the units that every block of every mask in `some` (N, L, d_ffn) keeps. ValueError for none, values outside
    0 … 1, and rows that keep different numbers."""
    if some.dim() != 3 or not some.numel() or not some.is_floating_point():
        raise ValueError(f"masks are {some.dtype} of shape {tuple(some.shape)}; give floats (N, L, d_ffn), N ≥ 1")
    if not ((some >= 0) & (some <= 1)).all():
        raise ValueError("the masks have values outside 0 … 1; make them with masks.mask or units.top")
    if not (t := masks.indices(some[:1]).shape[-1]):
        raise ValueError("the masks keep no unit; keep one in each block at least")
    counts = (some != 0).sum(-1)
    if counts.min() != counts.max():
        raise ValueError(f"masks keep {int(counts.min())} to {int(counts.max())} units; keep the same number in each")
    return t


def _groups(some: Tensor, k: int, seed: int) -> Tensor:
    """The cluster of each prompt (N)."""
    from sklearn.cluster import KMeans

    means = KMeans(k, n_init=STARTS, random_state=seed).fit(some.flatten(1).float().cpu().numpy())
    return torch.from_numpy(means.labels_).to(some.device, torch.int64)
