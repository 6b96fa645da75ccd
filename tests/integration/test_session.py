"""A private cluster's session under a signal to the whole process group, as `timeout` and systemd send it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import sys, threading, time
from cluster import signals
from cluster.session import session

def waits():
    import ray
    ray.get(ray.remote(lambda: time.sleep(60)).remote())

try:
    with signals.interruptible():
        with session("local", 2):
            if sys.argv[1] == "inside":
                threading.Thread(target=waits, daemon=True).start()
                print("ready", flush=True)
                time.sleep(60)
        print("ready", flush=True)
        time.sleep(60)
except SystemExit as ended:
    import os
    os._exit(ended.code)
"""


@pytest.mark.parametrize("where", ["inside", "after"])
def test_sigterm_to_the_group_ends_it_with_143(where: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen([sys.executable, tmp_path / "program.py", where], env=here, text=True,
                               start_new_session=True, stdout=subprocess.PIPE)  # fmt: skip
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    servers = psutil.Process(program.pid).children()
    assert bool(servers) == (where == "inside")
    assert all(os.getpgid(server.pid) != program.pid for server in servers)
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait(60) == 143
