"""Hours of a plan against numbers worked out by hand, and how assumptions are changed."""

import pytest

from cluster import gpus
from cluster.gpus import Gpu
from pipelines import lm_tasks
from pipelines.planning import work
from pipelines.planning.assumptions import Assumptions, assumed
from pipelines.planning.lm_sizes import Size
from pipelines.planning.work import Engine
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from tests.unit.test_memory import small

GPU = Gpu("test", 1e9, 1e6, 1e6)
SURE = Assumptions(
    prefill_mfu=0.5, decode_bandwidth=0.5, tensor_parallel_efficiency=0.5, scoring_mfu=0.25, train_mfu=0.5
)
N = 4 * 592 + 88  # blocks, head and final norm: what a token is multiplied with


def engine(split: int = 1, seats: int = 4, room: float = 1e9) -> Engine:
    return Engine(small(), 4, 2, GPU, split, seats, room, SURE)


def test_training_flops() -> None:
    assert gpus.flops_per_token(10, lora=False, recomputed=False) == 60
    assert gpus.flops_per_token(10, lora=False, recomputed=True) == 80
    assert gpus.flops_per_token(10, lora=True, recomputed=False) == 40
    assert gpus.flops_per_token(10, lora=True, recomputed=True) == 60
    seconds = work.training_seconds(small(), 4, Student(name="sft", lora_rank=2), 1000, 2, GPU, SURE)
    assert seconds == pytest.approx(1000 * 4 * N / (2 * 1e6 * 0.5))
    seconds = work.training_seconds(small(), 4, Student(name="sft", last_layers=1), 1000, 2, GPU, SURE)
    assert seconds == pytest.approx(1000 * (6 * (N - 3 * 592) + 2 * 3 * 592) / (2 * 1e6 * 0.5)), "three are read only"


def test_reading() -> None:
    assert engine().read(100, 0.5) == pytest.approx(100 * 2 * N / 5e5)
    assert engine(split=4).read(100, 0.5) == pytest.approx(100 * 2 * N / (4 * 0.5 * 5e5))


def test_answering_is_bound_by_bytes_or_by_flops() -> None:
    # context 10 + 4/2 = 12 tokens of 64 bytes; four seats; 20 requests in five rounds of four tokens
    slow = Gpu("slow memory", 1e9, 1e12, 1e6)
    by_bytes = (2 * 2536 + 4 * 12 * 64) / 5e5
    read = 20 * 10 * 2 * N / 5e11
    assert Engine(small(), 4, 2, slow, 1, 4, 1e9, SURE).answer(20, 10, 4) == pytest.approx(read + 20 * by_bytes)
    fast = Gpu("fast memory", 1e9, 1e6, 1e15)
    by_flops = 4 * 2 * N / 5e5
    assert Engine(small(), 4, 2, fast, 1, 4, 1e9, SURE).answer(20, 10, 4) == pytest.approx(
        20 * 10 * 2 * N / 5e5 + 20 * by_flops
    )


@pytest.mark.parametrize(
    ("weights", "cache", "flops", "bound", "seconds"),
    [
        (12.54, 3.09, 12.85, "weights", 15.63),  # FLOPs are the longest part, and yet not waited for
        (3.09, 12.54, 12.85, "KV cache", 15.63),
        (12.54, 3.09, 15.7, "FLOPs", 15.7),
    ],
)
def test_flops_bind_only_where_they_take_longer_than_all_bytes(
    weights: float, cache: float, flops: float, bound: str, seconds: float
) -> None:
    step = {"weights": weights, "KV cache": cache, "FLOPs": flops}
    assert work.bound(step) == bound and work.slowest(step) == pytest.approx(seconds)


def test_fewer_requests_or_less_room_than_seats() -> None:
    whole, one = engine(seats=4, room=4 * 12 * 64), engine(seats=1)
    assert engine(seats=100, room=4 * 12 * 64).answer(20, 10, 4) == pytest.approx(whole.answer(20, 10, 4))
    assert engine(seats=100).answer(1, 10, 4) == pytest.approx(one.answer(1, 10, 4))
    assert engine(room=0).answer(20, 10, 4) == pytest.approx(one.answer(20, 10, 4)), "one at a time at the least"
    assert engine().answer(0, 10, 4) == 0


def test_scoring_counts_every_choice_with_its_examples() -> None:
    asked = [("arc_challenge", 25), ("gsm8k", None), ("mmlu", 0), ("mine", 2), ("truthfulqa_mc2", 0)]
    sizes = work.scored(asked, None, SURE)
    assert sizes[0] == Size(1172, 4, 26 * 40) and sizes[1].tokens == 6 * 165 and sizes[2].tokens == 115
    assert sizes[3] == Size(1000, 4, 300) and sizes[4].tokens == 150 + 35
    short = work.scored(asked, 10, SURE)
    assert [size.items for size in short] == [10, 10, 570, 10, 10], "of each of MMLU's 57 subjects"
    one = Size(10, 4, 50)
    assert work.scoring_seconds(engine(), [one]) == pytest.approx(10 * 4 * 50 * 2 * N / (1e6 * 0.25))
    written = Size(10, 1, 50, written=4)
    assert work.scoring_seconds(engine(), [written]) == pytest.approx(engine().answer(10, 50, 4))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("arc_challenge:25", ("arc_challenge", 25)),
        ("mmlu", ("mmlu", None)),
        ("truthfulqa_mc2:0", ("truthfulqa_mc2", 0)),
        ("/a/mine.yaml:3", ("/a/mine.yaml", 3)),
        ("odd:name", ("odd:name", None)),
        (":5", (":5", None)),
        ("x:²", ("x:²", None)),
    ],
)
def test_a_task_and_its_examples(word: str, said: tuple[str, int | None]) -> None:
    assert lm_tasks.named(word) == said


def test_assumptions_are_changed_by_name() -> None:
    made = assumed(["train_mfu=0.55", "rows=12"])
    assert (made.train_mfu, made.rows, made.prefill_mfu) == (0.55, 12, Assumptions().prefill_mfu)
    assert all(field.description for field in Assumptions.model_fields.values())
    for bad, said in (
        ("train_mfu", "not name=value"),
        ("trainmfu=0.5", "did you mean 'train_mfu'"),
        ("train_mfu=2", "less than or equal to 1"),
        ("rows=many", "valid integer"),
    ):
        with pytest.raises(BadInput, match=said):
            assumed([bad])
