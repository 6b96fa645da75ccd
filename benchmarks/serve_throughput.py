"""Does a regrow endpoint, with keys and limits on, answer as fast as `vllm serve` on its own?

    python benchmarks/serve_throughput.py             # five pairs; writes results/serve_throughput_THREADS.json
    python benchmarks/serve_throughput.py --threads 2 # on two cores: all of them to the engine
    python benchmarks/serve_throughput.py --smoke     # one short pair of a small model; writes nothing

Each run starts one of the two servers, warms it up, loads it, and ends it, so that nothing of the other side takes
time meanwhile. Both serve the same random bf16 Llama with the same arguments of vLLM's engine
(serving.engine.engine_kwargs), the same environment and threads (one less than there are cores, as vLLM itself chooses,
unless told otherwise); ours is `regrow serve` with an API key, whose bounds are those of any endpoint; the peer is
vLLM's own API server. The load is that of `regrow loadtest` in this process, the same on both sides: 32 clients, 32 to
96 words in, 32 to 96 tokens out, streamed. (With lengths all alike the clients march in step, and the time to the first
token is that of a prefill of all 32, or of how it happens to split.)

Linux shares the time out between sessions of processes (sched_autogroup), and starves this process for seconds then:
on a machine that has it on, `sysctl kernel.sched_autogroup_enabled=0` first.

The claim is about output tokens a second; the time to the first token (p50, p95) stands beside it. A ratio is that of
two neighbouring runs, and the median over the pairs counts.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions
from serving import engine, load
from serving.load import Shape

RESULTS = Path(__file__).parent / "results"
SPARED = max(1, len(os.sched_getaffinity(0)) - 1)
CLAIM = "output tokens/s of regrow serve, at least 0.95 of vllm serve; time to first token p50 ≤ 1.10 ×, p95 ≤ 1.15 ×"
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
KEY = "sk-benchmark-0123456789"
CLIENTS, SEATS, LENGTH, PORT = 32, 32, 512, 8811
SHAPE = {"words": 64, "max_tokens": 64, "ignore_eos": True, "spread": 0.5}
Run = dict[str, float]


def main(
    pairs: Annotated[int, typer.Option(help="Alternating pairs.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of load in a run, after a quarter of it as warm-up.")] = 60,
    threads: Annotated[int, typer.Option(help="Of the engine; vLLM's own default keeps a core free.")] = SPARED,
    smoke: Annotated[bool, typer.Option("--smoke", help="One short pair of a small model, nothing written.")] = False,
) -> None:
    """Measure both sides, alternating, and write the figures."""
    import counting_llama

    found: dict[str, list[Run]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        model = counting_llama.save(Path(folder) / "model", smoke)
        for number in range(1 if smoke else pairs):
            for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                with served(side, model, threads) as url:
                    asyncio.run(load.closed(url, Shape(side, **SHAPE), CLIENTS, seconds / 4, key=KEY, seed=number))
                    outcomes = asyncio.run(load.closed(url, Shape(side, **SHAPE), CLIENTS, seconds, key=KEY, seed=9))
                asked = [Shape(side, **SHAPE).body(one, 9)["max_tokens"] for one in range(len(outcomes))]
                found[side].append(figures(outcomes, asked))
                print(f"pair {number + 1}, {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    result = summary(found) | {"threads": threads}
    if not smoke:
        (RESULTS / f"serve_throughput_{threads}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def figures(outcomes: list[load.Outcome], asked: list[int]) -> Run:
    """Of one run; `asked`: tokens of each request. Raises SystemExit where one was not answered in full."""
    told = load.summary(outcomes)
    if set(told["statuses"]) != {"200"} or sorted(one.completion_tokens for one in outcomes) != sorted(asked):
        raise SystemExit(f"not every request was answered in full: {told['statuses']}, {told['errors']}")
    return {"tokens": told["output_tokens_per_second"], **{p: told["first_token"][p] for p in ("p50", "p95")}}


@contextlib.contextmanager
def served(side: str, model: Path, threads: int, *more: str) -> Iterator[str]:
    """The server of one side with `more` options, once it answers, at its address; ended at the end."""
    kwargs = engine.engine_kwargs(LENGTH, SEATS, "bfloat16", model, gpu=False)
    if side == "ours":
        keys = model.with_name("keys.txt")
        keys.write_text(KEY + "\n")
        command = [str(Path(sys.executable).with_name("regrow")), "serve", f"ours={model}", "--keys", str(keys),
                   "--max-model-len", str(LENGTH), "--max-num-seqs", str(SEATS), "--dtype", "bfloat16",
                   "--port", str(PORT), "--cpu-threads", str(threads)]  # fmt: skip
    else:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
                   "--port", str(PORT), "--served-model-name", "peer", "--disable-uvicorn-access-log"]  # fmt: skip
        for name, value in kwargs.items():
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    command += more
    environment = os.environ | engine.env_vars(gpu=False, threads=threads)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{PORT}"
    try:
        until_ready(url, process)
        yield f"{url}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)


def until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server says that it is well."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"the server did not come up: {process.args}")


def summary(found: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians of both sides, and their ratios pair by pair: median and range."""
    about: dict[str, Any] = {"claim": CLAIM}
    for name, what in (("ratio", "tokens"), ("first token p50, ratio", "p50"), ("first token p95, ratio", "p95")):
        ratios = [mine[what] / theirs[what] for mine, theirs in zip(found["ours"], found["peer"], strict=True)]
        about[name] = round(statistics.median(ratios), 3)
        about[f"{name}, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for side, runs in found.items():
        about[side] = {what: round(statistics.median(run[what] for run in runs), 4) for what in runs[0]}
    held = about["ratio"] >= 0.95 and about["first token p50, ratio"] <= 1.1 and about["first token p95, ratio"] <= 1.15
    settings = {
        "autogroup": AUTOGROUP.read_text().strip() if AUTOGROUP.exists() else None,
        "clients": CLIENTS,
        "seats": SEATS,
        **SHAPE,
        "cores": len(os.sched_getaffinity(0)),
    }
    return about | {"held": held, "unit": "output tokens/s, seconds", "settings": settings, "runs": found,
                    "versions": versions()}  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
