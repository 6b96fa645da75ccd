"""What does the pipeline itself cost, where the engine answers at once?

    python benchmarks/generate_overhead.py                 # 100 k and 1 M rows; writes results/generate_overhead.json
    python benchmarks/generate_overhead.py --rows 500,5000 --no-write    # a smoke run

The real command, `regrow generate --model echo`, in a process of its own, from one Parquet file of 1 KB rows to
Parquet shards on the same disk, at two sizes; then the same command again, which finds everything committed. The
claim is at least 10,000 rows a second on two cores; the ratio is to that.

Time is the clock's, from the first row read to the last shard's commit: Ray's start is left out, the start of the
job's own actors and tasks is in it. CPU time and memory are sampled over all processes of the command, by what they
are; a worker that reads one moment and commits the next counts as one kind. A worker's resident set holds the pages
of Ray's object store that it has looked at, so what is its own stands beside it. Where the time goes inside the
processes is measured apart, part after part in one process. What is said of 100 M rows is extrapolated on a line
through the two sizes.

A warm-up comes first, which leaves compiled bytecode in a folder of the benchmark's own: an installed package has it,
and where the environment forbids it (PYTHONDONTWRITEBYTECODE) each of Ray's processes would take seconds to start.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from cluster.artifacts import versions

RESULTS = Path(__file__).parent / "results" / "generate_overhead.json"
CLAIM, WANTED, CORES, FAR = 10_000, (100_000, 1_000_000), 2, 100_000_000
BYTES, GROUP, EVERY = 1000, 8192, 0.25
PARTS_ROWS, WARM_UP = 50_000, 1_000
# What a process is, by what its command line has said at any time; the first that fits.
KINDS = {"engine": "MapWorker", "readers and committers": "MapBatches|ray::scan", "board": "ray::Board",
         "driver": "pipelines.cli"}  # fmt: skip
Figures = dict[str, Any]


def main(
    rows: Annotated[str, typer.Option(help="Two numbers of rows.")] = ",".join(map(str, WANTED)),
    write: Annotated[bool, typer.Option(help="Write the figures to results/.")] = True,
    side: Annotated[str, typer.Option(help="`parts`: CPU by part in this process, as JSON.")] = "",
) -> None:
    """Measure both sizes and the parts, and write the figures."""
    small, large = sorted(int(number) for number in rows.split(","))
    if side:
        print(json.dumps(parts(large)))
        return
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        measured(folder, WARM_UP)
        runs = [measured(folder, number) for number in (small, large)]
        told("the parts, one after the other")
        command = [sys.executable, __file__, "--side", "parts", "--rows", f"0,{min(PARTS_ROWS, large)}"]
        by_part = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = figures(runs, by_part)
    for line in lines(result):
        told(line)
    if write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("claim", "ratio", "ours", "peer", "unit", "runs", "versions")}))


def measured(folder: Path, rows: int) -> Figures:
    """The figures of a job of `rows` rows, and of the same command once all is committed."""
    told(f"{rows:,} rows: making the input")
    source, output = folder / f"{rows}.parquet", folder / f"out-{rows}"
    make(source, rows)
    first = commanded(source, output)
    shards = list((output / "data").glob("*.parquet"))
    last = max(shard.stat().st_mtime for shard in shards)
    again = commanded(source, output)
    committed = json.loads((output / "manifest.json").read_text())["counts"]["rows"]
    if committed != rows or (output / "data").stat().st_mtime > again["began"]:
        raise SystemExit(f"{committed:,} of {rows:,} rows are there, or the second go wrote some again")
    size = sum(shard.stat().st_size for shard in shards)
    shutil.rmtree(output)
    source.unlink()
    seconds = last - first["began"]
    told(f"{rows:,} rows: {seconds:.1f} s, {rows / seconds:,.0f} rows/s; resume {again['seconds']:.1f} s")
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "files": len(shards), "bytes": size,
            "cpu": first["cpu"], "peak": first["peak"], "own": first["own"], "load_before": first["load"],
            "resume_seconds": again["seconds"], "resume_peak": again["peak"]}  # fmt: skip


def make(file: Path, rows: int) -> None:
    """`rows` rows of `BYTES` bytes of words in all: a number, the prompt and a short text."""
    rng = random.Random(rows)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    text = " ".join(rng.choices(words, k=2_000_000))
    with pq.ParquetWriter(
        file, pa.schema([("number", pa.int64()), ("prompt", pa.string()), ("set", pa.string())])
    ) as to:
        for start in range(0, rows, GROUP):
            numbers = range(start, min(start + GROUP, rows))
            places = [rng.randrange(len(text) - BYTES) for _ in numbers]
            prompts = [f"{number} {text[at : at + BYTES - 40]}" for number, at in zip(numbers, places, strict=True)]
            to.write(pa.table({"number": numbers, "prompt": prompts, "set": ["overhead"] * len(prompts)}))


def commanded(source: Path, output: Path) -> Figures:
    """Run the command; `began` (the time of the first row read), `seconds` from then to its last word, and by kind of
    process CPU seconds since then and peak bytes in memory, all of them and those that are the process's own."""
    words = ["generate", "--model", "echo", "--input", str(source), "--output", str(output)]
    load = os.getloadavg()[0]
    process = psutil.Popen([sys.executable, "-m", "pipelines.cli", *words], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)  # fmt: skip
    seen: dict[str, float] = {}
    said: list[str] = []

    def listen() -> None:
        for line in process.stdout:
            said.append(line)
            for mark in ("generate: reading", "tokens read"):
                if mark in line:
                    seen[mark] = time.time()
            told(f"  {line.rstrip()}")

    thread = threading.Thread(target=listen)
    thread.start()
    found = sampled(process, lambda: "generate: reading" in seen)
    thread.join()
    if process.wait():
        raise SystemExit("".join(said[-5:]) + f"the command ended with status {process.returncode}")
    began = seen["generate: reading"]
    return found | {"began": began, "seconds": seen["tokens read"] - began, "load": load}


def sampled(process: psutil.Popen, begun: Callable[[], bool]) -> Figures:
    """CPU seconds since `begun` and peaks by kind of process, of `process` and all below it, until it ends."""
    titles: dict[int, str] = defaultdict(str)
    before: dict[int, float] = {}
    cpu: dict[int, float] = {}
    peak: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    while process.poll() is None:
        started = begun()
        for one in below(process):
            try:
                with one.oneshot():
                    times, memory, title = one.cpu_times(), one.memory_info(), " ".join(one.cmdline())
            except psutil.Error:
                continue
            cpu[one.pid] = times.user + times.system
            if not started:
                before[one.pid] = cpu[one.pid]
            if title not in titles[one.pid]:
                titles[one.pid] += f" {title}"
            most, own = peak[one.pid]
            peak[one.pid] = max(most, memory.rss), max(own, memory.rss - memory.shared)
        time.sleep(EVERY)
    found: Figures = {"cpu": defaultdict(float), "peak": defaultdict(int), "own": defaultdict(int)}
    for pid, seconds in cpu.items():
        kind = kind_of(titles[pid])
        found["cpu"][kind] += seconds - before.get(pid, 0.0)
        found["peak"][kind] = max(found["peak"][kind], peak[pid][0])
        found["own"][kind] = max(found["own"][kind], peak[pid][1])
    return found


def below(process: psutil.Popen) -> Iterator[psutil.Process]:
    """`process` and its descendants."""
    try:
        yield from [process, *process.children(recursive=True)]
    except psutil.Error:
        return


def kind_of(titles: str) -> str:
    """The kind of a process that has had these command lines."""
    for kind, marks in KINDS.items():
        if any(mark in titles for mark in marks.split("|")):
            return kind
    return "Ray's own"


def parts(rows: int) -> dict[str, float]:
    """CPU microseconds a row of each part, in this process, shard after shard."""
    from cluster import storage
    from cluster.session import session
    from pipelines.generation import asking, board, columns, engines, rereading, shaping, shards, source
    from pipelines.generation import parts as committed
    from pipelines.generation.job import Job

    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        made = call(*arguments)
        spent[name] += time.process_time() - began
        return made

    with tempfile.TemporaryDirectory() as folder, session("local", None), asyncio.Runner() as runner:
        make(Path(folder) / "in.parquet", rows)
        units = source.units(storage.find(f"{folder}/in.parquet"))
        scanned = [timed("scan", source.scan, unit) for unit in units]
        typed = {name: columns.arrow(kind) for name, kind in scanned[0].columns.items()}
        job = Job(model="echo", output=f"{folder}/out", max_model_len=1 << 20)
        job = asking.settled(job, scanned[0].columns)
        plan = timed("plan", shards.plan, scanned, units, job.shard_rows, shards.SHARD_BYTES, None, set(), list)
        engine = engines.Engine(job.model_dump_json(), "", {}, board.put_up())
        for one in plan.work:
            reading = source.read(one.unit, one.shards, one.lines_before)
            while found := timed("read", next, reading, None):
                packet = timed("ask", shaping.packet, job, "", typed, found[0].name, found[1])
                packet = timed("engine", lambda packet: runner.run(engine(packet)), packet)
                table, held = timed("judge", shaping.table, job, packet)
                timed("commit", committed.commit, job.output, found[0].name, table, held, rereading.mark(job))
    return {name: seconds / rows * 1e6 for name, seconds in spent.items()}


def figures(runs: list[Figures], by_part: dict[str, float]) -> Figures:
    """The result as it is committed, with what follows from the two sizes."""
    small, large = runs
    more = large["rows"] - small["rows"]
    kinds = {kind: seconds for kind, seconds in large["cpu"].items() if seconds > 0}
    margin = {kind: (seconds - small["cpu"].get(kind, 0.0)) / more * 1e6 for kind, seconds in kinds.items()}
    rate = round(large["rows_per_second"])

    def far(name: str, of: Callable[[Figures], float]) -> tuple[str, float]:
        return name, round(of(large) + max(0.0, of(large) - of(small)) / more * (FAR - large["rows"]), 1)

    return {
        "claim": f"{large['rows']:,} rows of 1 KB, Parquet to Parquet, with an engine that answers at once, "
        f"at {CLAIM:,} rows/s on {CORES} cores",
        "ratio": round(rate / CLAIM, 2),
        "ours": rate,
        "peer": CLAIM,
        "unit": "rows/s",
        "runs": [{key: one[key] for key in ("rows", "seconds", "resume_seconds")} for one in runs],
        "versions": versions(),
        "cores": os.cpu_count(),
        "measured": runs,
        "rows_per_second_at_the_margin": round(more / max(large["seconds"] - small["seconds"], 1e-3)),
        "cpu_us_per_row_at_the_margin": {kind: round(us, 1) for kind, us in margin.items()},
        "cpu_us_per_row_by_part_in_one_process": {name: round(us, 1) for name, us in by_part.items()},
        "peak_against_the_smaller": {kind: round(peak / max(small["peak"].get(kind, peak), 1), 2)
                                     for kind, peak in large["peak"].items()},
        "extrapolated": {"rows": FAR} | dict((
            far("hours", lambda one: one["seconds"] / 3600),
            far("driver_MB", lambda one: one["peak"]["driver"] / 1e6),
            far("files", lambda one: one["files"]),
            far("resume_seconds", lambda one: one["resume_seconds"]),
            far("resume_driver_MB", lambda one: one["resume_peak"]["driver"] / 1e6),
        )),
    }  # fmt: skip


def lines(result: Figures) -> Iterator[str]:
    """The figures for people."""
    for one in result["measured"]:
        yield (
            f"{one['rows']:,} rows: {one['seconds']:.1f} s, {one['rows_per_second']:,.0f} rows/s, {one['files']:,} "
            f"files of {one['bytes'] / 1e6:,.0f} MB in all; resume {one['resume_seconds']:.1f} s"
        )
        for kind in sorted(one["cpu"], key=one["cpu"].get, reverse=True):
            yield (
                f"  {kind}: {one['cpu'][kind]:.1f} s of CPU, at most {one['peak'][kind] / 1e6:,.0f} MB a process, "
                f"{one['own'][kind] / 1e6:,.0f} MB its own"
            )
    for name in ("cpu_us_per_row_at_the_margin", "cpu_us_per_row_by_part_in_one_process"):
        shares = result[name]
        yield f"{name}: {sum(shares.values()):.0f}: {', '.join(f'{key} {us:.1f}' for key, us in shares.items())}"
    yield f"peak memory against the smaller job: {result['peak_against_the_smaller']}"
    yield f"extrapolated: {result['extrapolated']}"


def told(line: str) -> None:
    """Say `line` on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
