"""What the sweeps on the tiny teacher start from: the teacher, its cuts, and the commit whose code runs."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipelines import cuts, layers, models, prompts
from pipelines.tiny import families


@cache
def teacher() -> tuple[Any, Any]:
    """The unpruned model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models.TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(models.TINY)


@cache
def pruned(n: int) -> Path:
    """The teacher without the `n` blocks of least angular distance, as a checkpoint."""
    model, tokenizer = teacher()
    asked = [p for f in families.FAMILIES for p in families.distinct(f, "train", 7, 16)]
    texts = [tokenizer(prompts.text(tokenizer, prompts.answer(p.question))).input_ids for p in asked]
    removed = cuts.choose("angular", n, layers.measure(model, texts))
    folder = Path(tempfile.mkdtemp(prefix="regrow-sweep-"))
    fresh = type(model).from_pretrained(models.TINY, dtype=torch.float32)
    layers.remove(fresh, removed).save_pretrained(folder)
    return folder


@cache
def revision() -> str:
    """The commit whose code runs."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"
