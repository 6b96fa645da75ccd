"""SoftTopK against a root found by scipy, against the iteration that the papers use, and against finite differences."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pipelines import masks


def scores(d: int, *rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_root(row: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """λ of one row, min(1, exp((s − τ)/ε)), τ where the sum is k, bracketed by the least and the most it can be."""
    row = row - np.median(row)  # τ shall have small numbers too

    def soft(level: float) -> np.ndarray:
        return np.exp(np.minimum(0, (row - level) / temperature))

    low, high = row.min() - 1, row.max() + temperature * math.log(len(row))
    return soft(brentq(lambda level: soft(level).sum() - k, low, high, xtol=1e-14 * (high - low)))


def iterated(wide: Tensor, k: int, temperature: float, steps: int) -> Tensor:
    """λ as CoLT5's routing makes it: two blocks of coordinates in turn."""
    b = -wide
    for _ in range(steps):
        a = temperature * (math.log(k) - torch.logsumexp((wide + b) / temperature, -1, keepdim=True))
        b = (-(wide + a)).clamp(max=0)
    return ((wide + a + b) / temperature).exp()


def unrolled(wide: Tensor, k: int, temperature: float) -> Tensor:
    """λ by the sorted form, each operation known to autograd: n at 1, the first n for which the next is below."""
    ordered = (wide / temperature).sort(-1, descending=True).values
    tails = ordered.flip(-1).logcumsumexp(-1).flip(-1)[..., :k]
    levels = tails - torch.log(k - torch.arange(k, dtype=wide.dtype))
    chosen = (ordered[..., :k] > levels).sum(-1, keepdim=True)
    return (wide / temperature - levels.gather(-1, chosen)).exp().clamp(max=1)


SPREADS = {
    "normal": scores(60, 3),
    "wide": scores(60, 3, seed=1) * 1e4,
    "narrow": scores(60, 3, seed=2) * 1e-3,
    "far": scores(60, 3, seed=3) + 1e6,
    "tied": scores(60, 3, seed=4).round(),
    # Newton's method is slowest where weights are spread evenly over the orders of magnitude
    "even": torch.linspace(0, 8, 60, dtype=torch.float64).expand(3, -1),
    "steep": torch.linspace(0, 3, 60, dtype=torch.float64).exp().expand(3, -1),
}


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 1.0, 4.0, 1e3])
@pytest.mark.parametrize("k", [1, 2, 17, 59])
@pytest.mark.parametrize("spread", SPREADS)
def test_it_is_the_root_of_the_sum(spread: str, k: int, temperature: float) -> None:
    """1e-9: scipy's root is good to 1e-14 of the range, divided by the temperature."""
    rows = SPREADS[spread]
    made = masks.soft_top_k(rows, k, temperature)
    expected = np.stack([by_root(row, k, temperature) for row in rows.numpy()])
    within = max(1e-9, 1e-13 * float(rows.max() - rows.min()) / temperature)
    assert within < 1e-4
    np.testing.assert_allclose(made.numpy(), expected, atol=within, rtol=0)
    np.testing.assert_allclose(made.sum(-1).numpy(), k, rtol=1e-12)


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (8, 1.0), (8, 0.5), (25, 2.0)])
def test_the_papers_iteration_ends_there(k: int, temperature: float) -> None:
    """3,000 steps in float64. The iteration's sum falls to k from above, and tells how far it still is."""
    rows = scores(32, 2, 4)
    made, theirs = masks.soft_top_k(rows, k, temperature), iterated(rows, k, temperature, 3000)
    torch.testing.assert_close(made, theirs, atol=1e-9, rtol=0)
    early = iterated(rows, k, temperature, 3)
    assert k == 1 or (early - made).abs().max() > 1e-3  # it has something to agree with


def test_a_row_of_the_papers_size_in_float32() -> None:
    """9B → 3B: 6,656 of 24,576. fp32 carries 6e-8 through a difference, a quotient of at most 10, exp and a sum."""
    rows = scores(24_576, 2, dtype=torch.float32)
    for temperature in (0.02, 1.0):
        made = masks.soft_top_k(rows, 6656, temperature)
        expected = np.stack([by_root(row, 6656, temperature) for row in rows.double().numpy()])
        np.testing.assert_allclose(made.numpy(), expected, atol=3e-6, rtol=0)
        np.testing.assert_allclose(made.double().sum(-1).numpy(), 6656, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.5), (3, 0.3), (7, 1.0), (8, 0.7)])
def test_gradients_are_finite_differences(k: int, temperature: float, seed: int) -> None:
    """First and second derivatives, where no unit is within 1e-3 of the kink at 1."""
    rows = scores(9, 2, seed=seed).requires_grad_()
    made = masks.soft_top_k(rows, k, temperature).detach()
    step = masks.soft_top_k(rows.detach() + 1e-5 * scores(9, 2, seed=99), k, temperature)
    assert ((made < 1) == (step < 1)).all() and not ((made < 1) & (made > 0.999)).any()
    assert torch.autograd.gradcheck(lambda s: masks.soft_top_k(s, k, temperature), rows)
    assert torch.autograd.gradgradcheck(lambda s: masks.soft_top_k(s, k, temperature), rows)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("k", [1, 5, 20, 39])
def test_the_implicit_gradient_is_that_of_the_sorted_form(k: int, temperature: float) -> None:
    """float64, a few ulp; and the sum over a row is 0, since a constant added to the scores changes nothing."""
    rows, weights = scores(40, 2, 3).requires_grad_(), scores(40, 2, 3, seed=1)
    made, theirs = masks.soft_top_k(rows, k, temperature), unrolled(rows, k, temperature)
    torch.testing.assert_close(made, theirs, atol=1e-11, rtol=0)
    (mine,) = torch.autograd.grad((made * weights).sum(), rows)
    (peer,) = torch.autograd.grad((theirs * weights).sum(), rows)
    torch.testing.assert_close(mine, peer, atol=1e-10 / temperature, rtol=0)
    assert mine.abs().max() > 1e-3 and mine.sum(-1).abs().max() < 1e-11 / temperature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_limits(dtype: torch.dtype) -> None:
    rows = (torch.randperm(50, generator=torch.Generator().manual_seed(0)) / 8).to(dtype)
    hard = torch.zeros_like(rows).scatter(-1, rows.topk(7).indices, 1)
    assert torch.equal(masks.soft_top_k(rows, 7, 1e-4), hard.to(torch.promote_types(dtype, torch.float32)))
    for least in (1e-30, 5e-324):
        assert torch.equal(masks.soft_top_k(rows, 7, least).to(dtype), hard)
    for most in (1e9, 1e300, math.inf):
        torch.testing.assert_close(masks.soft_top_k(rows, 7, most).double(), torch.full((50,), 7 / 50).double())
    assert (masks.soft_top_k(rows, 50, 0.3) == 1).all()
    tied = masks.soft_top_k(torch.tensor([3.0, 1.0, 1.0, 1.0, -2.0], dtype=dtype), 2, 1e-4)
    torch.testing.assert_close(tied.double(), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 0]).double(), atol=1e-7, rtol=0)


def test_shifts_change_nothing_and_permutations_commute() -> None:
    rows, order = scores(30, 4), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    made = masks.soft_top_k(rows, 6, 0.4)
    torch.testing.assert_close(masks.soft_top_k(rows + 12.5, 6, 0.4), made, atol=1e-12, rtol=0)
    torch.testing.assert_close(masks.soft_top_k(rows[:, order], 6, 0.4), made[:, order], atol=1e-14, rtol=0)
    torch.testing.assert_close(masks.soft_top_k(rows * 8, 6, 3.2), made, atol=1e-14, rtol=0)
    flat = masks.soft_top_k(rows[0], 6, 0.4)
    torch.testing.assert_close(flat, made[0], atol=0, rtol=0)
    assert masks.soft_top_k(rows[:0], 6, 0.4).shape == (0, 30) and masks.mask(rows[:0], 6, 0.4).shape == (0, 30)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(FLOATS, st.floats(-3, 3, width=32), st.integers(-2, 2).map(float))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(NUMBERS, min_size=1, max_size=40),
    st.integers(1, 40),
    st.floats(1e-6, 1e6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_finite_scores(row: list[float], k: int, temperature: float, dtype: torch.dtype) -> None:
    """Range, sum, order, exactly k kept, and a finite gradient, for any numbers, ties and the largest among them."""
    k, wide = min(k, len(row)), torch.tensor(row, dtype=dtype, requires_grad=True)
    made, kept = masks.soft_top_k(wide, k, temperature), masks.mask(wide, k, temperature)
    assert ((made >= 0) & (made <= 1)).all()
    assert float(made.detach().double().sum()) == pytest.approx(k, rel=1e-5 if dtype == torch.float32 else 1e-11)
    order = sorted(range(len(row)), key=lambda unit: (-row[unit], unit))
    assert masks.indices(kept).tolist() == sorted(order[:k])
    assert (made[order].diff() <= 0).all()
    (kept * torch.linspace(-1, 1, len(row), dtype=dtype)).sum().backward()
    assert wide.grad is not None and wide.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_scores_are_taken_for_what_they_are(dtype: torch.dtype) -> None:
    """The same as their values in fp32, near float64; the gradient comes back in the dtype that went in."""
    rows = scores(200, 3, dtype=dtype).requires_grad_()
    made = masks.soft_top_k(rows, 40, 0.3)
    assert torch.equal(made, masks.soft_top_k(rows.float(), 40, 0.3)) and made.dtype == torch.float32
    torch.testing.assert_close(made.double(), masks.soft_top_k(rows.double(), 40, 0.3), atol=2e-6, rtol=0)
    (masks.mask(rows, 40, 0.3) * scores(200, 3, seed=1)).sum().backward()
    wide = rows.detach().double().requires_grad_()
    (masks.mask(wide, 40, 0.3) * scores(200, 3, seed=1)).sum().backward()
    assert rows.grad is not None and rows.grad.dtype == dtype and wide.grad is not None
    torch.testing.assert_close(rows.grad.double(), wide.grad, atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_float32_is_near_float64_at_extremes(shift: float, temperature: float) -> None:
    """Scores of ±1e4, and scores near 1e4, whose differences fp32 knows: the same numbers in float64 give the same."""
    rows = ((scores(500, 4).tanh() * 1e4) if not shift else scores(500, 4) + shift).float().requires_grad_()
    made = masks.soft_top_k(rows, 100, temperature)
    torch.testing.assert_close(made.double(), masks.soft_top_k(rows.double(), 100, temperature), atol=5e-6, rtol=0)
    made.square().sum().backward()
    assert rows.grad is not None and rows.grad.isfinite().all()


def test_autocast_leaves_it_alone() -> None:
    rows = scores(64, 3, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = masks.mask(rows, 9, 0.5)
    assert torch.equal(made, masks.mask(rows, 9, 0.5))
    made.square().sum().backward()
    assert rows.grad is not None and rows.grad.dtype == torch.float32


def test_compiled_code_is_one_graph_and_gives_the_same() -> None:
    """Traced with its gradient, without a C++ compiler; a temperature that falls step by step is traced twice."""
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(masks.mask, backend=counted, fullgraph=True)
    rows, weights = scores(64, 3, dtype=torch.float32).requires_grad_(), scores(64, 3, seed=1, dtype=torch.float32)
    for temperature in (1.0, 0.5, 0.25, 0.125):
        made, plain = compiled(rows, 9, temperature), masks.mask(rows, 9, temperature)
        torch.testing.assert_close(made, plain, atol=1e-6, rtol=0)
        gradients = [torch.autograd.grad((some * weights).sum(), rows)[0] for some in (made, plain)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    assert counted.frame_count == 2
    with torch.no_grad():
        broken = rows.detach().clone()
        broken[1, 3] = -math.inf
        assert compiled(broken, 9, 0.125).isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("rows", "k", "temperature", "said"),
    [
        (torch.zeros(4), 5, 1.0, "k = 5 of 4 units; choose k from 1 to 4"),
        (torch.zeros(4), 0, 1.0, "k = 0 of 4 units"),
        (torch.zeros(4), 2, 0.0, "temperature is 0.0; choose a number above 0"),
        (torch.zeros(4), 2, -1.0, "temperature is -1.0"),
        (torch.zeros(4), 2, math.nan, "temperature is nan"),
        (torch.tensor([0.0, math.nan, 1.0, math.inf]), 2, 1.0, "2 of 4 scores are not finite"),
        (torch.tensor([[0.0, 1.0], [0.0, -math.inf]]), 1, 1.0, "1 of 4 scores are not finite"),
        (torch.zeros(4, dtype=torch.long), 2, 1.0, "scores are torch.int64"),
        (torch.tensor(1.0), 1, 1.0, "units last"),
    ],
)
def test_what_has_no_mask_is_refused(rows: Tensor, k: int, temperature: float, said: str) -> None:
    for made in (masks.soft_top_k, masks.mask):
        with pytest.raises(ValueError, match=re.escape(said)):
            made(rows, k, temperature)


def test_the_mask_keeps_exactly_k_of_tied_and_saturated_units() -> None:
    """By score, then by index; λ inside, not ones, and zeros outside."""
    rows = torch.tensor([[1.0, 1, 1, 1, 1, 1], [9, 0, 9, 0, 9, 0], [5, 1e4, -1e4, 1e4, 5, 5], [3, 2, 1, 0, -1, -2]])
    for temperature in (1e-3, 1.0, 1e3):
        soft, made = masks.soft_top_k(rows, 3, temperature), masks.mask(rows, 3, temperature)
        kept = masks.indices(made)
        assert kept.tolist() == [[0, 1, 2], [0, 2, 4], [0, 1, 3], [0, 1, 2]] and kept.dtype == torch.int64
        assert torch.equal(made.gather(-1, kept), soft.gather(-1, kept)) and (made != 0).sum() == 12


def test_the_mask_passes_gradients_through_lambda_alone() -> None:
    """Of Σ c m: the derivative of Σ c λ with c set to 0 outside; the units outside feel it, by λ's sum."""
    rows, weights = scores(20, 2).requires_grad_(), scores(20, 2, seed=1)
    made = masks.mask(rows, 5, 0.5)
    (mine,) = torch.autograd.grad((made * weights).sum(), rows)
    fixed = weights * (made.detach() != 0)
    (peer,) = torch.autograd.grad((masks.soft_top_k(rows, 5, 0.5) * fixed).sum(), rows)
    assert torch.equal(mine, peer) and mine[made == 0].abs().min() > 0


def test_rows_that_keep_different_numbers_have_no_indices() -> None:
    with pytest.raises(ValueError, match="rows keep 1 to 2 units"):
        masks.indices(torch.tensor([[1.0, 0, 0], [1, 1, 0]]))


def test_the_hash_names_units_and_lambda() -> None:
    rows = scores(20, 2, dtype=torch.float32)
    made = masks.mask(rows, 5, 0.5)
    name = masks.mask_hash(made)
    assert re.fullmatch("[0-9a-f]{64}", name) and masks.mask_hash(made.clone().requires_grad_()) == name
    assert masks.mask_hash(made.double()) == name
    others = [masks.mask(rows, 5, 0.6), masks.mask(rows, 6, 0.5), made.flip(-1), made.flip(0), made[:1], made[None]]
    assert len({name, *map(masks.mask_hash, others)}) == 7
    assert masks.mask_hash(made != 0) == masks.mask_hash(masks.mask(rows, 5, 0.6) != 0) != name


def test_overlap_is_the_mean_over_pairs() -> None:
    """Against sets, pair by pair; layer by layer."""
    some, others = masks.mask(scores(30, 6, 2), 10, 0.5), masks.mask(scores(30, 4, 2, seed=1), 10, 0.5)

    def share(a: Tensor, b: Tensor) -> float:
        return len({*masks.indices(a).tolist()} & {*masks.indices(b).tolist()}) / 10

    for layer in range(2):
        mine, theirs = some[:, layer], others[:, layer]
        crossed = np.mean([share(a, b) for a in mine for b in theirs])
        within = np.mean([share(mine[i], mine[j]) for i in range(6) for j in range(i)])
        assert float(masks.overlap(some, others)[layer]) == pytest.approx(crossed, abs=1e-12)
        assert float(masks.overlap(some)[layer]) == pytest.approx(within, abs=1e-12)
    for alone in (lambda: masks.overlap(some[:1]), lambda: masks.overlap(some, others[:0])):
        with pytest.raises(ValueError, match="two inputs at least"):
            alone()
