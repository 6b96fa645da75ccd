"""How fast is a training step beside TRL's SFTTrainer, on the same model, rows and device?

    pip install trl                                          # or: pip install -e '.[bench]'
    python benchmarks/train_throughput.py                    # three runs a side; writes results/train_throughput.json
    python benchmarks/train_throughput.py --workload big     # on a GPU: 1.2 B parameters, with MFU
    python benchmarks/train_throughput.py --smoke            # one short pair of the tiny teacher; writes nothing

Each side trains one epoch in a process of its own, one side at a time, alternating: random order of rows, AdamW, fp32
weights under bf16 autocast (none on a CPU not made for bf16), norm clipped at 1, the same tokens an optimizer step, no
activation checkpointing. Rates are target tokens a second of the clock without the first two steps; a ratio is that of
two neighbouring runs, and the median over the pairs counts. The learning rate is next to nothing, so that nats a target
token over the epoch must be the same on every side: same rows, same targets, no row that sees another.

TRL's sides have the settings that were quickest of those that are right here (they stand in the result): `packed` is
packing_strategy="bfd" with packs no longer than the longest row needs, accumulated; FlashAttention 2 where it is
installed, else SDPA, whose mask keeps the rows apart; never "wrapped", which cuts rows and lets them see each other.
`padded` is the trainer without packing, in batches of as many tokens on average. `one` and `two`: ours with FSDP2 in
one process and in two that share the cores, as Ray Train's workers run it.

Runs are kept under runs/train_throughput until the result is written: the same command goes on where it was stopped.
"""

import importlib.metadata
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "train_throughput.json"
WORK = Path(__file__).parents[1] / "runs" / "train_throughput"
CLAIM = "target tokens/s of a training step, against TRL's SFTTrainer with packing: at least 1.0"
EQUAL = {"loss": 2e-3, "tokens": 0}  # bf16 products in batches of other shapes
# tokens an optimizer step; tokens of a pack and of the longest row, on both sides; rows
SIZES = {"llama": (2048, 1024, 45), "tiny": (2048, 1024, 200), "big": (65_536, 16_384, 4000)}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14,
              "num_attention_heads": 12, "num_key_value_heads": 4},
    "big": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
SIDES = {"llama": "ours packed padded", "tiny": "ours packed padded one two", "big": "compiled packed"}
Run = dict[str, float]
Runs = dict[str, list[Run]]


def main(
    workload: Annotated[str, typer.Option(help="llama, tiny, big; several with commas.")] = "llama,tiny",
    pairs: Annotated[int, typer.Option(help="Runs of each side, alternating.")] = 3,
    smoke: Annotated[bool, typer.Option("--smoke", help="One short pair of tiny, nothing written.")] = False,
) -> None:
    """Measure all sides of each workload, check that they did the same work, and write the figures."""
    found: dict[str, Runs] = {}
    for name in ["tiny"] if smoke else workload.split(","):
        if name not in SIZES:
            raise typer.BadParameter(f"no workload {name!r}; workloads are {', '.join(SIZES)}")
        prepare(name, 40 if smoke else SIZES[name][2])
        found[name] = compared(name, 1 if smoke else pairs)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() and not smoke else {}
    result = figures(found, before)
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name in found:
        shutil.rmtree(WORK / name)
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def prepare(name: str, number: int) -> None:
    """Put a workload into its folder, unless it is there with these settings: model, `rows.jsonl`, `about.json`."""
    tokens, longest, _ = SIZES[name]
    about = {"tokens": tokens, "longest": longest, "rows": number}
    home = WORK / name
    if (home / "about.json").exists() and json.loads((home / "about.json").read_text()) == about:
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    rows = taught(home, number, longest) if name == "tiny" else drawn(home, name, number, longest)
    (home / "rows.jsonl").write_text("".join(json.dumps({"ids": ids, "prompt": n}) + "\n" for ids, n in rows))
    (home / "about.json").write_text(json.dumps(about))


def taught(home: Path, number: int, longest: int) -> list[tuple[list[int], int]]:
    """The packaged teacher, and rows of the packaged GSM8K sample, which its small vocabulary makes long."""
    from transformers import AutoTokenizer

    from pipelines import models, prompts
    from pipelines.training.batches import encode

    shutil.copytree(models.TINY, home / "model")
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    read = [json.loads(line) for line in (models.RECIPES / "gsm8k" / "train.jsonl").read_text().splitlines()]
    rows = [encode(tokenizer, prompts.answer(row["question"]), row["answer"]) for row in read]
    return [(list(row.ids), row.prompt) for row in rows if len(row.ids) <= longest][:number]


def drawn(home: Path, name: str, number: int, longest: int) -> list[tuple[list[int], int]]:
    """A random Llama, and rows of random tokens whose lengths are spread as those of short instructions and answers:
    log-normally, prompts about 60 tokens, targets about 110."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.tiny import tokenizers

    torch.manual_seed(0)
    shape = SHAPES[name]
    config = LlamaConfig(
        **shape, max_position_embeddings=longest, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=1, initializer_range=0.1,  # so large that what a token says depends on those before it
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(home / "model")
    tokenizers.train(["What is 1 + 2?"], 300).save_pretrained(home / "model")  # TRL asks for one
    rng = random.Random(0)
    rows = []
    for _ in range(number):
        prompt, target = (round(rng.lognormvariate(mu, sigma)) for mu, sigma in ((4.1, 0.6), (4.7, 0.7)))
        prompt, target = max(2, min(prompt, 300)), max(2, min(target, 700))
        rows.append(([rng.randrange(2, shape["vocab_size"]) for _ in range(prompt + target)], prompt))
    return rows


def compared(name: str, pairs: int) -> Runs:
    """Every side's runs of one workload, alternating. Raises SystemExit where the sides did not do the same work."""
    sides = SIDES[name].split()
    found: Runs = {side: [] for side in sides}
    for number in range(pairs):
        for side in sides if number % 2 == 0 else sides[::-1]:
            kept = WORK / name / f"{side}-{number}.json"
            if not kept.exists():
                kept.write_text(alone(side, WORK / name))
            run = json.loads(kept.read_text())
            said = f"{run['rate']:,.1f} target tokens/s, {run['peak'] / 1e9:.2f} GB, {run['loss']:.4f} nats"
            print(f"{name}, run {number + 1}, {side}: {said}", file=sys.stderr, flush=True)
            found[side].append(run)
    runs = [run for some in found.values() for run in some]
    for what, within in EQUAL.items():
        values = [run[what] for run in runs]
        if max(values) - min(values) > within * min(values):
            raise SystemExit(f"{name}: {what} differ, so the sides did not do the same work: {sorted(set(values))}")
    return found


def alone(side: str, home: Path) -> str:
    """The JSON line of one run of a side in a process of its own."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Where another process takes a core now and then, threads that spin while they wait for each other take its place
    quiet |= {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("train_sides.py")), side, str(home)],
        stdout=subprocess.PIPE, text=True, check=False, env=os.environ | quiet,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"side {side} failed with status {done.returncode}; its reason is above")
    return next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"rate"'))


def figures(found: dict[str, Runs], before: dict[str, Any]) -> dict[str, Any]:
    """The result as it is committed, with the workloads of the result `before` that were not run now: the first
    workload's medians make the claim, all of them stand below."""
    workloads = before.get("workloads", {}) | {name: summary(name, runs) for name, runs in found.items()}
    name = next(name for name in SIZES if name in workloads)
    first = workloads[name]
    rates = {
        name: {side: [round(run["rate"], 1) for run in some] for side, some in runs.items()}
        for name, runs in found.items()
    }
    peers = {package: importlib.metadata.version(package) for package in ("trl", "accelerate")}
    return {
        "claim": CLAIM,
        "ratio": first["over packed"],
        "ours": first["rate"][SIDES[name].split()[0]],
        "peer": first["rate"]["packed"],
        "unit": f"target tokens/s, workload {name}",
        "runs": before.get("runs", {}) | rates,
        "versions": versions() | peers,
        "workloads": workloads,
    }


def summary(name: str, runs: Runs) -> dict[str, Any]:
    """Medians of one workload; ratios run by run, median and range."""
    ours = SIDES[name].split()[0]
    about: dict[str, Any] = {}
    for over, (mine, theirs) in {"packed": (ours, "packed"), "padded": (ours, "padded"), "one": ("two", "one")}.items():
        if mine in runs and theirs in runs:
            ratios = [a["rate"] / b["rate"] for a, b in zip(runs[mine], runs[theirs], strict=True)]
            key = f"over {over}" if over != "one" else "two workers over one"
            about[key] = round(statistics.median(ratios), 3)
            about[f"{key}, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for what, unit in (("rate", 1), ("peak", 1e9), ("loss", 1), ("mfu", 1)):
        middle = {side: statistics.median(run[what] for run in some) for side, some in runs.items() if what in some[0]}
        about |= {what: {side: round(value / unit, 4) for side, value in middle.items()}} if middle else {}
    settings = next(some[0]["settings"] for side, some in runs.items() if side == "packed")
    (tokens, longest, _), one = SIZES[name], runs[ours][0]
    return about | {"peak unit": "GB, of rank 0", "target tokens": one["tokens"], "tokens a step": tokens,
                    "longest row": longest, "threads": len(os.sched_getaffinity(0)), "device": one["device"],
                    "trl": settings}  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
