"""Rows as token ids, and packs of them as tensors."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines import prompts
from pipelines.training.losses import IGNORED


class Encoded(NamedTuple):
    """One training row: `ids` = prompt, target and end token; the first `prompt` ids carry no loss. `reads`: what a
    mask predictor reads, in its own tokens: the prompt; of a document in chunks of `prompt` tokens, each chunk but the
    last, which chooses the units for the next (arXiv 2501.02086, section 3.2)."""

    ids: Sequence[int]
    prompt: int
    reads: Sequence[Sequence[int]] = ()


class Rows(NamedTuple):
    """Many rows in flat arrays, which Ray's object store hands to workers without a copy.

    ids: int32, all rows' tokens one after the other. ends: int64, where each row ends in `ids`.
    prompts: int32, the prompt tokens of each row. tasks: int8, which loss its targets count in (objectives.TASKS).
    weights: float64, of the row in that loss. groups: int64, ascending; rows of one number stay in one step.
    reads: of each row, where a mask predictor learns (Encoded)."""

    ids: np.ndarray
    ends: np.ndarray
    prompts: np.ndarray
    tasks: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    reads: Sequence[Sequence[Sequence[int]]] | None = None

    def row(self, index: int) -> Encoded:
        """The row of that number."""
        start = self.ends[index - 1] if index else 0
        reads = self.reads[index] if self.reads else ()
        return Encoded(self.ids[start : self.ends[index]].tolist(), int(self.prompts[index]), reads)

    def lengths(self, some: Sequence[int] | None = None) -> list[int]:
        """Tokens of every row, or of some."""
        if some is None:
            return np.diff(self.ends, prepend=0).tolist()
        at = np.asarray(some, np.int64)
        return (self.ends[at] - np.where(at, self.ends[at - 1], 0)).tolist()

    def targets(self, some: Sequence[int] | None = None) -> np.ndarray:
        """Target tokens of every row, or of some: the first token of a row is never one, nothing predicts it."""
        asked = self.prompts if some is None else self.prompts[some]
        return np.array(self.lengths(some)) - np.maximum(asked, 1)

    def grouped(self) -> list[list[int]]:
        """The rows of each group."""
        starts = np.flatnonzero(np.diff(self.groups)) + 1
        return [part.tolist() for part in np.split(np.arange(len(self.groups)), starts)]


class Batch(NamedTuple):
    """One forward pass: what the model is called with (losses.ByToken), and the weight of each of its N targets in
    the loss of each task, (tasks, N) in fp64. The loss of a step is the weighted sum over all its targets and tasks,
    of all ranks and passes."""

    inputs: dict[str, Any]
    weights: torch.Tensor


class Planned(NamedTuple):
    """A global step to do: the share of training done by its middle, the weights of the tasks' losses, its rows, their
    target tokens and all tokens over all ranks, and the forward passes of this rank."""

    done: float
    shares: Sequence[float]
    rows: Sequence[int]
    tokens: int
    all_tokens: int
    passes: Iterable[Batch]


def encode(tokenizer: Any, messages: list[prompts.Message], target: str) -> Encoded:
    """Token ids of the prompt, then of the target and the end token."""
    return encode_all(tokenizer, [messages], [target])[0]


def encode_all(tokenizer: Any, asked: Sequence[list[prompts.Message]], targets: Sequence[str]) -> list[Encoded]:
    """The like of many rows at once, which a fast tokenizer does on all cores.

    Prompt and target are encoded apart: this is what a server does, which sees the prompt alone."""
    chat = bool(tokenizer.chat_template)
    texts = [prompts.text(tokenizer, messages) for messages in asked]
    before = tokenizer(texts, add_special_tokens=not chat).input_ids
    after = tokenizer(list(targets), add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    return [Encoded([*ids, *more, end], len(ids)) for ids, more in zip(before, after, strict=True)]


def flat(
    rows: Sequence[Encoded],
    tasks: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
) -> Rows:
    """`rows` as flat arrays; of one task, alike in weight and each a group of its own unless said otherwise."""
    return Rows(
        np.concatenate([np.asarray(row.ids, np.int32) for row in rows]),
        np.cumsum([len(row.ids) for row in rows], dtype=np.int64),
        np.array([row.prompt for row in rows], np.int32),
        np.zeros(len(rows), np.int8) if tasks is None else np.asarray(tasks, np.int8),
        np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64),
        np.arange(len(rows)) if groups is None else np.asarray(groups, np.int64),
        [row.reads for row in rows] if any(row.reads for row in rows) else None,
    )


def weights(rows: Rows, step: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """The weight of a target token of each row of a global step in the loss of each task, (tasks, rows).

    The loss of a task is the mean over its target tokens in the step, each weighted as its row is: w_i / Σ_j w_j T_j
    with T_j the target tokens of row j. The step's loss is the sum of these means times `shares` (dsbs: α and 1 - α,
    arXiv 2305.02301 §3.2); a task without a token adds nothing. Raises ValueError where no task has one."""
    by_row = np.zeros((len(shares), len(step)))
    by_row[rows.tasks[step], np.arange(len(step))] = rows.weights[step]
    whole = by_row @ rows.targets(step)
    if not whole.any():
        raise ValueError("a step without a single target token: every row's target is empty or weighs nothing")
    return by_row * (np.asarray(shares) / np.where(whole, whole, 1.0))[:, None]


def collate(rows: Sequence[Encoded], weights: np.ndarray, pad: int) -> Batch:
    """A pack: `rows` one behind the other in one sequence (1, T), without padding; the positions begin anew with each,
    and `cu_seq_lens_q` (attention.packed) says where. `weights`: of one target token, (tasks, rows). No row at all: one
    of padding, without loss."""
    if not rows:
        rows, weights = [Encoded([pad, pad], 2)], np.zeros((len(weights), 1))
    sizes = [len(row.ids) for row in rows]
    ids = torch.cat([torch.as_tensor(np.array(row.ids, np.int64)) for row in rows])
    labels, counts, start = ids.clone(), [], 0
    for row, size in zip(rows, sizes, strict=True):
        asked = min(max(row.prompt, 1), size)
        labels[start : start + asked] = IGNORED
        counts.append(size - asked)
        start += size
    inputs = {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
        "cu_seq_lens_q": torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32),
        "max_length_q": max(sizes),
    }
    if rows[0].reads:
        inputs |= _reads(rows, weights.sum(0) * counts)
    return Batch(inputs, torch.from_numpy(weights).repeat_interleave(torch.tensor(counts), 1))


def _reads(rows: Sequence[Encoded], shares: np.ndarray) -> dict[str, torch.Tensor]:
    """What a mask predictor reads of a pack, and where its masks go (masked.Masked). `shares`: of each row in the
    step's loss. A position takes the mask of the token that it predicts."""
    reads = [read for row in rows for read in row.reads]
    numbers, first = [], 0
    for row in rows:
        chunk = (
            np.arange(1, len(row.ids) + 1) // max(row.prompt, 1) - 1 if len(row.reads) > 1 else np.zeros(len(row.ids))
        )
        numbers.append(first + chunk.clip(0, len(row.reads) - 1))
        first += len(row.reads)
    each = np.repeat(shares / [len(row.reads) for row in rows], [len(row.reads) for row in rows])
    return {
        "read_ids": torch.tensor([token for read in reads for token in read])[None],
        "read_cu": torch.tensor([0, *np.cumsum([len(read) for read in reads])], dtype=torch.int32),
        "read_shares": torch.from_numpy(each),
        "mask_rows": torch.from_numpy(np.concatenate(numbers)).long(),
    }
