"""Does `regrow generate` keep a vLLM engine as busy as vLLM's own offline engine, given every prompt at once?

    python benchmarks/generate_throughput.py         # five pairs a workload; writes results/generate_throughput.json
    python benchmarks/generate_throughput.py --smoke # one short pair of a small model; writes nothing

Ours is `pipelines.generate.generate` in a Ray session: rows out of a file, shards, one engine, Parquet committed. The
peer is `vllm.LLM.generate` over the same prompts, already tokenised, all at once, in a process that stays up and is
warm. Beside them, without a claim, the documented example of `ray.data.llm`. All engines get the same arguments
(serving.engine.engine_kwargs: seats, lengths, KV memory) and the same threads; one side computes at a time.

Workloads: `even` and `tailed`, a random bf16 Llama whose texts end where the prompt says (counting_llama.py), with
lengths spread evenly, and log-normally; `tiny`, the packaged teacher, where Python weighs most. Greedy, so a row's
text has the same tokens on every side: the totals must agree. The claim is about the rate in steady state, without the
engine's start, ramp-up and tail (generate_sides.py); the rate with the latter two stands beside it as `whole`, ours up
to the last committed file.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "generate_throughput.json"
CLAIM = "output tokens/s of regrow generate, at least 0.95 of vLLM's offline engine given all prompts at once"
LEAST = 0.95
EQUAL = 0.01  # by which the sides' totals of tokens may differ: fp32 sums depend on the batch
SEATS = {"even": 32, "tailed": 32, "tiny": 64}
ROWS = {"even": 1200, "tailed": 1200, "tiny": 6000}
Run = dict[str, float]
Runs = dict[str, list[Run]]


def main(
    workload: Annotated[str, typer.Option(help="even, tailed, tiny; several with commas.")] = ",".join(ROWS),
    pairs: Annotated[int, typer.Option(help="Alternating pairs, after one that only warms up.")] = 5,
    rows: Annotated[int, typer.Option(help="Rows a run; 0: a minute or two on two cores.")] = 0,
    example: Annotated[bool, typer.Option(help="Also the example of ray.data.llm, on even and tailed.")] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="One short pair, no warm-up, nothing written.")] = False,
) -> None:
    """Measure both sides of each workload, check that they did the same work, and write the figures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no side outlives this process
    names = workload.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise typer.BadParameter(f"no workload {unknown[0]!r}; workloads are {', '.join(ROWS)}")
    found: dict[str, Runs] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder), rows or (ROWS[name] // 4 if smoke else ROWS[name]), smoke)
            sides = ["ours", "peer", "example"] if example and name != "tiny" else ["ours", "peer"]
            found[name] = compared(name, Path(folder), sides, range(1 if smoke else pairs), warm=not smoke)
    result = figures(found, json.loads(RESULTS.read_text()) if RESULTS.exists() and not smoke else {})
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def prepare(name: str, home: Path, rows: int, small: bool) -> None:
    """Put a workload into `home`: the model, `rows.jsonl`, and `job.json` with the job and its prompts' tokens."""
    import counting_llama

    from pipelines import models
    from pipelines.generation import shaping
    from pipelines.generation.job import Job
    from pipelines.generation.packets import unpack
    from pipelines.generation.source import Row

    about: dict[str, Any] = {"output": str(home), "max_num_seqs": SEATS[name]}
    if name == "tiny":
        folder, asked = models.resolve("tiny"), counting_llama.questions(rows)
        about |= {"max_tokens": 160, "max_model_len": 512, "shard_rows": 256}
    else:
        folder, asked = counting_llama.save(home / "model", small), counting_llama.prompts(rows, name == "tailed")
        about |= {"max_tokens": 512, "max_model_len": 640, "shard_rows": 64, "dtype": "bfloat16", "raw": True}
    (home / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    job = Job(model=str(folder), **about)
    made = [Row(str(place), "", place, {"prompt": prompt}) for place, prompt in enumerate(asked)]
    packet = shaping.packet(job, str(folder), {}, "all", made).to_pylist()[0]
    tokens = unpack(packet["asked"]).column("tokens").to_pylist()
    (home / "job.json").write_text(json.dumps({"job": job.model_dump(mode="json"), "tokens": tokens}))


def compared(name: str, home: Path, sides: list[str], pairs: range, warm: bool) -> Runs:
    """Every side's runs of one workload, alternating. Raises SystemExit where the sides did not do the same work."""
    found: Runs = {side: [] for side in sides}
    peer = subprocess.Popen(command("peer", home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        answer(peer)  # it is up
        for number in [-1, *pairs] if warm else pairs:
            for side in sides if number % 2 == 0 else sides[::-1]:
                run = asked(peer) if side == "peer" else alone(side, home)
                about = f"{name}, {f'pair {number + 1}' if number >= 0 else 'warm-up'}, {side}"
                say(f"{about}: {run['steady']:,.1f} tokens/s, {run['whole']:,.1f} with ramp-up and tail; "
                    f"{run['tokens']:,} tokens in {run['seconds']:.1f} s")  # fmt: skip
                if number >= 0:
                    found[side].append(run)
    except BaseException:
        peer.terminate()
        raise
    finally:
        peer.communicate()  # its input ends, and so does it
    check(name, found)
    return found


def check(name: str, found: Runs) -> None:
    """Raise SystemExit unless all runs read the same tokens and wrote as many, within `EQUAL`."""
    read = {run["prompt_tokens"] for runs in found.values() for run in runs}
    written = [run["tokens"] for runs in found.values() for run in runs]
    if len(read) > 1 or max(written) > (1 + EQUAL) * min(written):
        said = f"{sorted(read)} tokens read, {sorted(written)} written"
        raise SystemExit(f"{name}: the sides did not do the same work, the figures mean nothing: {said}")


def command(side: str, home: Path) -> list[str]:
    """How a side is started."""
    return [sys.executable, str(Path(__file__).with_name("generate_sides.py")), side, str(home)]


def alone(side: str, home: Path) -> Run:
    """One run of a side in a process of its own."""
    done = subprocess.run(command(side, home), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"side {side} failed with status {done.returncode}; its reason is above")
    return json.loads(done.stdout.splitlines()[-1])


def asked(peer: subprocess.Popen[str]) -> Run:
    """One run of the peer that is up."""
    assert peer.stdin
    peer.stdin.write("go\n")
    peer.stdin.flush()
    return answer(peer)


def answer(peer: subprocess.Popen[str]) -> Any:
    """The next JSON line that the peer prints, past what its libraries print."""
    assert peer.stdout
    for line in peer.stdout:
        if line.startswith(("{", '"')):
            return json.loads(line)
    raise SystemExit("side peer failed; its reason is above")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def figures(found: dict[str, Runs], before: dict[str, Any]) -> dict[str, Any]:
    """The result as it is committed, with the workloads of the result `before` that were not run now: the first
    workload's medians make the claim, all of them stand below."""
    workloads = before.get("workloads", {}) | {name: summary(runs) for name, runs in found.items()}
    runs = {
        name: {side: [run["steady"] for run in some] for side, some in each.items()} for name, each in found.items()
    }
    name = next(name for name in ROWS if name in workloads)
    first = workloads[name]
    return {
        "claim": CLAIM, "ratio": first["ratio"], "ours": first["ours"], "peer": first["peer"],
        "unit": f"output tokens/s in steady state, workload {name}",
        "runs": before.get("runs", {}) | runs,
        "versions": versions(),
        "held": all(each["ratio"] >= LEAST for each in workloads.values()),
        "workloads": workloads,
        "settings": {"seats": SEATS, "steady": "from 20 % to 90 % of the tokens"},
    }  # fmt: skip


def summary(runs: Runs) -> dict[str, Any]:
    """Medians of one workload, and its ratio pair by pair: median and range."""
    rates = {side: statistics.median(run["steady"] for run in some) for side, some in runs.items()}
    about: dict[str, Any] = {side: round(rate, 1) for side, rate in rates.items()}
    for side in [side for side in ("ours", "example") if side in runs]:
        for kind in ("steady", "whole"):
            ratios = [mine[kind] / theirs[kind] for mine, theirs in zip(runs[side], runs["peer"], strict=True)]
            name = " ".join(word for word in ("ratio", side.replace("ours", ""), kind.replace("steady", "")) if word)
            about[name] = round(statistics.median(ratios), 3)
            about[f"{name}, range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    tokens = {side: [int(run["tokens"]) for run in some] for side, some in runs.items()}
    equal = len({number for some in tokens.values() for number in some}) == 1
    return about | {"tokens written": tokens, "equal": equal, "prompt tokens": int(runs["peer"][0]["prompt_tokens"]),
                    "seconds": {side: [run["seconds"] for run in some] for side, some in runs.items()}}  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
