"""Encoding, planning and collating: every row once, no limit passed, no prompt token trained on."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import prompts
from pipelines.training import batches, packing
from pipelines.training.losses import IGNORED
from tests import tiny

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=80)


@pytest.mark.parametrize("chat", [True, False])
def test_encode_masks_exactly_the_prompt(chat: bool) -> None:
    words = tiny.tokenizer(chat)
    row = batches.encode(words, prompts.answer("What is 1 + 2?"), "It is 3.")
    assert words.decode(row.ids[: row.prompt]) == prompts.text(words, prompts.answer("What is 1 + 2?"))
    assert words.decode(row.ids[row.prompt : -1]) == "It is 3."
    assert row.ids[-1] == words.eos_token_id

    labels = batches.collate([row], np.ones((1, 1)), words.pad_token_id).inputs["labels"][0].tolist()
    assert labels == [IGNORED] * row.prompt + list(row.ids[row.prompt :])


@pytest.mark.parametrize("chat", [True, False])
def test_many_rows_are_encoded_as_each_alone(chat: bool) -> None:
    words = tiny.tokenizer(chat)
    asked = [prompts.answer(f"What is {'1 + ' * n}2?") for n in range(5)]
    said = ["It is 3.", "", "4", " 5 ", "six <|end|> 6"]
    alone = [batches.encode(words, *row) for row in zip(asked, said, strict=True)]
    assert batches.encode_all(words, asked, said) == alone and len({len(row.ids) for row in alone}) > 2


def test_a_pack_is_one_sequence_whose_positions_begin_anew() -> None:
    made = batches.collate([batches.Encoded([5, 6, 7], 1), batches.Encoded([8, 9], 0)], np.array([[0.5, 2.0]]), pad=0)
    assert made.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert made.inputs["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]], "nothing predicts a row's first token"
    assert made.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert made.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5] and made.inputs["max_length_q"] == 3
    assert made.weights.tolist() == [[0.5, 0.5, 2.0]]


def test_a_rank_without_rows_gets_one_row_without_loss() -> None:
    made = batches.collate([], np.zeros((2, 0)), pad=3)
    assert made.inputs["input_ids"].tolist() == [[3, 3]]
    assert made.inputs["labels"].tolist() == [[IGNORED, IGNORED]]
    assert made.weights.shape == (2, 0)


def test_weights_are_the_mean_over_the_targets_of_the_step() -> None:
    rows = batches.flat([batches.Encoded([1] * size, prompt) for size, prompt in [(5, 2), (4, 0), (3, 3)]])
    assert rows.targets().tolist() == [3, 3, 0]
    assert batches.weights(rows, [0, 1, 2], (1.0, 0.0)).tolist() == [[1 / 6] * 3, [0.0] * 3]
    with pytest.raises(ValueError, match="without a single target token"):
        batches.weights(rows, [2], (1.0, 0.0))


@given(st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.integers(0, 9)), min_size=1))
def test_flat_arrays_give_the_rows_back(rows: list[tuple[list[int], int]]) -> None:
    encoded = [batches.Encoded(ids, prompt) for ids, prompt in rows]
    packed = batches.flat(encoded)
    again = [packed.row(i) for i in range(len(rows))]
    assert [(list(row.ids), row.prompt) for row in again] == rows
    assert packed.lengths() == [len(ids) for ids, _ in rows]


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 200), st.integers(0, 5))
def test_bucketed_holds_every_row_once_within_the_limit(lengths: list[int], tokens: int, seed: int) -> None:
    made = packing.bucketed(lengths, tokens, random.Random(seed))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 200))
def test_best_fit_holds_every_row_once_within_the_room(lengths: list[int], room: int) -> None:
    made = packing.best_fit(range(len(lengths)), lengths, room)
    assert sorted(row for found in made for row in found) == list(range(len(lengths)))
    assert all(len(found) == 1 or sum(lengths[row] for row in found) <= room for found in made)


def test_best_fit_puts_a_row_where_the_least_room_is_left() -> None:
    lengths = [6, 8, 3, 2, 1]
    assert packing.best_fit(range(5), lengths, 10) == [[0, 2, 4], [1, 3]]


def test_steps_are_nearly_full() -> None:
    rng = random.Random(0)
    lengths = [rng.randrange(20, 300) for _ in range(5000)]
    made = steps(lengths, 4096)
    assert sum(lengths) / (4096 * len(made)) > 0.99


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 200), st.integers(1, 5), st.integers(8, 100))
def test_shares_of_all_ranks_are_the_global_step(lengths: list[int], tokens: int, ranks: int, room: int) -> None:
    for rows in steps(lengths, tokens):
        shares = [packing.shared(rows, lengths, room, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1, "ranks must agree on the number of forward passes"
        assert sorted(row for share in shares for pack in share for row in pack) == sorted(rows)
        for pack in (pack for share in shares for pack in share):
            assert len(pack) <= 1 or sum(lengths[row] for row in pack) <= room


def test_ranks_get_about_as_many_tokens() -> None:
    rng = random.Random(0)
    lengths = [rng.randrange(20, 60) for _ in range(500)]
    for rows in steps(lengths, 4096):
        shares = [packing.shared(rows, lengths, 4096, rank, 2) for rank in (0, 1)]
        first, second = (sum(lengths[row] for pack in share for row in pack) for share in shares)
        assert abs(first - second) <= 60


def test_rows_of_a_group_stay_in_one_step() -> None:
    groups = [[row, row + 20] for row in range(20)]
    made = packing.global_steps(groups, [10] * 40, 60, 1, seed=0)
    assert all({row % 20 for row in step if row < 20} == {row % 20 for row in step if row >= 20} for step in made)
    assert sorted(row for step in made for row in step) == list(range(40))


def test_epochs_are_whole_then_a_part_and_ordered_anew() -> None:
    lengths = [10] * 40
    one, more = steps(lengths, 200, 1, 3), steps(lengths, 200, 2.5, 3)
    assert more[: len(one)] == one
    assert sorted(row for step in more[: 2 * len(one)] for row in step) == sorted([*range(40), *range(40)])
    assert len(more) == 2 * len(one) + round(0.5 * len(one))
    assert more[len(one) : 2 * len(one)] != one
    assert steps(lengths, 200, 1, 4) != one
    assert len(steps(lengths, 200, 0.001, 3)) == 1, "a run has at least one step"
    assert [len(steps([10], 10, epochs)) for epochs in (0.3, 1.01, 1.3, 2.6)] == [1, 1, 1, 3]


def steps(lengths: list[int], tokens: int, epochs: float = 1, seed: int = 0) -> list[list[int]]:
    """Global steps of rows that are each a group of their own."""
    return packing.global_steps([[row] for row in range(len(lengths))], lengths, tokens, epochs, seed)
