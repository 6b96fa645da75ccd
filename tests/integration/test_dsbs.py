"""Distilling step-by-step through a run: rationales are generated, both tasks trained, the best checkpoint kept."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts import Artifact
from pipelines import evaluate, inputs, models, parts, recipe_file, run
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from pipelines.tiny import families

pytestmark = pytest.mark.timeout(1800)
RECIPE = """
name = "steps"
[teacher]
model = "tiny"
max_model_len = 512
[[dataset]]
name = "tasks"
source = "tiny-tasks"
families = ["sequence"]
rows = 60
validation_rows = 12
test_rows = 4
[prune]
layers = 3
baselines = []
[generate]
max_tokens = 160
[[student]]
name = "dsbs"
alpha = 0.3
batch_tokens = 512
epochs = 8
learning_rate = 3e-3
validation_steps = 5
checkpoint_steps = 10
[[student]]
name = "label-distilled"
labels = "teacher"
batch_tokens = 512
[cluster]
workers = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, Path]:
    """The folders of the run's artifacts, by name."""
    home = tmp_path_factory.mktemp("steps")
    (home / "steps.toml").write_text(RECIPE)
    recipe = recipe_file.load(str(home / "steps.toml"), [f'run_dir="{home}/run"'])
    run.run(recipe, until="train")
    return {out.name: out.local() for step in run.steps(recipe) for out in step.outs.values() if out.manifest()}


def rows(file: Path) -> list[dict]:
    """The rows of a Parquet file."""
    return pq.read_table(file).to_pylist()


def test_rows_are_of_both_tasks(made: dict[str, Path]) -> None:
    assert {"generate-rationale", "train-dsbs", "train-label-distilled"} <= set(made) and "generate" not in made
    train, held = rows(made["prepare"] / "train.parquet"), rows(made["prepare"] / "validation.parquet")
    assert (len(train), len(held)) == (48, 12) and not {r["input"] for r in train} & {r["input"] for r in held}

    learned = rows(made["train-dsbs"] / "train.parquet")
    labels = {row["id"]: row for row in learned if row["task"] == "label"}
    told = {row["id"]: row for row in learned if row["task"] == "rationale"}
    assert set(labels) == {row["id"] for row in train} and 40 < len(told) <= 48, "the teacher explains nearly all"
    for row in train:
        assert labels[row["id"]]["prompt"] == f"predict: {row['input']}"
        assert labels[row["id"]]["target"] == row["answer"]
    for key, row in told.items():
        assert row["prompt"] == labels[key]["prompt"].replace("predict: ", "explain: ")
        assert "answer" not in row["target"] and " less " in row["target"], "the rationale ends before the label"
    assert {row["prompt"] for row in rows(made["train-label-distilled"] / "train.parquet")} == {
        r["input"] for r in train
    }


def test_validation_rows_have_the_labels_that_are_learned(made: dict[str, Path], tmp_path: Path) -> None:
    """The teacher's where rows have none; rows of which nothing can be made are not held out for nothing."""
    teacher = {row["id"]: row["label"] for row in parts.rows(str(made["generate-rationale"]))}
    held = rows(made["train-label-distilled"] / "validation.parquet")
    assert held and {row["id"]: row["target"] for row in held} == {
        row["id"]: teacher[row["id"]] for row in rows(made["prepare"] / "validation.parquet") if teacher.get(row["id"])
    }
    (tmp_path / "out").mkdir()
    for split in ("train", "validation"):
        table = pq.read_table(made["prepare"] / f"{split}.parquet")
        if split == "validation":
            empty = pa.array([""] * len(table), table.schema.field("answer").type)
            table = table.set_column(table.column_names.index("answer"), "answer", empty)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = Artifact("prepare", "x", str(tmp_path))
    with pytest.raises(BadInput, match=r"student label: none of the 12 rows that dataset\.validation_rows holds out"):
        inputs.targets(Student(name="label"), data, None, tmp_path / "out")


def test_the_losses_of_both_tasks_are_told_and_the_best_step_is_kept(made: dict[str, Path]) -> None:
    steps = [json.loads(line) for line in (made["train-dsbs"] / "losses.jsonl").read_text().splitlines()]
    for step in steps:
        both = step["loss_by_task"]
        assert step["loss"] == pytest.approx(0.3 * both["label"] + 0.7 * both.get("rationale", 0.0))
    seen = {step["step"]: step["validation_loss"] for step in steps if step.get("validation_loss") is not None}
    assert sorted(seen)[:2] == [4, 9] and len(steps) - 1 in seen, "every five steps, and at the end"
    summary = json.loads((made["train-dsbs"] / "manifest.json").read_text())["summary"]
    assert summary["best_step"] == min(seen, key=seen.__getitem__) + 1
    assert summary["validation_loss"] == pytest.approx(min(seen.values()))
    single = [json.loads(line) for line in (made["train-label-distilled"] / "losses.jsonl").read_text().splitlines()]
    assert all(step["loss_by_task"] == {} for step in single)


def test_the_saved_model_is_the_best_one(made: dict[str, Path]) -> None:
    """Its validation loss, worked out from the saved checkpoint by transformers, is the least of the training's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made["train-dsbs"]
    words = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    total = count = 0.0
    for row in rows(folder / "validation.parquet"):
        if row["task"] == "label":
            asked = words.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
            )
            target = [*words(row["target"], add_special_tokens=False).input_ids, words.eos_token_id]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*asked, *target]])).logits[0, len(asked) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum").item()
            count += len(target)
    summary = json.loads((folder / "manifest.json").read_text())["summary"]
    assert total / count == pytest.approx(summary["validation_loss"], rel=0.05), "saved in bf16, trained under bf16"


def test_a_student_is_asked_as_it_was_taught() -> None:
    problem = families.distinct("sequence", "test", 0, 1)[0]
    row = {"context": "", "input": problem.question, "history": ""}
    (asked,) = evaluate._asked(models.TINY, [row], "predict: ")
    assert asked == [{"role": "user", "content": f"predict: {problem.question}"}]
