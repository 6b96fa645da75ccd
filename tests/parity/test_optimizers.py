"""Muon with AdamW against the formulas in numpy, and exact resume."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.training import loop, optimizers

RATE, DECAY = 1e-2, 0.1


@pytest.fixture
def model() -> torch.nn.Module:
    """An embedding, two matrices (wide and tall) and a norm."""
    torch.manual_seed(0)
    parts: Any = [torch.nn.Embedding(11, 8), torch.nn.Linear(8, 24, bias=False)]
    parts += [torch.nn.Linear(24, 8, bias=False), torch.nn.LayerNorm(8)]
    return torch.nn.Sequential(*parts)


def pull(model: torch.nn.Module, seed: int) -> None:
    """Gradients from a seeded generator."""
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=source)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """The quintic iteration with Jordan's coefficients, in float64."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def test_matrices_follow_muon_and_the_rest_adamw(model: torch.nn.Module) -> None:
    start = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    optimizer = optimizers.muon(model, RATE, DECAY)
    pull(model, 1)
    gradients = {name: p.grad.double().numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    for name, now in model.named_parameters():
        g = gradients[name]
        if name in ("1.weight", "2.weight"):
            momentum = 0.05 * g
            turned = newton_schulz(0.05 * g + 0.95 * momentum)
            wanted = -RATE * (DECAY * start[name] + 0.2 * np.sqrt(max(g.shape)) * turned)
            tolerance = 5e-2  # torch iterates in bf16, five times at a slope of up to 3.4
        else:  # the first step of AdamW: m̂ = g, v̂ = g²; not decayed
            wanted, tolerance = -RATE * g / (np.abs(g) + 1e-8), 1e-4
        made = now.detach().double().numpy() - start[name]
        assert np.linalg.norm(made - wanted) <= tolerance * np.linalg.norm(wanted), name


def test_the_loop_sets_one_rate_for_all_parts(model: torch.nn.Module) -> None:
    optimizer = optimizers.muon(model, RATE, DECAY)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    pull(model, 1)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_resumed_optimizer_goes_on_as_if_never_stopped(model: torch.nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    optimizer = optimizers.muon(model, RATE, DECAY)
    pull(model, 1)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    resumed = optimizers.muon(other, 1.0, 0.0)  # settings come from the state
    resumed.load_state_dict(state["optimizer"])
    for each, stepped in ((model, optimizer), (other, resumed)):
        pull(each, 2)
        stepped.step()
        stepped.zero_grad()
        assert all(p.grad is None for p in each.parameters())
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_rates_fall_as_scheduled() -> None:
    flat = [loop.learning_rate("flat-linear", 1.0, done) for done in (0.0, 0.03, 0.5, 0.75, 1.0)]
    assert flat == pytest.approx([1 / 30, 1.0, 1.0, 0.5, 0.0])
