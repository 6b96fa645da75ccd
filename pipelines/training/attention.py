"""Attention over packs: rows stand one behind the other in one sequence, and each attends to itself alone.

Block-diagonal causal attention without a mask of (T, T): FlashAttention's kernel for sequences of different lengths
on a GPU (torch.nn.attention.varlen), one call of scaled-dot-product attention a row on a CPU. transformers' models
call it by its name (`attn_implementation=PACKED`), and hand it what the model was called with: `cu_seq_lens_q`, where
each row begins and where the last one ends, and `max_length_q`, both named as in transformers' FlashAttentionKwargs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

PACKED = "regrow_packed"
SHORT = 384  # tokens; up to here torch's kernel for CPUs takes less time in fp32 than in bf16, backward half of it
OTHER = ("softcap", "s_aux", "position_bias")  # what some families add to attention, and these kernels do not know


def packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """query: (1, H, T, D); key and value: (1, H_kv, T, D); cu_seq_lens_q: int32 (N + 1) for N rows, None for one row;
    `sliding_window`: how many tokens a token sees, itself among them. Returns (1, T, H, D).

    Raises ValueError where two sequences stand beside each other, and for attention that is not the plain one."""
    if query.shape[0] != 1 or attention_mask is not None:
        raise ValueError("packed attention takes one sequence of rows, without a mask")
    if asked := [name for name in OTHER if more.get(name) is not None]:
        raise ValueError(f"{type(module).__name__}: attention with {asked[0]} cannot be trained on packed rows yet")
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.tensor([0, query.shape[2]], dtype=torch.int32, device=query.device)
        max_length_q = query.shape[2]
    if query.is_cuda and dropout:
        raise ValueError(
            f"{type(module).__name__}: this kernel has no dropout; set attention_dropout = 0 in config.json"
        )
    if query.is_cuda:
        return _varlen(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    sizes = cu_seq_lens_q.diff().tolist()
    rows = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    made = [_row(*row, scaling, dropout, sliding_window) for row in rows]
    return torch.cat(made, 2).transpose(1, 2), None


def _row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float, window: int | None
) -> torch.Tensor:
    length, stored = query.shape[2], query.dtype
    if length <= SHORT:
        query, key, value = (states.to(torch.promote_types(stored, torch.float32)) for states in (query, key, value))
    if window is None or length <= window:
        made = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale, is_causal=True)
        return made.to(stored)
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = (back >= 0) & (back < window)
    return F.scaled_dot_product_attention(query, key, value, seen, dropout_p=dropout, scale=scale).to(stored)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None,
    starts: torch.Tensor, longest: int,
) -> torch.Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    # As autocast has it for SDPA: rotary embeddings of fp32 states are fp32, and the kernel takes no such
    flat = [states[0].transpose(0, 1).to(torch.bfloat16) for states in (query, key, value)]
    made: Any = varlen_attn(
        flat[0], flat[1], flat[2], starts, starts, longest, longest, scale=scale, enable_gqa=True,
        window_size=(-1 if window is None else window - 1, 0),  # to the left of a token, and to its right
    )  # fmt: skip
    return made[None].to(query.dtype)


def check(model: Any) -> None:
    """Raise ValueError where `model` has attention of its own and would not call `packed`: its rows would see each
    other."""
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{type(model).__name__} cannot be trained: its attention does not know packed rows")


AttentionInterface.register(PACKED, packed)
