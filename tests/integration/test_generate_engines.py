"""Drivers, an engine and an actor killed on real vLLM engines, and a row that takes its engine with it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import drivers, generated
from tests.drivers import Driver, landed, processes, until

WORDS = ("--model", "tiny", "--max-tokens", "64", "--max-num-seqs", "2", "--max-model-len", "256", "--shard-rows", "4")
POISON = """
import os

def put():
    from vllm.v1.engine.core import EngineCore
    whole = EngineCore.add_request
    if getattr(whole, "poisoned", False):
        return

    def add_request(self, request, *args, **kwargs):
        if TOKEN in (request.prompt_token_ids or []):
            os._exit(13)
        return whole(self, request, *args, **kwargs)

    add_request.poisoned = True
    EngineCore.add_request = add_request
"""


@pytest.fixture
def poisoned(tmp_path: Path) -> dict[str, str]:
    """Environment in which vLLM's engine exits when it is handed a prompt with the sign §."""
    from transformers import AutoTokenizer

    from pipelines import models

    folder = tmp_path / "plugin"
    about = folder / "poison-0.1.dist-info"
    about.mkdir(parents=True)
    token = AutoTokenizer.from_pretrained(models.TINY)("§").input_ids[-1]
    (folder / "poison.py").write_text(POISON.replace("TOKEN", str(token)))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\npoison = poison:put\n")
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))
    return {"PYTHONPATH": path}


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster that outlives its drivers."""
    with drivers.cluster() as cluster:
        yield cluster.address


@pytest.mark.timeout(1800)
def test_an_engine_is_killed_and_a_row_takes_its_engine_with_it(
    address: str, tmp_path: Path, poisoned: dict[str, str]
) -> None:
    """The same driver and actor go on; the row is set aside."""
    rows = 120
    found, out, log = generated.rows(rows), tmp_path / "out", tmp_path / "log"
    found[-10]["prompt"] += " §"
    source = generated.write(tmp_path / "in.jsonl", found)
    driver = Driver(source, out, address, *WORDS, log=log, **poisoned)
    until(lambda: processes("VLLM::EngineCore") and landed(out) >= 2, driver)
    before = generated.bytes_of(out)
    processes("VLLM::EngineCore")[0].send_signal(signal.SIGKILL)
    driver.ends(status=3)
    marks = [row["mark"] for row in found if "§" not in row["prompt"]]
    made, (refused,) = generated.answered(out), generated.held(out)
    now = generated.bytes_of(out)
    assert sorted(row["mark"] for row in made) == marks and all(now[name] == data for name, data in before.items())
    assert "§" in refused["prompt"] and "died" in refused["reason"] and refused["attempts"] >= 2
    assert refused["line"] == rows - 9 and refused["file"] == str(source)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_driver_and_an_actor_are_killed(address: str, tmp_path: Path) -> None:
    """As on the engine that echoes (test_generate_kills), and no model stays in memory."""
    source, out, log = generated.write(tmp_path / "in.jsonl", generated.rows(120)), tmp_path / "out", tmp_path / "log"
    first = Driver(source, out, address, *WORDS, log=log)
    until(lambda: processes("VLLM::EngineCore") and landed(out) >= 2, first)
    engines = processes("VLLM::EngineCore")
    first.kill()
    assert engines and not psutil.wait_procs(engines, 60)[1], "nothing is left behind with a model in memory"
    before = generated.bytes_of(out)
    last = Driver(source, out, address, *WORDS, log=log)
    until(lambda: landed(out) > len(before), last)
    (actor,) = processes("MapWorker(MapBatches(Engine))")
    actor.send_signal(signal.SIGKILL)
    last.ends()
    now = generated.bytes_of(out)
    assert sorted(row["mark"] for row in generated.answered(out)) == list(range(120))
    assert all(now[name] == data for name, data in before.items())
