"""How the masks of prompts differ, against plain loops over all pairs."""

import itertools

import pytest
import torch

from pipelines import units
from pipelines.ifp import cutting


def test_what_is_told_of_masks() -> None:
    scores = torch.rand(7, 3, 20, generator=torch.Generator().manual_seed(0))
    scores[:, :, 15:] = 0  # for no prompt
    found, tasks = units.top(scores, 6), list("abababc")
    told = cutting.described(found, tasks)

    def share(a: int, b: int) -> float:
        return float(((found[a] != 0) & (found[b] != 0)).sum(-1).double().mean()) / 6

    pairs = list(itertools.combinations(range(7), 2))
    assert told["overlap"] == pytest.approx(sum(share(a, b) for a, b in pairs) / len(pairs))
    assert told["tasks"] == ["a", "b"], "of a task with one prompt nothing can be said"
    a, b = [0, 2, 4], [1, 3, 5]
    within = [share(*pair) for pair in itertools.combinations(a, 2)]
    across = [share(x, y) for x in a for y in b]
    assert told["between"][0] == pytest.approx([sum(within) / 3, sum(across) / 9])
    assert told["unused"] == pytest.approx(float((found.sum(0) == 0).double().mean())) and told["unused"] >= 0.25
    assert told["variance"] == pytest.approx(float(found.var(0, correction=0).mean()) / (0.3 * 0.7), rel=1e-5)
    same = cutting.described(found[:1].expand(4, -1, -1), list("aabb"))
    assert (same["overlap"], same["variance"], same["between"]) == (1, 0, [[1, 1], [1, 1]])
