"""How much of the teacher's quality a model has, with paired bootstrap intervals. Pure numpy.

Recovery is 100 × mean(scores of the model) / mean(scores of the unpruned teacher) (arXiv 2410.09982),
over tasks that weigh the same whatever their size. The intervals say what another draw of test items
would have changed; they do not cover training again with another seed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Item = Mapping[str, Any]
Floats = NDArray[np.float64]
LEVEL = 0.95
CELLS = 1 << 21  # numbers held at once by the bootstrap: 16 MiB


class Interval(NamedTuple):
    """A figure and its 95 % interval; None where it is not defined (no task, or a teacher at 0)."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def ends(self) -> list[float] | None:
        """`[low, high]`, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


NOTHING = Interval(None, None, None)


def by_task(items: Iterable[Item]) -> dict[str, dict[str, float]]:
    """Task → item id → score in [0, 1], tasks in the order in which they first appear.

    Raises ValueError where an id stands twice in a task."""
    found: dict[str, dict[str, float]] = {}
    for item in items:
        scores = found.setdefault(str(item["task"]), {})
        if item["id"] in scores:
            raise ValueError(f"item {item['id']!r} of task {item['task']!r} is scored twice")
        scores[str(item["id"])] = float(item["correct"])
    return found


def means(items: Iterable[Item]) -> dict[str, float]:
    """Task → mean score."""
    return {task: float(np.mean(list(scores.values()))) for task, scores in by_task(items).items()}


def average(items: Iterable[Item], tasks: Collection[str] | None = None) -> float | None:
    """The macro mean (each task weighs the same) over `tasks`, or over all; None without a task."""
    chosen = [mean for task, mean in means(items).items() if tasks is None or task in tasks]
    return float(np.mean(chosen)) if chosen else None


def recovery(
    teacher: Iterable[Item],
    model: Iterable[Item],
    tasks: Collection[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """100 × average(model) / average(teacher) over `tasks`, with its paired bootstrap interval.

    The value is None where the teacher scores 0, the interval also where a resample of the teacher
    does: the ratio has none there. Raises ValueError where the two were not asked the same items."""
    return _bootstrap(model, teacher, tasks, _ratio, seed, resamples)


def difference(
    a: Iterable[Item],
    b: Iterable[Item],
    tasks: Collection[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """average(a) − average(b) over `tasks` (scores in [0, 1]), with its paired bootstrap interval.

    Raises ValueError where the two were not asked the same items."""
    return _bootstrap(a, b, tasks, np.subtract, seed, resamples)


def interval(
    items: Iterable[Item], tasks: Collection[str] | None = None, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """The average over `tasks` and its bootstrap interval (items resampled within each task)."""
    rows = list(items)
    return _bootstrap(rows, rows, tasks, lambda a, _: a, seed, resamples)


def pairs(a: Iterable[Item], b: Iterable[Item], tasks: Collection[str] | None = None) -> list[Floats]:
    """For each task an array (items, 2): the scores of `a` and of `b` on the same items.

    Raises ValueError naming the items that only one of them has."""
    ours, theirs = by_task(a), by_task(b)
    wanted = [task for task in dict.fromkeys((*ours, *theirs)) if tasks is None or task in tasks]
    lonely = [
        f"{task}/{item}" for task in wanted for item in sorted(ours.get(task, {}).keys() ^ theirs.get(task, {}).keys())
    ]
    if lonely:
        more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
        raise ValueError(f"only one of the two models has scores for {', '.join(lonely[:5])}{more}")
    return [np.array([[ours[task][item], theirs[task][item]] for item in sorted(ours[task])]) for task in wanted]


def resampled(scores: Sequence[Floats], seed: int, resamples: int) -> Floats:
    """The macro means (resamples, columns) of items drawn with replacement within each task.

    All columns of an item are drawn together. Items with equal scores are interchangeable, so the
    draw is one multinomial over the distinct rows (for right and wrong, four): the same distribution
    as drawing ids, in memory that does not grow with the test set."""
    rng = np.random.default_rng(seed)
    total = np.zeros((resamples, scores[0].shape[1]))
    for task in scores:
        rows, counts = np.unique(task, axis=0, return_counts=True)
        step = max(1, CELLS // len(rows))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            drawn = rng.multinomial(len(task), counts / len(task), size=size)
            total[start : start + size] += drawn @ rows / len(task)
    return total / len(scores)


def _ratio(model: Any, teacher: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(teacher, 0), np.nan, 100.0 * np.divide(model, teacher))


def _bootstrap(
    a: Iterable[Item],
    b: Iterable[Item],
    tasks: Collection[str] | None,
    figure: Callable[[Any, Any], Any],
    seed: int,
    resamples: int,
) -> Interval:
    scores = pairs(a, b, tasks)
    if not scores:
        return NOTHING
    ours, theirs = np.mean([task.mean(axis=0) for task in scores], axis=0)
    value = float(figure(ours, theirs))
    if not np.isfinite(value):
        return NOTHING
    drawn = resampled(scores, seed, resamples)
    low, high = np.quantile(figure(drawn[:, 0], drawn[:, 1]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if not np.isfinite([low, high]).all():
        return Interval(value, None, None)
    return Interval(value, float(low), float(high))
