"""Encoding, planning and collating: every row once, no limit passed, no prompt token trained on."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import prompts
from pipelines.training import batches
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

    labels = batches.collate([row], words.pad_token_id)["labels"][0].tolist()
    assert labels == [IGNORED] * row.prompt + list(row.ids[row.prompt :])


def test_collate_pads_on_the_right_without_loss() -> None:
    made = batches.collate([batches.Encoded([5, 6, 7], 1), batches.Encoded([8, 9], 1)], pad=0)
    assert made["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert made["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]


def test_a_rank_without_rows_gets_one_row_without_loss() -> None:
    made = batches.collate([], pad=3)
    assert made["input_ids"].tolist() == [[3, 3]]
    assert made["labels"].tolist() == [[IGNORED, IGNORED]]


@given(st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.integers(0, 9)), min_size=1))
def test_packing_gives_the_rows_back(rows: list[tuple[list[int], int]]) -> None:
    encoded = [batches.Encoded(ids, prompt) for ids, prompt in rows]
    packed = batches.pack(encoded)
    again = [packed.row(i) for i in range(len(rows))]
    assert [(list(row.ids), row.prompt) for row in again] == rows
    assert packed.lengths() == [len(ids) for ids, _ in rows]


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 200), st.integers(0, 5))
def test_bucketed_holds_every_row_once_within_the_limit(lengths: list[int], tokens: int, seed: int) -> None:
    made = batches.bucketed(lengths, tokens, random.Random(seed))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 200), st.integers(1, 5), st.integers(8, 100))
def test_shares_of_all_ranks_are_the_global_step(lengths: list[int], tokens: int, ranks: int, micro: int) -> None:
    for rows in batches.global_steps(lengths, tokens, 1, seed=0):
        shares = [batches.shared(rows, lengths, micro, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1, "ranks must agree on the number of forward passes"
        assert sorted(row for share in shares for part in share for row in part) == sorted(rows)
        for part in (part for share in shares for part in share):
            assert len(part) <= 1 or len(part) * max(lengths[row] for row in part) <= micro


def test_ranks_get_about_as_many_tokens() -> None:
    rng = random.Random(0)
    lengths = [rng.randrange(20, 60) for _ in range(500)]
    for rows in batches.global_steps(lengths, 4096, 1, seed=0):
        shares = [batches.shared(rows, lengths, 4096, rank, 2) for rank in (0, 1)]
        first, second = (sum(lengths[row] for part in share for row in part) for share in shares)
        assert abs(first - second) <= 60


def test_epochs_are_whole_then_a_part_and_ordered_anew() -> None:
    lengths = list(range(10, 50))
    one = batches.global_steps(lengths, 200, 1, seed=3)
    more = batches.global_steps(lengths, 200, 2.5, seed=3)
    assert more[: len(one)] == one
    assert sorted(row for step in more[: 2 * len(one)] for row in step) == sorted([*range(40), *range(40)])
    assert len(more) == 2 * len(one) + round(0.5 * len(one))
    assert more[len(one) : 2 * len(one)] != one
    assert batches.global_steps(lengths, 200, 1, seed=4) != one
    assert len(batches.global_steps(lengths, 200, 0.001, seed=3)) == 1, "a run has at least one step"
