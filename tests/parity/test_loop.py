"""The training loop against one written out here: one process or several, sharded, LoRA or full, micro-batched or not.

The loop here feeds every row alone, without padding, shards nothing and clips with torch's own function.
Sums run in another order, so in float64 losses and norms agree to 1e-9 relative.
"""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.recipe import Student
from pipelines.training import batches, loop, optimizers
from tests import tiny

STEPS, PEAK = 4, 3e-3
VARIANTS = {
    "full": Student(name="sft", batch_tokens=160, micro_tokens=4096, learning_rate=PEAK, weight_decay=0.1),
    "micro": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, activation_checkpointing=True),
    "lora": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, lora_rank=4),
}


def rows() -> batches.Packed:
    """30 random rows; the last three fill a step of their own, smaller than four ranks."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(6, 30, 27), 50, 51, 52]
    return batches.pack([batches.Encoded(rng.integers(5, 400, n).tolist(), int(rng.integers(1, n))) for n in lengths])


def plan(packed: batches.Packed, student: Student) -> list[list[int]]:
    """Four global steps, one of them the step with the longest rows."""
    made = batches.global_steps(packed.lengths(), student.batch_tokens, 1, seed=0)
    long = next(step for step in made if 29 in step)
    return [long, *[step for step in made if step is not long]][:STEPS]


def model(folder: Path, student: Student) -> Any:
    """The model of the run in float64; LoRA's B starts random, so that all gradients flow at once."""
    from pipelines.training import worker

    made = worker.load(str(folder), student, seed=1).double()
    torch.manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def written_out(made: Any, packed: batches.Packed, student: Student) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, with nothing of the code under test but the plan and the data."""
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    decayed = [{"params": [p], "weight_decay": student.weight_decay if p.ndim > 1 else 0.0} for p in trained]
    optimizer = torch.optim.AdamW(decayed, betas=(0.9, 0.95), foreach=False)
    made.train()
    seen = []
    for number, step in enumerate(plan(packed, student)):
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate("cosine", PEAK, (number + 0.5) / STEPS)
        encoded = [packed.row(row) for row in step]
        count = sum(len(row.ids) - row.prompt for row in encoded)
        loss = torch.zeros((), dtype=torch.double)
        for row in encoded:
            ids = torch.tensor(np.array(row.ids), dtype=torch.long)
            scores = F.log_softmax(made(input_ids=ids[None]).logits[0, :-1], -1)
            picked = scores.gather(1, ids[1:, None])[:, 0]
            loss = loss - picked[row.prompt - 1 :].sum() / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


def looped(
    made: Any, packed: batches.Packed, student: Student, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[float, float]]:
    """The same with the code under test."""
    lengths = packed.lengths()
    optimizer = optimizers.adamw(made, PEAK, student.weight_decay)

    def fed() -> Iterator[tuple[float, list[loop.Batch]]]:
        for number, step in enumerate(plan(packed, student)):
            parts = batches.shared(step, lengths, student.micro_tokens, rank, ranks)
            fed_rows = [[packed.row(row) for row in part] for part in parts]
            yield (number + 0.5) / STEPS, [batches.collate(part, 0) for part in fed_rows]

    for step in loop.steps(made, optimizer, fed(), "cosine", PEAK):
        yield step.loss, step.grad_norm


def on_rank(rank: int, ranks: int, folder: Path) -> None:
    """Every variant on one of `ranks` gloo processes; rank 0 writes what it saw."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh

    from pipelines.training import checkpoints, parallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for small in (parallel.SMALL, 0):  # one group of all parameters, and a group a block
        parallel.SMALL = small
        for name, student in VARIANTS.items():
            made = parallel.parallelize(model(folder, student), mesh, student.activation_checkpointing)
            seen = list(looped(made, rows(), student, rank, ranks))
            weights = get_model_state_dict(made, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if rank == 0:
                (folder / f"{name}-{ranks}-{small}.json").write_text(json.dumps(seen))
                torch.save(weights, folder / f"{name}-{ranks}-{small}.pt")
    _across(folder, ranks, mesh, checkpoints, parallel)
    dist.destroy_process_group()


def _across(folder: Path, ranks: int, mesh: Any, checkpoints: Any, parallel: Any) -> None:
    """Two ranks save after training; four load what two have saved."""
    student = VARIANTS["lora"]
    made = parallel.parallelize(model(folder, student), mesh)
    optimizer = optimizers.adamw(made, PEAK, 0.0)
    batch = batches.collate([rows().row(3)], 0)
    if ranks == 2:
        loop.run_step(made, optimizer, [batch])
        checkpoints.save(folder / "saved", made, optimizer)
    elif ranks == 4:
        checkpoints.load(folder / "saved", made, optimizer)
    if ranks > 1:
        loss = [loop.run_step(made, optimizer, [batch])[0] for _ in range(2)]
        (folder / f"across-{ranks}.json").write_text(json.dumps(loss))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what 1, 2 and 4 ranks saw."""
    folder = tiny.model_dir(tmp_path_factory.mktemp("runs"), layers=2)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "transformers", "peft", "pipelines.training.worker"])
    for ranks in (1, 2, 4):
        started = [context.Process(target=on_rank, args=(rank, ranks, folder)) for rank in range(ranks)]
        for process in started:
            process.start()
        for process in started:
            process.join(240)
            assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_process_without_sharding(variant: str, tmp_path: Path) -> None:
    folder, student = tiny.model_dir(tmp_path, layers=2), VARIANTS[variant]
    expected = written_out(model(folder, student), rows(), student)
    seen = list(looped(model(folder, student), rows(), student))
    assert expected[0][1] > 0 and expected[-1][0] != expected[0][0]
    np.testing.assert_allclose(seen, expected, rtol=1e-9)


@pytest.mark.parametrize("small", [50_000_000, 0])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_over_ranks(runs: Path, variant: str, ranks: int, small: int) -> None:
    student = VARIANTS[variant]
    reference = model(runs, student)
    expected = written_out(reference, rows(), student)
    np.testing.assert_allclose(json.loads((runs / f"{variant}-{ranks}-{small}.json").read_text()), expected, rtol=1e-9)
    weights = torch.load(runs / f"{variant}-{ranks}-{small}.pt", weights_only=True)
    for name, parameter in reference.named_parameters():
        # AdamW divides by the root of the second moment: where a gradient is near zero its rounding is
        # magnified, so weights are compared by norm.
        assert (weights[name] - parameter.detach()).norm() <= 1e-7 * (1 + parameter.detach().norm()), name


def test_a_checkpoint_of_two_ranks_goes_on_with_four(runs: Path) -> None:
    two, four = (json.loads((runs / f"across-{ranks}.json").read_text()) for ranks in (2, 4))
    # The same row stands on every rank, so its loss does not depend on their number. float64.
    np.testing.assert_allclose(four, two, rtol=1e-9)


def test_fp32_parameters_under_bf16_autocast(tmp_path: Path) -> None:
    """Gradients of a step against plain autograd over the same padded batch: same operations, so 1e-5
    by norm; against float64 the loss is within 1 %, what bf16's 8 bits of mantissa leave."""
    folder, student, packed = tiny.model_dir(tmp_path, layers=2), VARIANTS["full"], rows()
    made, plain = model(folder, student).float(), model(folder, student).float()
    exact = written_out(model(folder, student), packed, student)[0][0]
    batch = batches.collate([packed.row(row) for row in plan(packed, student)[0]], 0)
    kept: dict[str, torch.Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            kept.update({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})

    loss, tokens, norm = loop.run_step(made, Keep(made.parameters(), lr=0.0), [batch], clip=1e9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = plain(input_ids=batch["input_ids"]).logits
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    mean.backward()
    assert tokens == int((batch["labels"][:, 1:] != -100).sum())
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert loss == pytest.approx(exact, rel=1e-2)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert (kept[name] - parameter.grad).norm() <= 1e-5 * norm, name


def test_a_step_without_targets_is_refused(tmp_path: Path) -> None:
    made = model(tiny.model_dir(tmp_path, layers=2), VARIANTS["full"])
    with pytest.raises(ValueError, match="without a single target token"):
        loop.run_step(made, optimizers.adamw(made, PEAK, 0.0), [batches.collate([], 0)])


def test_learning_rate_schedules() -> None:
    assert loop.learning_rate("cosine", 1.0, 0.03) == 1.0
    assert loop.learning_rate("cosine", 1.0, 0.515) == pytest.approx(0.5)
    assert loop.learning_rate("cosine", 1.0, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert loop.learning_rate("flat-linear", 1.0, 0.4) == 1.0
    assert loop.learning_rate("flat-linear", 1.0, 0.75) == pytest.approx(0.5)
    assert 0 < loop.learning_rate("cosine", 1.0, 0.0) < loop.learning_rate("cosine", 1.0, 0.015) < 1.0
