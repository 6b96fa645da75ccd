"""Real models, very small: random Llamas with a byte-level tokenizer, made on the spot."""

import json
from pathlib import Path
from typing import Any

from pipelines.tiny import tokenizers

RECIPE = """
name = "mine"
[teacher]
model = "teacher"
[[dataset]]
name = "sums"
source = "rows.jsonl"
[prune]
layers = 1
"""


def tokenizer(chat: bool = True) -> Any:
    """A byte-level tokenizer of a few hundred tokens."""
    made = tokenizers.train(["What is 1 + 2? The answer is 3."], 480)
    if not chat:
        made.chat_template = None
    return made


def model_dir(path: Path, layers: int = 4, chat: bool = True, seed: int = 0, **config: Any) -> Path:
    """A random Llama (fp32, hidden 64, 2 heads of 32) with tokenizer, saved in `path`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(chat)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **config,
    }
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(path)
    words.save_pretrained(path)
    return path


def run_home(path: Path) -> Path:
    """A directory with a model, five rows of data and `mine.toml`, which prunes it in seconds."""
    model_dir(path / "teacher", layers=3)
    rows = [{"question": f"{i} + 1?", "answer": f"The answer is {i + 1}."} for i in range(5)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "mine.toml").write_text(RECIPE)
    return path
