"""An exported sub-network in stock vLLM, against the whole model under its mask in torch: the same greedy tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import masks, models, prompts, subnetwork, units
from pipelines.tiny import families

EACH, KEPT, MOST = 30, 256, 64
NEAR = 1e-3  # two logits so close may change places: sums run in another order, and λ is rounded with the weights
FEW = 0.01  # of the prompts

VLLM = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=64, seed=0,
          kv_cache_memory_bytes=128 << 20, enable_prefix_caching=False)
asked = [{"prompt_token_ids": ids} for ids in json.loads(sys.stdin.read())]
made = llm.generate(asked, SamplingParams(temperature=0, max_tokens=int(sys.argv[2])), use_tqdm=False)
print("FOUND" + json.dumps([list(out.outputs[0].token_ids) for out in made]))
"""


def in_vllm(folder: Path, ids: list[list[int]]) -> list[list[int]]:
    """The greedy tokens of a checkpoint, by the engine as anybody starts it."""
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-c", VLLM, str(folder), str(MOST)]
    done = subprocess.run(
        command, input=json.dumps(ids), capture_output=True, text=True, env=environment, check=False, timeout=600
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND")), None)
    assert line, done.stderr[-3000:]
    found: list[list[int]] = json.loads(line.removeprefix("FOUND"))
    return found


def in_torch(model: Any, ids: list[list[int]], mask: Tensor) -> list[list[int]]:
    """The same of the whole model under the mask, up to the end token."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
    attended = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    with torch.no_grad(), units.masked(model, mask):
        said = model.generate(padded, attention_mask=attended, max_new_tokens=MOST, do_sample=False)[:, longest:]
    end = model.generation_config.eos_token_id
    return [one[: one.index(end) + 1] if end in one else one for one in said.tolist()]


def apart(model: Any, mask: Tensor, ids: list[int], one: list[int], other: list[int]) -> float:
    """How far the two best logits are from each other where two continuations of `ids` part."""
    at = next(n for n in range(MOST) if one[n : n + 1] != other[n : n + 1])
    with torch.no_grad(), units.masked(model, mask):
        first, second = model(torch.tensor([ids + one[:at]])).logits[0, -1].topk(2).values.tolist()
    return float(first - second)


@pytest.mark.timeout(900)
def test_the_exported_subnetwork_says_what_the_masked_model_says(tmp_path: Path) -> None:
    """240 prompts of all families. The mask is a task's, from activations; λ of most units is below 1."""
    model = AutoModelForCausalLM.from_pretrained(models.TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models.TINY)
    asked = {
        family: [
            tokenizer(prompts.text(tokenizer, prompts.answer(one.question)), add_special_tokens=False).input_ids
            for one in families.distinct(family, "test", 7, EACH)
        ]
        for family in families.FAMILIES
    }
    importance = units.activation_importance(
        model, [{"input_ids": torch.tensor([ids])} for some in asked.values() for ids in some]
    ).log()
    scores = (importance - importance.mean(-1, keepdim=True)) / importance.std(-1, keepdim=True)
    mask = masks.mask(scores.float(), KEPT, 1.0)
    assert ((mask > 0) & (mask < 1)).sum() > mask.shape[0] * KEPT / 2
    model.save_pretrained(tmp_path / "whole")  # the packaged file is bf16, to which λ would be rounded
    tokenizer.save_pretrained(tmp_path / "whole")
    subnetwork.export(tmp_path / "whole", mask, tmp_path / "small")
    wanted = [said for some in asked.values() for said in in_torch(model, some, mask)]
    ids = [one for some in asked.values() for one in some]
    found = in_vllm(tmp_path / "small", ids)
    assert sum(map(len, wanted)) > 20 * len(ids), "long enough to part"
    parted = [
        (apart(model, mask, *each), tokenizer.decode(each[0]))
        for each in zip(ids, wanted, found, strict=True)
        if each[1] != each[2]
    ]
    assert len(ids) >= 200 and all(gap < NEAR for gap, _ in parted), parted
    assert len(parted) <= FEW * len(ids), parted
