"""Drivers, an engine and an actor killed on real vLLM engines, and a row that takes its engine with it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import drivers, generated
from tests.drivers import Driver, landed, processes, until

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
def test_kills_on_vllm(address: str, tmp_path: Path, poisoned: dict[str, str]) -> None:
    """A driver, an engine and its actor are killed, and a row takes its engine with it: all on real engines."""
    rows = 120
    found, out, log = generated.rows(rows), tmp_path / "out", tmp_path / "log"
    found[-30]["prompt"] += " §"
    source = generated.write(tmp_path / "in.jsonl", found)
    words = ("--model", "tiny", "--max-tokens", "64", "--max-num-seqs", "2", "--max-model-len", "256",
             "--shard-rows", "4")  # fmt: skip
    first = Driver(source, out, address, *words, log=log, **poisoned)
    until(lambda: processes("VLLM::EngineCore") and landed(out) >= 2, first)
    engines = processes("VLLM::EngineCore")
    first.kill()
    assert engines and not psutil.wait_procs(engines, 60)[1], "nothing is left behind with a model in memory"
    last = Driver(source, out, address, *words, log=log, **poisoned)
    before = generated.bytes_of(out)
    until(lambda: landed(out) > len(before), last)
    processes("VLLM::EngineCore")[0].send_signal(signal.SIGKILL)
    here = landed(out)
    until(lambda: landed(out) > here, last)
    (actor,) = processes("MapWorker(MapBatches(Engine))")
    actor.send_signal(signal.SIGKILL)
    last.ends(status=3)
    marks = [row["mark"] for row in found if "§" not in row["prompt"]]
    made, (refused,) = generated.answered(out), generated.held(out)
    now = generated.bytes_of(out)
    assert sorted(row["mark"] for row in made) == marks and all(now[name] == data for name, data in before.items())
    assert "§" in refused["prompt"] and "died" in refused["reason"] and refused["attempts"] >= 2
    assert refused["line"] == rows - 29 and refused["file"] == str(source)
