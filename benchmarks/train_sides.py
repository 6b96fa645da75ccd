"""One side of benchmarks/train_throughput.py in a process of its own: `train_sides.py SIDE DIRECTORY`.

Prints a JSON line: the rate in target tokens/s without the first steps, nats a target token over the epoch (nothing is
learned, so every side must find the same), target tokens, steps, seconds, and memory in bytes.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 2  # steps before the clock starts
RATE = 1e-9  # AdamW moves a weight by about that much a step: nothing is learned, and the work is the same
Clock = list[tuple[float, int]]


class Memory:
    """Resident memory, or the GPU's for tensors: what is held when training begins, and at most from then on."""

    def __init__(self) -> None:
        import torch

        self.gpu = torch.cuda.is_available()
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self.held = torch.cuda.memory_allocated() if self.gpu else status("VmRSS")

    def told(self) -> dict[str, int]:
        """Bytes."""
        import torch

        return {"held": self.held, "peak": torch.cuda.max_memory_allocated() if self.gpu else status("VmHWM")}


def ours(home: Path, ranks: int = 0, rank: int = 0, compiled: bool = False) -> None:
    """The project's own loop: without sharding, or as one of `ranks` with FSDP2, as Ray Train's workers run it."""
    import torch
    import torch.distributed as dist

    from pipelines.training import batches, feed, loading, loop, losses, metrics, optimizers, parallel, worker

    about, rows = workload(home)
    worker.settle(max(1, ranks))
    student = student_of(about)
    model = losses.ByToken(loading.load(str(home / "model"), student, 0))
    if ranks:
        model = parallel.parallelize(model, mesh(home, rank, ranks), compiled=compiled)
    else:
        model.float().to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = optimizers.adamw(model, RATE, 0.0)
    flat = batches.flat([batches.Encoded(row["ids"], row["prompt"]) for row in rows])
    _, steps = feed.steps(flat, student, 0, 0, rank=rank, ranks=max(1, ranks))
    memory, clock, nats, tokens, used = Memory(), Clock(), 0.0, 0, []
    cost = metrics.cost(model, metrics.device(), max(1, ranks))
    for step in loop.steps(model, optimizer, steps, "cosine", RATE):
        nats, tokens = nats + step.loss * step.tokens, tokens + step.tokens
        clock.append((time.perf_counter(), tokens))
        used.append(metrics.figures(step, 1, cost).get("mfu"))
    if rank == 0:
        tell(clock, nats, memory, **({"mfu": statistics.median(used[WARM:])} if cost else {}))
    if ranks:
        dist.destroy_process_group()


def workers(home: Path, ranks: int, compiled: bool = False) -> None:
    """Ours in `ranks` processes, which share the cores."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=ours, args=(home, ranks, rank, compiled)) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a worker ended with status {process.exitcode}")


def mesh(home: Path, rank: int, ranks: int) -> Any:
    """The mesh of these ranks."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    gpu = torch.cuda.is_available()
    meet = home / f"meet-{ranks}-{os.getppid()}"
    dist.init_process_group("nccl" if gpu else "gloo", f"file://{meet}", rank=rank, world_size=ranks)
    return init_device_mesh("cuda" if gpu else "cpu", (ranks,))


def trl(home: Path, packed: bool) -> None:
    """TRL's SFTTrainer with the settings that were quickest of those that are right on this device; see the claim."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from pipelines.training import loop

    disable_progress_bars()
    about, rows = workload(home)
    said: dict[str, Any] = {"nats": 0.0, "tokens": 0, "clock": Clock()}

    class Counted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            said["nats"] += loss.detach() * num_items_in_batch
            said["tokens"] += (inputs["labels"][:, 1:] != -100).sum()
            return loss

    class Clocked(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            said["clock"].append((time.perf_counter(), int(said["tokens"])))

    half = loop.halved("cuda" if torch.cuda.is_available() else "cpu")
    flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn")
    attention = "flash_attention_2" if flash else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32, attn_implementation=attention)
    labels = [[-100] * row["prompt"] + row["ids"][row["prompt"] :] for row in rows]
    data = Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "labels": labels})
    mean = sum(len(row["ids"]) for row in rows) / len(rows)
    how = {
        "packing": packed, "packing_strategy": "bfd", "max_length": about["longest"], "bf16": half,
        "per_device_train_batch_size": 1 if packed else max(1, round(about["longest"] / mean)),
        "gradient_accumulation_steps": about["tokens"] // about["longest"],
        "gradient_checkpointing": False, "learning_rate": RATE, "weight_decay": 0.0, "num_train_epochs": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], logging_strategy="no",
            disable_tqdm=True, seed=0, **how,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(home / "model")
        trainer = Counted(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Clocked()])
        memory = Memory()
        trainer.train()
    tell(
        said["clock"], float(said["nats"]), memory, settings=how | {"attention": attention, "optim": str(config.optim)}
    )


def workload(home: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was prepared: the settings, and the rows as token ids and number of prompt tokens."""
    about = json.loads((home / "about.json").read_text())
    return about, [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]


def student_of(about: dict[str, Any]) -> Any:
    """The settings as a recipe has them."""
    from pipelines.student import Student

    return Student(
        name="sft", batch_tokens=about["tokens"], micro_tokens=about["longest"], learning_rate=RATE
    )  # fmt: skip


def tell(clock: Clock, nats: float, memory: Memory, **more: Any) -> None:
    """Print what a run came to."""
    from pipelines.training import metrics

    (began, before), (ended, tokens) = clock[WARM - 1], clock[-1]
    run = {"rate": (tokens - before) / (ended - began), "loss": nats / tokens, "tokens": tokens, "steps": len(clock),
           "seconds": ended - began, **memory.told(), "device": metrics.device(), **more}  # fmt: skip
    print(json.dumps(run), flush=True)


def status(field: str) -> int:
    """Bytes of one field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sides = {
        "ours": ours,
        "packed": lambda home: trl(home, True),
        "padded": lambda home: trl(home, False),
        "one": lambda home: workers(home, 1),
        "compiled": lambda home: workers(home, 1, True),
        "two": lambda home: workers(home, 2),
    }
    sides[sys.argv[1]](Path(sys.argv[2]))
