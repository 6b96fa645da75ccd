"""Two processes and one directory: who comes second is told who was first, and a dead holder holds nothing."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import lock
from tests import tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]
REGROW = str(Path(sys.executable).parent / "regrow")
HOLD = """
import subprocess, sys, time
from pathlib import Path
from cluster import lock
with lock.held(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "300"], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(300)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(regrow: Regrow, tmp_path: Path) -> None:
    """The first is a real run, stopped in its tracks by SIGSTOP while it prunes."""
    home = tiny.run_home(tmp_path)
    words = [REGROW, "run", "mine.toml", "--until", "prune"]
    first = subprocess.Popen(words, cwd=home, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stderr is not None
        said = ""
        while "prepare: done" not in said:
            said = first.stderr.readline()
            assert said, "the first run ended early"
        os.kill(first.pid, signal.SIGSTOP)
        for refused in (regrow("run", "mine.toml", "--until", "prune"), regrow("clean", "runs/mine")):
            assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
            assert f"runs/mine is in use by process {first.pid} on " in refused.stderr
            assert "since 20" in refused.stderr and "run mine.toml --until prune`" in refused.stderr
        assert regrow("status", "runs/mine").returncode == 0, "reading needs no lock"
        assert not list(home.glob("runs/mine/artifacts/prune-*/manifest.json"))
    finally:
        first.kill()
        first.wait()
    after = regrow("run", "mine.toml", "--until", "prune")
    assert after.returncode == 0, after.stderr
    assert "prepare: reused" in after.stderr


def test_a_killed_holder_holds_nothing_though_its_child_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(lock.Busy, match=rf"process {holder.pid} on "), lock.held(tmp_path):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives, and would hold the lock had it got the open file
        with lock.held(tmp_path) as held:
            assert held
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_once_in_a_process_too_and_again_after_the_block(tmp_path: Path) -> None:
    place = tmp_path / "not" / "made" / "yet"
    for _ in range(2):
        with lock.held(place), pytest.raises(lock.Busy, match=str(os.getpid())), lock.held(place):
            pass


def test_a_holder_that_has_not_written_its_name(tmp_path: Path) -> None:
    with (tmp_path / lock.NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(lock.Busy, match="left no name"), lock.held(tmp_path):
            pass


def test_of_many_one_at_a_time(tmp_path: Path) -> None:
    """Five processes come and go; each writes when it is in and when it is out."""
    code = """
import sys, time
from pathlib import Path
from cluster import lock
for _ in range(20):
    try:
        with lock.held(Path(sys.argv[1])), open(sys.argv[2], "a") as log:
            print("in", file=log, flush=True)
            time.sleep(0.01)
            print("out", file=log, flush=True)
    except lock.Busy:
        pass
    time.sleep(0.002)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "place"), str(tmp_path / "log")]
    everyone = [subprocess.Popen(words) for _ in range(5)]
    assert [process.wait(60) for process in everyone] == [0] * 5
    said = (tmp_path / "log").read_text().split()
    assert len(said) > 10 and said == ["in", "out"] * (len(said) // 2)
