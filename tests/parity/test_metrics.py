"""FLOPs that MFU is worked out from, against torch's own count of a real forward and backward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.gpus import peak
from pipelines.student import Student
from pipelines.training import batches, loading, loop, losses, metrics
from tests import tiny


@pytest.mark.parametrize("how", [{}, {"lora_rank": 1}, {"lora_rank": 8}, {"last_layers": 1}, {"last_layers": 3}])
def test_flops_of_a_step(how: dict[str, int], tmp_path: Path) -> None:
    """Norms' parameters are counted as if multiplied with: 1 %. The gradient of the first block's input, which LoRA and
    the last blocks alone save, is counted all the same: another 5 % of three small blocks."""
    folder = tiny.model_dir(tmp_path, layers=3)
    model = losses.ByToken(loading.load(str(folder), Student(name="sft", **how), seed=0))  # type: ignore[arg-type]
    row = batches.Encoded(np.random.default_rng(0).integers(5, 400, 60).tolist(), 20)
    with FlopCounterMode(display=False) as counter:
        model(**batches.collate([row], np.ones((1, 1)), 0).inputs).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for kind, n in counted.items() if "attention" not in str(kind))
    cost = metrics.cost(model, "NVIDIA H200", ranks=2)
    assert cost is not None and cost.peak == 2 * 989e12
    assert 60 * cost.token + 40 * cost.target == pytest.approx(products, rel=0.06 if how else 0.01)


def test_figures_of_a_step() -> None:
    step = loop.Step(
        step=3, loss=1.5, loss_by_task={}, tokens=100, grad_norm=2.0, learning_rate=1e-3, seconds=0.5, all_tokens=300
    )
    made = metrics.figures(step, 4, metrics.Cost(token=10.0, target=5.0, peak=70_000.0))
    assert {**step._asdict(), "memory": made["memory"]}.items() <= made.items()
    assert (made["progress"], made["tokens_per_second"], made["all_tokens_per_second"]) == (1, 200, 600)
    assert made["mfu"] == pytest.approx((300 * 10 + 100 * 5) / 0.5 / 70_000)
    assert "mfu" not in metrics.figures(step, 4, None)


def test_memory_is_what_was_held_at_once() -> None:
    held = torch.ones(50_000_000)
    before = metrics.memory()
    del held
    assert before > 200e6


def test_what_is_shown_of_a_line() -> None:
    line = {"step": 3, "loss": 1, "losses": {"label": 0.5, "rationale": 2.0}, "kind": "x", "none": None}
    assert metrics.shown(line) == {"loss": 1.0, "losses/label": 0.5, "losses/rationale": 2.0}


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_name_that_cuda_gives(device: str, flops: float | None) -> None:
    assert peak(device) == flops
