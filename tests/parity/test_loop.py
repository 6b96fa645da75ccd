"""The training loop against one written out here: one process or several, sharded, LoRA or full, micro-batched or not.

The loop here feeds every row alone, without padding, shards nothing and clips with torch's own function.
Sums run in another order, so in float64 losses and norms agree to 1e-9 relative.
"""

import json
import math
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.student import Student
from pipelines.training import batches, faults, feed, loop, losses, optimizers, packing
from tests import ranks, tiny

STEPS, PEAK = 4, 3e-3
VARIANTS = {
    "full": Student(name="sft", batch_tokens=160, micro_tokens=4096, learning_rate=PEAK, weight_decay=0.1),
    "micro": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, activation_checkpointing=True),
    "lora": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, lora_rank=4),
    "last": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, last_layers=1),
}
SMALL = 50_000_000  # parameters: one group of all of them; with 0 a group a block
GROUPS = {"1": (1, 1), "2": (2, 1), "4": (4, 1), "2 × 1": (2, 2), "2 × 2": (4, 2)}  # ranks and replicas
CASES = [(group, small) for group in GROUPS for small in (SMALL, 0) if small == 0 or "×" not in group]


def rows() -> batches.Rows:
    """30 random rows; a step holds as few as three, fewer than four ranks."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(6, 30, 27), 50, 51, 52]
    return batches.flat([batches.Encoded(rng.integers(5, 400, n).tolist(), int(rng.integers(1, n))) for n in lengths])


def plan(packed: batches.Rows, student: Student) -> list[list[int]]:
    """The rows of the first global steps."""
    alone = [[row] for row in range(len(packed.ends))]
    return packing.global_steps(alone, packed.lengths(), student.batch_tokens, 1, seed=0)


def model(folder: Path, student: Student) -> losses.ByToken:
    """The model of the run in float64; LoRA's B starts random, so that all gradients flow at once."""
    from pipelines.training import loading

    made = loading.load(str(folder), student, seed=1).double()
    torch.manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return losses.ByToken(made)


def written_out(made: losses.ByToken, packed: batches.Rows, student: Student) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, with nothing of the code under test but the plan and the data."""
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    decayed = [{"params": [p], "weight_decay": student.weight_decay if p.ndim > 1 else 0.0} for p in trained]
    optimizer = torch.optim.AdamW(decayed, betas=(0.9, 0.95), foreach=False)
    made.train()
    seen = []
    for number, step in enumerate((whole := plan(packed, student))[:STEPS]):
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate("cosine", PEAK, (number + 0.5) / len(whole))
        encoded = [packed.row(row) for row in step]
        count = sum(len(row.ids) - row.prompt for row in encoded)
        loss = torch.zeros((), dtype=torch.double)
        for row in encoded:
            ids = torch.tensor(np.array(row.ids), dtype=torch.long)
            scores = F.log_softmax(made.model(input_ids=ids[None]).logits[0, :-1], -1)
            picked = scores.gather(1, ids[1:, None])[:, 0]
            loss = loss - picked[row.prompt - 1 :].sum() / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


def looped(
    made: losses.ByToken, packed: batches.Rows, student: Student, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[float, float]]:
    """The same with the code under test."""
    optimizer = optimizers.adamw(made, PEAK, student.weight_decay)
    total, fed = feed.steps(packed, student, 0, 0, rank=rank, ranks=ranks)
    assert total >= STEPS
    for step in loop.steps(made, optimizer, islice(fed, STEPS), "cosine", PEAK):
        yield step.loss, step.grad_norm


def on_rank(rank: int, ranks: int, folder: Path) -> None:
    """Every variant on one of `ranks` gloo processes; rank 0 writes what it saw."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from pipelines.training import checkpoints, parallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    for group, (_, replicas) in ((g, size) for g, size in GROUPS.items() if size[0] == ranks):
        mesh = parallel.mesh("cpu", ranks, replicas)
        for small in (small for name, small in CASES if name == group):
            parallel.SMALL = small
            for name, student in VARIANTS.items():
                made = parallel.parallelize(model(folder, student), mesh, student.activation_checkpointing)
                seen = list(looped(made, rows(), student, rank, ranks))
                weights = get_model_state_dict(made, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
                if rank == 0:
                    (folder / f"{name}-{group}-{small}.json").write_text(json.dumps(seen))
                    torch.save(weights, folder / f"{name}-{group}-{small}.pt")
        _across(folder, ranks, group, mesh, checkpoints, parallel)
    dist.destroy_process_group()


def _across(folder: Path, ranks: int, group: str, mesh: Any, checkpoints: Any, parallel: Any) -> None:
    """Two ranks save after a step, and nothing is written before they have done two more; four load what was saved."""
    student = VARIANTS["lora"]
    made = parallel.parallelize(model(folder, student), mesh)
    optimizer = optimizers.adamw(made, PEAK, 0.0)
    batch = batches.collate([rows().row(3)], np.array([[0.1 / ranks], [0.0], [0.0]]), 0)
    if ranks == 1 or group == "2 × 1":
        return
    (folder / "saved").mkdir(exist_ok=True)
    (folder / "saved" / "attempt").write_text("x")
    with checkpoints.Saver(folder / "saved", "x") as saver:
        written = threading.Event()
        saver.thread.submit(written.wait)
        if ranks == 2:
            loop.run_step(made, optimizer, [batch])
            saver.save([{"step": 0}], made, optimizer)
        else:
            newest, damaged = checkpoints.newest(folder / "saved")
            checkpoints.load(newest, made, optimizer)
            assert checkpoints.read_steps(newest / "losses.jsonl") == [{"step": 0}] and not damaged
        loss = [loop.run_step(made, optimizer, [batch])[0] for _ in range(2)]
        written.set()
    (folder / f"across-{group}.json").write_text(json.dumps(loss))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what 1, 2 and 4 ranks saw."""
    folder = tiny.model_dir(tmp_path_factory.mktemp("runs"), layers=2)
    ranks.run(on_rank, (1, 2, 4), folder, 1200)
    return folder


@pytest.fixture(scope="module")
def expected(runs: Path) -> dict[str, tuple[list[tuple[float, float]], dict[str, torch.Tensor]]]:
    """What the loop written out sees of each variant, and the weights it ends with."""
    found = {}
    for variant, student in VARIANTS.items():
        reference = model(runs, student)
        seen = written_out(reference, rows(), student)
        found[variant] = seen, {name: p.detach() for name, p in reference.named_parameters()}
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_process_without_sharding(runs: Path, expected: dict[str, Any], variant: str) -> None:
    losses = expected[variant][0]
    seen = list(looped(model(runs, VARIANTS[variant]), rows(), VARIANTS[variant]))
    assert losses[0][1] > 0 and losses[-1][0] != losses[0][0]
    np.testing.assert_allclose(seen, losses, rtol=1e-9)


@pytest.mark.parametrize(("group", "small"), CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_over_ranks(runs: Path, expected: dict[str, Any], variant: str, group: str, small: int) -> None:
    losses, reference = expected[variant]
    np.testing.assert_allclose(json.loads((runs / f"{variant}-{group}-{small}.json").read_text()), losses, rtol=1e-9)
    weights = torch.load(runs / f"{variant}-{group}-{small}.pt", weights_only=True)
    for name, parameter in reference.items():
        # AdamW divides by the root of the second moment: where a gradient is near zero its rounding is
        # magnified, so weights are compared by norm.
        assert (weights[name] - parameter).norm() <= 1e-7 * (1 + parameter.norm()), name


@pytest.mark.parametrize("group", ["4", "2 × 2"])
def test_a_checkpoint_of_two_ranks_goes_on_with_four(runs: Path, group: str) -> None:
    two, four = (json.loads((runs / f"across-{name}.json").read_text()) for name in ("2", group))
    # The same row stands on every rank, so its loss does not depend on their number. float64.
    np.testing.assert_allclose(four, two, rtol=1e-9)


def test_a_step_without_a_number_leaves_the_weights_alone(tmp_path: Path) -> None:
    made, student = model(tiny.model_dir(tmp_path, layers=2), VARIANTS["full"]), VARIANTS["full"]
    optimizer = optimizers.adamw(made, PEAK, 0.1)
    steps = loop.steps(made, optimizer, feed.steps(rows(), student, 0, 0)[1], "cosine", PEAK)
    next(steps)
    made.model.model.norm.weight = torch.nn.Parameter(torch.full((64,), math.inf, dtype=torch.float64))
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    with pytest.raises(faults.NotFinite) as caught:
        next(steps)
    assert caught.value.args[0] == 1
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("half", "within"), [(True, 1e-2), (False, 1e-6)])
def test_fp32_parameters(tmp_path: Path, half: bool, within: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a step against plain autograd over the same padded batch: same operations, so 1e-5
    by norm; against float64 the loss is within 1 % under bf16 autocast, what its 8 bits of mantissa leave, and
    within 1e-6 where a CPU has no instructions for bf16."""
    monkeypatch.setattr(loop, "halved", lambda device: half)
    folder, student, packed = tiny.model_dir(tmp_path, layers=2), VARIANTS["full"], rows()
    made, plain = model(folder, student).float(), model(folder, student).float()
    exact = written_out(model(folder, student), packed, student)[0][0]
    (step,) = islice(feed.steps(packed, student, 0, 0)[1], 1)
    ((inputs, weights),) = step.passes
    kept: dict[str, torch.Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            kept.update({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})

    parts, norm = loop.run_step(made, Keep(made.parameters(), lr=0.0), step.passes, clip=1e9)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = plain.model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    labels = inputs["labels"]
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
    mean.backward()
    assert step.tokens == int((labels[:, 1:] != -100).sum()) == weights.shape[1]
    loss = parts[0]
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert loss == pytest.approx(exact, rel=within)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert (kept[name] - parameter.grad).norm() <= 1e-5 * norm, name


def test_the_time_of_a_step_is_from_its_fetch_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the caller does between two steps is not of it: checkpoints, validation."""
    now = 0.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    made, done = model(tiny.model_dir(tmp_path, layers=2), VARIANTS["full"]), []

    def run_step(*_: Any, **__: Any) -> tuple[list[float], float]:
        nonlocal now
        now += 0.5
        return [1.0, 0.0, 0.0], 1.0

    def plan() -> Iterator[batches.Planned]:
        nonlocal now
        for step in range(3):
            now += 2.0
            yield batches.Planned(step / 3, (1.0, 0.0, 0.0), [0], 1, 1, [])

    monkeypatch.setattr(loop, "run_step", run_step)
    for step in loop.steps(made, torch.optim.SGD(made.parameters()), plan(), "cosine", 1.0):
        done.append(step.seconds)
        now += 100.0
    assert done == [2.5] * 3


def test_learning_rate_schedules() -> None:
    assert loop.learning_rate("cosine", 1.0, 0.03) == 1.0
    assert loop.learning_rate("cosine", 1.0, 0.515) == pytest.approx(0.5)
    assert loop.learning_rate("cosine", 1.0, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert loop.learning_rate("flat-linear", 1.0, 0.4) == 1.0
    assert loop.learning_rate("flat-linear", 1.0, 0.75) == pytest.approx(0.5)
    assert 0 < loop.learning_rate("cosine", 1.0, 0.0) < loop.learning_rate("cosine", 1.0, 0.015) < 1.0
