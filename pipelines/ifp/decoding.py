"""Decoding under the mask of each input (arXiv 2501.02086): the units that the predictor chooses are gathered into a
small dense model, which decodes. A mask that was there before finds its model again.

Each prompt has a model of its own, so prompts do not make a batch; traffic that must be is for `ifp.routed`.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines import masks, subnetwork, units
from pipelines.ifp import routed
from serving.predictor import Reader

ROOM = 4 << 30  # bytes


class Decoded(NamedTuple):
    """A text and its tokens, the end token among them; `subnetwork`: the name of the mask (masks.mask_hash)."""

    text: str
    tokens: list[int]
    subnetwork: str


class Decoder:
    """`model`, a Hugging Face causal model in whole weights, with its tokenizer and the predictor that was trained with
    it. The FFN weights of small models are kept up to `room` bytes, the longest unused given up first; the last one
    always stays. For one thread.

    ValueError for models that `units.check` refuses, and where the predictor is for another shape."""

    def __init__(self, model: Any, tokenizer: Any, reader: Reader, room: int = ROOM) -> None:
        routed.check_shape(reader, units.check(model), type(model).__name__)
        self.model, self.tokenizer, self.reader, self.room = model, tokenizer, reader, room
        self.kept: OrderedDict[str, Any] = OrderedDict()  # mask_hash → small model, the last used at the end
        self.gathered = 0  # how often a model had to be made

    def decode(self, prompt: str, most: int, read: str = "") -> Decoded:
        """Continue `prompt` greedily by `most` tokens or up to the end token, under the mask of `read`: what the
        predictor is shown where that is not the whole prompt (of a conversation, its first question).

        ValueError for an empty prompt, one that is longer than the predictor can read, and one that leaves no room for
        `most` tokens in the model's context."""
        mask = routed.masks_of(self.reader, [read or prompt])[0]
        asked: list[int] = self.tokenizer(prompt, add_special_tokens=not self.tokenizer.chat_template).input_ids
        if not asked:
            raise ValueError("the prompt is empty; there is nothing to continue")
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and len(asked) + most > longest:
            raise ValueError(
                f"the prompt has {len(asked):,} tokens, and {most:,} more do not fit into the model's {longest:,}; "
                "shorten the prompt, or ask for fewer"
            )
        small, ids = self.subnetwork(mask), torch.tensor([asked], device=self.model.device)
        said = small.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
        tokens = said[0, len(asked) :].tolist()
        return Decoded(self.tokenizer.decode(tokens, skip_special_tokens=True), tokens, masks.mask_hash(mask))

    def subnetwork(self, mask: Tensor) -> Any:
        """The small model of a mask (L, d_ffn), kept or gathered now. ValueError as in `subnetwork.gathered`."""
        name = masks.mask_hash(mask)
        if name not in self.kept:
            self.kept[name] = subnetwork.gathered(self.model, mask)
            self.gathered += 1
            while len(self.kept) > 1 and sum(map(self._own, self.kept.values())) > self.room:
                self.kept.popitem(last=False)
        self.kept.move_to_end(name)
        return self.kept[name]

    def _own(self, small: Any) -> int:
        """The bytes of a small model that are not the whole one's."""
        whole = {id(weight) for weight in self.model.parameters()}
        return sum(weight.nbytes for weight in small.parameters() if id(weight) not in whole)
