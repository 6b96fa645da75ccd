"""Packed rows on a GPU, in FlashAttention's kernel for sequences of different lengths, against each row alone."""

import pytest
import torch
import torch.nn.functional as F

from pipelines.training import attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="a kernel for GPUs; there is none")
SIZES = [1, 7, 64, 130, 33]


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """One row (1, H, T, D) in float64: softmax over the tokens that each token sees, written out."""
    q, k, v = (part.double() for part in (q, k, v))
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    back = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    seen = (back >= 0) & (back < (window or q.shape[2]))
    scores = (q @ k.transpose(2, 3) / 8).masked_fill(~seen.to(q.device), float("-inf"))
    return F.softmax(scores, -1) @ v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # fp32: of a model that is not sharded
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [4, 2, 1])  # of keys and values, for four of queries
def test_a_pack_is_its_rows(heads: int, window: int | None, dtype: torch.dtype) -> None:
    """Outputs and gradients. bf16 has 8 bits: 1e-2 by norm, where a row that saw another would be off by about 1."""
    torch.manual_seed(0)
    shapes = [(1, count, sum(SIZES), 64) for count in (4, heads, heads)]
    given = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    ends = F.pad(torch.tensor(SIZES).cumsum(0), (1, 0)).to("cuda", torch.int32)
    module = torch.nn.Identity()
    ours, _ = attention.packed(
        module, *given, None, scaling=1 / 8, sliding_window=window, cu_seq_lens_q=ends, max_length_q=max(SIZES)
    )
    theirs = torch.cat([alone(*row, window) for row in zip(*(g.split(SIZES, 2) for g in given), strict=True)], 2)
    theirs = theirs.transpose(1, 2)
    weights = torch.randn_like(theirs)
    mine = torch.autograd.grad((ours.double() * weights).sum(), given)
    wanted = torch.autograd.grad((theirs * weights).sum(), given)
    for seen, right in zip((ours, *mine), (theirs, *wanted), strict=True):
        assert (seen.double() - right).norm() <= 1e-2 * right.norm()
