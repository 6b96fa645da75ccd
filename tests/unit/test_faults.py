"""Faults of a training told apart, and what is said of them."""

import json
import pickle
import re

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError

from pipelines import train
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from pipelines.training import faults
from tests import trainings


@pytest.mark.parametrize(
    ("error", "final", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True, True),
        (MemoryError(), True, True),
        (OutOfMemoryError("the node ran low on memory"), False, True),  # Ray's: perhaps for another's sake
        (ActorDiedError(), False, False),
        (RuntimeError("Connection closed by peer"), False, False),
        (faults.NotFinite(3, float("nan"), 1.0), True, False),
        (faults.NotFinite(3, float("inf"), None), True, False),
        (faults.Stopped("the disk is full"), True, False),
        (ValueError("LlamaModel cannot be trained"), True, False),
    ],
)
def test_what_would_come_again(error: Exception, final: bool, memory: bool) -> None:
    assert (faults.final(error), faults.of_memory(error)) == (final, memory)


def test_a_lost_worker_is_the_cause_of_what_its_peers_say() -> None:
    peer = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:64668")
    other, lost = RuntimeError("something\nelse"), ActorDiedError()
    assert faults.cause(WorkerGroupError("", {0: other, 1: lost})) is lost
    assert faults.said(lost) == faults.said(peer) == "a worker was lost"
    assert faults.said(other) == "a worker failed (else)"


def test_five_rows_of_a_step_are_named() -> None:
    error = pickle.loads(pickle.dumps(faults.NotFinite(1, float("nan"), 2.0)))  # noqa: S301
    said = faults.not_finite(error, 2, [f"row{i}" for i in (0, 0, 1, 2, 3, 4, 5, 6)], "none")
    assert said.startswith("step 2 of 2 has the loss nan and the gradient norm 2.0;")
    assert "7 rows of it: row0, row1, row2, row3, row4, …. Last good checkpoint: none." in said


def test_validation_without_a_number() -> None:
    said = faults.not_finite(faults.NotFinite(1, float("nan"), None), 9, ["row"], "step 1, /x")
    assert (
        said.startswith("the validation loss is nan after step 2 of 9,") and "Last good checkpoint: step 1, /x" in said
    )


def test_knobs_that_are_turned_already_are_left_out() -> None:
    student = Student(name="sdd-a", micro_tokens=100, activation_checkpointing=True, lora_rank=8)
    said = faults.knobs(student, 2, 0)
    assert "student.sdd-a.micro_tokens=64" in said and "activation_checkpointing" not in said
    assert "student.sdd-a.lora_rank=4" in said and "cluster.workers=4" in said
    assert "cluster.workers" not in faults.knobs(student, 2, 3), "there are no four GPUs"
    least = Student(name="sft", micro_tokens=64, activation_checkpointing=True, max_length=16, lora_rank=1)
    assert faults.knobs(least, 2, 4) == (
        "These help, in this order: cluster.workers=4. With these the training goes on from its last checkpoint"
    )


@pytest.mark.parametrize(
    ("address", "gpus", "cluster", "workers"),
    [
        ("local", 0, {"workers": 4}, 4),
        ("local", 8, {"workers": 4}, 4),
        ("local", 3, {"workers": 4}, 3),
        ("local", 3, {"workers": 4, "replicas": 2}, 2),
        ("ray://x:1", 3, {"workers": 4}, 4),
        ("local", 1, {"workers": 4, "replicas": 2}, None),
    ],
)
def test_a_private_cluster_trains_with_as_many_workers_as_gpus(
    address: str, gpus: int, cluster: dict[str, int], workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node will join it; a cluster that others run is waited for."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    asked = trainings.recipe(address=address, **cluster)
    if workers is None:
        with pytest.raises(BadInput, match=r"cluster\.replicas = 2, but this machine has 1 GPU"):
            train._workers(asked, Student(name="sft"))
    else:
        assert train._workers(asked, Student(name="sft")) == workers


@pytest.mark.parametrize("fields", [{}, {"last_layers": 4}, {"last_layers": 1}, {"lora_rank": 8}, {"max_length": 20}])
def test_every_knob_can_be_turned_and_stands_otherwise_now(fields: dict[str, int]) -> None:
    student = Student(name="sft", **fields)  # type: ignore[arg-type]
    told = re.findall(r"student\.sft\.(\w+)=(\w+)", faults.knobs(student, 2, 0))
    for name, value in told:
        assert getattr(Student(**student.model_dump() | {name: json.loads(value)}), name) != getattr(student, name)
    assert {"micro_tokens", "max_length"} <= {name for name, _ in told}
