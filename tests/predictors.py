"""Mask predictors that were never trained: a small random Llama and a head whose scores differ between prompts."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from serving.predictor import About, Predictor, Reader
from tests import tiny


def reader(
    blocks: int, width: int, units: int, temperature: float = 1.0, tokenizer: Any = None, longest: int = 256
) -> Reader:
    """A predictor for models of `blocks` blocks of `width` FFN units, the same for the same arguments. Its scores are
    of about unit variance, so that λ is below 1 for many of the units at this temperature."""
    words = tokenizer or tiny.tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=longest, initializer_range=0.5,
    )  # fmt: skip
    made = Predictor(LlamaModel(config), About(blocks, width, units, temperature))
    for part in (made.down, made.up):
        torch.nn.init.normal_(part.weight, std=part.in_features**-0.5)
        torch.nn.init.zeros_(part.bias)
    return Reader(made, words)
