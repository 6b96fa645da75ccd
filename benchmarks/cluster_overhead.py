"""What does a cluster cost on top of one process, and how long does a job take to its first row?

    python benchmarks/cluster_overhead.py               # the quickstart's rows; writes results/cluster_overhead.json
    python benchmarks/cluster_overhead.py --rows 200 --rounds 1 --no-write    # a smoke run

The same work, the quickstart's generate and train, on one private cluster (`regrow run`) and as a job (`regrow
submit`) on clusters of `ray start` nodes on this machine: a head that takes no work, and one, two or four nodes beside
it. All nodes share the machine's cores, so more of them cannot be faster: what is measured is what nodes cost. Engines
and training workers are as many on every side. Sides alternate within a round, and each run has a directory of its
own, so nothing is reused. A warm-up comes first, whose figures are thrown away.

Seconds are the clock's, from the command to its end; beside them those of each stage, from the manifests, and from
the command to the first committed shard of rows. Starting the cluster is not in them: it is there when a user submits.
The ratio is one process over the job on one node.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions
from tests.ray_start import Started, started

RESULTS = Path(__file__).parent / "results" / "cluster_overhead.json"
REGROW = str(Path(sys.executable).parent / "regrow")
NODES = (1, 2, 4)
CPUS = 8  # logical, over all nodes: as many as a private cluster has
Figures = dict[str, Any]


def main(
    rows: Annotated[int, typer.Option(help="Train rows.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Rounds of all sides, after the warm-up.")] = 3,
    write: Annotated[bool, typer.Option(help="Write the figures to results/.")] = True,
) -> None:
    """Measure all sides in turn and write the figures."""
    runs = dict[str, list[Figures]]()
    for round_ in range(rounds + 1):
        for nodes in (0, *NODES):
            folder = Path(tempfile.mkdtemp(prefix="rg"))
            try:
                made = one(folder, nodes, rows if round_ else min(rows, 100))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            side = f"{nodes} nodes" if nodes else "one process"
            print(f"round {round_}: {side}: {made}", file=sys.stderr, flush=True)
            if round_:
                runs.setdefault(side, []).append(made)
    result = figures(runs, rows)
    if write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def one(folder: Path, nodes: int, rows: int) -> Figures:
    """The figures of one run; `nodes` 0: one process."""
    words = [f"dataset.tasks.rows={rows}", "student.sft.epochs=1", "student.sdd.epochs=1", "--until", "train"]
    words = ["quickstart", f"run_dir={folder}/run", *words]
    if not nodes:
        return timed(folder, ["run", *words], {})
    with started(folder, workers=nodes, cpus=CPUS // nodes) as cluster:
        return timed(folder, ["submit", *words], login(cluster))


def login(cluster: Started) -> dict[str, str]:
    """What a user's shell would hold."""
    return {"RAY_API_SERVER_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": cluster.token}


def timed(folder: Path, words: list[str], environ: dict[str, str]) -> Figures:
    """Seconds of the command, to its first shard, and of each stage."""
    began, first = time.monotonic(), None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([REGROW, *words], stdout=log, stderr=log, env=os.environ | environ)
        while process.poll() is None:
            if first is None and any(folder.glob("run/artifacts/generate-*/data/part-*.parquet")):
                first = time.monotonic() - began
            time.sleep(0.05)
    whole = time.monotonic() - began
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    manifests = [json.loads(file.read_text()) for file in folder.glob("run/artifacts/*/manifest.json")]
    stages = {m["name"]: round(m["seconds"], 2) for m in manifests if m["name"].startswith(("generate", "train"))}
    return {"seconds": round(whole, 2), "first_shard": round(first or whole, 2), "stages": stages}


def figures(runs: dict[str, list[Figures]], rows: int) -> Figures:
    """Medians by side, and the ratio."""
    median = {side: statistics.median(run["seconds"] for run in made) for side, made in runs.items()}
    first = {side: statistics.median(run["first_shard"] for run in made) for side, made in runs.items()}
    pairs = zip(runs["one process"], runs["1 nodes"], strict=True)
    return {
        "claim": f"generate and train of {rows:,} quickstart rows as a job on one node take as long as in one process",
        "ratio": round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 3),
        "ours": median["1 nodes"],
        "peer": median["one process"],
        "unit": "seconds",
        "seconds": median,
        "first_shard_seconds": first,
        "runs": runs,
        "versions": versions(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    typer.run(main)
