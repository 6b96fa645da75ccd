"""A run's generate stage for real: Ray Data, vLLM, the tiny teacher."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.artifacts import Artifact
from pipelines import conversations, generate, inputs, models, parts, prepare, prompts, recipe_file, verdicts
from pipelines.generation import job
from pipelines.student import Student
from pipelines.tiny import scores as tiny_scores

pytestmark = pytest.mark.timeout(1800)
SETTINGS = [
    "dataset.0.rows=64",
    "dataset.0.test_rows=1",
    "generate.shard_rows=8",
    "generate.max_num_seqs=8",
    "cluster.cpus=8",
]
EARLIER = [  # of four rows, which stand in a conversation
    {"role": "system", "content": "Answer with care."},
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "3 + 4 = 7\n#### 7"},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("prepare")
    prepare.prepare(recipe_file.load("quickstart", SETTINGS), out)
    made = inputs.records(Artifact("prepare", "x", str(out)), "train")
    return [{**row, "history": conversations.dump(EARLIER) if i < 4 else ""} for i, row in enumerate(made)]


def written(url: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((url / "data").glob("part-*.parquet"))}


def stored(rows: list[dict], folder: Path) -> str:
    """`rows` as prepare stores them."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return str(folder / "train.parquet")


def rewrite(path: str, url: Path) -> dict:
    """The stage, here and now."""
    asked = job.of_recipe(recipe_file.load("quickstart", SETTINGS), str(url))
    return generate.generate(asked, storage.find(path), models.resolve("tiny"))


def test_a_runs_stage_on_vllm(rows: list[dict], tmp_path: Path, ray_session: None) -> None:
    """Each id is there once, the texts are the teacher's, and a second go does no work."""
    path, url = stored(rows, tmp_path), tmp_path / "out"
    summary = rewrite(path, url)
    assert len(written(url)) == 8
    made = list(parts.rows(str(url)))
    assert sorted(row["id"] for row in made) == sorted(row["id"] for row in rows)
    assert summary["rows"] == 64 == sum(summary[v] for v in verdicts.VERDICTS)

    stamps = {path: path.stat().st_mtime_ns for path in url.rglob("*.parquet")}
    rewrite(path, url)
    assert stamps == {path: path.stat().st_mtime_ns for path in url.rglob("*.parquet")}, "a second run does no work"

    check_rows(made)
    check_greedy(made[:24])


def check_rows(made: list[dict]) -> None:
    """The schema, and targets that follow from verdicts."""
    assert set(parts.OURS.names) <= set(made[0])
    for row in made:
        assert row["target"] == verdicts.target(row["verdict"], row["text"], row["reference"])
        assert row["prompt_tokens"] > 0 and row["completion_tokens"] > 0 and row["error"] == ""
    whole = (
        "<|system|>Answer with care.<|end|><|user|>What is 3 + 4?<|end|><|assistant|>3 + 4 = 7\n#### 7<|end|><|user|>"
    )
    assert sum(row["prompt"].startswith(whole) and row["history"] != "" for row in made) == 4
    kept = sum(row["verdict"] == "match" for row in made)
    assert kept >= 0.85 * len(made), f"the tiny teacher keeps {kept} of {len(made)} answers"
    assert not any(row["text"] == row["reference"] for row in made)


def check_greedy(made: list[dict]) -> None:
    """vLLM's greedy text is transformers' greedy text (both fp32; a tie in the logits may differ in one row)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.TINY)
    model = AutoModelForCausalLM.from_pretrained(models.TINY, dtype="float32").eval()
    asked = [prompts.rewrite(row["input"], row["reference"], conversations.load(row["history"])) for row in made]
    assert any(len(messages) > 1 for messages in asked)
    said = tiny_scores.write(model, tokenizer, asked, longest=160)
    assert sum(text == row["text"] for text, row in zip(said, made, strict=True)) >= len(made) - 1


def test_a_prompt_too_long_is_in_quarantine_and_falls_back(rows: list[dict], tmp_path: Path, ray_session: None) -> None:
    """Rows that cannot fit never reach the engine: counted as errors, reference as the student's target."""
    long = [{**row, "input": row["input"] * 60} for row in rows[:3]]
    path, out = stored(long, tmp_path), tmp_path / "out"
    summary = rewrite(path, out)
    assert summary["rows"] == summary["error"] == summary["quarantined"] == summary["fallback"] == 3
    (file,) = (out / "quarantine").glob("*.jsonl")
    held = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["line"]: row["id"] for row in held} == {n: row["id"] for n, row in enumerate(long, 1)}
    assert all("max_model_len" in row["reason"] and row["file"].endswith("train.parquet") for row in held)
    assert list(parts.rows(str(out))) == []
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "validation.parquet")
    (tmp_path / "student").mkdir()
    data, written = Artifact("prepare", "x", str(tmp_path)), Artifact("generate", "y", str(out))
    taught, _ = inputs.targets(Student(name="sdd"), data, written, tmp_path / "student")
    assert {row["id"]: row["target"] for row in pq.read_table(taught).to_pylist()} == {
        row["id"]: row["reference"] for row in long
    }
