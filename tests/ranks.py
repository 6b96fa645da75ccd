"""Several ranks of one test: processes that start together, on one machine."""

import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path


def run(on_rank: Callable[[int, int, Path], None], sizes: Iterable[int], folder: Path, seconds: float) -> None:
    """Call `on_rank(rank, ranks, folder)` in as many processes as there are ranks, for one number of them after the
    other, each within `seconds`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "transformers", "peft", "pipelines.training.worker"])
    for ranks in sizes:
        started = [context.Process(target=on_rank, args=(rank, ranks, folder)) for rank in range(ranks)]
        for process in started:
            process.start()
        for process in started:
            process.join(seconds)
            assert process.exitcode == 0
