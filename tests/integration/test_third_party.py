"""Checkpoints that this project did not make: cut, the same logits in transformers and in stock vLLM; then as
teachers that write, as students that learn, behind the endpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import storage
from pipelines import evaluate, generate, layers, parts, prompts, prune, train
from pipelines.generation import job
from pipelines.recipe import Recipe
from pipelines.served import of_run
from pipelines.student import Student
from serving import endpoint
from serving.listening import Http
from tests import others, ports
from tests.others import CONFIGS, LAYERS, QUESTIONS, WINDOW

pytestmark = pytest.mark.timeout(1800)
# In one process and without engine processes: importing vLLM takes longer than all five models.
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
found = {}
for name, path in json.loads(sys.argv[1]).items():
    llm = LLM(path, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, seed=0,
              kv_cache_memory_bytes=64 << 20, enable_prefix_caching=False)
    ask = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=8)
    made = llm.generate([{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])[name]], ask, use_tqdm=False)
    found[name] = [[{str(token): said.logprob for token, said in place.items()} for place in out.prompt_logprobs[1:]]
                   for out in made]
    del llm
    cleanup_dist_env_and_memory()
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return others.checkpoints(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def cut(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[int]]]:
    """Name → the checkpoint without two blocks, and which they were."""
    home, found = tmp_path_factory.mktemp("cut"), {}
    for name, path in checkpoints.items():
        data = [{"name": "d", "source": "tiny-tasks"}]
        asked = Recipe.model_validate({"name": "t", "teacher": {"model": str(path), "max_model_len": 256},
                                       "dataset": data, "prune": {"layers": 2}})  # fmt: skip
        importance = prune.measure(asked, path, [prompts.answer(question) for question in QUESTIONS])
        summary = prune.prune(asked, "angular", path, importance, home / name)
        found[name] = (home / name / "model", summary["removed_layers"])
    return found


def prompt_ids(path: Path) -> list[list[int]]:
    words = AutoTokenizer.from_pretrained(path)
    return [words(question).input_ids for question in QUESTIONS[:4]]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cut_is_the_model_without_these_blocks(
    name: str, checkpoints: dict[str, Path], cut: dict[str, tuple[Path, list[int]]]
) -> None:
    path, removed = cut[name]
    whole = AutoModelForCausalLM.from_pretrained(checkpoints[name], dtype=torch.float32)
    stack = layers.blocks(whole)
    for block in removed:  # by hand: the block hands on what it is given
        stack[block].forward = lambda hidden_states, *args, **kwargs: hidden_states
    made = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert made.config.num_hidden_layers == LAYERS - 2
    for ids in prompt_ids(path):
        with torch.no_grad():
            ours = made(torch.tensor([ids]), use_cache=False).logits
            theirs = whole(torch.tensor([ids]), use_cache=False).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_vllm_gives_the_logits_of_transformers(cut: dict[str, tuple[Path, list[int]]]) -> None:
    paths = {name: str(path) for name, (path, _) in cut.items()}
    ids = {name: prompt_ids(path) for name, (path, _) in cut.items()}
    assert max(map(len, ids["mistral"])) > WINDOW, "the window has to cut something off"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", VLLM, json.dumps(paths), json.dumps(ids)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND")), None)
    assert line, done.stderr[-3000:]
    for name, rows in json.loads(line.removeprefix("FOUND")).items():
        model = AutoModelForCausalLM.from_pretrained(paths[name], dtype=torch.float32)
        for row, prompt in zip(rows, ids[name], strict=True):
            with torch.no_grad():
                wanted = model(torch.tensor([prompt]), use_cache=False).logits[0].log_softmax(-1)
            for place, said in enumerate(row):
                for token, value in said.items():
                    # fp32 on both sides; five blocks with weights of 0.2 make logits of some tens
                    assert value == pytest.approx(wanted[place, int(token)].item(), abs=2e-3), (name, place)


RATES = {"sentencepiece": (4, 1e-2), "qwen3": (0, 1e-3)}
TRAINED = {  # a Llama with adapters, a Qwen in full (rank 0); what other families train to is in tests/parity
    name: Student(name="sdd", lora_rank=rank, lora_alpha=16, learning_rate=rate, epochs=8, batch_tokens=512)
    for name, (rank, rate) in RATES.items()
}


def recipe(path: Path) -> Recipe:
    return Recipe.model_validate({
        "name": "t", "teacher": {"model": str(path), "max_model_len": 256}, "prune": {"layers": 2},
        "dataset": [{"name": "d", "source": "x.jsonl"}], "generate": {"max_tokens": 16, "shard_rows": 4},
        "evaluate": {"max_tokens": 12, "concurrency": 4}, "cluster": {"workers": 1},
    })  # fmt: skip


def records() -> list[dict[str, Any]]:
    base = {"task": "sums", "context": "", "history": "", "kind": "number"}
    return [
        {**base, "id": str(n), "input": f"{n} + {n}?", "reference": f"It is {2 * n}.", "answer": str(2 * n)}
        for n in range(8)
    ]


def greedy(path: Path, asked: list[prompts.Message], new: int) -> str:
    """transformers' own greedy answer in fp32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(path)
    ids = torch.tensor([words(prompts.text(words, asked), add_special_tokens=not words.chat_template).input_ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return words.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def students(
    ray_session: None, cut: dict[str, tuple[Path, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Name → output of the train stage on the cut checkpoint."""
    home, found = tmp_path_factory.mktemp("students"), {}
    shown = [(prompts.REWRITE.format(question=r["input"], reference=r["reference"]), r) for r in records()]
    asked = [*((r["input"], r) for r in records()), *shown]
    rows = [{"id": r["id"], "prompt": prompt, "target": r["reference"]} for prompt, r in asked] * 3
    pq.write_table(pa.Table.from_pylist(rows), home / "rows.parquet")
    for name, student in TRAINED.items():
        path = cut[name][0]
        train.train(recipe(path), student, path, str(home / "rows.parquet"), home / name)
        found[name] = home / name
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_others_students_learn(students: dict[str, Path], cut: dict[str, tuple[Path, list[int]]], name: str) -> None:
    losses = [json.loads(line)["loss"] for line in (students[name] / "losses.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0], losses
    model = AutoModelForCausalLM.from_pretrained(students[name] / "model")
    before = AutoModelForCausalLM.from_pretrained(cut[name][0])
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    assert model.config.num_hidden_layers == LAYERS - 2
    words, own = (AutoTokenizer.from_pretrained(path) for path in (students[name] / "model", cut[name][0]))
    assert words(QUESTIONS[0]).input_ids == own(QUESTIONS[0]).input_ids


def test_others_teachers_write(students: dict[str, Path], tmp_path: Path) -> None:
    """Without chat template and pad token, with a begin token of its own.

    The teacher is the student, which writes words: a random model's stray bytes are shown in several ways."""
    path, out = students["sentencepiece"] / "model", str(tmp_path / "out")
    pq.write_table(pa.Table.from_pylist(records()), tmp_path / "train.parquet")
    rows = storage.find(str(tmp_path / "train.parquet"))
    summary = generate.generate(job.of_recipe(recipe(path), out), rows, path)
    assert summary["rows"] == 8 and summary["error"] == 0
    made = {row["id"]: row for row in parts.rows(out)}
    assert set(made) == {row["id"] for row in records()}
    for row in records()[:3]:
        said = greedy(path, prompts.rewrite(row["input"], row["reference"]), 16)
        assert made[row["id"]]["text"].strip() == said.strip() != ""


def test_others_students_are_served_and_scored(students: dict[str, Path], tmp_path: Path) -> None:
    """One endpoint, two families; what it says is transformers' greedy text."""
    served = {name: students[name] / "model" for name in ("sentencepiece", "qwen3")}
    asked = recipe(served["qwen3"])
    what = of_run(asked, served, max_num_seqs=8, max_model_len=256)
    with endpoint.endpoint(what, Http(port=ports.free())) as base_url:
        for name, path in served.items():
            (tmp_path / name).mkdir()
            evaluate.score(asked, base_url, name, path, records(), tmp_path / name)
    for name, path in served.items():
        items = pq.read_table(tmp_path / name / "items.parquet").to_pylist()
        assert [item["id"] for item in items] == [row["id"] for row in records()]
        for row, item in list(zip(records(), items, strict=True))[:3]:
            said = greedy(path, prompts.answer(row["input"]), 12)
            assert item["text"].strip() == said.strip() != "", name  # SentencePiece's first space comes or goes
