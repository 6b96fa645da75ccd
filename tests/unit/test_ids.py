"""Artifact ids: equal work is one artifact, other work another, and where it runs does not matter."""

import shutil
from pathlib import Path

import pytest

from pipelines import recipe_file, run
from tests import tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("t"), layers=4)


def ids(teacher: Path, *overrides: str) -> dict[str, str]:
    recipe = recipe_file.load("quickstart", [f"teacher.model={teacher}", "prune.layers=2", *overrides])
    return {out.name: out.id for step in run.steps(recipe) for out in step.outs.values()}


def changed(teacher: Path, *overrides: str) -> set[str]:
    before, after = ids(teacher), ids(teacher, *overrides)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    "override",
    ["run_dir=/elsewhere", "serve.port=9000", "cluster.workers=4", "cluster.replicas=2", "generate.engines=2",
     "evaluate.concurrency=8", "student.sft.checkpoint_steps=7", "student.sft.compile=true",
     "serve.models_at_a_time=1", "evaluate.bootstrap=500", "name=other"],
)  # fmt: skip
def test_what_shapes_no_output_changes_no_id(teacher: Path, override: str) -> None:
    assert changed(teacher, override) == set()


def test_a_change_reaches_what_follows_and_nothing_else(teacher: Path) -> None:
    assert changed(teacher, "student.sft.epochs=9") == {"train-sft", "evaluate-sft"}
    assert changed(teacher, "student.sft.last_layers=1") == {"train-sft", "evaluate-sft"}
    assert changed(teacher, "generate.temperature=0.5") == {"generate", "train-sdd", "evaluate-sdd"}
    touched = changed(teacher, "prune.layers=1")
    assert "prepare" not in touched and "generate" not in touched and {"prune-angular", "train-sdd"} <= touched
    assert len(changed(teacher, "seed=1")) == len(ids(teacher))


def test_other_weights_are_another_teacher(teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher, tmp_path / "copy")
    assert ids(copy) == ids(teacher), "the same weights elsewhere are the same teacher"
    other = tiny.model_dir(tmp_path / "other", layers=4, seed=1)
    assert "prepare" not in {n for n in ids(other) if ids(other)[n] != ids(teacher)[n]}
    assert (
        ids(other)["generate"] != ids(teacher)["generate"]
        and ids(other)["evaluate-teacher"] != ids(teacher)["evaluate-teacher"]
    )
