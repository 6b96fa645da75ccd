"""What travels with a job, and that the recipe reads back the same on the other side."""

import os
from pathlib import Path

import pytest

from pipelines import recipe_file, shipping
from pipelines.recipe_file import BadInput

RECIPE = """
name = "mine"
run_dir = "s3://bucket/mine"
[teacher]
model = "model"
[[dataset]]
name = "rows"
source = "data/rows.jsonl"
test_source = "data/test.jsonl"
[prune]
layers = 2
[generate]
rationale_prompt = "asked.txt"
[[student]]
name = "ifp"
[student.ifp]
units = 8
text = "texts.jsonl"
predictor = "small"
[[student]]
name = "ifp-hub"
[student.ifp]
units = 8
predictor = "Qwen/Qwen3-0.6B"
[evaluate]
lm_eval = ["tasks/one.yaml:5", "tasks/two.yaml", "arc_challenge:25"]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for name in ("model/config.json", "data/rows.jsonl", "data/test.jsonl", "tasks/one.yaml", "tasks/two.yaml",
                 "small/config.json", "texts.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "tasks" / "rows.jsonl").write_text("beside")
    (tmp_path / "asked.txt").write_text("Q: {input}")
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path / "mine.toml"


def test_files_go_along_under_paths_of_the_job(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    said = shipping.pack(recipe_file.load(str(mine)), folder, code=False)
    there = recipe_file.load(str(folder / "recipe.toml"))  # as the job reads it
    assert said[0] == "run_dir s3://bucket/mine"
    assert sum("goes along, 0.0 MiB" in sentence for sentence in said) == 7  # the tasks' folder once
    assert Path(there.teacher.model, "config.json").read_text() == "model/config.json"
    assert Path(there.dataset[0].source).read_text() == "data/rows.jsonl"
    assert Path(there.dataset[0].test_source or "").read_text() == "data/test.jsonl"
    assert Path(there.generate.rationale_prompt or "").read_text() == "Q: {input}"
    ifp, hub = (student.ifp for student in there.student)
    assert ifp and hub and Path(ifp.text or "").read_text() == "texts.jsonl" and hub.predictor == "Qwen/Qwen3-0.6B"
    assert Path(ifp.predictor, "config.json").read_text() == "small/config.json"
    one, two, named = there.evaluate.lm_eval
    assert one.endswith("tasks/one.yaml:5") and named == "arc_challenge:25"
    assert Path(two).read_text() == "tasks/two.yaml" and Path(two).with_name("rows.jsonl").read_text() == "beside"
    assert Path(one).parent == Path(two).parent
    assert all(str(folder) in path for path in (there.teacher.model, there.dataset[0].source, two))


def test_code_goes_along_without_bytecode(tmp_path: Path) -> None:
    shipping.pack(recipe_file.load("quickstart", ["run_dir=s3://b/q"]), tmp_path, code=True)
    sent = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"pipelines/cli.py", "serving/gate.py", "cluster/session.py", "pipelines/recipes/quickstart.toml"} <= sent
    assert not any("__pycache__" in path for path in sent)


def test_paths_of_the_cluster_stay(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    asked = recipe_file.load(str(mine), ["dataset.rows.source=/cluster/rows.jsonl"])
    said = shipping.pack(asked, folder, False, (str(tmp_path / "model"),))
    there = recipe_file.load(str(folder / "recipe.toml"))
    assert there.dataset[0].source == "/cluster/rows.jsonl"
    assert there.teacher.model == str(tmp_path / "model")
    assert sum("taken for a path of the cluster's nodes" in sentence for sentence in said) == 2


def test_too_much_is_refused_with_the_way_out(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(shipping.MOST + 1)
    with pytest.raises(BadInput, match=r"model: 200 MiB, more than .* say --cluster-path .*model"):
        shipping.pack(recipe_file.load(str(mine)), folder, False)


def test_paths_of_overrides_are_from_here(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "other.jsonl").write_text("other")
    monkeypatch.chdir(tmp_path)
    shipping.pack(recipe_file.load(str(mine), ["dataset.rows.source=other.jsonl"]), folder, False)
    there = recipe_file.load(str(folder / "recipe.toml"))
    assert Path(there.dataset[0].source).read_text() == "other"
    with pytest.raises(BadInput, match=r"nowhere\.jsonl: there is no such file here"):
        shipping.pack(recipe_file.load(str(mine), ["dataset.rows.source=nowhere.jsonl"]), folder, False)


def test_beside_a_task_hidden_files_stay_and_links_count(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks" / ".env").write_text("HIDDEN=1")
    (tmp_path / "tasks" / ".ssh").mkdir()
    (tmp_path / "tasks" / ".ssh" / "id").write_text("hidden")
    (tmp_path / "tasks" / ".gitignore").write_text("*.yaml")
    (tmp_path / "tasks" / "broken").symlink_to("/nowhere")
    (tmp_path / "tasks" / "linked.jsonl").symlink_to(tmp_path / "data" / "rows.jsonl")
    os.mkfifo(tmp_path / "tasks" / "pipe")
    folder = tmp_path / "job"
    folder.mkdir()
    shipping.pack(recipe_file.load(str(mine)), folder, False)
    (tasks,) = folder.glob("files/*/tasks")
    assert {path.name for path in tasks.iterdir()} == {"one.yaml", "two.yaml", "rows.jsonl", "linked.jsonl"}
    assert (tasks / "linked.jsonl").read_text() == "data/rows.jsonl" and not (tasks / "linked.jsonl").is_symlink()


def test_a_secret_beside_a_task_is_refused_unshown(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks" / "notes.txt").write_text("key: hf_" + "plantedXYZ" * 3)
    with pytest.raises(BadInput, match=r"notes\.txt holds a Hugging Face token") as refused:
        shipping.pack(recipe_file.load(str(mine)), tmp_path / "job", False)
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("run_dir", ["", "runs/mine"])
def test_a_run_dir_that_goes_with_the_job_is_refused(run_dir: str) -> None:
    with pytest.raises(BadInput, match="give run_dir=s3://BUCKET/quickstart"):
        shipping.check_run_dir(recipe_file.load("quickstart", [f"run_dir={run_dir}"]))
