"""Checkpoints as somebody else would have saved them: random weights, real configurations and tokenizers."""

import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaTokenizer, MistralConfig, Qwen2Config, Qwen3Config

from tests import tiny

LAYERS, WINDOW = 5, 16
QUESTIONS = [f"What is {n} + {n * n}? Say it in words, and slowly." for n in range(12)]
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "sentencepiece": LlamaConfig(**SHAPE | {"bos_token_id": 1}, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False, head_dim=64),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW, head_dim=32),
}


def sentencepiece_tokenizer(folder: Path) -> Any:
    """A tokenizer as Llama 2 shipped it: one SentencePiece file."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(QUESTIONS * 20), model_writer=made, vocab_size=300, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return LlamaTokenizer.from_pretrained(folder)


def checkpoints(home: Path) -> dict[str, Path]:
    """Name → directory under `home`: grouped-query attention throughout, embeddings tied and not, a sliding window,
    a SentencePiece tokenizer; only Qwen3 with a chat template, only Mistral with a pad token."""
    found = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        words = sentencepiece_tokenizer(home / "sp") if name == "sentencepiece" else tiny.tokenizer(chat=seed % 2 == 1)
        if name != "mistral":
            words.pad_token = None
        config.vocab_size, config.eos_token_id = len(words), words.eos_token_id
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(home / name)
        words.save_pretrained(home / name)
        found[name] = home / name
    return found
