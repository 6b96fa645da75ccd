"""Trainings that are short enough to be broken off, and what tests look for in them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.recipe import Recipe
from pipelines.student import Student
from pipelines.training import metrics
from tests import drivers

DRIVER = """
import json, sys
from pathlib import Path
from cluster.session import session
from pipelines import train
from pipelines.recipe import Recipe
from pipelines.student import Student
with session(sys.argv[1], None):
    recipe, student = Recipe(**json.loads(sys.argv[2])), Student(**json.loads(sys.argv[3]))
    train.train(recipe, student, Path(sys.argv[4]), sys.argv[5], Path(sys.argv[6]))
"""


def recipe(workers: int, **cluster: Any) -> Recipe:
    """A recipe of which nothing but the cluster matters."""
    cluster |= {"workers": workers}
    return Recipe(name="x", dataset=[{"name": "d", "source": "x.jsonl"}], prune={"layers": 1}, cluster=cluster)


def sums(path: Path, *more: dict[str, Any]) -> str:
    """40 sums and `more` rows as Parquet, in no particular order."""
    rows = [
        {"id": f"{a}{b}", "prompt": f"What is {a} + {b}?", "target": f"The answer is {a + b}."}
        for b in range(5)
        for a in range(8)
    ]
    pq.write_table(pa.Table.from_pylist([*rows, *more][::-1]), path)
    return str(path)


def driver(
    address: str, recipe: Recipe, student: Student, pruned: Path, data: str, out: Path, log: Path, path: str = ""
) -> subprocess.Popen[bytes]:
    """The training in a process of its own, which finds modules in `path` as well."""
    words = [address, recipe.model_dump_json(), student.model_dump_json(), str(pruned), data, str(out)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words], cwd=root, stdout=log.open("ab"), stderr=subprocess.STDOUT,
        env=os.environ | ({"PYTHONPATH": os.pathsep.join([path, str(root)])} if path else {}),
    )  # fmt: skip


def steps(out: Path) -> list[dict[str, Any]]:
    """What a finished training says of its steps."""
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    """The losses of a finished training."""
    return [step["loss"] for step in steps(out)]


def assert_shown(out: Path) -> None:
    """TensorBoard reads every figure of every step, each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "tensorboard")).Reload()
    wanted = [(line["step"], metrics.shown(line)) for line in steps(out)]
    assert set(read.Tags()["scalars"]) == set(wanted[0][1])
    for name in wanted[0][1]:
        there = read.Scalars(name)
        assert [event.step for event in there] == [step for step, _ in wanted]
        # TensorBoard keeps fp32
        assert [event.value for event in there] == pytest.approx([values[name] for _, values in wanted], rel=1e-6)


def whole(out: Path) -> list[Path]:
    """The checkpoints of a running training that have their manifest."""
    return sorted(manifest.parent for manifest in out.glob("checkpoints/step-*/manifest.json"))


def when(condition: Callable[[], object], act: Callable[[], None] = lambda: None, seconds: float = 600) -> None:
    """Call `act` once `condition` holds."""
    drivers.until(condition, timeout=seconds, every=0.05)
    act()


def workers() -> list[psutil.Process]:
    """The training workers that run under this process."""
    return drivers.processes("RayTrainWorker")


@contextlib.contextmanager
def at_rest() -> Iterator[list[psutil.Process]]:
    """The workers, stopped where they are; those that live at the end of the block go on."""
    stopped = workers()
    for worker in stopped:
        worker.suspend()
    yield stopped
    for worker in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
