"""The global steps of a training, as one rank is to do them: rows → steps → packs → tensors. Deterministic."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from pipelines import objectives
from pipelines.recipe import Student
from pipelines.training import packing
from pipelines.training.batches import Batch, Planned, Rows, collate, weights


def plan(rows: Rows, student: Student, seed: int) -> list[list[int]]:
    """The rows of every global step, by their numbers."""
    return packing.global_steps(rows.grouped(), rows.lengths(), student.batch_tokens, student.epochs, seed)


def steps(
    rows: Rows, student: Student, seed: int, pad: int, first: int = 0, rank: int = 0, ranks: int = 1
) -> tuple[int, Iterator[Planned]]:
    """How many global steps there are, and those from `first` on with the forward passes of `rank`."""
    shares, planned = objectives.shares(student), plan(rows, student, seed)

    def made() -> Iterator[Planned]:
        for step in range(first, len(planned)):
            torch.manual_seed(seed * 1_000_003 + step * ranks + rank)  # dropout, if any, is resumed exactly
            passes = packed(rows, planned[step], shares, student.micro_tokens, pad, rank, ranks)
            tokens = int(rows.targets(planned[step]).sum()), sum(rows.lengths(planned[step]))
            yield Planned((step + 0.5) / len(planned), shares, planned[step], *tokens, passes)

    return len(planned), made()


def held(rows: Rows, student: Student, pad: int, rank: int = 0, ranks: int = 1) -> Iterable[Batch]:
    """The forward passes of `rank` over the validation rows. What is asked of a model is the label: rationales are
    left out."""
    labels = np.flatnonzero(rows.tasks == objectives.TASKS.index(objectives.LABEL)).tolist()
    return packed(rows, labels, (1.0, 0.0), student.micro_tokens, pad, rank, ranks)


def packed(
    rows: Rows, step: Sequence[int], shares: Sequence[float], room: int, pad: int, rank: int, ranks: int
) -> Iterable[Batch]:
    """The forward passes of `rank` over the rows of one global step, in packs of at most `room` tokens."""
    weighed, at = weights(rows, step, shares), {row: place for place, row in enumerate(step)}
    packs = packing.shared(step, dict(zip(step, rows.lengths(step), strict=True)), room, rank, ranks)
    return [collate([rows.row(i) for i in pack], weighed[:, [at[i] for i in pack]], pad) for pack in packs]
