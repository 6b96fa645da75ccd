"""Checkpoints on disk: the last two are kept, damage is found and said, a half-written one does not count."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipelines.student import Student
from pipelines.training import (  # fmt: skip
    best,
    checkpoints,
    faults,
    fitting,
    loading,
    losses,
    notes,
    optimizers,
    parallel,
)
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meet = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The weights after one more step."""
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return next(model.parameters()).detach().clone()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, torch.Tensor]]:
    """Where checkpoints of the steps 10, 20 and 30 were written, and the weights by step."""
    storage = tmp_path_factory.mktemp("three")
    name = checkpoints.begin(storage)
    (storage / "step-00000005-killed").mkdir()
    model = torch.nn.Linear(8, 8)
    optimizer = optimizers.adamw(model, 0.1, 0.0)
    weights = {}
    with checkpoints.Saver(storage, name) as saver:
        for step in (10, 20, 30):
            weights[step] = stepped(model, optimizer)
            saver.save([{"step": i} for i in range(step)], model, optimizer)
    return storage, weights


def written(storage: Path, attempt: str, start: Path | None, step: int = 30) -> None:
    """Write one more."""
    model = torch.nn.Linear(8, 8)
    optimizer = optimizers.adamw(model, 0.1, 0.0)
    stepped(model, optimizer)
    with checkpoints.Saver(storage, attempt, start) as saver:
        saver.save([{"step": i} for i in range(step)], model, optimizer)


@pytest.fixture
def storage(three: tuple[Path, dict[int, torch.Tensor]], tmp_path: Path) -> Path:
    """The like, to be damaged."""
    return Path(shutil.copytree(three[0], tmp_path / "storage"))


def of(storage: Path, step: int) -> Path:
    """The checkpoint of that step."""
    (found,) = storage.glob(f"step-{step:08d}-*")
    return found


def test_the_last_two_are_kept_and_read_back(three: tuple[Path, dict[int, torch.Tensor]], storage: Path) -> None:
    assert sorted(map(checkpoints.step, storage.glob("step-*"))) == [20, 30]
    newest, damaged = checkpoints.newest(storage)
    assert newest is not None and checkpoints.step(newest) == 30 and not damaged
    model = torch.nn.Linear(8, 8)
    checkpoints.load(newest, model, optimizer := optimizers.adamw(model, 0.1, 0.0))
    assert len(checkpoints.read_steps(newest / "losses.jsonl")) == 30 and torch.equal(model.weight, three[1][30])
    assert optimizer.state[model.weight]["step"] == 3


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("__0_0.distcp", cut, "__0_0.distcp has"),
        ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
        ("__0_0.distcp", flip, "the content of __0_0.distcp is not what was written"),
        (".metadata", cut, ".metadata has"),
        ("losses.jsonl", Path.unlink, "losses.jsonl is missing"),
        ("manifest.json", cut, "it cannot be read"),
    ],
)
def test_damage_means_the_one_before_and_is_said(
    name: str, harm: Callable[[Path], None], why: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(of(storage, 30) / name)
    start = fitting._start("sft", storage)
    assert start is not None and checkpoints.step(start) == 20
    damaged, goes_on = notes.notes(storage)
    assert damaged.startswith(f"sft: the checkpoint of step 30 is damaged: {why}")
    assert goes_on == "sft: goes on from step 20"
    said = capsys.readouterr().err
    assert damaged in said and goes_on in said


def test_the_one_gone_on_from_is_kept_beside_the_next(storage: Path) -> None:
    """A damaged one does not count as one of the two."""
    flip(of(storage, 30) / "__0_0.distcp")
    name = checkpoints.begin(storage)
    written(storage, name, checkpoints.newest(storage)[0])
    shutil.rmtree(storage / f"step-00000030-{name}")
    start, _ = checkpoints.newest(storage)
    assert start is not None and checkpoints.step(start) == 20


def test_an_earlier_attempt_neither_commits_nor_removes(storage: Path) -> None:
    """As workers would that outlive their driver."""
    before, there = checkpoints.attempt(storage), checkpoints.newest(storage)
    checkpoints.begin(storage)
    with pytest.raises(faults.Stopped, match="another driver"):
        written(storage, before, there[0], step=40)
    assert checkpoints.newest(storage) == there and of(storage, 20).exists()


def test_when_none_is_whole_it_starts_again_and_says_so(storage: Path) -> None:
    for folder in storage.glob("step-*"):
        cut(folder / "__0_0.distcp")
    assert fitting._start("sft", storage) is None
    with (storage / "notes.jsonl").open("a") as file:
        file.write('"sft: a wor')  # the driver is killed in mid-line
    assert len(notes.notes(storage)) == 3
    assert notes.notes(storage)[-1] == "sft: no checkpoint is whole: starts from the beginning"


def test_a_half_written_one_is_passed_over_in_silence(storage: Path) -> None:
    (of(storage, 30) / "manifest.json").unlink()
    newest, damaged = checkpoints.newest(storage)
    assert newest is not None and checkpoints.step(newest) == 20 and not damaged


def test_files_on_another_disk_are_not_taken_for_written(tmp_path: Path) -> None:
    with pytest.raises(faults.Stopped, match=r"lacks __1_0\.distcp.*every node sees"):
        checkpoints.commit(tmp_path, {"__1_0.distcp": {}})


PLAIN, WRAPPED, COMPILED = (False, False), (True, False), (True, True)


@pytest.mark.parametrize(
    ("written", "read"), [(PLAIN, WRAPPED), (WRAPPED, PLAIN), (PLAIN, COMPILED), (COMPILED, PLAIN)]
)
def test_the_best_weights_are_read_whatever_wraps_the_blocks(
    written: tuple[bool, bool], read: tuple[bool, bool], tmp_path: Path
) -> None:
    """What is told to help where memory runs out: the training goes on with activation checkpointing, or without."""
    folder, mesh = tiny.model_dir(tmp_path / "model", layers=2), parallel.mesh("cpu", 1)

    def made(how: tuple[bool, bool], steps: list[dict[str, Any]]) -> tuple[torch.nn.Module, Any, best.Best]:
        model = losses.ByToken(loading.load(str(folder), Student(name="sft"), 0))
        parallel.parallelize(model, mesh, *how)
        return model, optimizers.adamw(model, 0.1, 0.0), best.Best(model, steps)

    model, optimizer, seen = made(written, [])
    seen.see(1.5)
    expected = {name: weight.full_tensor().clone() for name, weight in seen.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    steps = [{"step": 0, "validation_loss": 1.5}]
    with checkpoints.Saver(tmp_path, checkpoints.begin(tmp_path)) as saver:
        saver.save(steps, model, optimizer, seen.weights)

    start, _ = checkpoints.newest(tmp_path)
    assert start is not None
    model, optimizer, seen = made(read, checkpoints.read_steps(start / "losses.jsonl"))
    checkpoints.load(start, model, optimizer, seen.weights)
    assert seen.loss == 1.5
    doubled = {parallel.unwrapped(name): p.full_tensor().clone() for name, p in model.named_parameters()}
    seen.take()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), expected[parallel.unwrapped(name)])
        assert torch.equal(doubled[parallel.unwrapped(name)], 2 * expected[parallel.unwrapped(name)])


def test_a_whole_checkpoint_of_another_model_is_said_to_be_unreadable(storage: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(RuntimeError, match=rf"the checkpoint {of(storage, 30)} could not be read: .*0\.weight"):
        checkpoints.load(of(storage, 30), model, optimizers.adamw(model, 0.1, 0.0))


def test_a_checkpoint_that_cannot_be_written_stops_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"a checkpoint could not be written: .*Not a directory"):
        written(tmp_path / "file", "a", None)
