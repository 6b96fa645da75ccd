"""What a cluster of so many GPUs writes with the recipe's teacher, and what holds it up first. Pure arithmetic.

Every part of `regrow generate` that a row passes has a rate, and so a time for a volume of tokens. Those that work at
once wait for the slowest: the GPUs (which read and write in turn), the driver, Ray's control plane, the cores that
read and commit rows, S3, the network. The start and the last rows come on top. What the rates rest on is with each
assumption; docs/plan.md tells their sources.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any, NamedTuple

from pipelines.planning import costs, work
from pipelines.planning.amounts import Amount
from pipelines.planning.known import Known
from pipelines.planning.work import Engine
from pipelines.recipe_file import BadInput

VOLUMES = (1_000_000, 100_000_000, 10_000_000_000)  # tokens
SHOWN = VOLUMES[1]
MOST = 100_000  # GPUs up to which the next bottleneck is looked for: the most that a recipe's cluster.gpus may say
TASKS = 3  # tasks of Ray a shard: read, answer, commit (pipelines/generation/flow.py)
HOPS = 2  # times that a row goes from one node to another at the most: to its engine, and to who commits it
BEFORE, AFTER = "the start", "the end"  # nothing else goes on beside these


@dataclass(frozen=True)
class Load:
    """What is generated: mean tokens of a prompt and of an answer, the longest answer, and rows a shard."""

    engine: Engine
    prompt: float
    written: float
    longest: int
    shard_rows: int


class Resource(NamedTuple):
    """One part that rows pass. `seconds` that it is at work; `where`: parts in one place work in turn, other places at
    once; `rate` in words; `rests`: the assumptions behind it."""

    name: str
    where: str
    seconds: float
    rate: str
    rests: str


def capacity(k: Known, price: float | None = None) -> dict[str, Any] | None:
    """The figures for `cluster.gpus` as JSON has them; None where there are no GPUs or they are of no known kind.

    Raises BadInput where so many GPUs cannot carry one engine."""
    gpus, split = k.recipe.cluster.gpus, k.recipe.teacher.tensor_parallel
    if not gpus or k.gpu is None:
        return None
    if gpus < split:
        raise BadInput(
            f"cluster.gpus = {gpus}, but an engine is split over {split} (teacher.tensor_parallel); "
            f"set cluster.gpus to {split} or more"
        )
    load = loaded(k)
    one = load.engine
    sequences = one.held(inf, one.cached(load.prompt, load.written))
    step = one.step(sequences, one.cached(load.prompt, load.written))
    rate = load.written * sequences / one.answer(sequences, load.prompt, load.written)
    found = resources(load, gpus, SHOWN)
    whole = total(found)
    return {
        "gpus": gpus,
        "engines": gpus // split,
        "idle_gpus": gpus % split,
        "nodes": nodes(load, gpus),
        "prompt_tokens": round(load.prompt, 1),
        "written_tokens": round(load.written, 1),
        "sequences": round(sequences, 1),
        "seats": one.seats,
        "decoding_bound_by": work.bound(step),
        "tokens_per_second": {"engine": round(rate, 1), "all": round(rate * (gpus // split), 1)},
        "volumes": [volume(load, gpus, tokens, price) for tokens in VOLUMES],
        "resources": [
            {"resource": r.name, "where": r.where, "rate": r.rate, "hours": round(r.seconds / 3600, 5)}
            | {"share": round(r.seconds / whole, 4), "rests_on": r.rests}
            for r in ordered(found)
        ],
    }


def loaded(k: Known) -> Load:
    """The load that the recipe's rows are: means over all train rows, or a row of assumed lengths where it has none."""
    assert k.gpu is not None
    settings, mode = k.recipe.generate, (k.writes or ["self_distill"])[0]
    engine = costs.served(k, k.gpu, k.teacher.layers, settings.max_num_seqs)
    if not any(a.train for a in k.rows):
        lengths = k.assumed.question_tokens, k.assumed.reference_tokens
        k = k._replace(rows=[Amount("", 1, 0, *lengths, "assumed")])
    rows, read, written = costs.volume(k, mode)
    return Load(engine, read / rows, written / rows, settings.max_tokens, settings.shard_rows)


def nodes(load: Load, gpus: int) -> int:
    """Nodes that so many GPUs are in."""
    return ceil(gpus / load.engine.assumed.gpus_per_node)


def volume(load: Load, gpus: int, tokens: float, price: float | None) -> dict[str, Any]:
    """Hours, cost and the first bottleneck of so many written tokens, and from how many GPUs on it is another."""
    found = resources(load, gpus, tokens)
    hours, here = total(found) / 3600, first(found)
    rows = ceil(tokens / load.written)
    made: dict[str, Any] = {
        "tokens": tokens,
        "rows": rows,
        "shards": ceil(rows / load.shard_rows),
        "hours": round(hours, 4),
    }
    made |= {"gpu_hours": round(hours * gpus, 3), "cost": None if price is None else round(hours * gpus * price, 2)}
    return made | {"bottleneck": here.name, "next": _next(load, gpus, tokens, here)}


def resources(load: Load, gpus: int, tokens: float) -> list[Resource]:
    """The time of each part for so many written tokens, on so many GPUs."""
    return [*_on_gpus(load, gpus, tokens), *_beside(load, gpus, tokens), *_around(load, gpus)]


def total(found: list[Resource]) -> float:
    """Seconds from the start to the last row."""
    places = _places(found)
    return places.pop(BEFORE) + places.pop(AFTER) + max(places.values())


def first(found: list[Resource]) -> Resource:
    """The part that holds the others up: the longest in the place that takes longest."""
    return ordered(found)[0]


def ordered(found: list[Resource]) -> list[Resource]:
    """The parts, place after place, longest first."""
    places = _places(found)
    return sorted(found, key=lambda r: (-places[r.where], r.where, -r.seconds))


def _places(found: list[Resource]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for r in found:
        sums[r.where] = sums.get(r.where, 0.0) + r.seconds
    return sums


def _on_gpus(load: Load, gpus: int, tokens: float) -> Iterator[Resource]:
    """The engine that gets the most shards: a small volume leaves others without any."""
    one, engines = load.engine, gpus // load.engine.tensor_parallel
    rows = tokens / load.written
    most = min(rows, ceil(ceil(rows) / load.shard_rows / engines) * load.shard_rows)
    roomy = replace(one, room=inf).decode(most, load.prompt, load.written)
    waiting = one.decode(most, load.prompt, load.written) - roomy
    reading = one.read(most * load.prompt, one.assumed.prefill_mfu)

    def rate(seconds: float, each: float) -> str:
        return f"{_round(rows * each / seconds)} tokens/s" if seconds else "room for all seats"

    bandwidth = "decode_bandwidth, prefill_mfu, tensor_parallel_efficiency"
    yield Resource("decoding", "GPUs", roomy, rate(roomy, load.written), bandwidth)
    room = "gpu_memory_utilization, engine_overhead_gb"
    said = rate(0, 0) if waiting < 1e-9 * roomy else f"{one.held(inf, one.cached(load.prompt, load.written)):,.0f} seqs"
    yield Resource("KV-cache room", "GPUs", max(0.0, waiting), said, room)
    yield Resource("reading prompts", "GPUs", reading, rate(reading, load.prompt), "prefill_mfu")


def _beside(load: Load, gpus: int, tokens: float) -> Iterator[Resource]:
    """What goes on while the GPUs work. Readers and committers are as many as engines, and two at the least."""
    a, rows = load.engine.assumed, tokens / load.written
    shards, workers = ceil(ceil(rows) / load.shard_rows), max(2, gpus // load.engine.tensor_parallel)
    driver = a.driver_ms_per_shard / 1e3
    yield Resource("driver", "driver", shards * driver, f"{_round(1 / driver)} shards/s", "driver_ms_per_shard")
    tasks = a.ray_tasks_per_second
    yield Resource("Ray's tasks", "head", shards * TASKS / tasks, f"{_round(tasks)} tasks/s", "ray_tasks_per_second")
    core = rows * a.row_cpu_us / 1e6 + shards * a.shard_cpu_ms / 1e3
    cores = f"{_round(rows * workers / core)} rows/s"
    yield Resource("reading and judging rows", "nodes' cores", core / workers, cores, "row_cpu_us, shard_cpu_ms")
    put = a.s3_put_seconds
    yield Resource(
        "commits, one after the other", "committers", shards * put / workers, f"{_round(workers / put)} shards/s",
        "s3_put_seconds",
    )  # fmt: skip
    puts = a.s3_puts_per_second
    yield Resource("S3's requests", "S3", shards / puts, f"{_round(puts)} PUTs/s", "s3_puts_per_second")
    moved = HOPS * rows * (load.prompt + load.written) * a.characters_per_token
    speed = nodes(load, gpus) * a.node_gb_per_second * 1e9
    yield Resource("network", "network", moved / speed, f"{_round(speed / 1e9)} GB/s", "node_gb_per_second")


def _around(load: Load, gpus: int) -> Iterator[Resource]:
    """The start, when every node fetches the weights, and the last rows, of which one may be as long as allowed."""
    one, many = load.engine, nodes(load, gpus)
    a, weights = one.assumed, one.model.parameters(one.layers) * one.width
    fetching = weights / 1e9 / min(a.node_gb_per_second, a.storage_gb_per_second / many)
    up = a.start_minutes * 60
    yield Resource("engines' start", BEFORE, up, f"{up:,.0f} s", "start_minutes")
    rests = "node_gb_per_second, storage_gb_per_second"
    yield Resource("fetching weights", BEFORE, fetching, f"{_round(weights * many / 1e9 / fetching)} GB/s", rests)
    cached = one.cached(load.prompt, load.written)
    step = work.slowest(one.step(one.held(inf, cached), cached))
    tail = max(0.0, load.longest - load.written) * step
    yield Resource("the last rows", AFTER, tail, f"{_round(1 / step)} steps/s", "generate.max_tokens")


def _next(load: Load, gpus: int, tokens: float, here: Resource) -> dict[str, Any] | None:
    """From how many GPUs on another place is the bottleneck, and which; None up to MOST. Doubles and halves: a change
    that is undone before the next doubling is not seen."""
    split = load.engine.tensor_parallel

    def at(engines: int) -> Resource:
        return first(resources(load, engines * split, tokens))

    low, high = gpus // split, 2 * (gpus // split)
    while at(high).where == here.where:
        low, high = high, 2 * high
        if low * split > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).where == here.where else (low, middle)
    return {"gpus": high * split, "bottleneck": at(high).name} if high * split <= MOST else None


def _round(value: float) -> str:
    """Three digits of a rate."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
