"""FFN units of gated decoders: masks on them while a model runs, and two training-free ways to score them.

A block's FFN is down(act(gate x) ⊙ up x). Unit j is column j of `down_proj` with row j of `gate_proj` and `up_proj`;
its activation a_j is entry j of what enters `down_proj`. There a mask acts (arXiv 2501.02086: F(X, m) =
FF2(FF1(X) ⊙ m), for a gated FFN before the down projection), so that m_j = 0 is the model without unit j.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines import layers
from pipelines.masks import mask
from pipelines.training.losses import bare

MAPS = ("gate_proj", "up_proj", "down_proj")
FIT = "give a dense decoder with gated FFNs (Llama, Qwen2, Qwen3, Mistral)"
Seen = Callable[[int, Tensor, Tensor], None]


def check(model: Any) -> tuple[int, int]:
    """(L, d_ffn): blocks, and FFN units of each, of a Hugging Face causal model, bare or inside a peft model.

    Raises ValueError, which names the class, for mixtures of experts, for gate and up in one matrix (`gate_up_proj`),
    for FFNs without a gate, and for blocks of unequal width."""
    causal = bare(model)
    name, widths = type(causal).__name__, []
    for number, block in enumerate(layers.blocks(causal)):
        mlp = getattr(block, "mlp", None)
        parts = {part for path, _ in block.named_modules() for part in path.split(".")}
        if any("experts" in part for part in parts):
            raise ValueError(f"{name}: block {number} is a mixture of experts; {FIT}")
        if hasattr(mlp, "gate_up_proj"):
            raise ValueError(f"{name}: block {number} holds gate and up in one matrix (gate_up_proj); {FIT}")
        if missing := [part for part in MAPS if not hasattr(mlp, part)]:
            raise ValueError(f"{name}: block {number} has no mlp.{missing[0]}; {FIT}")
        widths.append(mlp.down_proj.in_features)  # type: ignore[union-attr]
    if len(set(widths)) > 1:
        raise ValueError(
            f"{name}: blocks have {min(widths)} to {max(widths)} FFN units; a mask needs the same number in each"
        )
    return len(widths), widths[0]


def down_projections(model: Any) -> list[Any]:
    """The map of each block that a mask acts before; inside a peft model with its adapters."""
    blocks: Any = layers.blocks(bare(model))
    return [block.mlp.down_proj for block in blocks]


@contextmanager
def masked(model: Any, masks: Tensor, rows: Tensor | None = None) -> Iterator[None]:
    """While the block runs, the activations of every FFN are multiplied by `masks`, and gradients flow to them.

    masks: (L, d_ffn) for whatever is run; (L, B, d_ffn), one for each row of a batch (B, T); or (L, T, d_ffn), one for
    each position of a packed sequence (1, T). With `rows` (T,), (L, N, d_ffn) and the number of the mask that each
    position takes: then masks of positions are made for a block at a time. The product is formed in the wider dtype of
    masks and activations and rounded to the activations'. The model is left as it was, whatever happens.

    Blocks may be checkpointed (non-reentrant), sharded by FSDP2 and have LoRA adapters, which see the masked
    activations as `down_proj` does. Where they are checkpointed, the backward pass belongs inside too: it runs them
    again, and torch raises CheckpointError where they are not masked as before. ValueError for models that `check`
    refuses, masks of another shape, and compiled models: code that was compiled does not see hooks that come later."""
    shape = check(model)
    if masks.dim() not in (2, 3) or (masks.shape[0], masks.shape[-1]) != shape:
        raise ValueError(
            f"masks are {tuple(masks.shape)}, but the model has {shape[0]} blocks of {shape[1]} FFN units; give "
            f"({shape[0]}, {shape[1]}), or ({shape[0]}, N, {shape[1]}) for N rows or positions"
        )
    if rows is not None and masks.dim() == 2:
        raise ValueError("rows tells which of several masks each position takes; give masks (L, N, d_ffn) with it")
    if any(isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl for m in model.modules()):
        raise ValueError("the model is compiled, and masks would not reach it; set the student's compile = false")
    hooks = []
    try:
        for down, own in zip(down_projections(model), masks.unbind(0), strict=True):
            hooks.append(down.register_forward_pre_hook(partial(_times, own, rows)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def activation_importance(model: Any, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """(L, d_ffn), float64 on the CPU: mean over all tokens of |a_j|, times the L2 norm of column j of `down_proj`.

    |a_j| ‖w_j‖ is the norm of what unit j adds to the residual stream at a token. Minitron (arXiv 2407.14679, section
    2.2) scores a unit by its activation alone, mean over a sequence and L2 over sequences; here every token counts the
    same, so that it does not matter how texts are cut into batches.

    batches: what the decoder is called with, `input_ids` (B, T) and, where rows are padded, `attention_mask`, or what
    `training.batches.collate` gives; tokens that the mask leaves out do not count. ValueError without a token, for
    models that `check` refuses, adapters that are not merged yet, and activations that are not finite."""
    sums, tokens = torch.zeros(check(model), dtype=torch.float64), 0
    if bare(model) is not model:
        raise ValueError("the norms are those of whole weights; merge the adapters first (merge_and_unload)")

    def seen(layer: int, activations: Tensor, kept: Tensor) -> None:
        sums[layer] += activations[kept].abs().sum(0, dtype=torch.float64).cpu()

    for batch in batches:
        tokens += _run(model, batch, seen)
    if not tokens:
        raise ValueError("no calibration batch has a token; the importance of FFN units needs some")
    norms = [torch.linalg.vector_norm(d.weight.detach(), dim=0, dtype=sums.dtype) for d in down_projections(model)]
    return _finite(sums / tokens * torch.stack([norm.cpu() for norm in norms]))


def griffin(model: Any, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The score of every unit for a prompt (GRIFFIN, arXiv 2404.01365), float64 on the CPU: (L, d_ffn) for `ids` (T,);
    (L, B, d_ffn) for prompts (B, T), with `attention_mask` where they are padded, on either side.

    Each token's activations are divided by their L2 norm over the units; s_j is the L2 norm of unit j's over all tokens
    of the prompt. ValueError as in `activation_importance`; adapters are no obstacle."""
    rows, (blocks, width) = ids if ids.dim() == 2 else ids[None], check(model)
    scores = torch.zeros(blocks, len(rows), width, dtype=torch.float64)

    def seen(layer: int, activations: Tensor, kept: Tensor) -> None:
        unit = F.normalize(activations.double(), dim=-1)
        scores[layer] = torch.where(kept[..., None], unit, 0).square().sum(1).sqrt().cpu()

    given = {"input_ids": rows} | ({} if attention_mask is None else {"attention_mask": attention_mask})
    if not _run(model, given, seen):
        raise ValueError("the prompt has no token; GRIFFIN scores units on a prompt's tokens")
    return _finite(scores if ids.dim() == 2 else scores[:, 0])


def top(scores: Tensor, t: int) -> Tensor:
    """1 at the `t` best of each row of scores (…, d_ffn), of equal ones the first, and 0 elsewhere, in their dtype.

    ValueError as in `masks.mask`."""
    return (mask(scores, t, 1.0) != 0).to(scores.dtype)


def _times(own: Tensor, rows: Tensor | None, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook: the activations (B, T, d_ffn) times the masks of one block, (d_ffn) or (N, d_ffn)."""
    activations, *more = args
    size, length = activations.shape[:2]
    own = own.to(activations.device)
    if own.dim() == 2:
        given = len(own) if rows is None else len(rows)
        if (size, given) != (1, length) and (rows is not None or given != size):
            raise ValueError(
                f"{given} masks a block for a batch of {size} rows of {length} tokens; give one for all, one a row, "
                "or one a position of a single packed row"
            )
        if rows is not None:
            own = own[rows.to(own.device)]
        elif given == size:
            own = own[:, None]
    return (activations * own).to(activations.dtype), *more


def _run(model: Any, batch: Mapping[str, Any], seen: Seen) -> int:
    """Run the decoder on `batch`, call `seen` with each block's number, activations (B, T, d_ffn) and which tokens
    count, (B, T), and return how many of these there are."""
    device = next(model.parameters()).device
    given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items() if name != "labels"}
    kept = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    tokens = int(kept.sum())
    if not tokens:
        return 0

    def entering(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen(layer, args[0], kept.to(args[0].device))  # blocks may be on several GPUs

    hooks = [d.register_forward_pre_hook(partial(entering, i)) for i, d in enumerate(down_projections(model))]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            bare(model).get_decoder()(**given, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return tokens


def _finite(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise ValueError("the activations are not finite (overflow or broken weights); try a wider dtype")
    return scores
