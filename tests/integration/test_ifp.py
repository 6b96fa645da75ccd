"""Instruction-following pruning for real: Ray Train workers, FSDP2 over gloo, tiny Llamas; what comes out is served by
stock engines and read by whoever exports a mask."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import subnetwork, train
from pipelines.ifp import routed
from pipelines.recipe_file import BadInput
from pipelines.student import Ifp, Student
from serving import predictor
from tests import tiny, trainings
from tests.trainings import losses, recipe, steps, when

pytestmark = pytest.mark.timeout(1800)
HOW = Ifp(units=24, predictor="first-1", calibration_rows=30, subnetworks=2, anneal=0.5, predictor_learning_rate=3e-2)
STUDENT = Student(
    name="ifp", epochs=6, batch_tokens=640, micro_tokens=256, learning_rate=3e-3, checkpoint_steps=4, max_length=100,
    ifp=HOW,
)  # fmt: skip


def with_(**ifp: Any) -> Student:
    return STUDENT.model_copy(update={"ifp": HOW.model_copy(update=ifp)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 sums."""
    return trainings.sums(tmp_path_factory.mktemp("data") / "rows.parquet")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("teacher"), layers=2)


@pytest.fixture(scope="module")
def whole(ray_session: None, teacher: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run of two workers."""
    out = tmp_path_factory.mktemp("whole")
    return out, train.train(recipe(2), STUDENT, teacher, data, out)


def test_what_comes_out_is_a_routed_model(whole: Any, teacher: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, told = whole
    found = steps(out)
    assert found[-1]["loss"] < found[0]["loss"] - 1, "it learns"
    assert 100 < found[0]["units"] < 128 and found[-1]["units"] == 24
    assert found[-1]["temperature"] == HOW.temperature[1] and {"mask_overlap", "mask_variance"} <= found[-1].keys()
    trainings.assert_shown(out)
    model = out / "model"
    reader = predictor.load(model / "predictor")
    assert tuple(reader.about)[:3] == (2, 128, 24) and subnetwork.shape(model / "whole") == (2, 128)
    numbers = sorted(path.name for path in (model / "subnetworks").iterdir())
    assert numbers == ["0", "1"][: len(numbers)] and numbers
    for number in numbers:
        small = AutoModelForCausalLM.from_pretrained(model / "subnetworks" / number)
        assert small.config.intermediate_size == 24 and AutoTokenizer.from_pretrained(model) is not None
    assert told["parameters"] == sum(p.numel() for p in small.parameters())
    assert {"units": 24, "units_before": 128}.items() <= told.items() and 0 < told["shared"] <= 1
    table = json.loads((out / "masks.json").read_text())
    assert sum(table["sizes"]) == table["prompts"] == 30 and table["overlap"] == pytest.approx(told["overlap"])
    assert not [name for name in ("whole", "chooser", "checkpoints") if (out / name).exists()]
    before = predictor.load(model / "predictor").predictor
    assert before.up.weight.abs().max() > 0, "the head has been trained"


def test_one_worker_learns_the_same(whole: Any, teacher: Path, data: str, tmp_path: Path) -> None:
    train.train(recipe(1), STUDENT, teacher, data, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=2e-3), "bf16 on a CPU that has it"
    for mine, theirs in zip(steps(tmp_path), steps(whole[0]), strict=True):
        assert mine["mask_overlap"] == pytest.approx(theirs["mask_overlap"], abs=0.05)


def test_a_killed_driver_goes_on(ray_session: None, whole: Any, teacher: Path, data: str, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    process = trainings.driver(address, recipe(2), STUDENT, teacher, data, tmp_path / "o", tmp_path / "log")
    when(lambda: bool(trainings.whole(tmp_path / "o")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    train.train(recipe(2), STUDENT, teacher, data, tmp_path / "o")
    assert losses(tmp_path / "o") == pytest.approx(losses(whole[0]), rel=1e-5)
    mine, theirs = (predictor.load(out / "model" / "predictor") for out in (tmp_path / "o", whole[0]))
    torch.testing.assert_close(mine.predictor.up.bias, theirs.predictor.up.bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", ["static", "importance"])
def test_one_mask_for_all_is_one_dense_model(
    ray_session: None, teacher: Path, data: str, tmp_path: Path, mask: str
) -> None:
    from transformers import AutoModelForCausalLM

    told = train.train(recipe(1), with_(mask=mask), teacher, data, tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert made.config.intermediate_size == 24 and told["parameters"] == sum(p.numel() for p in made.parameters())
    assert steps(tmp_path)[-1]["loss"] < steps(tmp_path)[0]["loss"] and not (tmp_path / "masks.json").exists()


def test_documents_come_first(ray_session: None, teacher: Path, data: str, tmp_path: Path) -> None:
    """Stage 1 with a predictor of another tokenizer, then stage 2; LoRA on the model."""
    other = tiny.model_dir(tmp_path / "small", layers=1, chat=False, seed=1)
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} and 1 are {n + 1}. " * 12}) + "\n" for n in range(12)))
    student = with_(text=str(file), text_chunk=16, predictor=str(other)).model_copy(
        update={"lora_rank": 4, "epochs": 1}
    )
    told = train.train(recipe(2), student, teacher, data, tmp_path / "o")
    found = steps(tmp_path / "o")
    plain = len(steps_of(STUDENT, teacher, data, tmp_path))
    assert len(found) > plain and told["rows"] == 40
    assert (tmp_path / "o" / "adapter").exists() and routed.WHOLE in {
        p.name for p in (tmp_path / "o" / "model").iterdir()
    }


def steps_of(student: Student, teacher: Path, data: str, tmp_path: Path) -> Any:
    from pipelines.training import packs

    return packs.write(teacher, data, student.model_copy(update={"epochs": 1, "ifp": None}), 0, tmp_path / "packs")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"units": 129}, "student ifp: 129 of 128 FFN units cannot stay on; keep 1 to 128"),
        ({"predictor": "first-3"}, "ifp.predictor = 'first-3': choose from 1 to 2 blocks"),
    ],
)
def test_students_that_cannot_be(
    ray_session: None, teacher: Path, data: str, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        train.train(recipe(1), with_(**fields), teacher, data, tmp_path)


def test_a_prompt_past_the_predictors_context(ray_session: None, teacher: Path, data: str, tmp_path: Path) -> None:
    short = tiny.model_dir(tmp_path / "small", layers=1, max_position_embeddings=8)
    with pytest.raises(BadInput, match="the mask predictor reads 8 at most"):
        train.train(recipe(1), with_(predictor=str(short)), teacher, data, tmp_path / "o")
