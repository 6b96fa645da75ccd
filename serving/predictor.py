"""The mask predictor of instruction-following pruning (arXiv 2501.02086, section 3.1): a small language model reads the
prompt, and two linear maps make of the last token's state a score for every FFN unit of the large one.

On disk, one folder: the language model and its tokenizer as Hugging Face saves them, `head.safetensors`, and
`predictor.json`, which says what the scores are for.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RANK = 128  # the width between the two maps, the paper's
ABOUT, HEAD = "predictor.json", "head.safetensors"


class About(NamedTuple):
    """What a predictor's scores are for: models of `blocks` blocks with `width` FFN units each, of which `units` stay
    on at `temperature` (masks.mask)."""

    blocks: int
    width: int
    units: int
    temperature: float


class Predictor(nn.Module):
    """`lm`: a Hugging Face decoder without its head (AutoModel)."""

    def __init__(self, lm: Any, about: About) -> None:
        super().__init__()
        self.lm, self.about = lm, about
        self.down = nn.Linear(lm.config.get_text_config().hidden_size, RANK)
        self.up = nn.Linear(RANK, about.blocks * about.width)

    def forward(self, rows: Tensor, last: Tensor, **inputs: Any) -> Tensor:
        """Scores (N, blocks, width) of N prompts, from the states at `rows`, `last` (N) of `inputs`, which `lm` is
        called with: prompts beside each other, or one behind the other in one row. No non-linearity stands between the
        two maps, as in the authors' public code; the paper does not say."""
        states = self.lm(**inputs, use_cache=False)[0][rows, last]
        with torch.autocast(states.device.type, enabled=False):  # scores in bf16 would tie
            scores = self.up(self.down(states.to(self.down.weight.dtype)))
        return scores.unflatten(-1, (self.about.blocks, self.about.width))


class Reader:
    """A predictor with its tokenizer, for inference. Prompts are texts: its tokens need not be the large model's."""

    def __init__(self, predictor: Predictor, tokenizer: Any) -> None:
        self.predictor, self.tokenizer = predictor.eval(), tokenizer
        self.longest = longest(predictor.lm.config, tokenizer)

    @property
    def about(self) -> About:
        """What its scores are for."""
        return self.predictor.about

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """(N, blocks, width), fp32 on the CPU. ValueError for an empty prompt, and for one longer than what the
        predictor can read."""
        ids = [encode(self.tokenizer, prompt, self.longest) for prompt in prompts]
        sizes = torch.tensor([len(one) for one in ids])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in ids], batch_first=True)
        device = next(self.predictor.parameters()).device
        inputs = {"input_ids": padded, "attention_mask": (torch.arange(int(sizes.max())) < sizes[:, None]).long()}
        given = {name: value.to(device) for name, value in inputs.items()}
        with torch.inference_mode():
            return self.predictor(torch.arange(len(ids)), sizes - 1, **given).float().cpu()


def encode(tokenizer: Any, prompt: str, longest: int) -> list[int]:
    """The predictor's tokens of a prompt, special tokens as the prompt itself has them.

    ValueError for an empty prompt, and for one of more than `longest` tokens."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template).input_ids
    if not ids or not prompt.strip():
        raise ValueError("the prompt is empty; the units of a model are chosen by its prompt")
    if len(ids) > longest:
        raise ValueError(
            f"the prompt has {len(ids):,} tokens, and the mask predictor reads {longest:,} at most; shorten the prompt"
        )
    return ids


def longest(config: Any, tokenizer: Any) -> int:
    """The most tokens a prompt may have: as the model's configuration says, or its tokenizer where that is less."""
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(stated, tokenizer.model_max_length))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Reader:
    """The predictor in `folder`, on the CPU. ValueError where the folder is none, or its parts do not fit."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        told = About(**json.loads((folder / ABOUT).read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} is no mask predictor ({ABOUT}: {error}); give one that `regrow run` made") from None
    lm = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    made = Predictor(lm, told).to(dtype)
    try:
        wrong = made.load_state_dict(load_file(folder / HEAD), strict=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder / HEAD} does not fit its model: {error}") from None
    if left := [name for name in wrong.missing_keys if not name.startswith("lm.")] + wrong.unexpected_keys:
        raise ValueError(f"{folder / HEAD} lacks {left[0]}, or has it too much; write the predictor anew")
    return Reader(made, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def save(folder: Path, predictor: Predictor, tokenizer: Any) -> None:
    """Write a predictor that `load` reads."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    predictor.lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = {name: value.detach().cpu().contiguous() for name, value in predictor.state_dict().items()}
    save_file({name: value for name, value in head.items() if not name.startswith("lm.")}, folder / HEAD)
    (folder / ABOUT).write_text(json.dumps(predictor.about._asdict()) + "\n", encoding="utf8")
