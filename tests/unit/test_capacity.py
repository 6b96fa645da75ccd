"""What a cluster writes and what holds it up first, against numbers worked out by hand, and what holds at any size."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import recipe_file
from pipelines.planning import capacity, known
from pipelines.planning.assumptions import Assumptions, assumed
from pipelines.planning.capacity import VOLUMES, Load
from pipelines.recipe_file import BadInput

SIZES = (1, 8, 64, 512)
PLACES = {"GPUs", "driver", "head", "nodes' cores", "committers", "S3", "network", "the start", "the end"}


def about(*overrides: str, recipe: str = "llama-3.1-8b-sdd", assume: tuple[str, ...] = ()) -> known.Known:
    return known.know(recipe_file.load(recipe, overrides), assumed(assume))


def made(*overrides: str, price: float | None = None, assume: tuple[str, ...] = ()) -> dict[str, Any]:
    found = capacity.capacity(about(*overrides, assume=assume), price)
    assert found is not None
    return found


def seconds(load: Load, gpus: int, tokens: float) -> dict[str, float]:
    return {r.name: r.seconds for r in capacity.resources(load, gpus, tokens)}


# Llama 3.1 8B on H100s by hand. Prompt: 120 + 150 (the reference) + 15 + 40 tokens; answer: 1.2 × 150. Weights 2 bytes
# each; 2 · 32 layers · 8 heads · 128 · 2 bytes of cache a token; all but the embedding is multiplied with.
PROMPT, WRITTEN, SEATS, SHARD = 325, 180, 256, 128
WEIGHTS, CACHED = 2 * 8_030_261_248, 131_072 * (PROMPT + WRITTEN / 2)
FLOPS = 2 * (8_030_261_248 - 128_256 * 4096)
STEP = (WEIGHTS + SEATS * CACHED) / (0.6 * 3.35e12)


@pytest.mark.parametrize("gpus", SIZES)
@pytest.mark.parametrize("tokens", VOLUMES)
def test_every_part_by_hand(gpus: int, tokens: int) -> None:
    rows = tokens / WRITTEN
    shards = np.ceil(np.ceil(rows) / SHARD)
    most = min(rows, np.ceil(shards / gpus) * SHARD)  # of one engine
    held, nodes, workers = min(SEATS, most), np.ceil(gpus / 8), max(2, gpus)
    step = max((WEIGHTS + held * CACHED) / (0.6 * 3.35e12), held * FLOPS / (0.5 * 989e12))
    assert seconds(capacity.loaded(about()), gpus, tokens) == pytest.approx(
        {
            "decoding": most / held * WRITTEN * step,
            "KV-cache room": 0,
            "reading prompts": most * PROMPT * FLOPS / (0.5 * 989e12),
            "driver": shards * 0.012,
            "Ray's tasks": shards * 3 / 550,
            "reading and judging rows": (rows * 70e-6 + shards * 16e-3) / workers,
            "commits, one after the other": shards * 0.2 / workers,
            "S3's requests": shards / 3500,
            "network": 2 * rows * (PROMPT + WRITTEN) * 4 / (nodes * 3e9),
            "engines' start": 180,
            "fetching weights": max(WEIGHTS / 3e9, nodes * WEIGHTS / 25e9),
            "the last rows": (512 - WRITTEN) * STEP,
        }
    )


def test_the_whole_is_start_slowest_place_and_end() -> None:
    load = capacity.loaded(about())
    part = seconds(load, 64, 1e8)
    around = part["engines' start"] + part["fetching weights"] + part["the last rows"]
    found = capacity.resources(load, 64, 1e8)
    assert capacity.total(found) == pytest.approx(around + part["decoding"] + part["reading prompts"])
    assert {r.where for r in found} == PLACES
    slow = capacity.loaded(about(assume=("driver_ms_per_shard=1000",)))
    assert capacity.total(capacity.resources(slow, 64, 1e8)) == pytest.approx(around + 4341)


def test_figures_of_one_size() -> None:
    found = made("cluster.gpus=64", price=3)
    one = SEATS * WRITTEN / (WRITTEN * STEP + SEATS * PROMPT * FLOPS / (0.5 * 989e12))
    assert found["tokens_per_second"]["engine"] == pytest.approx(one, rel=1e-4)
    assert found["tokens_per_second"]["all"] == pytest.approx(64 * one, rel=1e-4)
    assert (found["engines"], found["nodes"], found["idle_gpus"], found["sequences"]) == (64, 8, 0, 256)
    assert found["decoding_bound_by"] == "weights", f"{WEIGHTS:,} bytes against {SEATS * CACHED:,} of cache"
    for row in found["volumes"]:
        assert row["gpu_hours"] == pytest.approx(64 * row["hours"], abs=0.004)
        assert row["cost"] == pytest.approx(3 * row["gpu_hours"], abs=0.01)
    assert [row["rows"] for row in found["volumes"]] == [5_556, 555_556, 55_555_556]
    assert [row["shards"] for row in found["volumes"]] == [44, 4_341, 434_028]
    assert made("cluster.gpus=64")["volumes"][0]["cost"] is None


def test_what_binds_decoding_is_what_its_step_waits_for() -> None:
    """70B on eight H100s with 256 seats: FLOPs 12.85 ms, weights alone 12.54 ms, with the cache's 3.09 ms 15.63 ms."""
    large = about("cluster.gpus=8", recipe="llama-3.1-70b-sdd")
    one = capacity.loaded(large).engine
    step = one.step(SEATS, one.cached(PROMPT, WRITTEN))
    assert {name: round(1000 * seconds, 2) for name, seconds in step.items()} == {
        "weights": 12.54, "KV cache": 3.09, "FLOPs": 12.85
    }  # fmt: skip
    found = capacity.capacity(large)
    assert found is not None and found["decoding_bound_by"] == "weights"
    assert made("cluster.gpus=8", assume=("decode_bandwidth=1", "prefill_mfu=0.1"))["decoding_bound_by"] == "FLOPs"


def test_the_sum_of_the_places_shares_orders_the_table() -> None:
    rows = made("cluster.gpus=64")["resources"]
    places: dict[str, float] = {}
    for row in rows:
        places[row["where"]] = places.get(row["where"], 0) + row["share"]
    ordered = list(dict.fromkeys(row["where"] for row in rows))
    assert [places[where] for where in ordered] == sorted(places.values(), reverse=True)
    assert len(ordered) == len(PLACES), "parts of one place stand together"
    assert places["the start"] + places["the end"] + places["GPUs"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["generate.shard_rows=4096"],
        ["teacher.tensor_parallel=2", "cluster.gpu=L40S-48GB"],
        ["generate.max_num_seqs=3", "cluster.gpu=H200-141GB"],
    ],
)
def test_more_gpus_are_never_slower_beside_the_start(overrides: list[str]) -> None:
    load = capacity.loaded(about(*overrides))
    sizes = [size * load.engine.tensor_parallel for size in (*range(1, 40), 64, 100, 512, 513, 4_000)]
    for tokens in (10, *VOLUMES):
        before: dict[str, float] = {}
        for gpus in sizes:
            now = seconds(load, gpus, tokens)
            assert all(now[name] <= before.get(name, np.inf) * (1 + 1e-9) for name in now if name != "fetching weights")
            before = now
    totals = [capacity.total(capacity.resources(load, gpus, VOLUMES[2])) for gpus in sizes if gpus <= 512]
    assert all(a >= b for a, b in itertools.pairwise(totals)), "with the start, of a volume that is worth it"


def test_more_tokens_take_longer() -> None:
    load = capacity.loaded(about())
    hours = [capacity.total(capacity.resources(load, 64, tokens)) for tokens in (1e3, 1e6, 1e7, 1e9, 1e11)]
    assert hours == sorted(hours) and hours[-1] > 90 * hours[-2]


def test_a_store_that_gives_little_makes_a_small_job_slower_on_more_nodes() -> None:
    load = capacity.loaded(about(assume=("storage_gb_per_second=1",)))
    assert seconds(load, 512, 1e6)["fetching weights"] == pytest.approx(64 * WEIGHTS / 1e9)
    small = [capacity.total(capacity.resources(load, gpus, 1e6)) for gpus in (64, 512)]
    assert small[1] > small[0]


@pytest.mark.parametrize(
    ("overrides", "assume", "bottleneck"),
    [
        ([], ["decode_bandwidth=0.001"], "decoding"),
        ([], ["prefill_mfu=0.001"], "reading prompts"),
        ([], ["gpu_memory_utilization=0.26"], "KV-cache room"),
        ([], ["driver_ms_per_shard=1000"], "driver"),
        (["generate.shard_rows=1"], [], "driver"),
        ([], ["ray_tasks_per_second=1"], "Ray's tasks"),
        ([], ["row_cpu_us=1000000"], "reading and judging rows"),
        ([], ["shard_cpu_ms=1000000"], "reading and judging rows"),
        ([], ["s3_put_seconds=1000"], "commits, one after the other"),
        ([], ["s3_puts_per_second=1"], "S3's requests"),
        ([], ["characters_per_token=1000000"], "network"),
        ([], ["start_minutes=60"], "engines' start"),
        ([], ["storage_gb_per_second=0.01"], "fetching weights"),
        ([], ["node_gb_per_second=0.001"], "fetching weights"),
        (["generate.max_tokens=1000000"], [], "the last rows"),
    ],
)
def test_what_is_made_slow_is_the_bottleneck(overrides: list[str], assume: list[str], bottleneck: str) -> None:
    found = made("cluster.gpus=64", *overrides, assume=("start_minutes=0", *assume))
    assert found["volumes"][1]["bottleneck"] == found["resources"][0]["resource"] == bottleneck
    usual = made("cluster.gpus=64", assume=("start_minutes=0",))
    assert usual["resources"][0]["resource"] == "decoding"
    assert found["volumes"][1]["hours"] > usual["volumes"][1]["hours"]


def test_too_little_room_for_the_seats() -> None:
    """26 % of 80 GB less weights and allowance are 739 MB, that is 13.6 sequences of 54 MB."""
    found = made("cluster.gpus=1", assume=("gpu_memory_utilization=0.26",))
    room = (0.26 * 80e9 - WEIGHTS - 4e9) / CACHED
    assert found["sequences"] == pytest.approx(room, abs=0.05) and round(room, 1) == 13.6
    part = {row["resource"]: row["hours"] * 3600 for row in found["resources"]}
    rows = 1e8 / WRITTEN
    whole = rows / room * WRITTEN * (WEIGHTS + room * CACHED) / (0.6 * 3.35e12)
    assert part["decoding"] + part["KV-cache room"] == pytest.approx(whole, rel=1e-3)
    assert part["decoding"] == pytest.approx(rows / SEATS * WRITTEN * STEP, rel=1e-3)


def test_from_how_many_gpus_on_the_next_holds_up() -> None:
    """10 B tokens on one GPU take 314 h less start and end; the driver takes 434,028 shards at 12 ms: 1.45 h."""
    for size in (1, 64):
        after = made(f"cluster.gpus={size}")["volumes"][2]["next"]
        assert after["bottleneck"] == "driver"
        load = capacity.loaded(about())
        below, at = (seconds(load, gpus, VOLUMES[2]) for gpus in (after["gpus"] - 1, after["gpus"]))
        assert below["decoding"] + below["reading prompts"] > below["driver"] == pytest.approx(434_028 * 0.012)
        assert at["decoding"] + at["reading prompts"] <= at["driver"]
    larger = made("cluster.gpus=64", "generate.shard_rows=512")["volumes"][2]["next"]
    assert 3 * after["gpus"] < larger["gpus"] < 5 * after["gpus"], "shards of four times the rows, a quarter of them"
    assert made("cluster.gpus=512")["volumes"][0]["next"] is None, "a start that takes longest does so on more GPUs too"
    split = made("cluster.gpus=8", "teacher.tensor_parallel=4")["volumes"][2]["next"]
    assert split["gpus"] % 4 == 0, "whole engines"


def test_gpus_that_no_engine_takes() -> None:
    found = made("cluster.gpus=9", "teacher.tensor_parallel=4")
    assert (found["engines"], found["idle_gpus"], found["nodes"]) == (2, 1, 2)
    with pytest.raises(BadInput, match=r"cluster\.gpus = 3.*teacher\.tensor_parallel.*4 or more"):
        made("cluster.gpus=3", "teacher.tensor_parallel=4")


@pytest.mark.parametrize("overrides", [[], ["cluster.gpus=0"]])
def test_no_gpus_no_capacity(overrides: list[str]) -> None:
    assert capacity.capacity(about(*overrides)) is None
    assert capacity.capacity(about("cluster.gpus=8", recipe="quickstart")) is None, "no GPU is named"


def test_a_recipe_without_train_rows_is_taken_at_assumed_lengths() -> None:
    none = [f"dataset.{place}.rows=0" for place in range(4)]
    load = capacity.loaded(about(*none))
    assert (load.prompt, load.written) == (PROMPT, WRITTEN), "a rewrite of an assumed reference, as for rows that are"
    assert capacity.loaded(about(*none, "generate.max_tokens=100")).written == 100
    found = capacity.loaded(about(*none, assume=("rewrite_ratio=2", "rewrite_template_tokens=0")))
    assert (found.prompt, found.written) == (120 + 150 + 15, 300)
    rationale = 'student=[{name="dsbs"}]'
    load = capacity.loaded(about(*none, rationale))
    assert (load.prompt, load.written) == (120 + 15 + 40, 180), "a rationale is written without the reference"


def test_measured_rates_are_those_of_the_benchmark() -> None:
    """A million rows in shards of 512: what the driver and what readers, committers and engine actor took."""
    cores = json.loads((Path(__file__).parents[2] / "benchmarks/results/generate_overhead.json").read_text())
    large, a = cores["measured"][1], Assumptions()
    assert large["cpu"]["driver"] / large["files"] == pytest.approx(a.driver_ms_per_shard / 1e3, rel=0.15)
    spent = (large["cpu"]["readers and committers"] + large["cpu"]["engine"]) / large["rows"]
    shard = large["rows"] / large["files"]
    assert spent == pytest.approx(a.row_cpu_us / 1e6 + a.shard_cpu_ms / 1e3 / shard, rel=0.15)
