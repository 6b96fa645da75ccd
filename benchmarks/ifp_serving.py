"""Does an exported sub-network decode as fast as an ordinary dense model of its shape?

    python benchmarks/ifp_serving.py         # six starts of eight runs; writes results/ifp_serving.json
    python benchmarks/ifp_serving.py --smoke # one start, two short runs of small models; writes nothing

Ours is what `regrow export-mask` writes: 1,024 of 4,096 FFN units of a random bf16 Llama (205 million parameters, 93 of
them left), by a mask with λ below 1. The peer was initialised at that shape, and never had a mask. Beside them, without
a claim, the unpruned model. Each has a vLLM engine of its own, all of them in one process; they decode in turns of 32
tokens, and a ratio is that of two neighbouring turns. Where an engine finds its memory decides several percent of its
speed: there are six starts, which load the engines in each order there is, and glibc is told to ask for huge pages,
where the machine gives them to those who ask. A turn's speed is its requests by the median time of an engine's step,
those steps left out that read prompts. Time is the process's CPU time with one thread: on a quiet machine the clock's,
and others on the machine stretch it less.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "ifp_serving.json"
CLAIM = "decoded tokens/s of an exported sub-network, at least 0.98 of an ordinary dense model of its shape"
LEAST = 0.98
SIDES = ("ours", "peer", "unpruned")
VOCABULARY, BLOCKS, WIDTH, UNITS, HIDDEN = 8192, 12, 4096, 1024, 1024
SMALL = 4  # what blocks and width are divided by in a smoke run
PROMPT, TOKENS, LENGTH = 32, 36, 128  # the first four steps may still be reading prompts
Run = dict[str, float]  # requests at once → decoded tokens a second
Runs = dict[str, list[Run]]


def main(
    starts: Annotated[int, typer.Option(help="Processes, one after the other.")] = 6,
    runs: Annotated[int, typer.Option(help="Runs of each side in a process, in turns, after one that warms up.")] = 8,
    requests: Annotated[str, typer.Option(help="Requests at once; the first makes the claim.")] = "1,8",
    smoke: Annotated[bool, typer.Option("--smoke", help="Two runs of small models, nothing written.")] = False,
    start: Annotated[int, typer.Option(help="Be the process of this number, for the models in --home.")] = -1,
    home: Annotated[Path, typer.Option(help="Directory of the models.")] = Path(),
) -> None:
    """Measure all sides, alternating, and write the figures."""
    sizes = [int(size) for size in requests.split(",")]
    if start >= 0:
        turns(home, list(itertools.permutations(SIDES))[start % 6], range(runs), sizes)
        return
    found: Runs = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), SMALL if smoke else 1)
        for number in range(1 if smoke else starts):
            command = [sys.executable, __file__, "--start", str(number), "--home", folder, "--requests", requests]
            command += ["--runs", str(2 if smoke else runs)]
            environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            for line in filter(lambda line: line.startswith("{"), done.stdout.splitlines()):
                for name, run in json.loads(line).items():
                    found[name].append(run)
    result = figures(found, sizes)
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def make(home: Path, small: int) -> None:
    """Write the three models."""
    import counting_llama
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines import masks, subnetwork

    blocks, width, kept = BLOCKS // small, WIDTH // small, UNITS // small
    for name, units, seed in (("unpruned", width, 0), ("peer", kept, 1)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=units, num_hidden_layers=blocks,
            num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(home / name)
        counting_llama.tokenizer().save_pretrained(home / name)
    mask = masks.mask(torch.randn(blocks, width), kept, 1.0)
    subnetwork.export(home / "unpruned", mask, home / "ours")


def turns(home: Path, order: tuple[str, ...], runs: range, sizes: list[int]) -> None:
    """Load the engines in this order, let them decode in turns, and print a line of speeds for each run."""
    from serving import engine

    os.environ.update(engine.env_vars(gpu=False, threads=1) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm import LLM

    rng, llms = random.Random(0), dict[str, Any]()
    for name in order:
        kwargs = engine.engine_kwargs(LENGTH, max(sizes), "bfloat16", home / name, gpu=False)
        llms[name] = LLM(model=str(home / name), **kwargs)
    for number in [-1, *runs]:
        speeds: dict[str, Run] = {name: {} for name in SIDES}
        for size in sizes:
            prompts = [[rng.randrange(1, VOCABULARY) for _ in range(PROMPT)] for _ in range(size)]
            for name in order if number % 2 == 0 else order[::-1]:
                speeds[name][str(size)] = round(speed(decoded(llms[name], prompts), size), 2)
        if number >= 0:
            print(json.dumps(speeds), flush=True)
            print(f"run {number + 1}: {speeds}", file=sys.stderr, flush=True)


def decoded(llm: Any, prompts: list[list[int]]) -> list[float]:
    """When each step of the engine had ended, in seconds of CPU, while it decoded for all prompts at once."""
    from vllm import SamplingParams

    ask = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, ask)
    ended, written = [], 0
    while llm.llm_engine.has_unfinished_requests():
        outputs = llm.llm_engine.step()
        ended.append(time.process_time())
        written += sum(len(one.outputs[0].token_ids) for one in outputs if one.finished)
    if written != TOKENS * len(prompts):
        raise SystemExit(f"{written} tokens for {len(prompts)} prompts; the figures mean nothing")
    return ended


def speed(ended: list[float], size: int) -> float:
    """Tokens a second of `size` requests, each of which gets a token in every step but the first; `ended`: when each
    step had ended."""
    return size / statistics.median(after - before for before, after in itertools.pairwise(ended[3:]))


def figures(found: Runs, sizes: list[int]) -> dict[str, Any]:
    """The result as it is committed: medians, and ratios run by run, the first size's in front."""
    each = {str(size): compared(found, str(size)) for size in sizes}
    first = each[str(sizes[0])]
    return {
        "claim": CLAIM, "ratio": first["ratio"], "ours": first["ours"], "peer": first["peer"],
        "unit": f"decoded tokens/s of CPU, threads: 1, requests at once: {sizes[0]}",
        "runs": found,
        "versions": versions(),
        "held": all(one["ratio"] >= LEAST for one in each.values()),
        "by requests at once": each,
        "settings": {"hidden": HIDDEN, "blocks": BLOCKS, "FFN units": WIDTH, "kept": UNITS, "dtype": "bfloat16",
                     "prompt": PROMPT, "tokens": TOKENS, "cores": len(os.sched_getaffinity(0))},
    }  # fmt: skip


def compared(found: Runs, size: str) -> dict[str, Any]:
    """Medians of all sides, and ours by the others, run by run: median and range."""
    about: dict[str, Any] = {
        side: round(statistics.median(run[size] for run in runs), 2) for side, runs in found.items()
    }
    for name, other in (("ratio", "peer"), ("ratio to the unpruned model", "unpruned")):
        ratios = [mine[size] / theirs[size] for mine, theirs in zip(found["ours"], found[other], strict=True)]
        about[name] = round(statistics.median(ratios), 3)
        about[f"{name}, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return about


if __name__ == "__main__":
    typer.run(main)
