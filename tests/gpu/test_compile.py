"""Compiled blocks on a GPU against the same blocks as they are written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipelines.student import Student
from pipelines.training import loading, parallel
from tests import tiny
from tests.parity.test_loop import PEAK, looped, rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled blocks are for GPUs; there is none")
STUDENTS = {
    "full": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK),
    "recomputed": Student(name="sft", batch_tokens=160, learning_rate=PEAK, activation_checkpointing=True),
    "lora": Student(name="sft", batch_tokens=160, micro_tokens=64, learning_rate=PEAK, lora_rank=4),
}


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, on one GPU."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", STUDENTS)
def test_compiled_blocks_train_to_the_same_losses(
    group: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(parallel, "SMALL", 0)  # a group a block, as in large models
    folder, seen = str(tiny.model_dir(tmp_path, layers=2)), {}
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        student = STUDENTS[name].model_copy(update={"compile": compiled})
        model = loading.sharded(folder, student, 0, parallel.mesh("cuda", 1))
        seen[compiled] = list(looped(model, rows(), student))
        assert (counters["stats"]["unique_graphs"] > 0) == compiled and not counters["graph_break"]
    # bf16 in other fusions: 8 bits of mantissa in every product, small next to what four steps change
    np.testing.assert_allclose(seen[True], seen[False], rtol=2e-2)
