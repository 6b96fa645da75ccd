"""Distilling step-by-step's loss against the formula worked out in numpy (arXiv 2305.02301, eq. 2-4, and the authors'
`alpha * L_label + (1 - alpha) * L_rationale`), with α ≠ 0.5 and with weights of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines import objectives
from pipelines.student import Student
from pipelines.training import batches, feed, loading, loop, losses
from tests import tiny

LABEL, RATIONALE = 0, 1


def rows(weighted: bool) -> batches.Rows:
    """Twelve records, three of them without a rationale; a label has 1 to 3 tokens, a rationale 5 to 19."""
    rng = np.random.default_rng(0)
    encoded, tasks, groups = [], [], []
    for record in range(12):
        for task in (LABEL,) if record % 4 == 3 else (LABEL, RATIONALE):
            prompt, target = int(rng.integers(4, 9)), int(rng.integers(*((1, 4), (5, 20))[task]))
            encoded.append(batches.Encoded(rng.integers(5, 400, prompt + target).tolist(), prompt))
            tasks.append(task)
            groups.append(record)
    weights = rng.uniform(0.1, 3.0, 12)[groups] if weighted else None
    return batches.flat(encoded, tasks, weights, groups)


def nats(model: Any, row: batches.Encoded) -> NDArray[np.float64]:
    """Minus the log-probabilities of the row's targets, by transformers' own forward over the row alone."""
    ids = torch.tensor(list(row.ids))
    with torch.no_grad():
        scores = F.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
    return -scores[torch.arange(len(ids) - 1), ids[1:]].numpy()[row.prompt - 1 :]


def formula(model: Any, packed: batches.Rows, step: list[int], alpha: float, rest: float) -> tuple[float, float]:
    """α·L_label and (1 - α)·L_rationale of a global step."""
    said = []
    for task, share in ((LABEL, alpha), (RATIONALE, rest)):
        of = [row for row in step if packed.tasks[row] == task]
        terms = [(packed.weights[row], nats(model, packed.row(row))) for row in of]
        above = sum(weight * tokens.sum() for weight, tokens in terms)
        below = sum(weight * len(tokens) for weight, tokens in terms)
        said.append(share * above / below if of else 0.0)
    return said[0], said[1]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fields", [{"alpha": 0.3}, {"alpha": 1.0}, {"rationale_weight": 0.2}])
def test_loss_is_the_formula(tmp_path: Path, fields: dict[str, float], weighted: bool, ranks: int) -> None:
    """Loss of every global step over all its ranks and packs, float64, 1e-9 relative."""
    student = Student(name="dsbs", batch_tokens=100, micro_tokens=64, **fields)  # type: ignore[arg-type]
    folder, packed = tiny.model_dir(tmp_path, layers=2), rows(weighted)
    made = losses.ByToken(loading.load(str(folder), student, 0).double())
    still = torch.optim.SGD(made.parameters(), lr=0.0)
    alpha, rest, _ = objectives.shares(student)
    plans = [list(feed.steps(packed, student, 0, 0, rank=rank, ranks=ranks)[1]) for rank in range(ranks)]
    assert len(plans[0]) > 2
    for shared in zip(*plans, strict=True):
        step = list(shared[0].rows)
        label, rationale = formula(made.model, packed, step, alpha, rest)
        parts = np.sum([loop.run_step(made, still, planned.passes)[0] for planned in shared], 0)
        np.testing.assert_allclose(parts, [label, rationale, 0.0], rtol=1e-9, atol=1e-12)
    (first,) = [next(loop.steps(made, still, plans[0][:1], "cosine", 0.0))] if ranks == 1 else [None]
    if first and rest:
        label, rationale = formula(made.model, packed, list(plans[0][0].rows), alpha, rest)
        assert first.loss_by_task == pytest.approx({"label": label / alpha, "rationale": rationale / rest}, rel=1e-9)
        assert first.loss == pytest.approx(label + rationale, rel=1e-9)


def test_pairs_stay_in_one_step() -> None:
    packed = rows(False)
    plan = list(feed.steps(packed, Student(name="dsbs", batch_tokens=100), 0, 0)[1])
    where = {row: number for number, planned in enumerate(plan) for row in planned.rows}
    assert sorted(where) == list(range(len(packed.ends)))
    assert all(len({where[row] for row in group}) == 1 for group in packed.grouped())
    assert [len(group) for group in packed.grouped()] == [2, 2, 2, 1] * 3


def test_gradient_is_that_of_the_formula(tmp_path: Path) -> None:
    """Every parameter's gradient against plain autograd over padding-free single rows, float64, 1e-9 of the largest."""
    student, packed = Student(name="dsbs", batch_tokens=4096, micro_tokens=64, alpha=0.3), rows(True)
    folder = tiny.model_dir(tmp_path, layers=2)
    made, plain = (losses.ByToken(loading.load(str(folder), student, 0).double()) for _ in range(2))
    (planned,) = feed.steps(packed, student, 0, 0)[1]
    kept: dict[str, torch.Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            kept.update({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})

    loop.run_step(made, Keep(made.parameters(), lr=0.0), planned.passes, clip=1e9)
    for task, share in ((LABEL, 0.3), (RATIONALE, 0.7)):
        of = [row for row in planned.rows if packed.tasks[row] == task]
        below = sum(packed.weights[row] * packed.targets()[row] for row in of)
        for row in of:
            ids = torch.tensor(list(packed.row(row).ids))
            scores = F.log_softmax(plain.model(input_ids=ids[None]).logits[0, :-1], -1)
            picked = scores.gather(1, ids[1:, None])[packed.prompts[row] - 1 :]
            (-share * packed.weights[row] * picked.sum() / below).backward()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert (kept[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name
