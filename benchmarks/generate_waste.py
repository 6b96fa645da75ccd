"""What does the death of a driver cost, in tokens that an engine wrote and nobody kept?

    python benchmarks/generate_waste.py    # six deaths on one output; writes results/generate_waste.json

`pipelines.generate.generate` with the packaged teacher in vLLM, on a Ray cluster that outlives its drivers. Each driver
but the last is killed with SIGKILL, at a seeded moment between two commits; each counts the tokens of all rows that its
engine has finished, as the engine tells its board (once a second and at each shard's end). What the drivers counted and
no part holds was written for nothing. Not in that figure, and given apart as a bound: the last second before a death,
and rows that were half written.

The claim is the bound of the protocol: a death wastes no more than the shards an engine holds (flow.AT_ONCE of them).
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "generate_waste.json"
CLAIM = "tokens wasted by a driver's death, over those of the shards that one engine holds; at most 1"
ROWS, SHARD, SEATS, EVERY = 4000, 64, 32, 0.1


def main(
    kills: Annotated[int, typer.Option(help="Drivers to kill before one is let finish.")] = 6,
    rows: Annotated[int, typer.Option(help="Rows of the job.")] = ROWS,
    write: Annotated[bool, typer.Option(help="Write the figures to results/.")] = True,
    side: Annotated[str, typer.Option(help="`HOME ADDRESS`: be a driver.")] = "",
) -> None:
    """Kill drivers, let the last one finish, and count."""
    if side:
        drive(*side.split())
        return
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        home, chosen = Path(folder), random.Random(0)
        make(home / "rows.jsonl", rows)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "object_store_memory": 256 << 20})
        try:
            runs = [killed(home, cluster.address, chosen) for _ in range(kills)]
            runs.append(ended(start(home, cluster.address)))
        finally:
            cluster.shutdown()
        result = figures(runs, kept(home), rows)
    if write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def make(path: Path, rows: int) -> None:
    """Questions of the packaged teacher's kind, one a line."""
    import counting_llama

    path.write_text("".join(json.dumps({"prompt": asked}) + "\n" for asked in counting_llama.questions(rows)))


def drive(home: str, address: str) -> None:
    """The job, in this process; prints {rows, completion_tokens} of its engine whenever that changes."""
    import ray

    from cluster import storage
    from cluster.session import session
    from pipelines import generate, models
    from pipelines.generation import board
    from pipelines.generation.job import Job

    put_up = board.put_up

    def watched() -> Any:
        here = put_up()
        threading.Thread(target=watch, args=(here,), daemon=True).start()
        return here

    def watch(here: Any) -> None:
        said = {"rows": 0, "completion_tokens": 0}
        while True:
            for counts in ray.get(here.read.remote()).values():
                now = {name: counts[name] for name in said}
                if now != said:
                    said = now
                    print(json.dumps(now), flush=True)
            time.sleep(EVERY)

    board.put_up = watched
    folder = models.resolve("tiny")
    job = Job(model=str(folder), output=f"{home}/out", max_tokens=160, max_model_len=512, shard_rows=SHARD,
              max_num_seqs=SEATS)  # fmt: skip
    with session(address, None):
        generate.generate(job, storage.find(f"{home}/rows.jsonl"), folder)
        time.sleep(3 * EVERY)


def start(home: Path, address: str) -> subprocess.Popen[str]:
    """A driver in a process of its own."""
    command = [sys.executable, __file__, "--side", f"{home} {address}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed(home: Path, address: str, chosen: random.Random) -> dict[str, float]:
    """One driver, killed some commits and up to three seconds into its work; what it had counted by then."""
    there, wanted = parts_in(home), chosen.randint(1, 5)
    driver = start(home, address)
    while parts_in(home) < there + wanted and driver.poll() is None:
        time.sleep(0.01)
    time.sleep(chosen.uniform(0, 3))
    driver.kill()
    return ended(driver)


def ended(driver: subprocess.Popen[str]) -> dict[str, float]:
    """What a driver that ends, or has been killed, had counted."""
    said, _ = driver.communicate()
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    time.sleep(2)  # what Ray had in flight may still land
    print(f"{driver.returncode}: {found[-1]}", file=sys.stderr, flush=True)
    return found[-1]


def parts_in(home: Path) -> int:
    """Committed parts."""
    return len(list(home.glob("out/data/part-*.parquet")))


def kept(home: Path) -> dict[str, int]:
    """Rows and tokens in committed parts."""
    import pyarrow.parquet as pq

    table = pq.read_table(home / "out" / "data", columns=["id", "completion_tokens"])
    return {"rows": table.num_rows, "completion_tokens": sum(table.column("completion_tokens").to_pylist())}


def figures(runs: list[dict[str, float]], there: dict[str, int], rows: int) -> dict[str, Any]:
    """Waste a death, against the bound."""
    from pipelines.generation.flow import AT_ONCE

    deaths = len(runs) - 1
    lost = {name: sum(run[name] for run in runs) - there[name] for name in there}
    mean = there["completion_tokens"] / there["rows"]
    bound = AT_ONCE * SHARD * mean
    a_death = lost["completion_tokens"] / deaths
    return {
        "claim": CLAIM, "ratio": round(a_death / bound, 3), "ours": round(a_death, 1), "peer": round(bound, 1),
        "unit": "tokens a death, mean",
        "runs": runs, "kept": there, "versions": versions(),
        "held": there["rows"] == rows and a_death <= bound,
        "rows wasted a death": round(lost["rows"] / deaths, 1),
        "share of the job a death": round(a_death / there["completion_tokens"], 4),
        "share of a job of 1,000,000 such rows a death": a_death / mean / 1_000_000,
        "half written rows, at most, tokens a death": round(SEATS * mean, 1),
        "settings": {"rows": rows, "deaths": deaths, "shard_rows": SHARD, "seats": SEATS, "shards held": AT_ONCE},
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
