"""The loss of target tokens against log-softmax written out in numpy."""

import numpy as np
import pytest
import torch

from pipelines.training import losses

TOKENS, WIDTH, VOCABULARY = 37, 8, 11


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, dtype=dtype)
    return torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True), head, torch.randint(0, VOCABULARY, (TOKENS,))


def by_hand(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    peak = logits.max(1)
    return peak + np.log(np.exp(logits - peak[:, None]).sum(1)) - logits[np.arange(len(targets)), targets]


@pytest.mark.parametrize("logits", [1, 4 * VOCABULARY, 1 << 23])  # a token at a time, four, all
def test_nats_in_float64(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few ulp of float64: the same sums in another order."""
    monkeypatch.setitem(losses.LOGITS, "cpu", logits)
    hidden, head, targets = case()
    seen = losses.nats(hidden, head, targets).detach().numpy()
    np.testing.assert_allclose(seen, by_hand(head(hidden).detach().numpy(), targets.numpy()), rtol=1e-12)


def test_bf16_logits_are_summed_in_float32() -> None:
    """The inputs are rounded already; only fp32 sums differ."""
    hidden, head, targets = case(torch.bfloat16)
    seen = losses.nats(hidden, head, targets)
    assert seen.dtype == torch.float32
    expected = by_hand(head(hidden).detach().double().numpy(), targets.numpy())
    np.testing.assert_allclose(seen.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logits", [4 * VOCABULARY, 1 << 23])
def test_gradients_are_softmax_minus_one_hot(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weighted nats, written out; float64."""
    monkeypatch.setitem(losses.LOGITS, "cpu", logits)
    hidden, head, targets = case()
    weights = torch.rand(TOKENS, dtype=torch.float64)
    (losses.nats(hidden, head, targets) * weights).sum().backward()
    made = head(hidden).detach().softmax(-1)
    made[torch.arange(TOKENS), targets] -= 1
    made *= weights[:, None]
    assert hidden.grad is not None and head.weight.grad is not None
    torch.testing.assert_close(hidden.grad, made @ head.weight.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, made.T @ hidden.detach(), rtol=1e-10, atol=1e-12)


def test_no_target_at_all_is_no_loss_and_a_zero_gradient() -> None:
    hidden, head, _ = case()
    seen = losses.nats(hidden[:0], head, torch.empty(0, dtype=torch.long))
    seen.sum().backward()
    assert seen.shape == (0,) and head.weight.grad is not None and not head.weight.grad.any()
