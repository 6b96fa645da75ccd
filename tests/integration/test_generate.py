"""Generation for real: Ray Data, vLLM, the tiny teacher; kill -9 in the middle, then on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.artifacts import Artifact
from pipelines import conversations, generate, inputs, models, prepare, prompts, recipe_file, shards, verdicts
from pipelines.tiny import scores as tiny_scores

pytestmark = pytest.mark.timeout(400)
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
SCRIPT = """
import json, sys
from cluster.session import session
from pipelines import generate, models, recipe_file
recipe = recipe_file.load("quickstart", json.loads(sys.argv[1]))
rows = json.load(open(sys.argv[2]))
with session("local", 8):
    generate.generate(recipe, models.resolve("tiny"), rows, sys.argv[3])
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("prepare")
    prepare.prepare(recipe_file.load("quickstart", SETTINGS), out)
    made = inputs.records(Artifact("prepare", "x", str(out)), "train")
    return [{**row, "history": conversations.dump(EARLIER) if i < 4 else ""} for i, row in enumerate(made)]


def parts(url: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((url / "shards").glob("*.parquet"))}


def test_kill_the_driver_then_go_on(rows: list[dict], tmp_path: Path, ray_session: None) -> None:
    """After SIGKILL the committed shards keep their bytes and only the others are made; each id is there once."""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    url = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, json.dumps(SETTINGS), str(tmp_path / "rows.json"), str(url)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 180
    while len(parts(url)) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # what Ray had in flight when its driver died may still land, whole
    before = parts(url)
    assert 2 <= len(before) < 8, "the kill has to come half-way"

    recipe = recipe_file.load("quickstart", SETTINGS)
    summary = generate.generate(recipe, models.resolve("tiny"), rows, str(url))
    after = parts(url)
    assert len(after) == 8 and all(after[name] == data for name, data in before.items())
    made = list(shards.rewrites(str(url)))
    assert sorted(row["id"] for row in made) == sorted(row["id"] for row in rows)
    assert summary["rows"] == 64 == sum(summary[v] for v in verdicts.VERDICTS)

    stamps = {path: path.stat().st_mtime_ns for path in url.rglob("*.parquet")}
    generate.generate(recipe, models.resolve("tiny"), rows, str(url))
    assert stamps == {path: path.stat().st_mtime_ns for path in url.rglob("*.parquet")}, "a second run does no work"

    check_rows(made)
    check_greedy(made[:24])


def check_rows(made: list[dict]) -> None:
    """The schema, and targets that follow from verdicts."""
    assert set(shards.OURS.names) <= set(made[0])
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


def test_a_prompt_too_long_is_an_error_row_and_falls_back(rows: list[dict], tmp_path: Path) -> None:
    """Rows that cannot fit never reach the engine: error verdict, reference as target, counted."""
    long = [{**row, "input": row["input"] * 60} for row in rows[:3]]
    summary = generate.generate(recipe_file.load("quickstart", SETTINGS), models.resolve("tiny"), long, str(tmp_path))
    assert summary["error"] == summary["fallback"] == summary["quarantined"] == 3
    row = pq.read_table(tmp_path / "shards" / "long-00000.parquet").to_pylist()[0]
    assert "max_model_len" in row["error"] and row["target"] == row["reference"]
