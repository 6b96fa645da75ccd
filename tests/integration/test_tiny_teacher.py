"""The committed tiny teacher: size, tokenizer, and that it can still do what its card says."""

import json
import math

import pytest

from pipelines import models, prompts
from pipelines.tiny import families, styles
from pipelines.tiny import scores as tiny_scores


@pytest.fixture(scope="module")
def loaded() -> tuple:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models.TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(models.TINY)


def test_files(loaded: tuple) -> None:
    model, _ = loaded
    assert (models.TINY / "model.safetensors").stat().st_size <= 16_000_000
    assert json.loads((models.TINY / "config.json").read_text())["dtype"] == "bfloat16"
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert model.config.max_position_embeddings >= 2048


def test_tokenizer(loaded: tuple) -> None:
    _, tokenizer = loaded
    assert all(len(tokenizer(str(number)).input_ids) == 1 for number in range(200))
    for text in (
        "Tom has 1,234 apples & $3.50.\n#### 12",
        "naïve – 漢字 🙂",
        "\tdef f(x):\r\n    return x",
        "<<48/2=24>>24",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert prompts.text(tokenizer, prompts.answer("hi")) == "<|user|>hi<|end|><|assistant|>"


def test_scores_on_the_card_do_not_fall() -> None:
    """Plain answers on average and in each family; rewrites: right, in the own style, and never copied."""
    found = json.loads((models.TINY / "scores.json").read_text())
    assert found["mean"]["answer"] >= 0.90
    assert all(family["answer"] >= 0.80 for family in found["families"].values())
    assert found["mean"]["rewrite"] >= 0.90 and found["mean"]["own_style"] >= 0.95
    assert found["mean"]["equal_to_reference"] < 0.01
    assert found["nats_per_token"]["rewrites"] < found["nats_per_token"]["references"]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_still_answers(loaded: tuple, family: str) -> None:
    """20 held-out items of another seed than the card's: no more than three standard errors below the card."""
    problems = families.distinct(family, "test", 2, 20)
    said = tiny_scores.write(*loaded, [prompts.answer(p.question) for p in problems])
    share = json.loads((models.TINY / "scores.json").read_text())["families"][family]["answer"]
    assert sum(map(tiny_scores.right, problems, said)) >= 20 * share - 3 * math.sqrt(20 * share * (1 - share)) - 0.5
    rewritten = tiny_scores.write(*loaded, [prompts.rewrite(p.question, styles.render(p, "prose")) for p in problems])
    assert sum(styles.is_own(text) for text in rewritten) >= 17
