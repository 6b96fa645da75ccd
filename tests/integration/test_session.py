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


JOIN = """
import ray
ray.init(address=%r, logging_level="ERROR")
print("let in")
"""


def test_only_this_sessions_token_lets_a_driver_in() -> None:
    """Ray's ports are open to all addresses, and a driver runs any code."""
    script = f"""
import os, subprocess, sys
from cluster.session import session
with session("local", 1):
    import ray
    join = {JOIN!r} % ray.get_runtime_context().gcs_address
    for more in ({{}}, {{"RAY_AUTH_TOKEN": "0" * 64}}):
        tried = subprocess.run([sys.executable, "-c", join], env=os.environ | more, capture_output=True, text=True)
        print(tried.returncode, "let in" in tried.stdout, "InvalidAuthToken" in tried.stderr)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert ended.stdout.splitlines() == ["0 True False", "1 False True"], ended.stdout + ended.stderr
