"""Examples before the question: what a recipe asks for is what lm-eval's own task objects will show."""

import shutil
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from pipelines import lm_tasks, recipe_file
from pipelines.planning import lm_sizes

TINY = Path(recipe_file.PACKAGED) / "lm_tasks"
WITH_EXAMPLES = "include: tiny_choices.yaml\ntask: mine\nfewshot_split: test\n"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """The packaged tiny tasks, and one that takes its examples from its own rows."""
    shutil.copytree(TINY, tmp_path / "tasks")
    (tmp_path / "tasks" / "mine.yaml").write_text(WITH_EXAMPLES)
    (tmp_path / "tasks" / "own.yaml").write_text(WITH_EXAMPLES.replace("mine", "own") + "num_fewshot: 2\n")
    (tmp_path / "tasks" / "none.yaml").write_text(WITH_EXAMPLES.replace("mine", "none") + "num_fewshot: 0\n")
    return tmp_path / "tasks"


def test_as_many_examples_as_asked_for_or_the_tasks_own_number(tasks: Path) -> None:
    loaded = lm_tasks.load([f"{tasks}/mine.yaml:3", f"{tasks}/own.yaml", f"{tasks}/tiny_answers.yaml"])
    assert {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()} == {
        "mine": 3,
        "own": 2,
        "tiny_answers": 0,
    }
    assert lm_tasks.load([f"{tasks}/own.yaml:1"])["tasks"]["own"].get_config("num_fewshot") == 1


def test_examples_stand_before_the_question_and_are_not_it(tasks: Path) -> None:
    task = lm_tasks.load([f"{tasks}/mine.yaml:3"])["tasks"]["mine"]
    plain = lm_tasks.load([f"{tasks}/mine.yaml:0"])["tasks"]["mine"]
    for one in (task, plain):
        one.build_all_requests(limit=20)
    rows = {row["question"] for row in task.test_docs()}
    for shown, asked in zip(task.instances, plain.instances, strict=True):
        text, question = shown.args[0], asked.args[0]
        assert text.endswith(question) and shown.args[1] == asked.args[1]
        examples = [row for row in rows if row in text.removesuffix(question)]
        assert len(examples) == 3 and question not in examples
    again = lm_tasks.load([f"{tasks}/mine.yaml:3"])["tasks"]["mine"]
    again.build_all_requests(limit=20)
    assert [i.args for i in again.instances] == [i.args for i in task.instances], "seeded"


def test_what_cannot_be_shown_is_refused(tasks: Path) -> None:
    for words, said in (
        (["tiny_choices.yaml:3"], "no rows to take 3 examples from"),
        (["none.yaml:3"], "to be asked without examples"),
        (["mine.yaml:1", "mine.yaml:2"], "twice"),
        (["nowhere.yaml:1"], "does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            lm_tasks.load([f"{tasks}/{word}" for word in words])


def test_the_tasks_of_shipped_recipes_exist_and_have_a_size() -> None:
    home = Path(lm_eval.__file__).parent / "tasks"
    folders = [home / name for name in ("arc", "gsm8k", "mmlu", "hellaswag", "winogrande", "truthfulqa")]
    known = TaskManager(include_defaults=False, include_path=folders, metadata={}).all_tasks
    for name in recipe_file.names():
        for word in recipe_file.load(name).evaluate.lm_eval:
            task, _ = lm_tasks.named(word)
            assert task.endswith(".yaml") or (task in known and task in lm_sizes.SIZES), word
