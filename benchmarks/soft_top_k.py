"""How much quicker is SoftTopK as a root, with its gradient written down, than as the iteration that the papers use?

    python benchmarks/soft_top_k.py                  # three alternating runs; writes results/soft_top_k.json
    python benchmarks/soft_top_k.py --device cuda    # the same on a GPU; prints, writes nothing

The masks of one training step of instruction-following pruning (arXiv 2501.02086): 8 prompts, 40 layers, 6,656 of
24,576 units, normal scores in fp32, forward and backward. Ours is `pipelines.masks.soft_top_k`. The peer is the
iteration of CoDA and CoLT5 (arXiv 2304.04947, 2303.09752), 20 steps at this temperature, as public code has it, with
autograd through the loop; 50 steps, CoLT5's number, beside it, and `torch.topk`, which no gradient passes.

Each side runs in a process of its own. On a CPU time is the process's CPU time with one thread: on a quiet machine the
clock's, and others on the machine stretch it less. Peak memory is what a pass takes above the scores:
the resident set's high-water mark (/proc/self/clear_refs, Linux), on a GPU torch's own count. How far each side is
from the sum it promises stands in the result, at the temperature that is timed and at a low one.
"""

import functools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.artifacts import versions

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "soft_top_k.json"
CLAIM = "SoftTopK and its gradient, against the iteration of 20 steps under autograd: at least 5"
PROMPTS, LAYERS, UNITS, KEPT = 8, 40, 24_576, 6656
TEMPERATURE, LOW = 1.0, 0.1
SIDES = ("ours", "20 steps", "50 steps", "topk")


def main(
    runs: Annotated[int, typer.Option(help="Runs of each side, alternating.")] = 3,
    passes: Annotated[int, typer.Option(help="Timed passes a run, forward and backward, after one.")] = 3,
    prompts: Annotated[int, typer.Option(help="Prompts in the batch.")] = PROMPTS,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    side: Annotated[str, typer.Option(help=f"Run one side in this process ({', '.join(SIDES)}), print JSON.")] = "",
) -> None:
    """Measure all sides, and write the figures where they are the full size's on a CPU."""
    if side:
        print(json.dumps(measured(side, passes, prompts, device)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for number in range(runs):
        for name in SIDES if number % 2 == 0 else SIDES[::-1]:
            command = [sys.executable, __file__, "--side", name, "--passes", str(passes), "--prompts", str(prompts)]
            done = subprocess.run([*command, "--device", device], stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(last := json.loads(done.stdout.splitlines()[-1]))
            print(f"run {number + 1} {name}: {last['seconds']:.4f} s, {last['peak'] / 1e6:,.0f} MB", flush=True)
    result = figures(found, prompts, device)
    if device == "cpu" and prompts == PROMPTS:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def iteration(scores: "Tensor", k: int, temperature: float, steps: int) -> "Tensor":
    """λ after some steps of two blocks of coordinates in turn: entries at most 1, the sum above k."""
    import torch

    b = -scores
    for _ in range(steps):
        a = temperature * (math.log(k) - torch.logsumexp((scores + b) / temperature, -1, keepdim=True))
        b = (-(scores + a)).clamp(max=0)
    return ((scores + a + b) / temperature).exp()


def soft(side: str) -> Callable[..., "Tensor"]:
    """What a side makes of (scores, k, temperature)."""
    from pipelines import masks

    return masks.soft_top_k if side == "ours" else functools.partial(iteration, steps=int(side.split()[0]))


def measured(side: str, passes: int, prompts: int, device: str) -> dict[str, Any]:
    """What one side takes for a pass: the median of seconds, the most bytes; and how far its sums are from k."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    scores = torch.randn(prompts, LAYERS, UNITS, device=device, requires_grad=True)
    given = torch.randn_like(scores)  # the gradient of whatever uses λ

    def work(some: "Tensor" = scores) -> None:
        scores.grad = None
        if side == "topk":
            some.detach().topk(KEPT)
        else:
            soft(side)(some, KEPT, TEMPERATURE).backward(given[: len(some)])

    work(scores[:1])
    peak = held(work, device)  # before the timed passes: what they free the process keeps for a while
    seconds = [timed(work, device) for _ in range(passes)]
    off = {}
    for temperature in (TEMPERATURE, LOW) if side != "topk" else ():
        sums = soft(side)(scores.detach()[:1], KEPT, temperature).double().sum(-1)
        off[str(temperature)] = round(float((sums - KEPT).abs().max()), 4)
    return {"seconds": statistics.median(seconds), "peak": peak, "off": off}


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds of CPU, or of the clock on a GPU."""
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def held(work: Callable[[], None], device: str) -> int:
    """Bytes at most above what is held before the pass."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        work()
        return status("VmHWM") - before
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def status(name: str) -> int:
    """A memory figure of this process (/proc/self/status), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def figures(found: dict[str, list[dict[str, Any]]], prompts: int, device: str) -> dict[str, Any]:
    """The result as it is committed: medians, the runs, and what else was seen."""
    seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
    peaks = {side: statistics.median(run["peak"] for run in runs) for side, runs in found.items()}
    return {
        "claim": CLAIM,
        "ratio": round(seconds["20 steps"] / seconds["ours"], 2),
        "ours": round(seconds["ours"], 5),
        "peer": round(seconds["20 steps"], 5),
        "unit": "s of CPU, threads: 1" if device == "cpu" else "s",
        "runs": {side: [round(run["seconds"], 5) for run in runs] for side, runs in found.items()},
        "versions": versions(),
        "ratios": {
            "50 steps over ours": round(seconds["50 steps"] / seconds["ours"], 2),
            "ours over topk, which has no gradient": round(seconds["ours"] / seconds["topk"], 2),
        },
        "peak_memory": {side: round(peak / 1e6, 1) for side, peak in peaks.items()}
        | {"unit": "MB above the scores, their gradient among them"},
        "largest |sum - k| by temperature": {side: runs[0]["off"] for side, runs in found.items() if runs[0]["off"]},
        "settings": {"prompts": prompts, "layers": LAYERS, "units": UNITS, "kept": KEPT}
        | {"temperature": TEMPERATURE, "scores": "normal, fp32", "device": device},
    }


if __name__ == "__main__":
    typer.run(main)
