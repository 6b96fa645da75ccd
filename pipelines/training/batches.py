"""From rows to batches: encode, pack, plan the global steps, share them among ranks, collate.

All of it is pure and follows from lengths and seed alone. Which rows a global step holds does not
depend on the number of workers, so a run of one worker and a run of four see the same losses, and a
resumed run goes on with the step it was at.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines import prompts
from pipelines.training.losses import IGNORED


class Encoded(NamedTuple):
    """One training row: `ids` = prompt, target and end token; the first `prompt` ids carry no loss."""

    ids: Sequence[int]
    prompt: int


class Packed(NamedTuple):
    """Many rows in three flat arrays, which Ray's object store hands to workers without a copy.

    ids: int32, all rows' tokens one after the other. ends: int64, where each row ends in `ids`.
    prompts: int32, the prompt tokens of each row."""

    ids: np.ndarray
    ends: np.ndarray
    prompts: np.ndarray

    def row(self, index: int) -> Encoded:
        """The row of that number."""
        start = self.ends[index - 1] if index else 0
        return Encoded(self.ids[start : self.ends[index]].tolist(), int(self.prompts[index]))

    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return np.diff(self.ends, prepend=0).tolist()


def encode(tokenizer: Any, messages: list[prompts.Message], target: str) -> Encoded:
    """Token ids of the prompt, then of the target and the end token.

    Prompt and target are encoded apart: this is what a server does, which sees the prompt alone."""
    chat = bool(tokenizer.chat_template)
    asked = tokenizer(prompts.text(tokenizer, messages), add_special_tokens=not chat).input_ids
    answered = tokenizer(target, add_special_tokens=False).input_ids
    return Encoded([*asked, *answered, tokenizer.eos_token_id], len(asked))


def pack(rows: Sequence[Encoded]) -> Packed:
    """`rows` as flat arrays."""
    return Packed(
        np.concatenate([np.asarray(row.ids, np.int32) for row in rows]),
        np.cumsum([len(row.ids) for row in rows], dtype=np.int64),
        np.array([row.prompt for row in rows], np.int32),
    )


def bucketed(lengths: Sequence[int], tokens: int, rng: random.Random) -> list[list[int]]:
    """Row indices in batches of like length, each at most `tokens` tokens once padded.

    A row longer than `tokens` gets a batch of its own. Ties and the order of the batches are
    shuffled by `rng`, so that another seed sees the rows in another order."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], rng.random()))
    batches: list[list[int]] = []
    for row in order:  # ascending: the newest row is the longest of its batch
        if batches and (len(batches[-1]) + 1) * lengths[row] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    rng.shuffle(batches)
    return batches


def global_steps(lengths: Sequence[int], tokens: int, epochs: float, seed: int) -> list[list[int]]:
    """The rows of every global step. Each epoch is bucketed anew; the last may be a part of one
    (`epochs` = 1.5: every row once, then the first half of another order)."""
    steps: list[list[int]] = []
    epoch = 0
    while epochs - epoch > 1e-9:
        batches = bucketed(lengths, tokens, random.Random(f"{seed}/{epoch}"))
        steps += batches[: max(1, round(min(1.0, epochs - epoch) * len(batches)))]
        epoch += 1
    return steps


def shared(rows: Sequence[int], lengths: Sequence[int], micro: int, rank: int, ranks: int) -> list[list[int]]:
    """The micro-batches of `rank` for the global step that holds `rows`, each at most `micro` padded tokens.

    Rows go round the ranks by length, so that all have about as many tokens. Every rank gets the same
    number of micro-batches, since the collectives of a forward pass must match: where rows run out a
    micro-batch is empty (collate makes it one row without loss)."""
    order = sorted(rows, key=lambda row: lengths[row])
    parts: list[list[int]] = []
    for row in order:
        if parts and -(-(len(parts[-1]) + 1) // ranks) * lengths[row] <= micro:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [part[rank::ranks] for part in parts]


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels`, both (B, T), padded on the right. No row at all: one of padding, without loss.

    No attention mask is needed: attention is causal, and what stands right of a row carries no loss."""
    rows = rows or [Encoded([pad, pad], 2)]
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        tokens = torch.as_tensor(np.array(row.ids))
        ids[i, : len(tokens)] = tokens
        labels[i, row.prompt : len(tokens)] = tokens[row.prompt :]
    return {"input_ids": ids, "labels": labels}
