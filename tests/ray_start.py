"""A real Ray cluster of `ray start` processes, with token authentication: a head that takes no work, and workers."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from tests import ports

RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Started:
    """`address` of the dashboard, the `token`, where its files lie, and the nodes' `ray start --block`."""

    folder: Path
    token: str = field(default_factory=lambda: f"planted-{secrets.token_hex(16)}")
    dashboard: int = field(default_factory=ports.free)
    gcs: int = field(default_factory=ports.free)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """URL of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard}"

    def node(self, *words: str, cpus: int = 0, **environ: str) -> subprocess.Popen[bytes]:
        """Start a node; each has a directory of its own, as on a machine of its own."""
        number = len(self.nodes)
        # Paths of sockets may be 107 bytes long.
        place = ["--temp-dir", str(self.folder / str(number)), "--object-store-memory", str(256 << 20)]
        command = [RAY, "start", "--block", "--num-cpus", str(cpus), "--dashboard-agent-listen-port", "0", *place]
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        environment = {**os.environ, **quiet, **login, "PATH": path, **environ}
        with (self.folder / f"node-{number}.log").open("wb") as log:
            made = subprocess.Popen(
                [*command, *words], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.nodes.append(made)
        return made

    def up(self, nodes: int, timeout: float = 600) -> None:
        """Wait until so many nodes are there."""
        deadline = time.monotonic() + timeout
        while self.there() < nodes:
            assert time.monotonic() < deadline, (self.folder / "node-0.log").read_text()[-2000:]
            time.sleep(0.5)

    def there(self) -> int:
        """Living nodes; 0 where the dashboard does not answer yet."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with contextlib.suppress(requests.RequestException, KeyError):
            told = requests.get(f"{self.address}/api/v0/nodes?detail=true", headers=headers, timeout=5).json()
            return sum(one["state"] == "ALIVE" for one in told["data"]["result"]["result"])
        return 0

    def end(self) -> None:
        """SIGKILL to all of it."""
        for node in self.nodes:
            for process in [*_family(node.pid), node]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
            node.wait()


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


@contextlib.contextmanager
def started(folder: Path, workers: int = 2, cpus: int = 4, **environ: str) -> Iterator[Started]:
    """A cluster with so many worker nodes; `environ` is that of every node, and not of who submits."""
    made = Started(folder)
    try:
        made.node("--head", f"--port={made.gcs}", f"--dashboard-port={made.dashboard}", **environ)
        made.up(1)
        for _ in range(workers):
            made.node("--address", f"127.0.0.1:{made.gcs}", cpus=cpus, **environ)
        made.up(1 + workers)
        yield made
    finally:
        made.end()
