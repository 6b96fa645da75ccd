"""How much later does the first token come when a predictor chooses the sub-network first?

    python benchmarks/ifp_router.py             # five pairs at 1, 8 and 32 clients; writes results/ifp_router.json
    python benchmarks/ifp_router.py --smoke     # one short pair of a small model; writes nothing

`regrow serve` with an API key serves a routed model: two sub-networks, each with an engine, of a random bf16 Llama that
keep a third of its FFN units, and a random predictor of a tenth of their active weights (arXiv 2501.02086: 302 M
weights beside 3 B active ones). One endpoint answers both sides, in turns: on ours the clients ask for the routed
model, so that the predictor reads each prompt; on the peer's they ask for the same sub-networks by name, as somebody
would who knew the answer. The same number of clients ask as soon as they are answered; no text is asked twice, since a
cache of prefixes would know it.

The claim is about the time to the first token, p50: ours over the peer's, in two neighbouring runs, the median over the
pairs, at each number of clients. The largest of the three is the `ratio`.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions
from serving import engine, load, routed
from serving.load import Shape

RESULTS = Path(__file__).parent / "results" / "ifp_router.json"
CLAIM = "time to first token, p50, of a routed model over that of its sub-networks by name, at 1, 8 and 32 clients"
NAME, SEATS, LENGTH, K, CLIENTS = "ifp", 32, 512, 2, (1, 8, 32)
WORDS, TOKENS, ENOUGH = (32, 96), 32, 600  # of a prompt, of an answer; texts of a run
Run = dict[str, float]


@dataclass(frozen=True)
class Asked(Shape):
    """Requests whose texts are those of a run, each for the model beside it."""

    texts: tuple[tuple[str, str], ...] = field(default=())

    def body(self, number: int, seed: int) -> dict[str, Any]:
        """The request number `number`."""
        model, text = self.texts[number]
        told = {"model": model, "prompt": text, "max_tokens": TOKENS, "ignore_eos": True}
        return told | {"stream": True, "stream_options": {"include_usage": True}}


def main(
    pairs: Annotated[int, typer.Option(help="Alternating pairs at each number of clients.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of load in a run.")] = 15,
    threads: Annotated[int, typer.Option(help="Of each engine, and of the predictor.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="One short pair of a small model, nothing written.")] = False,
) -> None:
    """Measure both sides, alternating, and write the figures."""
    import serve_throughput

    found: dict[int, list[tuple[Run, Run]]] = {clients: [] for clients in CLIENTS}
    with tempfile.TemporaryDirectory() as folder:
        where = made(Path(folder), smoke)
        router = routed.router(routed.read(str(where)))
        with served(where, threads) as url:
            for number in range(1 + (1 if smoke else pairs)):  # the first is warm-up
                for clients in CLIENTS:
                    runs = {}
                    for side in ("ours", "peer") if number % 2 else ("peer", "ours"):
                        chosen = texts(f"{number} {clients} {side}")
                        names = [NAME if side == "ours" else f"{NAME}/{at}" for at in choices(router, chosen, side)]
                        shape = Asked(NAME, texts=tuple(zip(names, chosen, strict=True)))
                        lasting = 3 if smoke or not number else seconds
                        key = serve_throughput.KEY
                        runs[side] = figures(asyncio.run(load.closed(url, shape, clients, lasting, key=key)))
                        print(f"pair {number}, {clients} clients, {side}: {runs[side]}", file=sys.stderr, flush=True)
                    if number:
                        found[clients].append((runs["ours"], runs["peer"]))
    result = summary(found) | {"threads": threads}
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def made(folder: Path, small: bool) -> Path:
    """Write the routed model below `folder`: a random model and predictor, and two clusters of its masks."""
    import counting_llama
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaModel

    from pipelines.ifp import routed as writing
    from serving.predictor import About, Predictor, Reader

    whole = counting_llama.save(folder / "whole", small)
    about = AutoConfig.from_pretrained(whole)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=about.vocab_size, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=LENGTH, initializer_range=0.1,
    )  # fmt: skip
    units = about.intermediate_size // 3 // 64 * 64
    predictor = Predictor(LlamaModel(config), About(about.num_hidden_layers, about.intermediate_size, units, 1.0))
    reader = Reader(predictor, counting_llama.tokenizer())
    writing.write(folder / "routed", whole, reader, texts("calibration")[:64], K, seed=0)
    return folder / "routed"


def texts(seed: str) -> list[str]:
    """Texts of random words, of random lengths."""
    import counting_llama

    rng, low = random.Random(seed), counting_llama.COUNTED
    every = range(low, counting_llama.VOCABULARY - 1)
    return [" ".join(f"w{word}" for word in rng.choices(every, k=rng.randint(*WORDS))) for _ in range(ENOUGH)]


def choices(router: routed.Router, chosen: list[str], side: str) -> list[int]:
    """The sub-network of each text; for our side the endpoint finds it itself."""
    if side == "ours":
        return [0] * len(chosen)
    return [number for at in range(0, len(chosen), 32) for number in router.choose(chosen[at : at + 32])]


def figures(outcomes: list[load.Outcome]) -> Run:
    """Of one run, seconds. Raises SystemExit where a request was not answered in full."""
    told = load.summary(outcomes)
    if set(told["statuses"]) != {"200"} or {one.completion_tokens for one in outcomes} != {TOKENS}:
        raise SystemExit(f"not every request was answered in full: {told['statuses']}, {told['errors']}")
    first = told["first_token"]
    return {"p50": first["p50"], "p95": first["p95"], "answers": told["requests_per_second"]}


@contextlib.contextmanager
def served(model: Path, threads: int) -> Iterator[str]:
    """`regrow serve`, once it answers, at its address; ended at the end."""
    import serve_throughput

    keys = model.with_name("keys.txt")
    keys.write_text(serve_throughput.KEY + "\n")
    command = [str(Path(sys.executable).with_name("regrow")), "serve", f"{NAME}={model}", "--keys", str(keys),
               "--max-model-len", str(LENGTH), "--max-num-seqs", str(SEATS), "--dtype", "bfloat16",
               "--port", str(serve_throughput.PORT), "--cpu-threads", str(threads)]  # fmt: skip
    environment = os.environ | engine.env_vars(gpu=False, threads=threads)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{serve_throughput.PORT}"
    try:
        serve_throughput.until_ready(url, process)
        yield f"{url}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)


def summary(found: dict[int, list[tuple[Run, Run]]]) -> dict[str, Any]:
    """By number of clients: medians of both sides, of their ratios pair by pair, and how far these are apart."""
    told: dict[str, Any] = {}
    for clients, runs in found.items():
        ratios = [ours["p50"] / peer["p50"] for ours, peer in runs]
        told[str(clients)] = {
            "ratio": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
            "added": round(statistics.median(ours["p50"] - peer["p50"] for ours, peer in runs), 4),
            **{side: {what: round(statistics.median(run[at][what] for run in runs), 4) for what in runs[0][at]}
               for at, side in enumerate(("ours", "peer"))},
        }  # fmt: skip
    worst = max(told.values(), key=lambda one: one["ratio"])
    settings = {"seats": SEATS, "words": WORDS, "tokens": TOKENS, "subnetworks": K, "cores": os.cpu_count()}
    return {"claim": CLAIM, "ratio": worst["ratio"], "ours": worst["ours"]["p50"], "peer": worst["peer"]["p50"],
            "unit": "seconds", "clients": told, "settings": settings,
            "runs": {str(clients): runs for clients, runs in found.items()}, "versions": versions()}  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
