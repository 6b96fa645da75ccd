"""Checkpoints that this project did not make: cut, then the same logits in transformers and in stock vLLM."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)  # fmt: skip

from pipelines import layers, prompts, prune
from pipelines.recipe import Recipe
from tests import tiny

pytestmark = pytest.mark.timeout(400)
LAYERS, WINDOW = 5, 16
QUESTIONS = [f"What is {n} + {n * n}? Say it in words, and slowly." for n in range(12)]
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "sentencepiece": LlamaConfig(**SHAPE | {"bos_token_id": 1}, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False, head_dim=64),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW, head_dim=32),
}
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


def sentencepiece_tokenizer(folder: Path) -> Any:
    """A tokenizer as Llama 2 shipped it: one SentencePiece file."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(QUESTIONS * 20), model_writer=made, vocab_size=300, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return LlamaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → directory of a random model as somebody else would have saved it."""
    home, found = tmp_path_factory.mktemp("others"), {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        words = sentencepiece_tokenizer(home / "sp") if name == "sentencepiece" else tiny.tokenizer(chat=seed % 2 == 1)
        if name != "mistral":
            words.pad_token = None
        config.vocab_size, config.eos_token_id = len(words), words.eos_token_id
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(home / name)
        words.save_pretrained(home / name)
        found[name] = home / name
    return found


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
