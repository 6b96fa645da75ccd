"""Training for real: Ray Train workers, FSDP2 over gloo, a tiny Llama; a killed driver goes on from there."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import train
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from pipelines.training import checkpoints, loop, metrics
from pipelines.training import data as training_data
from tests import tiny, trainings
from tests.trainings import assert_shown, losses, recipe, steps, when

pytestmark = pytest.mark.timeout(1800)
FULL = Student(
    name="sft", epochs=7.5, batch_tokens=640, micro_tokens=256, learning_rate=3e-3, checkpoint_steps=4, max_length=100
)

HOOK = """
import json
from pathlib import Path

def log(run, student, step, metrics):
    with open(Path(__file__).with_name("told.jsonl"), "a") as file:
        file.write(json.dumps([run, student, step, metrics]) + "\\n")

def fail(run, student, step, metrics):
    log(run, student, step, metrics)
    if step == 2:
        raise ValueError("no [red] server")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 sums, and one row that is too long."""
    long = {"id": "long", "prompt": "What is 1 + 1?" * 60, "target": "2"}
    return trainings.sums(tmp_path_factory.mktemp("data") / "rows.parquet", long)


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
    rates = {"tokens_per_second", "all_tokens_per_second"}
    assert set(made[0]) - rates == {*loop.Step._fields, "progress", "memory"}
    assert made[-1]["progress"] == 1
    assert made[0]["all_tokens_per_second"] == pytest.approx(made[0]["all_tokens"] / made[0]["seconds"])
    assert all(1e8 < step["memory"] < 1e10 for step in made)
    assert summary["final_loss"] < 0.7 * made[0]["loss"]  # 6.06 → 3.77 in 15 steps, seeds fixed
    assert (summary["rows"], summary["too_long"]) == (40, 1)
    assert summary["tokens"] == sum(step["tokens"] for step in made)
    assert sum(step["all_tokens"] for step in made) > 2 * summary["tokens"], "prompts are longer than sums"
    assert sorted(path.name for path in out.iterdir()) == ["losses.jsonl", "model", "tensorboard"]
    assert_shown(out)

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


def test_a_killed_driver_goes_on_with_another_number_of_workers_though_a_shard_is_gone(
    whole: tuple[Path, dict[str, Any]], pruned: Path, data: str, tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    driver = trainings.driver(address, recipe(2), FULL, pruned, data, tmp_path, tmp_path / "log")
    when(lambda: len(trainings.whole(tmp_path)) == 2)
    with trainings.at_rest() as workers:  # else they would go on for some seconds
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        for worker in workers:
            worker.kill()
    (trainings.whole(tmp_path)[-1] / "__1_0.distcp").unlink()
    before = losses_saved(tmp_path)
    assert before
    summary = train.train(recipe(1), FULL, pruned, data, tmp_path)
    assert summary["steps"] == whole[1]["steps"]
    damaged, goes_on = summary["notes"]
    assert damaged == f"sft: the checkpoint of step {len(before) + 4} is damaged: __1_0.distcp is missing"
    assert goes_on == f"sft: goes on from step {len(before)}"
    assert losses(tmp_path)[: len(before)] == before, "steps that were done are not done again"
    # Another number of ranks rounds its bf16 products in other batches: 3 %.
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=3e-2)
    assert_shown(tmp_path)


def losses_saved(out: Path) -> list[float]:
    """The losses in the newest whole checkpoint."""
    start, _ = checkpoints.newest(out / "checkpoints")
    return [step["loss"] for step in checkpoints.read_steps(start / "losses.jsonl")] if start else []


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


def test_the_last_block_alone_is_trained_in_two_copies(
    ray_session: None, pruned: Path, data: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    student = FULL.model_copy(update={"last_layers": 1, "epochs": 1, "checkpoint_steps": 1})
    summary = train.train(recipe(2, replicas=2), student, pruned, data, tmp_path)
    assert summary["final_loss"] < losses(tmp_path)[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layers.1." in name or name == "model.norm.weight"}
    assert summary["trainable"] == sum(before[name].numel() for name in changed) < summary["parameters"]


@pytest.mark.parametrize(
    ("hook", "calls", "said"),
    [
        ("log", 8, ""),
        ("fail", 3, "hooked.py, line 12: ValueError: no [red] server"),
        ("lgo", 0, "AttributeError: module 'hooked' has no attribute 'lgo'"),
    ],
)
def test_a_hook_gets_every_step_and_stops_nothing(
    hook: str, calls: int, said: str, ray_session: None, pruned: Path, data: str, tmp_path: Path
) -> None:
    import ray

    (tmp_path / "hooked.py").write_text(HOOK)
    asked, out, log = recipe(1, metrics_hook=f"hooked:{hook}"), tmp_path / "out", tmp_path / "log"
    student = FULL.model_copy(update={"epochs": 4})
    address = ray.get_runtime_context().gcs_address
    driver = trainings.driver(address, asked, student, pruned, data, out, log, str(tmp_path))
    assert driver.wait(300) == 0, log.read_text()
    seen = " ".join(log.read_text().split())
    assert seen.count("is not called any more") == bool(said) and said in seen, seen
    told = tmp_path / "told.jsonl"
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    wanted = [["x", "sft", line["step"], metrics.shown(line)] for line in steps(out)]
    assert len(wanted) == 8 and lines == wanted[:calls]
    assert_shown(out)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "there are no rows"),
        (
            [{"id": "1", "prompt": "a" * 500, "target": "b"}],
            "none of the 1 rows can be used; 1 are longer than max_length = 100 tokens",
        ),
        ([{"id": "1", "prompt": "a", "target": None}], "row 1: no target"),
        ([{"id": "1", "prompt": "a"}], "lack the column 'target'; needed: id, prompt, target"),
        ([{"id": "1", "prompts": "a", "target": "b"}], "lack the column 'prompt', did you mean 'prompts'?; needed"),
        ([{"id": "1", "prompt": "a", "target": 7}], "the column 'target' holds int64; text is needed"),
        ([{"id": 0.5, "prompt": "a", "target": "b"}], "the column 'id' holds double; text is needed"),
        (
            [{"id": "1", "prompt": "a", "target": "b", "history": "no JSON"}],
            "row 1: history: the conversation is neither",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    rows: list[dict[str, Any]], why: str, ray_session: None, pruned: Path, tmp_path: Path
) -> None:
    kinds = {float: pa.float64(), int: pa.int64()}
    shape = rows[0] if rows else dict.fromkeys(("id", "prompt", "target"))
    fields = [(name, kinds.get(type(value), pa.string())) for name, value in shape.items()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match=re.escape(str(tmp_path / "rows.parquet")) + f".*{re.escape(why)}"):
        train.train(recipe(1), FULL, pruned, str(tmp_path / "rows.parquet"), tmp_path / "out")


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("id,prompt,target\n")
    (tmp_path / "folder.parquet").mkdir()
    columns = [pa.array(["x"], pa.string_view())] * 4
    pq.write_table(pa.table(columns, ["id", "prompt", "target", "target"]), tmp_path / "twice.parquet")
    for name, why in (
        ("rows.parquet", "are not a Parquet file"), ("none.parquet", "do not exist"),
        ("folder.parquet", "are a folder"), ("twice.parquet", "have 2 columns 'target'"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=f"training data .*{name} {why}"):
            training_data.groups(str(tmp_path / name))
    pq.write_table(pa.table(columns[:3], ["id", "prompt", "target"]), tmp_path / "views.parquet")
    assert training_data.groups(str(tmp_path / "views.parquet")) == [1]
    raw = [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    no_text = pa.table([pa.Array.from_buffers(pa.string(), 1, raw), *columns[:2]], ["id", "prompt", "target"])
    pq.write_table(no_text, tmp_path / "bytes.parquet")
    with pytest.raises(RuntimeError, match=r"bytes\.parquet are damaged in row group 0: .*Invalid UTF8"):
        training_data.rows(str(tmp_path / "bytes.parquet"), 0)
