"""`regrow generate` in processes of their own, on a cluster that outlives them; and what tests wait for and kill."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

REGROW = str(Path(sys.executable).parent / "regrow")
ECHO = ("--model", "echo", "--shard-rows", "20", "--max-num-seqs", "16")


@contextlib.contextmanager
def cluster(cpus: int = 8) -> Iterator[Any]:
    """A cluster that outlives its drivers, as on Kubernetes; a ray.cluster_utils.Cluster."""
    from ray.cluster_utils import Cluster

    # the agent's port is fixed by default, and where another cluster has it there are no metrics
    head = {"num_cpus": cpus, "object_store_memory": 256 << 20, "dashboard_agent_listen_port": 0}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made
    finally:
        made.shutdown()


class Driver:
    """One `regrow generate` from `source` to `out` on the cluster at `address`, started."""

    def __init__(
        self, source: Path | str, out: Path | str, address: str, *words: str, log: Path, **environ: str
    ) -> None:
        command = [REGROW, "generate", "--input", str(source), "--output", str(out), "--address", address, *words]
        self.log = log.open("a+")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env={**os.environ, **environ}
        )

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def ends(self, status: int = 0, timeout: float = 1200) -> None:
        """Assert that it ends by itself, with `status`."""
        assert self.process.wait(timeout) == status, self.said()

    def said(self) -> str:
        """The end of all that drivers wrote to this log."""
        self.log.seek(0)
        return self.log.read()[-3000:]


def until(
    condition: Callable[[], object], driver: Driver | None = None, timeout: float = 1200, every: float = 0.1
) -> None:
    """Wait for `condition`, looked at `every` so many seconds; fails where the driver ends before, or it takes too
    long."""
    deadline = time.monotonic() + timeout
    while not condition():
        alive = driver is None or driver.process.poll() is None
        assert alive and time.monotonic() < deadline, driver.said() if driver else "took too long"
        time.sleep(every)


def landed(out: Path) -> int:
    """How many parts are committed in a local output."""
    return sum(1 for _ in (out / "data").glob("part-*.parquet"))


def processes(title: str) -> list[psutil.Process]:
    """What this process's clusters run under a command line that has `title` in it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found
