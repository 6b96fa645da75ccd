"""The global steps of a training, as one rank is to do them: rows → steps → packs → tensors. Deterministic."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from pipelines import objectives
from pipelines.student import Student
from pipelines.training import packing
from pipelines.training.batches import Batch, Planned, Rows, collate, weights
from pipelines.training.packs import InOrder, Packs


def steps(
    rows: Rows, student: Student, seed: int, pad: int, first: int = 0, rank: int = 0, ranks: int = 1
) -> tuple[int, Iterator[Planned]]:
    """How many global steps there are over rows in memory, and those from `first` on as `rank` is to do them."""
    planned = packing.global_steps(rows.grouped(), rows.lengths(), student.batch_tokens, student.epochs, seed)
    given = ((rows, numbers) for numbers in planned[first:])
    return len(planned), _made(given, len(planned), student, seed, pad, first, rank, ranks)


def read(packs: Packs | InOrder, student: Student, seed: int, first: int, rank: int, ranks: int) -> Iterator[Planned]:
    """The like of steps that are on disk: a step's rows are numbered from 0."""
    each = (packs.step(number)[0] for number in range(first, len(packs)))
    given = ((rows, range(len(rows.ends))) for rows in each)
    return _made(given, len(packs), student, seed, packs.about.pad, first, rank, ranks)


def _made(
    given: Iterable[tuple[Rows, Sequence[int]]], total: int, student: Student, seed: int, pad: int, first: int,
    rank: int, ranks: int,
) -> Iterator[Planned]:  # fmt: skip
    """The steps from `first` on, each given as rows and the numbers of those in it."""
    shares = objectives.shares(student)
    for step, (rows, numbers) in enumerate(given, first):
        torch.manual_seed(seed * 1_000_003 + step * ranks + rank)  # dropout, if any, is resumed exactly
        passes = packed(rows, numbers, shares, student.micro_tokens, pad, rank, ranks)
        tokens = int(rows.targets(numbers).sum()), sum(rows.lengths(numbers))
        yield Planned((step + 0.5) / total, shares, numbers, *tokens, passes)


def held(packs: Packs, student: Student, rank: int, ranks: int) -> Iterable[Batch]:
    """The forward passes of `rank` over the validation rows, which are the only step of `packs`."""
    return labels(packs.step(0)[0], student, packs.about.pad, rank, ranks)


def labels(rows: Rows, student: Student, pad: int, rank: int = 0, ranks: int = 1) -> Iterable[Batch]:
    """The forward passes of `rank` over validation rows. What is asked of a model is the label: rationales are
    left out."""
    some = np.flatnonzero(rows.tasks == objectives.TASKS.index(objectives.LABEL)).tolist()
    return packed(rows, some, (1.0, 0.0, 0.0), student.micro_tokens, pad, rank, ranks)


def packed(
    rows: Rows, step: Sequence[int], shares: Sequence[float], room: int, pad: int, rank: int, ranks: int
) -> Iterable[Batch]:
    """The forward passes of `rank` over the rows of one global step, in packs of at most `room` tokens."""
    weighed, at = weights(rows, step, shares), {row: place for place, row in enumerate(step)}
    packs = packing.shared(step, dict(zip(step, rows.lengths(step), strict=True)), room, rank, ranks)
    return [collate([rows.row(i) for i in pack], weighed[:, [at[i] for i in pack]], pad) for pack in packs]
