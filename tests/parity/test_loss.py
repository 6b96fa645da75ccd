"""The loss against log-softmax written out in numpy."""

import numpy as np
import pytest
import torch

from pipelines.training.losses import IGNORED, next_token_loss, target_count


def _case() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :4] = IGNORED
    labels[2] = IGNORED
    return torch.randn(3, 7, 11, dtype=torch.float64) * 5, labels


def _by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            if labels[row, position] != IGNORED:
                scores = logits[row, position - 1]
                peak = scores.max()
                total += peak + np.log(np.exp(scores - peak).sum()) - scores[labels[row, position]]
    return total


def test_sum_of_cross_entropies_in_float64() -> None:
    logits, labels = _case()
    # The same sums in another order: a few ulp of float64.
    assert next_token_loss(logits, labels).item() == pytest.approx(_by_hand(logits.numpy(), labels.numpy()), rel=1e-12)
    assert target_count(labels).item() == 3 + 6 + 0


def test_bf16_logits_are_summed_in_float32() -> None:
    logits, labels = _case()
    short = logits.bfloat16()
    loss = next_token_loss(short, labels)
    assert loss.dtype == torch.float32
    # The inputs are rounded already; only fp32 sums differ: 1e-5 relative.
    assert loss.item() == pytest.approx(_by_hand(short.double().numpy(), labels.numpy()), rel=1e-5)


def test_gradient_is_softmax_minus_one_hot_where_there_is_a_target_and_zero_elsewhere() -> None:
    logits, labels = _case()
    logits.requires_grad_(True)
    next_token_loss(logits, labels).backward()
    expected = torch.zeros_like(logits)
    for row, position in (labels[:, 1:] != IGNORED).nonzero().tolist():
        expected[row, position] = logits[row, position].detach().softmax(0)
        expected[row, position, labels[row, position + 1]] -= 1
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)  # float64, same formula


def test_no_target_at_all_is_zero_with_a_zero_gradient() -> None:
    logits = torch.randn(1, 2, 5, requires_grad=True)
    loss = next_token_loss(logits, torch.full((1, 2), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()
