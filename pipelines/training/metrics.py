"""The figures of every step of a training, and where they are shown while it runs.

losses.jsonl is the record: a step's line holds all its figures, and TensorBoard and the user's hook get that line and
nothing else. The steps of a checkpoint are its losses.jsonl, so rank 0 writes TensorBoard's file anew from them
whenever it starts, and goes on behind them: whatever was killed when, each step is in it once.
"""

import importlib
import re
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cluster.gpus import peak
from pipelines.training import parallel
from pipelines.training.loop import Step
from pipelines.training.losses import ByToken, bare

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # what families of mixtures call their number


class Cost(NamedTuple):
    """FLOPs that a token costs in the blocks and a target token in the head, and the FLOP/s of all ranks' GPUs."""

    token: float
    target: float
    peak: float


def cost(model: ByToken, device: str, ranks: int) -> Cost | None:
    """What model FLOPs utilisation is worked out from, on `ranks` GPUs that CUDA calls `device`; None for one whose
    peak is not known (gpus.peak), and for a mixture of experts, whose tokens do not meet all parameters.

    PaLM's MFU (arXiv 2204.02311, appendix B) with two differences, both downwards: attention's own FLOPs are left out,
    and the head counts for target tokens alone, the only ones it is given. Recomputed activations do not count.
    A parameter that is trained costs a token 6 FLOPs, a frozen one 4, and 2 below the first block with a trained one,
    which no gradient reaches."""
    most = peak(device)
    causal = bare(model.model)
    if most is None or any(getattr(causal.config, name, None) for name in EXPERTS):
        return None
    token, reached = 0, False
    for block in parallel.blocks(causal):
        reached = reached or any(p.requires_grad for p in block.parameters())
        token += sum((6 if p.requires_grad else 4 if reached else 2) * p.numel() for p in block.parameters())
    head = causal.get_output_embeddings().weight
    return Cost(token, (6 if head.requires_grad else 4) * head.numel(), ranks * most)


def device() -> str:
    """The name of this process's GPU, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def figures(step: Step, total: int, cost: Cost | None) -> dict[str, Any]:
    """A step's line in losses.jsonl: its own fields, the share of training done, tokens/s over all ranks, MFU where
    `cost` is known, and this rank's peak of memory so far, in bytes. `total`: steps of the training."""
    line = step._asdict() | {
        "progress": (step.step + 1) / total,
        "tokens_per_second": step.tokens / step.seconds,
        "all_tokens_per_second": step.all_tokens / step.seconds,
        "memory": memory(),
    }
    if cost:
        flops = step.all_tokens * cost.token + step.tokens * cost.target
        line["mfu"] = flops / step.seconds / cost.peak
    return line


def memory() -> int:
    """The most bytes this process held at once: of the GPU's memory for tensors, without one of resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def shown(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's line but its own; those of a table in it under `table/name`."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": number for inner, number in shown(value).items()}
        elif isinstance(value, int | float) and name != "step":
            flat[name] = float(value)
    return flat


class Board:
    """TensorBoard's file in `folder`, with the steps `done` in it, and the hook that is called with each new one.

    `hook` is module:function, or None; `who` is the run's and the student's name, which it is called with. `tell` is
    called with a sentence on an error in it, and the hook is left alone from then on."""

    def __init__(
        self, folder: Path, done: list[dict[str, Any]], who: tuple[str, str], hook: str | None,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        # Not the SummaryWriter: its thread dies with a full disk, and whoever writes then waits for ever
        from tensorboardX.event_file_writer import EventsWriter

        self._who, self._hook, self._tell = who, hook, tell
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._file = EventsWriter(str(folder / "events"))
        at = time.time() - sum(line["seconds"] for line in done)
        for line in done:
            at += line["seconds"]
            self._write(line, at)
        self._file.flush()

    def tell(self, line: Mapping[str, Any]) -> None:
        """Show a step that is done."""
        self._write(line, time.time())
        self._file.flush()
        if self._hook:
            self._call(self._hook, line)

    def close(self) -> None:
        """Close the file, which is whole."""
        self._file.close()

    def _write(self, line: Mapping[str, Any], at: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in shown(line).items()]
        self._file.write_event(Event(wall_time=at, step=line["step"], summary=Summary(value=values)))

    def _call(self, hook: str, line: Mapping[str, Any]) -> None:
        module, _, name = hook.partition(":")
        try:
            getattr(importlib.import_module(module), name)(*self._who, line["step"], shown(line))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the user's own code, whatever it raises)
            self._hook = None
            lines = [f"{Path(frame.filename).name}, line {frame.lineno}: " for frame in _theirs(error)]
            why = f"{''.join(lines[-1:])}{type(error).__name__}: {error}"
            self._tell(f"{self._who[1]}: cluster.metrics_hook is not called any more: {why}")


def _theirs(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of `error` past this file and Python's import."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
