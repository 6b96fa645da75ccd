"""How much quicker is one pass for every block length than a pass for each, and what does it hold in memory?

    python benchmarks/prune_analysis.py              # three alternating runs; writes results/prune_analysis.json

Ours is `pipelines.layers.measure`: hooks keep the last token's state of each block, and all lengths come
out of one pass (block influence over all tokens besides). The peer is the obvious way, as published
scripts for angular distance do it (arcee-ai/PruneMe, compute_block_similarity): for each block length a
pass with `output_hidden_states=True`, here one prompt at a time. PruneMe leaves out the embedding's
state and takes the last state past the final norm; this peer takes the states the formula names
(arXiv 2403.17887), so that both sides must give the same numbers, and do.

Each side runs in a process of its own on the same random Llama, with the same threads and no more tokens
in flight than the longest prompt. Time is the process's CPU time: on a quiet machine and with one thread it
is the clock's, and others on the machine stretch it less. Peak memory is the resident set's high-water mark
above the loaded model, reset after the warm-up (/proc/self/clear_refs, Linux).
"""

import gc
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "prune_analysis.json"
LAYERS, HIDDEN, VOCABULARY, PROMPTS, SHORTEST, LONGEST = 16, 256, 4096, 128, 32, 256
# fp32 states carry about 1e-6 through the blocks, and the two sides sum in another order (batches, padding);
# the angles are tenths
TOLERANCE = 2e-5
Table = dict[int, list[float]]


def main(
    runs: Annotated[int, typer.Option(help="Runs of each side, alternating.")] = 3,
    prompts: Annotated[int, typer.Option(help="Calibration prompts.")] = PROMPTS,
    threads: Annotated[int, typer.Option(help="Threads of torch, on both sides.")] = 1,
    side: Annotated[str, typer.Option(help="Run one side in this process (ours, peer) and print JSON.")] = "",
) -> None:
    """Measure both sides, check that they agree, and write the figures."""
    if side:
        print(json.dumps(measured(side, prompts, threads)))
        return
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(runs):
        for name in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            found[name].append(in_a_process(name, prompts, threads))
            last = found[name][-1]
            shown = f"{last['cpu']:.2f} s of CPU in {last['wall']:.2f} s, {last['peak'] / 1e6:.1f} MB above the model"
            print(f"run {number + 1} {name}: {shown}", flush=True)
    gap = max(agreement(mine["angular"], theirs["angular"]) for mine in found["ours"] for theirs in found["peer"])
    print(f"largest difference of a distance: {gap:.1e} (at most {TOLERANCE:.0e})")
    if gap > TOLERANCE:
        raise SystemExit("the two sides do not agree; the figures mean nothing")
    print(estimate())
    result = figures(found, prompts, threads, gap)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def measured(side: str, prompts: int, threads: int) -> dict[str, Any]:
    """What one side takes: seconds of CPU and of the clock, bytes at most above the loaded model; and the
    table of distances."""
    import torch

    torch.set_num_threads(threads)
    model, texts = llama(), calibration(prompts)
    work: Callable[[list[list[int]]], Table] = (lambda some: ours(model, some)) if side == "ours" else (
        lambda some: peer(model, some)
    )  # fmt: skip
    work([texts[0][:SHORTEST]])
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, busy = time.perf_counter(), time.process_time()
    angular = work(texts)
    wall, cpu = time.perf_counter() - began, time.process_time() - busy
    return {"cpu": cpu, "wall": wall, "peak": status("VmHWM") - before, "angular": angular}


def ours(model: Any, texts: list[list[int]]) -> Table:
    """One pass."""
    from pipelines import layers

    return layers.measure(model, texts, batch_tokens=LONGEST).angular


def peer(model: Any, texts: list[list[int]]) -> Table:
    """A pass for each block length, a prompt at a time, every hidden state kept."""
    import torch

    table, raw = {}, []
    # the last of `hidden_states` is past the final norm: the state before it is what the formula means
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: raw.append(args[0]))
    for length in range(1, LAYERS):
        sums = [0.0] * (LAYERS + 1 - length)
        for text in texts:
            raw.clear()
            with torch.no_grad():
                states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
            states = (*states[:-1], raw[0])
            for start in range(len(sums)):
                a, b = states[start][0, -1].double(), states[start + length][0, -1].double()
                sums[start] += math.acos(min(1.0, float(a @ b / (a.norm() * b.norm())))) / math.pi
        table[length] = [total / len(texts) for total in sums]
    hook.remove()
    return table


def llama() -> Any:
    """The model both sides measure; its output layer weighs 8 % of it, as an 8 B model's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=688, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LONGEST, initializer_range=0.1,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def calibration(prompts: int) -> list[list[int]]:
    """Prompts of random tokens, their lengths spread evenly over the orders of magnitude."""
    rng = random.Random(0)
    lengths = [round(SHORTEST * (LONGEST / SHORTEST) ** rng.random()) for _ in range(prompts)]
    return [[rng.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]


def in_a_process(side: str, prompts: int, threads: int) -> dict[str, Any]:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--prompts", str(prompts), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def agreement(one: dict[Any, list[float]], other: dict[Any, list[float]]) -> float:
    """The largest difference between two tables of the same shape."""
    rows = zip(one.items(), other.items(), strict=True)
    return max(abs(a - b) for (n, row), (m, same) in rows if n == m for a, b in zip(row, same, strict=True))


def status(field: str) -> int:
    """Bytes of one field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def figures(found: dict[str, list[dict[str, Any]]], prompts: int, threads: int, gap: float) -> dict[str, Any]:
    """The result as it is committed: medians, and every run."""
    cpu, wall = (
        {name: statistics.median(run[clock] for run in rows) for name, rows in found.items()}
        for clock in ("cpu", "wall")
    )
    peaks = {name: statistics.median(run["peak"] for run in rows) / 1e6 for name, rows in found.items()}
    return {
        "claim": "importance of every block length in one pass, against a pass for each with output_hidden_states",
        "ratio": round(cpu["peer"] / cpu["ours"], 1),
        "ours": round(cpu["ours"], 3),
        "peer": round(cpu["peer"], 3),
        "unit": f"s of CPU, threads: {threads}",
        "runs": {name: [round(run["cpu"], 3) for run in rows] for name, rows in found.items()},
        "versions": versions(),
        "wall_seconds": {name: round(seconds, 3) for name, seconds in wall.items()},
        "peak_memory": {name: round(peak, 1) for name, peak in peaks.items()} | {"unit": "MB above the loaded model"},
        "largest_difference": gap,
        "settings": {"layers": LAYERS, "hidden": HIDDEN, "vocabulary": VOCABULARY, "prompts": prompts,
                     "tokens": sum(map(len, calibration(prompts))), "threads": threads},
    }  # fmt: skip


def estimate(prompts: int = 10_000, tokens: int = 512) -> str:
    """The same at 8 B: Llama-3.1-8B's shape, one H100, in arithmetic. A forward pass takes 2 FLOP a weight
    and token (Kaplan et al., arXiv 2001.08361, section 2.1; attention scores, about 1 % here, left out)."""
    layers, hidden, vocabulary, blocks, peak, use = 32, 4096, 128_256, 6.98e9, 989e12, 0.4
    flops = {"ours": 2 * blocks * prompts * tokens}
    flops["peer"] = 2 * (blocks + hidden * vocabulary) * prompts * tokens * (layers - 1)
    hours = {name: count / (peak * use) / 3600 for name, count in flops.items()}
    states, logits = (layers + 1) * tokens * hidden * 2, tokens * vocabulary * 2
    # a state in bf16 and, in float64, two unit states and two temporaries
    kept = tokens * hidden * (2 + 4 * 8)
    return "\n".join(
        (
            f"worked for 8 B: {layers} blocks of {blocks / 1e9:.2f} B weights in all, hidden {hidden}, vocabulary",
            f"{vocabulary:,}; {prompts:,} prompts of {tokens} tokens, one in flight on both sides; bf16 on one H100,",
            f"{peak / 1e12:.0f} TFLOP/s dense (data sheet), {use:.0%} of it used",
            f"  ours: 1 pass, {flops['ours']:.2e} FLOP, {hours['ours'] * 60:.1f} min; "
            f"{kept / 1e6:.0f} MB beside the forward pass",
            f"  peer: {layers - 1} passes, {flops['peer']:.2e} FLOP, {hours['peer']:.1f} h; "
            f"{states / 1e6:.0f} MB of states and {logits / 1e6:.0f} MB of logits",
            f"  ratio {flops['peer'] / flops['ours']:.0f}",
        )
    )


if __name__ == "__main__":
    typer.run(main)
