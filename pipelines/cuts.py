"""Which blocks to cut, once their importance is known, and how many FFN units can stay. Pure Python: a plan needs no
torch."""

from collections.abc import Sequence
from typing import NamedTuple

METHODS = ("angular", "influence", "tail")


class Importance(NamedTuple):
    """`angular[n][l]` = D(l, n) for n = 1 … L−1 and l = 0 … L−n; `influence[i]` = BI of block i;
    `rows` is the number of texts behind them. The formulas stand in `layers`."""

    angular: dict[int, list[float]]
    influence: list[float]
    rows: int = 0


def check_count(n: int, total: int) -> None:
    """ValueError unless `n` of `total` blocks can be removed."""
    if total < 2:
        raise ValueError(f"prune.layers = {n}, but the teacher has {total} layer; there is none to spare")
    if not 1 <= n < total:
        raise ValueError(f"prune.layers = {n}, but the teacher has {total} layers; choose 1 to {total - 1}")


def check_units(t: int, width: int, tensor_parallel: int = 1) -> None:
    """ValueError unless t of a block's `width` FFN units can stay on, in engines over `tensor_parallel` GPUs: vLLM cuts
    every FFN into equal parts (vllm/distributed/utils.py, `divide`)."""
    if not 1 <= t <= width:
        raise ValueError(f"{t} of {width} FFN units cannot stay on; keep 1 to {width}")
    if t % tensor_parallel:
        below = t // tensor_parallel * tensor_parallel
        near = [str(n) for n in (below, below + tensor_parallel) if 0 < n <= width]
        instead = f"keep {' or '.join(near)}" if near else f"take {width} GPUs at most"
        raise ValueError(f"{t} FFN units cannot be divided over {tensor_parallel} GPUs; {instead}")


def choose(method: str, n: int, importance: Importance) -> list[int]:
    """The `n` blocks to remove, ascending; of equals the lowest.

    `angular`: the run l … l+n−1 of least D(l, n). `influence`: the n blocks of least BI, not always
    neighbours. `tail`: the last n blocks, the final one included, which is the plainest baseline there
    is; Gromov's rule of thumb, which spares the final block, is not meant."""
    total = len(importance.influence)
    check_count(n, total)
    if method == "angular":
        start = min(range(total - n + 1), key=importance.angular[n].__getitem__)
        return list(range(start, start + n))
    if method == "influence":
        return sorted(sorted(range(total), key=importance.influence.__getitem__)[:n])
    if method == "tail":
        return list(range(total - n, total))
    raise ValueError(f"prune.method = {method!r}; choose one of {', '.join(METHODS)}")


def distance(importance: Importance, removed: Sequence[int]) -> float:
    """Mean angular distance that the removed blocks cover: D(l, n), summed over their runs of
    neighbours (the triangle inequality makes the sum a bound on the angle between the ends)."""
    covered, run = 0.0, 0
    for block in sorted(removed):
        run += 1
        if block + 1 not in removed:
            covered += importance.angular[run][block + 1 - run]
            run = 0
    return covered
