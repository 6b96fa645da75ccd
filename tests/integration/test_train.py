"""Training for real: Ray Train workers, FSDP2 over gloo, a tiny Llama; kill -9 in the middle, then on from there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import train
from pipelines.recipe import Recipe, Student
from tests import tiny

pytestmark = pytest.mark.timeout(400)
FULL = Student(
    name="sft", epochs=7.5, batch_tokens=640, micro_tokens=256, learning_rate=3e-3, checkpoint_steps=10, max_length=100
)
DRIVER = """
import json, sys
from pathlib import Path
from cluster.session import session
from pipelines import train
from pipelines.recipe import Recipe, Student
with session(sys.argv[1], None):
    recipe, student = Recipe(**json.loads(sys.argv[2])), Student(**json.loads(sys.argv[3]))
    train.train(recipe, student, Path(sys.argv[4]), sys.argv[5], Path(sys.argv[6]))
"""


def recipe(workers: int) -> Recipe:
    return Recipe(
        name="x", dataset=[{"name": "d", "source": "x.jsonl"}], prune={"layers": 1}, cluster={"workers": workers}
    )


def steps(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [step["loss"] for step in steps(out)]


def when_checkpointed(out: Path, act: Callable[[], None]) -> None:
    """Call `act` once Ray Train has noted the first whole checkpoint of the training in `out`."""
    snapshot = out / "checkpoints" / "run" / "checkpoint_manager_snapshot.json"
    for _ in range(6000):
        if snapshot.exists():
            return act()
        time.sleep(0.02)
    raise AssertionError("no checkpoint after two minutes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 sums, and one row that is too long, in no particular order."""
    rows = [
        {"id": f"{a}{b}", "prompt": f"What is {a} + {b}?", "target": f"The answer is {a + b}."}
        for b in range(5)
        for a in range(8)
    ]
    rows.append({"id": "long", "prompt": "What is 1 + 1?" * 60, "target": "2"})
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows[::-1]), path)
    return str(path)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in bf16, as large ones are stored."""
    from transformers import AutoModelForCausalLM

    path = tiny.model_dir(tmp_path_factory.mktemp("pruned"), layers=2)
    AutoModelForCausalLM.from_pretrained(path).bfloat16().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(
    ray_session: None, pruned: Path, data: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run of two workers."""
    out = tmp_path_factory.mktemp("whole")
    return out, train.train(recipe(2), FULL, pruned, data, out)


def test_a_full_run_learns_and_leaves_an_ordinary_checkpoint(whole: tuple[Path, dict[str, Any]], pruned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, summary = whole
    made = steps(out)
    assert [step["step"] for step in made] == list(range(summary["steps"]))
    assert set(made[0]) == {"step", "loss", "tokens", "grad_norm", "learning_rate", "seconds"}
    assert summary["final_loss"] < 0.7 * made[0]["loss"]  # 6.06 → 3.77 in 15 steps, seeds fixed
    assert (summary["rows"], summary["too_long"]) == (40, 1)
    assert summary["tokens"] == sum(step["tokens"] for step in made)
    assert sorted(path.name for path in out.iterdir()) == ["losses.jsonl", "model"]

    model, start = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (out / "model", pruned))
    assert model.dtype == start.dtype == torch.bfloat16
    assert summary["parameters"] == summary["trainable"] == sum(p.numel() for p in model.parameters())
    words = AutoTokenizer.from_pretrained(out / "model")
    assert words.chat_template
    ids = words.apply_chat_template([{"role": "user", "content": "What is 3 + 4?"}], add_generation_prompt=True)
    ids = torch.tensor([ids["input_ids"]])
    labels = torch.cat([ids, torch.tensor([words("The answer is 7.").input_ids])], 1)

    def loss_of(asked: Any) -> float:
        wanted = labels.masked_fill(torch.arange(labels.shape[1]) < ids.shape[1], -100)
        return asked(input_ids=labels, labels=wanted).loss.item()

    assert loss_of(model) < 0.7 * loss_of(start), "the saved weights are the trained ones"
    assert "sft" in (out / "model" / "README.md").read_text()


def test_a_killed_worker_costs_no_step_and_changes_no_loss(
    whole: tuple[Path, dict[str, Any]], pruned: Path, data: str, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(p.cmdline())]
        os.kill(workers[-1].pid, signal.SIGKILL)
        killed.append(workers[-1].pid)

    watcher = threading.Thread(target=when_checkpointed, args=(tmp_path, kill))
    watcher.start()
    summary = train.train(recipe(2), FULL, pruned, data, tmp_path)
    watcher.join()
    assert killed
    assert summary["steps"] == whole[1]["steps"]
    # Same ranks, same sums in the same order: equal but for how threads split a product.
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-4)


def test_a_killed_driver_goes_on_with_another_number_of_workers(
    whole: tuple[Path, dict[str, Any]], pruned: Path, data: str, tmp_path: Path
) -> None:
    import ray

    words = [ray.get_runtime_context().gcs_address, recipe(2).model_dump_json(), FULL.model_dump_json()]
    words += [str(pruned), data, str(tmp_path)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], cwd=Path(__file__).parents[2])
    when_checkpointed(tmp_path, driver.kill)
    assert driver.wait() == -signal.SIGKILL
    before = losses_saved(tmp_path)
    assert before
    summary = train.train(recipe(1), FULL, pruned, data, tmp_path)
    assert summary["steps"] == whole[1]["steps"]
    assert losses(tmp_path)[: len(before)] == before, "steps that were done are not done again"
    # Another number of ranks rounds its bf16 products in other batches: 3 %.
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=3e-2)


def losses_saved(out: Path) -> list[float]:
    """The losses in the checkpoint that Ray Train trusts."""
    run = out / "checkpoints" / "run"
    noted = json.loads((run / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    lines = (run / noted["checkpoint_dir_name"] / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_lora_is_merged_and_its_adapter_kept(ray_session: None, pruned: Path, data: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    student = FULL.model_copy(update={"lora_rank": 4, "activation_checkpointing": True, "epochs": 4})
    summary = train.train(recipe(1), student, pruned, data, tmp_path)
    assert summary["trainable"] < summary["parameters"]
    assert summary["final_loss"] < 0.98 * losses(tmp_path)[0]  # rank 4, 8 steps: 6.06 → 5.83
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned).float(), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        one, other = adapted(ids).logits, merged(ids).logits
    # The merged weights are rounded to bf16 once: 8 bits of mantissa.
    assert (one - other).norm() < 2e-2 * one.norm()


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "there are no rows"),
        ([{"id": "1", "prompt": "a" * 500, "target": "b"}], "all 1 rows are longer than max_length = 100"),
        ([{"id": "1", "prompt": "a", "target": None}], "1 rows have no target"),
        ([{"id": "1", "prompt": "a"}], "lack the column 'target'"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    rows: list[dict[str, Any]], why: str, pruned: Path, tmp_path: Path
) -> None:
    fields = [(name, pa.string()) for name in (rows[0] if rows else ("id", "prompt", "target"))]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=why):
        train.train(recipe(1), FULL, pruned, str(tmp_path / "rows.parquet"), tmp_path / "out")


def test_a_torn_list_of_checkpoints_means_from_the_beginning(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint_manager_snapshot.json").write_text('{"ray_ver')
    train._drop_torn(run)
    assert not run.exists()
