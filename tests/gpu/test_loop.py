"""A training on a GPU against the same one written out on the CPU; its checkpoints; what its loss takes of memory."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipelines.training import checkpoints, feed, loading, loop, losses, optimizers, parallel
from tests import tiny
from tests.parity.test_loop import PEAK, STEPS, VARIANTS, looped, model, rows, written_out

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="for GPUs; there is none")


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone: NCCL for tensors on the GPU, gloo for what checkpoints tell each other."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["full", "micro", "last"])
def test_losses_are_those_of_a_plain_loop(group: None, name: str, tmp_path: Path) -> None:
    """bf16 products against float64: 2 % on losses near 6 nats and on gradient norms."""
    student, folder = VARIANTS[name], tiny.model_dir(tmp_path, layers=2)
    wanted = written_out(model(folder, student), rows(), student)
    made = loading.sharded(str(folder), student, 1, parallel.mesh("cuda", 1))
    np.testing.assert_allclose(list(looped(made, rows(), student)), wanted, rtol=2e-2)
    whole = losses.ByToken(loading.load(str(folder), student, 1)).to("cuda")
    np.testing.assert_allclose(list(looped(whole, rows(), student)), wanted, rtol=2e-2)


def test_a_checkpoint_goes_on_to_the_same_losses(group: None, tmp_path: Path) -> None:
    """Bit for bit would need kernels that sum in one order; 1e-5 is far under what a lost moment would change."""
    student, folder = VARIANTS["full"], str(tiny.model_dir(tmp_path, layers=2))
    attempt = checkpoints.begin(tmp_path)
    seen = []
    for first in (0, 2):
        made = loading.sharded(folder, student, 1, parallel.mesh("cuda", 1))
        optimizer = optimizers.adamw(made, PEAK, student.weight_decay)
        if first:
            start, damaged = checkpoints.newest(tmp_path)
            assert start and not damaged and checkpoints.step(start) == first
            checkpoints.load(start, made, optimizer)
        ahead = islice(feed.steps(rows(), student, 0, 0, first)[1], STEPS - first)
        with checkpoints.Saver(tmp_path, attempt) as saver:
            for step in loop.steps(made, optimizer, ahead, "cosine", PEAK, first):
                seen.append((step.step, step.loss, step.grad_norm))
                if step.step == 1:
                    saver.save([{"step": 0}, {"step": 1}], made, optimizer)
    np.testing.assert_allclose(seen[STEPS:], seen[2:STEPS], rtol=1e-5)


def test_logits_are_never_whole() -> None:
    """8,192 targets over 131,072 tokens would be 4.3 GB in fp32 and 2.1 GB in bf16, and the gradients as much again."""
    tokens, vocabulary = 8192, 131_072
    hidden = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.nn.Linear(256, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(0, vocabulary, (tokens,), device="cuda")
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    losses.nats(hidden, head, targets).sum().backward()
    assert torch.cuda.max_memory_allocated() - held < 1.2 * losses.LOGITS["cuda"] * 12 + 2 * head.weight.nbytes
