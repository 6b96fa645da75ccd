"""The loss of every target token. Its logits are never whole: made for some at a time, and again for the gradient."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}  # at a time; in fp32 32 and 512 MiB
# Where logits are more than the head's product, transformers' own forward makes them (Gemma 2, Cohere, Granite, …).
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "mup_width_multiplier")


def bare(model: Any) -> Any:
    """A Hugging Face causal model without peft's shell; its adapters are inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class ByToken(torch.nn.Module):
    """A Hugging Face causal model, bare or inside a peft model, that returns the loss of each target token.

    Called with `input_ids` and `labels` (1, T), `IGNORED` where no loss is wanted, and what its decoder takes
    (position_ids, cu_seq_lens_q, …). Returns (N,) nats in fp32, fp64 for a fp64 model: minus the log-probability of
    each target, which the state one token before it predicts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = bare(model).config
        self.scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in SCALED)

    def begin(self, done: float) -> None:
        """Called before every step, with the share of training that is done."""

    def precise(self) -> list[torch.nn.Module]:
        """Its parts that are not computed in bf16."""
        return []

    def figures(self) -> dict[str, float]:
        """What a step's line shall tell beside losses; every rank calls it after the step."""
        return {}

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **packed: Any) -> torch.Tensor:
        """See the class."""
        causal = bare(self.model)
        where = (labels[0, 1:] != IGNORED).nonzero()[:, 0]
        targets = labels[0, 1 + where]
        if self.scaled:
            made = causal(input_ids=input_ids, use_cache=False, logits_to_keep=where, **packed)
            return _nats(made.logits[0], targets)
        hidden = causal.get_decoder()(input_ids=input_ids, use_cache=False, **packed)[0]
        return nats(hidden[0, where], causal.get_output_embeddings(), targets)


def nats(hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of each of `targets` (N,) under the logits that `head` makes of `hidden` (N, H)."""

    def some(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return _nats(head(states), wanted)

    most = LOGITS[hidden.device.type]
    size = max(1, most // getattr(head, "out_features", most))
    if len(targets) <= size:  # the backward pass begins here, so that nothing would be gained by dropping them
        return some(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(some, *chunk, use_reentrant=False) for chunk in chunks])


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
