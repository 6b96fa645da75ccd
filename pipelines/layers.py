"""Decoder blocks: how much each one does, and the cut itself.

Two measures, both taken in one forward pass over every text:

- angular distance (Gromov et al., arXiv 2403.17887; used by self-data distillation, 2410.09982):
  d(l, l+n) = arccos(cos(h_l, h_{l+n})) / π, h_l the residual state that enters block l, at the last
  token of a text; D(l, n) is its mean over the texts. In [0, 1].
- block influence (ShortGPT, arXiv 2403.03853): BI_i = 1 − E[cos(X_i, X_{i+1})] over every token.

The states are taken from hooks on the blocks: the last of a model's `hidden_states` is past the final
norm, so that a cut which ends at the last block would compare a raw state with a normed one.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.cuts import Importance
from pipelines.training.packing import bucketed


def blocks(model: Any) -> nn.ModuleList:
    """The list of decoder blocks of a Hugging Face causal model: the outermost module list as long as
    its config says. ValueError where none, or more than one, fits."""
    total = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    }
    depth = min((name.count(".") for name in lists), default=0)
    found = [module for name, module in lists.items() if name.count(".") == depth]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(found)} module lists of {total} blocks, one is needed; "
            "only decoders with a single stack of blocks (Llama, Qwen, Mistral, …) can be pruned"
        )
    return found[0]


def measure(
    model: Any,
    texts: Sequence[Sequence[int]],
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Importance:
    """Both measures over `texts` (token ids each), where the model is, in the model's dtype.

    Sums are float64, and the texts are sorted first, so their order does not matter. `progress` gets
    (texts done, texts). ValueError without a token to measure on, or where states are not finite."""
    rows = sorted(list(text) for text in texts if len(text))
    if not rows:
        raise ValueError("no calibration text has a token; the importance of layers needs some")
    total = len(blocks(model))
    angular = [torch.zeros(total + 1 - n, dtype=torch.float64) for n in range(1, total)]
    influence = torch.zeros(total, dtype=torch.float64)
    training, done = model.training, 0
    model.eval()
    for batch in bucketed([len(row) for row in rows], batch_tokens, random.Random(0)):
        last, lost = _run(model, [rows[row] for row in batch])
        influence += lost
        for n in range(1, total):
            angular[n - 1] += _angle(last[:-n], last[n:]).sum(1).cpu()
        done += len(batch)
        progress(done, len(rows))
    model.train(training)
    influence /= sum(len(row) for row in rows)
    if not (influence.isfinite().all() and all(sums.isfinite().all() for sums in angular)):
        raise ValueError("the model's states are not finite (overflow or broken weights); try a wider dtype")
    angles = {n: (angular[n - 1] / len(rows)).tolist() for n in range(1, total)}
    return Importance(angles, influence.tolist(), len(rows))


def remove(model: Any, removed: Sequence[int]) -> Any:
    """Cut the blocks `removed` out of `model`, in place, and return it: an ordinary, smaller model.

    The config follows (number of layers, every list with one entry a layer, Qwen's
    `max_window_layers`), and the attention modules are renumbered, since their number is their place
    in the KV cache. ValueError where a block does not exist or none would be left."""
    stack, config = blocks(model), model.config.get_text_config()
    total, gone = len(stack), set(removed)
    if not gone <= set(range(total)) or len(gone) == total:
        raise ValueError(f"cannot remove blocks {sorted(gone)} of a model with blocks 0 to {total - 1}; one must stay")
    kept = [index for index in range(total) if index not in gone]
    for index in sorted(gone, reverse=True):
        del stack[index]
    for index, block in enumerate(stack):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]
    for name, value in list(vars(config).items()):
        a_layer_each = isinstance(value, list | tuple) and len(value) == total
        # three end tokens and three layers: a list of tokens is none of layers
        if a_layer_each and not name.endswith(("_token_id", "_token_ids")) and name != "architectures":
            setattr(config, name, type(value)(value[index] for index in kept))
    if isinstance(window := getattr(config, "max_window_layers", None), int):
        config.max_window_layers = sum(index < window for index in kept)  # layers below it see everything
    config.num_hidden_layers = len(kept)
    return model


def mismatches(model: Any) -> list[str]:
    """How a model built anew from the config would differ from `model`: parameters by name and shape,
    and settings of the blocks' modules (layer kind, window, …). Empty for a faithful config.

    A config that says "every second layer is X" cannot describe every cut; this tells before saving."""
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    said, here = _description(fresh), _description(model)
    missing = object()
    return sorted(name for name in said.keys() | here.keys() if said.get(name, missing) != here.get(name, missing))


def _description(model: Any) -> dict[str, Any]:
    described: dict[str, Any] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, module in blocks(model).named_modules():
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | None) and not key.startswith("_") and key != "training":
                described[f"{name}:{key}"] = value
    return described


def _run(model: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Unit states at the last token, (L+1, B, H), and the sum of 1 − cos over the tokens, (L,)."""
    device = next(model.parameters()).device
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    last: list[Tensor] = []
    lost: list[Tensor] = []
    before: Tensor | None = None

    def seen(state: Tensor) -> None:
        nonlocal before
        unit = nn.functional.normalize(state.to(device).double(), dim=-1)  # blocks may be on several GPUs
        last.append(unit[torch.arange(len(rows), device=device), lengths - 1])
        if before is not None:  # |u − v|² / 2 = 1 − cos, without the cancellation
            lost.append(((unit - before).square().sum(-1) / 2)[mask].sum())
        before = unit

    with torch.inference_mode(), _watched(blocks(model), seen):
        model.get_decoder()(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    return torch.stack(last), torch.stack(lost).cpu()


@contextmanager
def _watched(stack: nn.ModuleList, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `seen` with the state (B, T, H) that enters each block in turn, then with the raw state
    that leaves the last one."""

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen(args[0] if args else kwargs["hidden_states"])

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_pre_hook(entering, with_kwargs=True) for block in stack]
    hooks.append(stack[-1].register_forward_hook(leaving))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """arccos(a·b) / π of unit vectors (…, H), by half-angles: exact where they are equal, unlike arccos."""
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)) / torch.pi
