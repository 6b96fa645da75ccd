"""The best weights of a training so far, by the loss on its validation rows."""

import math
from typing import Any

import torch

from pipelines.training import parallel


class Best:
    """Weights of `model` (those that are trained, sharded as they are) when its validation loss was least. `steps` as
    in losses.jsonl say when that was; of a training that is taken up again, `weights` are to be read in."""

    def __init__(self, model: torch.nn.Module, steps: list[dict[str, Any]]) -> None:
        self.trained = {parallel.unwrapped(name): p for name, p in model.named_parameters() if p.requires_grad}
        seen = [step["validation_loss"] for step in steps if step.get("validation_loss") is not None]
        self.loss = min(seen, default=math.inf)
        self.weights = {name: torch.empty_like(p) for name, p in self.trained.items()} if seen else {}

    def see(self, loss: float) -> None:
        """Keep the weights as they are now where `loss` is the least so far."""
        if loss < self.loss:
            self.loss = loss
            self.weights = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def take(self) -> None:
        """Put the best weights back into the model."""
        for name, weight in self.weights.items():
            self.trained[name].copy_(weight)
