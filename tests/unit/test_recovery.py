"""Recovery and its intervals against loops, full enumeration, known cases and simulated data."""

import itertools
import random
import statistics

import numpy as np
import pytest

from pipelines.reporting import recovery


def items(task: str, scores: list[int]) -> list[dict]:
    return [{"id": f"{task}{i}", "task": task, "correct": bool(s)} for i, s in enumerate(scores)]


def drawn(rng: random.Random, n: int, share: float) -> list[int]:
    return [int(rng.random() < share) for _ in range(n)]


def two_models(seed: int = 1) -> tuple[list[dict], list[dict]]:
    """Teacher and model on three tasks of different sizes; the model mostly fails where the teacher does."""
    rng = random.Random(seed)
    teacher, model = [], []
    for task, n in (("a", 40), ("b", 15), ("c", 25)):
        right = drawn(rng, n, 0.8)
        teacher += items(task, right)
        model += items(task, [int(r and rng.random() < 0.7) for r in right])
    return teacher, model


def test_average_weighs_tasks_not_items():
    rows = items("large", [1] * 90 + [0] * 10) + items("small", [1, 0])
    assert recovery.average(rows) == pytest.approx((0.9 + 0.5) / 2)
    assert recovery.average(rows, {"small"}) == 0.5
    assert recovery.average(rows, {"absent"}) is None
    assert recovery.average([]) is None


def test_identical_models_recover_exactly():
    teacher, _ = two_models()
    assert recovery.recovery(teacher, list(reversed(teacher))) == (100.0, 100.0, 100.0)
    assert recovery.difference(teacher, list(reversed(teacher))) == (0.0, 0.0, 0.0)


def test_the_point_estimates():
    teacher, model = two_models()
    ours, theirs = recovery.average(model), recovery.average(teacher)
    assert ours is not None and theirs is not None
    found = recovery.recovery(teacher, model)
    assert found.value == pytest.approx(100 * ours / theirs)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    assert recovery.difference(model, teacher).value == pytest.approx(ours - theirs)
    assert recovery.interval(model).value == pytest.approx(ours)


def test_swapping_the_models_mirrors_the_difference():
    teacher, model = two_models()
    ab, ba = (
        recovery.difference(model, teacher, resamples=20_000),
        recovery.difference(teacher, model, resamples=20_000),
    )
    # 20,000 resamples: the end of an interval is known to about 0.002
    assert [ab.value, ab.low, ab.high] == pytest.approx([-ba.value, -ba.high, -ba.low], abs=0.006)


def test_a_seed_gives_the_same_interval_again_and_another_seed_another():
    teacher, model = two_models()
    first = recovery.recovery(teacher, model, seed=3)
    assert first == recovery.recovery(teacher, model, seed=3)
    assert first != recovery.recovery(teacher, model, seed=4)


@pytest.mark.parametrize("figure", ["recovery", "difference"])
def test_agrees_with_a_loop_that_draws_ids(figure):
    teacher, model = two_models()
    rng = random.Random(5)
    by = {
        task: [(a["correct"], b["correct"]) for a, b in zip(teacher, model, strict=True) if a["task"] == task]
        for task in "abc"
    }
    found = []
    for _ in range(4000):
        ts, ms = [], []
        for rows in by.values():
            sample = [rng.choice(rows) for _ in rows]
            ts.append(statistics.mean(t for t, _ in sample))
            ms.append(statistics.mean(m for _, m in sample))
        t, m = statistics.mean(ts), statistics.mean(ms)
        found.append(100 * m / t if figure == "recovery" else t - m)
    low, high = np.quantile(found, [0.025, 0.975])
    width = high - low
    if figure == "recovery":
        ours = recovery.recovery(teacher, model, resamples=20_000)
    else:
        ours = recovery.difference(teacher, model, resamples=20_000)
    # the loop's ends have a standard error of about 2 % of the width; 10 % is five of them
    assert ours.low == pytest.approx(low, abs=0.1 * width)
    assert ours.high == pytest.approx(high, abs=0.1 * width)


def test_draws_follow_the_fully_enumerated_bootstrap():
    """Two tasks of three and two items have 27 × 4 resamples: each outcome's share must be right."""
    scores = [np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])]
    exact: dict[tuple, float] = {}
    for x in itertools.product(range(3), repeat=3):
        for y in itertools.product(range(2), repeat=2):
            mean = (scores[0][list(x)].mean(axis=0) + scores[1][list(y)].mean(axis=0)) / 2
            key = tuple(mean.round(6))
            exact[key] = exact.get(key, 0) + 1 / 108
    n = 100_000
    rows, counts = np.unique(recovery.resampled(scores, 0, n).round(6), axis=0, return_counts=True)
    seen = {tuple(row): count / n for row, count in zip(rows, counts, strict=True)}
    assert seen.keys() == exact.keys()
    for key, share in exact.items():  # five standard errors of a share over n draws
        assert seen[key] == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5)


def test_graded_scores_and_memory_bound(monkeypatch):
    """Scores that are not 0 or 1 give as many distinct rows as items; chunks must not change the law."""
    rng = np.random.default_rng(0)
    scores = [rng.random((50, 2)), rng.random((30, 2))]
    whole = recovery.resampled(scores, 1, 4000)
    monkeypatch.setattr(recovery, "CELLS", 1000)  # 20 resamples at a time
    parts = recovery.resampled(scores, 2, 4000)
    assert whole.shape == parts.shape == (4000, 2)
    assert whole.mean(axis=0) == pytest.approx(parts.mean(axis=0), abs=0.005)
    assert whole.std(axis=0) == pytest.approx(parts.std(axis=0), rel=0.1)


def test_coverage_on_simulated_data():
    """The 95 % interval of a difference holds the true one in about 95 of 100 simulated test sets."""
    rng, hits, rounds = random.Random(11), 0, 400
    chances = [(0.9, 0.6), (0.7, 0.6), (0.5, 0.3), (0.8, 0.8)]  # of two models on four tasks, independent items
    truth = statistics.mean(p - q for p, q in chances)
    for number in range(rounds):
        a, b = [], []
        for task, (p, q) in enumerate(chances):
            a += items(f"t{task}", drawn(rng, 60, p))
            b += items(f"t{task}", drawn(rng, 60, q))
        found = recovery.difference(a, b, seed=number, resamples=600)
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / rounds <= 0.98  # binomial standard error 1.1 points; percentile intervals run a little narrow


def test_pairing_narrows_the_interval():
    rng = random.Random(2)
    right = drawn(rng, 200, 0.6)
    a, b = items("t", right), items("t", [r if rng.random() < 0.95 else 1 - r for r in right])
    shuffled = items("t", rng.sample([row["correct"] for row in b], len(b)))
    paired, unpaired = recovery.difference(a, b), recovery.difference(a, shuffled)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_degenerate_cases():
    wrong, right = items("t", [0] * 10), items("t", [1] * 10)
    assert recovery.recovery(wrong, right) == (None, None, None)
    assert recovery.recovery(right, wrong) == (0.0, 0.0, 0.0)
    assert recovery.recovery(right, right, {"absent"}) == (None, None, None)
    assert recovery.recovery(right, right, {"absent"}).ends is None
    single = recovery.difference(items("t", [1]), items("t", [0]))
    assert single == (1.0, 1.0, 1.0) and single.ends == [1.0, 1.0]
    nearly = recovery.recovery(items("t", [1] + [0] * 9), items("t", [1] + [0] * 9))
    assert nearly == (100.0, None, None)  # a third of the resamples has a teacher at 0


def test_items_that_only_one_model_has_are_named():
    with pytest.raises(ValueError, match="t/t3, t/t4"):
        recovery.recovery(items("t", [1] * 5), items("t", [1] * 3))
    with pytest.raises(ValueError, match="u/u0"):
        recovery.difference(items("t", [1]), items("t", [1]) + items("u", [1]))
    with pytest.raises(ValueError, match="and 15 more"):
        recovery.difference(items("t", [1] * 20), [])
    assert recovery.difference(items("t", [1]), items("t", [1]) + items("u", [1]), {"t"}).value == 0


def test_an_item_scored_twice_is_refused():
    with pytest.raises(ValueError, match="'t0' of task 't' is scored twice"):
        recovery.average(items("t", [1]) + items("t", [0]))
