"""The optimizers: AdamW for fine-tuning, Muon with AdamW for a model trained from scratch."""

from collections.abc import Mapping
from typing import Any

import torch


def adamw(
    model: torch.nn.Module, peak: float, weight_decay: float, apart: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in one pass over each (`fused`); norms and biases are not decayed. `apart`:
    the peak of those whose names begin so, in place of `peak` (`scale` of their groups, which the loop minds)."""
    groups = []
    for start, rate in {"": peak, **(apart or {})}.items():
        others = [name for name in (apart or {}) if name != start]
        trained = [
            p for name, p in model.named_parameters()
            if p.requires_grad and name.startswith(start) and (start or not name.startswith(tuple(others)))
        ]  # fmt: skip
        scale = {} if rate == peak else {"scale": rate / peak}
        groups += [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay, **scale},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, **scale},
        ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=peak, betas=(0.9, 0.95), fused=True)


class Together:
    """Optimizers over disjoint parameters that step as one, at one learning rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, by their place."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


def muon(model: torch.nn.Module, peak: float, weight_decay: float) -> Together:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings and norms.

    Muon's update is scaled to the root mean square of an AdamW update (Moonlight, arXiv 2502.16982,
    eq. 4), so that both take one learning rate."""
    embedded = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    inner = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embedded]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in embedded]
    return Together(
        torch.optim.Muon(inner, lr=peak, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    )
