"""The workers through Ray Train: started, watched, and started again where one was lost."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from cluster import gpus
from pipelines.screen import say
from pipelines.student import Student
from pipelines.training import checkpoints, faults, notes, packs

RETRIES = 2  # how often workers may be lost without a new checkpoint in between
SHOW_SECONDS = 5.0
ENVIRONMENT = {  # Ray Train's own settings, unless the user has set them
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the default of 2 s is waited for at start and end
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # on a busy machine the default of 60 s starts over for ever
}


def fit(student: Student, workers: int, given: packs.InOrder, storage: Path, config: dict[str, Any]) -> None:
    """Train until `storage`/final is there. `config`: what worker.train takes beside what is known here. Raises
    RuntimeError where the training cannot go on, with what to do."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gpu = gpus.there() > 0  # of the cluster: the driver's node may have none
    config |= {
        "student": student.model_dump(), "packs": [str(folder.resolve()) for folder in given.folders],
        "storage": str(storage.resolve()),
        "gpu": gpu,
    }  # fmt: skip
    say(f"{student.name}: {given.about.rows:,} rows, {given.about.tokens:,} tokens, {workers} workers")
    error, lost, reached = None, 0, 0
    while not (storage / checkpoints.FINAL).exists():
        name = checkpoints.begin(storage)
        start = _start(student.name, storage)
        at = checkpoints.step(start)
        if error:
            lost, reached = (1, at) if at > reached else (lost + 1, reached)
            if lost > RETRIES:
                raise RuntimeError(_given_up(student, workers, error, at)) from error
            notes.note(storage, f"{student.name}: {faults.said(error)}; goes on from {_place(start)}")
        config |= {"start": str(start) if start else None, "attempt": name}
        error = _attempt(student.name, workers, gpu, config)
        if error is None and not (storage / checkpoints.FINAL).exists():
            error = RuntimeError("the workers ended without a model; see Ray's logs")
        if error and faults.final(error):
            why = _final(student, workers, given, storage, error)
            raise RuntimeError(f"{student.name}: {why}") from error


def _start(name: str, storage: Path) -> Path | None:
    """The checkpoint to go on from; notes those that cannot be."""
    start, damaged = checkpoints.newest(storage)
    for sentence in damaged:
        notes.note(storage, f"{name}: {sentence}")
    if damaged:
        notes.note(storage, f"{name}: {'goes on' if start else 'no checkpoint is whole: starts'} from {_place(start)}")
    return start


def _attempt(name: str, workers: int, gpu: bool, config: dict[str, Any]) -> BaseException | None:
    """Run the workers to their end while showing progress; returns what ended them early. Ray Train runs in a thread
    of its own: in the main thread it would put its own SIGINT handler in place and leave it there."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from pipelines.training import worker

    trainer = TorchTrainer(
        worker.train,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=None if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(
            name="run",
            storage_path=config["storage"],
            failure_config=FailureConfig(max_failures=0),  # `fit` knows whether trying again can help
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            ended.append(faults.cause(error))

    thread = threading.Thread(target=run, name=f"train-{name}", daemon=True)
    (Path(config["storage"]) / notes.TOLD).unlink(missing_ok=True)
    thread.start()
    _watch(thread, name, Path(config["storage"]), workers, gpu)
    return ended[0] if ended else None


def _watch(thread: threading.Thread, name: str, storage: Path, workers: int, gpu: bool) -> None:
    """Say where the training stands, what its first worker tells, or what it waits for, until its thread ends."""
    shown, waits, heard = time.monotonic(), "", 0
    while thread.is_alive():
        thread.join(0.2)
        heard = notes.hear(storage, heard)
        if time.monotonic() - shown > SHOW_SECONDS:
            if _show(name, storage / "progress.json"):
                shown = time.monotonic()
            elif not waits and (waits := _waits(workers, gpu)):
                say(f"{name}: {waits}")


def _waits(workers: int, gpu: bool) -> str:
    """What the cluster lacks, where a node is gone or has yet to come."""
    import ray

    kind = "GPU" if gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there >= workers:
        return ""
    return (
        f"waits for nodes: the cluster has {there:.0f} {kind}s, cluster.workers = {workers} needs as many (or set "
        f"cluster.workers={max(1, int(there))})"
    )


def _show(name: str, progress: Path) -> bool:
    """Say where the training stands; False while there is nothing to say."""
    with contextlib.suppress(FileNotFoundError):
        at = json.loads(progress.read_text())
        say(
            f"{name}: step {at['step']}/{at['steps']}, loss {at['loss']:.3f}, "
            f"{at['tokens_per_second']:,.0f} target tokens/s, {at['seconds_left']:.0f} s left"
        )
        progress.unlink()
        return True
    return False


def _final(student: Student, workers: int, given: packs.InOrder, storage: Path, error: BaseException) -> str:
    """What to tell of an error that would come again."""
    if isinstance(error, faults.NotFinite):
        there = checkpoints.newest(storage)[0]
        last = f"{_place(there)}, {there}" if there else "none"
        return faults.not_finite(error, len(given), given.step(error.args[0])[1], last)
    if faults.of_memory(error):
        return f"{faults.said(error)} ({_line(error)}). {faults.knobs(student, workers, gpus.there())}"
    return str(error)


def _given_up(student: Student, workers: int, error: BaseException, at: int) -> str:
    why = f"{student.name}: {faults.said(error)}, {RETRIES + 1} times between step {at} and the next checkpoint"
    if faults.of_memory(error) or faults.was_lost(error):
        may = "" if faults.of_memory(error) else "The system ends processes where memory runs out. "
        why += f". {may}{faults.knobs(student, workers, gpus.there())}"
    return why


def _place(start: Path | None) -> str:
    return f"step {checkpoints.step(start)}" if start else "the beginning"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
