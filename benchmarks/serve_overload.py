"""Does a regrow endpoint that is asked four times what it can do still do what it can?

    python benchmarks/serve_overload.py         # one minute of overload; writes results/serve_overload.json
    python benchmarks/serve_overload.py --smoke # a few seconds of a small model; writes nothing

`regrow serve` with an API key and a queue as long as the engine has seats serves a random bf16 Llama on CPU. As many
clients as it has seats, each of which asks again as soon as it has its answer, say what it can do (the peak). Then
requests come at four times that rate (`regrow loadtest --rate`, Poisson), whatever becomes of those before; what does
not fit into the queue is refused with 429. Then one client asks, one request after another, until an answer begins
within twice the time it took before the overload.

The claim is about goodput: answers a second, from the first request of the overload to its last answer, over the peak.
Beside it: how long refusals took, by how much all processes of the server grew (resident memory, sampled every half
second, from the end of the peak run to the largest during the overload), and when the endpoint was as before.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from cluster.artifacts import versions
from serving import load
from serving.load import Outcome, Shape

RESULTS = Path(__file__).parent / "results" / "serve_overload.json"
CLAIM = "goodput at 4 × the sustainable rate, over the peak, at least 0.9; refusals in under 100 ms; as before in 10 s"
TIMES, EVERY, SEATS = 4, 0.5, 32
SHAPE = {"words": 64, "max_tokens": 64, "ignore_eos": True}


def main(
    seconds: Annotated[float, typer.Option(help="Of overload; of the peak before it, half as many.")] = 60,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few seconds of a small model, nothing written.")] = False,
) -> None:
    """Find the peak, ask four times as much, and see what becomes of it."""
    import counting_llama
    import serve_throughput

    seconds = 10 if smoke else seconds
    with tempfile.TemporaryDirectory() as folder:
        model = counting_llama.save(Path(folder) / "model", smoke)
        with serve_throughput.served(
            "ours", model, serve_throughput.SPARED, "--max-num-seqs", str(SEATS), "--queue", str(SEATS)
        ) as url:
            result = asyncio.run(measured(url, serve_throughput.KEY, seconds))
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


async def measured(url: str, key: str, seconds: float) -> dict[str, Any]:
    """All phases, one after the other."""
    shape, more = Shape("ours", **SHAPE), {"key": key}
    await load.closed(url, shape, SEATS, seconds / 4, **more, seed=1)
    idle = await load.closed(url, shape, 1, 5, **more, seed=2)
    peak = await load.closed(url, shape, SEATS, seconds / 2, **more, seed=3)
    rate = load.summary(peak)["requests_per_second"]
    print(f"peak: {rate} answers/s; asks {TIMES * rate:.1f} a second for {seconds:g} s", file=sys.stderr, flush=True)
    before, sampled = resident(), list[int]()
    watching = asyncio.create_task(watch(sampled))
    flood = asyncio.create_task(load.opened(url, shape, TIMES * rate, seconds, **more, seed=4))
    await asyncio.sleep(seconds)
    after = await load.closed(url, shape, 1, 20, **more, seed=5)
    outcomes = await flood
    watching.cancel()
    return summary(rate, idle, outcomes, after, max(sampled) - before)


def summary(rate: float, idle: list[Outcome], flood: list[Outcome], after: list[Outcome], grown: int) -> dict[str, Any]:
    """The figures; `rate` of the peak in answers a second, `grown` in bytes."""
    told = load.summary(flood)
    usual = max(one.first for one in idle if one.status == 200)
    back = next((one.sent + one.first for one in after if one.status == 200 and one.first <= 2 * usual), None)
    ratio = told["requests_per_second"] / rate
    refused = told["refusal"] or {}
    return {
        "claim": CLAIM, "ratio": round(ratio, 3), "unit": "answers/s, seconds, MiB",
        "held": bool(ratio >= 0.9 and refused.get("p95", 9) < 0.1 and back is not None and back <= 10),
        "peak": rate, "asked": round(TIMES * rate, 2), "statuses": told["statuses"], "errors": told["errors"],
        "goodput": told["requests_per_second"], "refusal": refused, "first token, overload": told["first_token"],
        "first token, idle": round(usual, 4), "as before after": back and round(back, 2), "grown": grown >> 20,
        "settings": {"seats": SEATS, "queue": SEATS, **SHAPE, "cores": len(os.sched_getaffinity(0))},
        "versions": versions(),
    }  # fmt: skip


async def watch(sampled: list[int]) -> None:
    """Sample the memory of the server until cancelled."""
    while True:
        sampled.append(await asyncio.to_thread(resident))
        await asyncio.sleep(EVERY)


def resident() -> int:
    """Bytes that all child processes of this one hold, without what they share."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            about = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += about.rss - about.shared
    return total


if __name__ == "__main__":
    typer.run(main)
