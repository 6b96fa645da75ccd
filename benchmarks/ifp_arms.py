"""What the sweep of instruction-following pruning trains on the tiny teacher, and how each model is asked.

All arms see the same rows of all eight families in the same order, once, from the unpruned teacher (`scratch` from
nothing). Rows, loss and loop are the pipeline's own. Attention is not: rows are padded to the longest and make one
product, which for rows of fifty tokens takes half of the time that one call a row does (training/attention.py).
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tiny_students import teacher
from pipelines import masks, models, prompts, subnetwork, units, weights
from pipelines.student import Ifp, Student
from pipelines.tiny import families, styles
from pipelines.tiny import scores as tiny_scores
from pipelines.training import batches, choosers, feed, loop, losses, masked, optimizers
from serving import predictor

BATCH_TOKENS, TEST, VALIDATION, LONGEST = 1024, 150, 30, 72
FEW = {"modulo": {"train": 900, "test": 105}, "sequence": {"train": 1200, "test": 150}}  # about all there are
CALIBRATION, CALIBRATION_SEED = 32, 7  # rows of each family, and whose draw: no training's
CUT = ("static", "random")  # masks that are there before training: the small model alone is trained
FFN = "ffn"  # nothing but FFNs, and what chooses their units, is trained: attention cannot learn in their place
VARIANTS: dict[str, dict[str, Any]] = {  # of ifp: what one of them leaves out
    "": {},
    "cold": {"temperature": (0.1, 0.1)},
    "slow": {"anneal": 0.4},
    "narrow": {"anneal": 0.0},
    "unguided": {"guidance": 0.0},
    "fresh": {"predictor": "fresh-2"},
    FFN: {},
}
MASK = {"ifp": "prompt", "joint": "static", "annealed": "importance"}
SCORES_RATE = 1e-2  # of scores that are learned directly; a predictor has the student's rate
Choose = Callable[[str, list[str]], Tensor]  # family and prompts → masks (N, L, d_ffn)
Attend = tuple[Tensor, None]


@dataclass(frozen=True)
class Training:
    """One model: which arm, FFN units a block (0: all), rows of each family, peak rate, seed, variant of ifp."""

    arm: str
    units: int
    rows: int
    rate: float
    seed: int
    variant: str = ""

    def key(self) -> dict[str, Any]:
        """What makes a training what it is."""
        return {**asdict(self), "ifp": how(self).model_dump() if self.arm in MASK else {}}


def how(one: Training) -> Ifp:
    """The settings of a training with masks that are learned or that become narrow."""
    told = {"units": one.units, "mask": MASK[one.arm], "temperature": (1.0, 0.1), "anneal": 0.2}
    if one.arm == "joint":
        told["predictor_learning_rate"] = SCORES_RATE
    return Ifp(**told | VARIANTS[one.variant])


def problems(family: str, split: str, seed: int, n: int) -> list[families.Problem]:
    """So many problems of a family; where it has fewer, they come again."""
    there = families.distinct(family, split, seed, min(n, FEW.get(family, {}).get(split, n)))
    return [there[i % len(there)] for i in range(n)]


@cache
def encoded(seed: int, each: int) -> list[batches.Encoded]:
    """Rows of all families, in the teacher's own words; a mask predictor reads the prompt."""
    drawn = [p for family in families.FAMILIES for p in problems(family, "train", 1000 + seed, each)]
    asked, said = [prompts.answer(p.question) for p in drawn], [styles.render(p, "own") for p in drawn]
    rows = batches.encode_all(teacher()[1], asked, said)
    return [row._replace(reads=(row.ids[: row.prompt],)) for row in rows]


def calibration() -> dict[str, list[str]]:
    """Prompts of each family, for the masks of tasks and for sub-networks."""
    drawn = {family: families.distinct(family, "train", CALIBRATION_SEED, CALIBRATION) for family in families.FAMILIES}
    return {
        family: [prompts.text(teacher()[1], prompts.answer(p.question)) for p in some] for family, some in drawn.items()
    }


@cache
def importance() -> Tensor:
    """Activation × norm over rows of all families, of the teacher."""
    rows = ({"input_ids": torch.tensor([row.ids])} for row in encoded(CALIBRATION_SEED - 1000, CALIBRATION))
    return units.activation_importance(teacher()[0], rows)


def start(one: Training) -> losses.ByToken:
    """The model as its training begins."""
    begun = _begun(one)
    if one.variant == FFN:
        for name, parameter in begun.model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
    return begun


def _begun(one: Training) -> losses.ByToken:
    torch.manual_seed(one.seed)
    if one.arm in CUT:
        scores = importance() if one.arm == "static" else torch.rand(importance().shape)
        small = subnetwork.gathered(weights.load(models.TINY, torch.float32), units.top(scores, one.units))
        return losses.ByToken(_ready(small))
    if one.arm == "scratch":
        config = teacher()[0].config.__class__(**{**teacher()[0].config.to_dict(), "intermediate_size": one.units})
        return losses.ByToken(_ready(type(teacher()[0])(config)))
    model = _ready(weights.load(models.TINY, torch.float32))
    if one.arm == "whole":
        return losses.ByToken(model)
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "chooser"
        choosers.start(how(one), models.TINY, encoded(CALIBRATION_SEED - 1000, CALIBRATION), one.seed, begun)
        chooser = choosers.load(begun, how(one))
    if isinstance(chooser, predictor.Predictor):
        chooser.lm.set_attn_implementation("regrow_padded")
    return masked.Masked(model, chooser, how(one))


def fit(one: Training) -> tuple[losses.ByToken, dict[str, float]]:
    """The trained model, and what the last step says of its masks."""
    model = start(one)
    student = Student(name="sft", learning_rate=one.rate, batch_tokens=BATCH_TOKENS, micro_tokens=BATCH_TOKENS)
    apart = {"chooser.": how(one).predictor_learning_rate or one.rate} if one.arm in MASK else {}
    optimizer = optimizers.adamw(model, one.rate, 0.0, apart)
    _, fed = feed.steps(batches.flat(encoded(one.seed, one.rows)), student, one.seed, teacher()[1].pad_token_id)
    told: dict[str, float] = {}
    for step in loop.steps(model, optimizer, fed, "cosine", one.rate):
        told = {"loss": step.loss, "seconds": told.get("seconds", 0.0) + step.seconds} | model.figures()
    model.model.set_attn_implementation("sdpa")
    return model.eval(), told


def chosen(model: losses.ByToken, one: Training) -> Choose | None:
    """From prompts to their masks (N, L, d_ffn), as the model was trained for them; None where it is a small one."""
    if not isinstance(model, masked.Masked):
        return None
    if isinstance(model.chooser, predictor.Predictor):
        return lambda family, asked: masks_of(model, asked)
    own = model.chooser.scores.detach()
    one_mask = units.top(own, one.units) if model.chooser.fixed else masks.mask(own, one.units, 0.1)
    return lambda family, asked: one_mask.expand(len(asked), *one_mask.shape)


def masks_of(model: masked.Masked, asked: list[str]) -> Tensor:
    """The masks (N, L, d_ffn) that a trained predictor makes of prompts."""
    chooser: Any = model.chooser
    chooser.lm.set_attn_implementation("sdpa")
    scores = predictor.Reader(chooser, teacher()[1]).scores(asked)
    return masks.mask(scores, model.how.units, model.how.temperature[1])


def griffin(model: Any, t: int) -> Choose:
    """The units of each prompt by its own activations (arXiv 2404.01365)."""

    def of(family: str, asked: list[str]) -> Tensor:
        made = [units.griffin(model, teacher()[1](text, return_tensors="pt").input_ids[0]) for text in asked]
        return units.top(torch.stack(made), t).float()

    return of


def asked_of(on: str) -> dict[str, list[families.Problem]]:
    """Held-out problems of each family."""
    found = {family: problems(family, "test", 1, TEST + VALIDATION) for family in families.FAMILIES}
    cut = slice(None, -VALIDATION) if on == "test" else slice(-VALIDATION, None)
    return {family: list({p.question: p for p in some}.values())[cut] for family, some in found.items()}


def scored(model: Any, choose: Choose | None, on: str, after_prompt: bool = False) -> dict[str, str]:
    """Family → one character an item, 1 for right: greedy answers, each under the mask of its prompt. `after_prompt`:
    the prompt is read by the whole model, and the mask is on from the first token of the answer."""
    tokenizer, found = teacher()[1], {}
    tokenizer.padding_side = "left"
    for family, problems in asked_of(on).items():
        texts = [prompts.text(tokenizer, prompts.answer(p.question)) for p in problems]
        given = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
        )
        with torch.inference_mode():
            made = _generate(model, given, choose(family, texts).transpose(0, 1) if choose else None, after_prompt)
        said = tokenizer.batch_decode(made[:, given.input_ids.shape[1] :], skip_special_tokens=True)
        found[family] = "".join(str(int(tiny_scores.right(p, text))) for p, text in zip(problems, said, strict=True))
    return found


def _generate(model: Any, given: Any, own: Tensor | None, after_prompt: bool) -> Tensor:
    from transformers import DynamicCache

    told: dict[str, Any] = {"do_sample": False, "past_key_values": DynamicCache()}
    if own is None:
        return model.generate(**given, max_new_tokens=LONGEST, **told)
    if not after_prompt:
        with units.masked(model, own):
            return model.generate(**given, max_new_tokens=LONGEST, **told)
    first = model.generate(**given, max_new_tokens=1, **told)
    seen = torch.cat([given.attention_mask, torch.ones_like(first[:, :1])], 1)
    with units.masked(model, own):
        return model.generate(input_ids=first, attention_mask=seen, max_new_tokens=LONGEST - 1, **told)


def _ready(model: Any) -> Any:
    from transformers import AttentionInterface

    AttentionInterface.register("regrow_padded", padded)
    model.set_attn_implementation("regrow_padded")
    return model.train().requires_grad_(True)


def padded(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    cu_seq_lens_q: Tensor, **more: Any,
) -> Attend:  # fmt: skip
    """As training.attention.packed, for many short rows of about the same length."""
    length, heads, size = query.shape[2], query.shape[1], query.shape[3]
    sizes = cu_seq_lens_q.diff().long()
    rows, most = len(sizes), int(sizes.max())
    places = torch.arange(length) + torch.repeat_interleave(torch.arange(rows) * most - cu_seq_lens_q[:-1], sizes)

    def beside(packed: Tensor) -> Tensor:
        room = packed.new_zeros(rows * most, heads, size).index_copy(0, places, packed[0].transpose(0, 1))
        return room.view(rows, most, heads, size).transpose(1, 2)

    products = beside(query) @ beside(key).transpose(2, 3) * scaling
    later = torch.full((most, most), -torch.inf).triu(1)
    shares = torch.softmax(products.float() + later, -1).to(value.dtype)
    return (shares @ beside(value)).transpose(1, 2).reshape(rows * most, heads, size)[places][None], None
