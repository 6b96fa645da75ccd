"""A routed model of the packaged tiny teacher: two sub-networks, for sums and for stories."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import prompts, units
from pipelines.ifp import routed
from pipelines.models import TINY
from pipelines.tiny import families
from serving.predictor import About, Predictor, Reader

KINDS = ("addition", "story")
LENGTH = 256  # tokens that its predictor reads


def asked(kind: str, count: int = 24, seed: int = 0) -> list[str]:
    """Questions of one kind."""
    rng = random.Random(f"{kind} {seed}")
    return [getattr(families, kind)(rng).question for _ in range(count)]


def texts(questions: list[str]) -> list[str]:
    """As the predictor reads them."""
    words = tokenizer()
    return [prompts.text(words, prompts.answer(question)) for question in questions]


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


def reader(t: int = 128, length: int = LENGTH, blocks: int = 2) -> Reader:
    """A predictor that tells the two kinds apart: the teacher's own first blocks, and a head that was solved for: its
    scores are the FFN units' importance for one kind or the other."""
    from transformers import AutoModel, AutoModelForCausalLM

    words, teacher = tokenizer(), AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    lm = AutoModel.from_pretrained(TINY, dtype=torch.float32)
    lm.layers = lm.layers[:blocks]
    lm.config.num_hidden_layers, lm.config.max_position_embeddings = blocks, length
    wanted, states, sides = [], [], []
    for side, kind in zip((-1.0, 1.0), KINDS, strict=True):
        batch = words(texts(asked(kind)), return_tensors="pt", padding=True, padding_side="right")
        wanted.append(units.activation_importance(teacher, [batch]).float())
        last = batch["attention_mask"].sum(1) - 1
        with torch.no_grad():
            states.append(lm(**batch)[0][torch.arange(len(last)), last])
        sides += [side] * len(last)
    made = Predictor(lm, About(*wanted[0].shape, t, 1.0))
    _solve(made, torch.cat(states), torch.tensor(sides), [one / one.mean(-1, keepdim=True) for one in wanted])
    return Reader(made, words)


@torch.no_grad()
def _solve(made: Predictor, states: Tensor, sides: Tensor, wanted: list[Tensor]) -> None:
    """Have the head's first inner number be -1 or 1, as the prompt's kind is, and the scores what is wanted of it."""
    for parameter in (*made.down.parameters(), *made.up.parameters()):
        parameter.zero_()
    middle = states.mean(0)
    rows = (states - middle).double()
    weight = torch.linalg.solve(rows.T @ rows + 1e-2 * torch.eye(rows.shape[1]), rows.T @ sides.double()).float()
    made.down.weight[0], made.down.bias[0] = weight, -weight @ middle
    first, second = (one.flatten() for one in wanted)
    made.up.weight[:, 0], made.up.bias[:] = (second - first) / 2, (first + second) / 2


def model_dir(folder: Path, k: int = 2, t: int = 128) -> Path:
    """Write the routed model to `folder`."""
    questions = [question for kind in KINDS for question in asked(kind)]
    routed.write(folder, TINY, reader(t), texts(questions), k, seed=0)
    return folder
