"""Clusters of masks against brute force: sets of units, plain loops, and every way to divide the prompts."""

import itertools
import re

import pytest
import torch
from torch import Tensor

from pipelines import masks, units
from pipelines.ifp import clusters

L, WIDTH, KEPT = 3, 12, 4


def some(*rows: int, seed: int = 0, kinds: int = 0) -> Tensor:
    """Masks of prompts; with `kinds`, of so many kinds that differ far more than the prompts of one."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(*rows, L, WIDTH, generator=random)
    if kinds:
        scores = (
            scores / 4 + torch.randn(kinds, L, WIDTH, generator=random).repeat(rows[0] // kinds + 1, 1, 1)[: rows[0]]
        )
    return masks.mask(scores, KEPT, 0.5)


def kept(mask: Tensor) -> list[set[int]]:
    return [{unit for unit, value in enumerate(row) if value} for row in mask.tolist()]


def by_hand(members: Tensor) -> Tensor:
    """`middle`, in plain Python."""
    made = torch.zeros(L, WIDTH)
    for block in range(L):
        values = [[float(own[block, unit]) for own in members] for unit in range(WIDTH)]
        for unit in sorted(range(WIDTH), key=lambda unit: (-sum(values[unit]) / len(members), unit))[:KEPT]:
            keeping = [value for value in values[unit] if value]
            made[block, unit] = sum(keeping) / len(keeping)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_goes_where_most_of_its_units_are(seed: int) -> None:
    prompts, subnetworks = some(40, seed=seed), some(5, seed=seed + 100)
    found = clusters.assign(prompts, subnetworks)
    for place, own in enumerate(prompts):
        common = [sum(len(mine & its) for mine, its in zip(kept(own), kept(one), strict=True)) for one in subnetworks]
        assert found.which[place] == common.index(max(common))
        assert float(found.shared[place]) == max(common) / (L * KEPT)
    assert found.sizes == [int((found.which == number).sum()) for number in range(5)]
    whole = masks.overlap(prompts, subnetworks[:1]).mean()
    assert float(clusters.assign(prompts, subnetworks[:1]).shared.mean()) == pytest.approx(float(whole))


def test_of_equal_subnetworks_the_first() -> None:
    one = some(1)
    found = clusters.assign(some(20), torch.cat([one, one * 0.5, one]))
    assert found.sizes == [20, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_the_middle_is_the_mean_masks_top(seed: int) -> None:
    members = some(7, seed=seed)
    made = clusters.middle(members)
    torch.testing.assert_close(made, by_hand(members), rtol=0, atol=1e-7)
    assert ((made != 0).sum(-1) == KEPT).all() and made.dtype == torch.float32
    assert torch.equal(clusters.middle(iter(members.split(3))), made)
    assert torch.equal(clusters.middle(members[:1]), members[0]) and torch.equal(clusters.middle(members.flip(0)), made)
    hard = units.top(members, KEPT)
    assert set(clusters.middle(hard).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_clusters_are_the_best_of_all_ways_to_divide(k: int) -> None:
    """K-means minimises the squared distance to the mean; here every division of seven prompts is tried."""
    prompts = some(7, kinds=k)

    def spread(labels: tuple[int, ...]) -> float:
        groups = [prompts[torch.tensor(labels) == number].double() for number in range(k)]
        return sum(float((group - group.mean(0)).square().sum()) for group in groups)

    ways = (labels for labels in itertools.product(range(k), repeat=7) if len(set(labels)) == k)
    best = torch.tensor(min(ways, key=spread))
    wanted = {masks.mask_hash(by_hand(prompts[best == number])) for number in range(k)}
    made = clusters.cluster(prompts, k, seed=0)
    assert {masks.mask_hash(one) for one in made} == wanted
    assert sorted(clusters.assign(prompts, made).sizes) == sorted(best.bincount().tolist())


@pytest.mark.parametrize(("rows", "k"), [(30, 1), (30, 4), (30, 16), (30, 30), (200, 16)])
def test_every_subnetwork_is_a_mask_that_prompts_go_to(rows: int, k: int) -> None:
    """Also where prompts have nothing in common, and where each gets its own."""
    prompts = some(rows)
    made = clusters.cluster(prompts, k, seed=1)
    assert made.shape == (k, L, WIDTH) and ((made != 0).sum(-1) == KEPT).all() and ((made >= 0) & (made <= 1)).all()
    found = clusters.assign(prompts, made)
    assert min(found.sizes) >= 1 and sum(found.sizes) == rows
    assert torch.equal(made, clusters.cluster(prompts, k, seed=1))
    if k == rows:
        assert (found.shared == 1).all()
    if k == 1:
        assert torch.equal(made[0], clusters.middle(prompts))


def test_clusters_that_keep_the_same_units_are_filled_anew() -> None:
    """K-means tells these apart by λ, and both middles keep the same units: the first would take all prompts."""
    one, other = torch.zeros(1, 20), torch.zeros(1, 20)
    one[0, :10], other[0, [*range(9), 10]] = 1, 1
    prompts = torch.stack([one, other, one * 0.1, other * 0.1])
    made = clusters.cluster(prompts, 2, seed=0)
    assert clusters.assign(prompts, made).sizes == [2, 2] and (clusters.assign(prompts, made).shared == 1).all()
    middles = [clusters.middle(prompts[:2]), clusters.middle(prompts[2:])]
    assert masks.mask_hash(middles[0] != 0) == masks.mask_hash(middles[1] != 0), "else this tests nothing"


ONE = some(3)
REFUSED = {
    "2 sub-networks of 4 calibration prompts, 1 of which differ": lambda: clusters.cluster(
        torch.cat([ONE[:1], ONE[:1] * 0.5] * 2), 2, 0
    ),
    "0 sub-networks of 3": lambda: clusters.cluster(ONE, 0, 0),
    "4 sub-networks of 3 calibration prompts, 3 of which differ in their units; choose from 1 to 3": lambda: (
        clusters.cluster(ONE, 4, 0)
    ),
    "of shape (3, 12); give floats (N, L, d_ffn)": lambda: clusters.cluster(ONE[0], 1, 0),
    "of shape (0, 3, 12)": lambda: clusters.middle(ONE[:0]),
    "masks are torch.bool": lambda: clusters.middle(ONE != 0),
    "outside 0 … 1": lambda: clusters.assign(ONE * 3, ONE),
    "keep no unit": lambda: clusters.middle(torch.zeros(1, L, WIDTH)),
    "masks keep 3 to 4 units": lambda: clusters.middle(torch.cat([ONE, units.top(ONE, 3)])),
    "masks keep [3, 4] units": lambda: clusters.middle([ONE, units.top(ONE, 3)]),
    "masks keep [] units": lambda: clusters.middle([]),
    "masks of 4 of 12 units in 3 blocks, sub-networks of 3 of 12": lambda: clusters.assign(ONE, units.top(ONE, 3)),
    "sub-networks of 4 of 12 in 2": lambda: clusters.assign(ONE, ONE[:, :2]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_masks_that_do_not_fit_are_refused(said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        REFUSED[said]()
