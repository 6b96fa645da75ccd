"""What chooses the units: as it stands at the start of a training, in its workers, and on disk at its end.

At the start scores are the log-importance of units over calibration rows (units.activation_importance), standardised
in each block (masked.standardised): a predictor's last map has it as its bias and is zero beside it, so that training
begins with the best static mask there is without training.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from pipelines import cuts, layers, models, units, weights
from pipelines.recipe_file import BadInput
from pipelines.student import BUILT_IN, Ifp
from pipelines.training import attention, parallel, saving
from pipelines.training.batches import Encoded
from pipelines.training.losses import ByToken
from pipelines.training.masked import Masked, Static, standardised
from serving import predictor
from serving.predictor import About, Predictor

SCORES = "scores.safetensors"
FRESH: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def start(how: Ifp, teacher: Path, rows: list[Encoded], seed: int, to: Path) -> None:
    """Write to the folder `to` what a training of the model in `teacher` begins with: a predictor, or scores.
    `rows`: what importance is measured on.

    ValueError where the model has no such units, or not so many, and for a predictor that cannot be one."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = weights.load(teacher, "auto")
    blocks, width = units.check(model)
    cuts.check_units(how.units, width)
    if how.mask == "random":
        scores = torch.randn(blocks, width)
    else:
        batches = ({"input_ids": torch.tensor([row.ids])} for row in rows)
        scores = standardised(units.activation_importance(model, batches)).float()
    if how.mask != "prompt":
        _write_scores(scores, to)
        return
    lm, tokenizer = _language_model(how.predictor, model, teacher)
    made = Predictor(lm.float(), About(blocks, width, how.units, how.temperature[1]))
    with torch.no_grad():
        made.up.weight.zero_()
        made.up.bias.copy_(scores.flatten())
    predictor.save(to, made, tokenizer)


def load(folder: Path, how: Ifp) -> Predictor | Static:
    """What `start` or `save` wrote, as it is trained: on the CPU, over packed rows."""
    if how.mask != "prompt":
        return Static(scores(folder), fixed=how.mask != "static")
    made = predictor.load(folder).predictor
    made.lm.set_attn_implementation(attention.PACKED)
    return made.train()


def save(folder: Path, began: Path, model: ByToken) -> None:
    """Write what has been trained to `folder`; `began`: the folder it was read from. Every rank calls it, the first
    writes."""
    if not isinstance(model, Masked):
        return
    first = saving.is_first()
    named: dict[str, Tensor] = {parallel.unwrapped(name): value for name, value in model.chooser.named_parameters()}
    whole = dict(saving.gathered(named, first))
    if not first:
        return
    if isinstance(model.chooser, Static):
        _write_scores(whole["scores"], folder)
        return
    reader = predictor.load(began)
    reader.predictor.load_state_dict(whole, strict=False)
    predictor.save(folder, reader.predictor, reader.tokenizer)


def scores(folder: Path) -> Tensor:
    """The scores (blocks, width) in `folder`."""
    from safetensors.torch import load_file

    return load_file(folder / SCORES)["scores"]


def _write_scores(made: Tensor, to: Path) -> None:
    from safetensors.torch import save_file

    to.mkdir(parents=True, exist_ok=True)
    save_file({"scores": made.contiguous()}, to / SCORES)


def built_in(named: str, blocks: int) -> tuple[str, int] | None:
    """Kind and blocks of a predictor that is made from a teacher of `blocks`; None for one that is given. BadInput
    where the teacher has not so many."""
    if not (found := re.fullmatch(BUILT_IN, named)):
        return None
    kind, number = found[1], int(found[2])
    if number < 1 or (kind == "first" and number > blocks):
        raise BadInput(f"ifp.predictor = {named!r}: choose from 1 to {blocks} blocks")
    return kind, number


def _language_model(named: str, model: Any, teacher: Path) -> tuple[Any, Any]:
    """The decoder and the tokenizer that `ifp.predictor` names. `model`: the teacher, which is used up."""
    from transformers import AutoModel, AutoTokenizer, LlamaConfig

    total = len(layers.blocks(model))
    if not (found := built_in(named, total)):
        return _given(named)
    (kind, number), tokenizer = found, AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    if kind == "first":
        return (layers.remove(model, range(number, total)) if number < total else model).get_decoder(), tokenizer
    room = getattr(model.config.get_text_config(), "max_position_embeddings", 2048)
    vocabulary = model.get_input_embeddings().num_embeddings
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=number, max_position_embeddings=room, **FRESH)
    return AutoModel.from_config(config), tokenizer


def _given(named: str) -> tuple[Any, Any]:
    """The like of a directory or a hub id, in fp32. ValueError where it has no weights, a smaller vocabulary than its
    tokenizer, or attention that packed rows or a reader from left to right have no use for."""
    from transformers import AutoModel, AutoTokenizer

    folder = models.resolve(named)
    try:
        lm = AutoModel.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except OSError as error:
        raise BadInput(f"ifp.predictor = {named!r}: {' '.join(str(error).split())}") from error
    attention.check(lm.float())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if (rows := lm.get_input_embeddings().num_embeddings) < len(tokenizer):
        raise BadInput(
            f"ifp.predictor = {named!r}: its embedding has {rows:,} rows, its tokenizer {len(tokenizer):,} tokens; "
            "they are of different models"
        )
    if not _causal(lm):
        raise BadInput(f"ifp.predictor = {named!r}: {type(lm).__name__} is an encoder; give a causal language model")
    return lm, tokenizer


@torch.inference_mode()
def _causal(lm: Any) -> bool:
    """Whether the state of a token is the same whatever comes after it."""
    states = lm.eval()(input_ids=torch.tensor([[1, 0, 0], [1, 2, 3]]), use_cache=False)[0][:, 0]
    return torch.allclose(states[0], states[1], rtol=1e-4, atol=1e-4)
