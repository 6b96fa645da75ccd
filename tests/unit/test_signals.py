"""Interruptions in real processes: they end the command even where the first exception is lost."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

LOST = """
import os, signal, sys, time
from cluster import signals
class Callback:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.1)
with signals.interruptible():
    Callback()
    print("lost", flush=True)
    time.sleep(60)
"""
CLEANUP = """
import os, signal, sys, time
from cluster import signals
try:
    with signals.interruptible():
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
            time.sleep(60)
        finally:
            end = time.monotonic() + 2.2 * signals.AGAIN
            while time.monotonic() < end:
                time.sleep(0.05)
            try:
                raise ValueError("seen and handled on the way")
            except ValueError:
                time.sleep(1.2 * signals.AGAIN)
            print("clean", flush=True)
finally:
    time.sleep(1.5 * signals.AGAIN)  # out of the block nothing is raised any more
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("script", "said"), [(LOST, "lost"), (CLEANUP, "clean")])
def test_an_interruption_is_neither_lost_nor_raised_into_the_cleaning_up(
    script: str, said: str, signum: int, status: int
) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", script, str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout == f"{said}\n", done.stderr
    assert done.returncode == status and time.monotonic() - began < 200


TURNED = """
import os, signal, sys, time
from cluster import signals
with signals.interruptible():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
    except BaseException as error:
        raise SystemError("<built-in method> returned a result with an exception set") from error
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_an_error_that_c_code_makes_of_an_interruption_is_the_interruption(signum: int, status: int) -> None:
    command = [sys.executable, "-c", TURNED, str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stderr


STUCK = """
import os, signal, subprocess, sys, threading
from cluster import signals
signals.PATIENCE = 1.0
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
with signals.interruptible():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        threading.Event().wait()
    finally:
        while True:
            try:
                threading.Event().wait()  # for a server that is no more
            except BaseException:
                pass
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_cleaning_up_has_an_end(signum: int, status: int) -> None:
    command = [sys.executable, "-c", STUCK, str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status and "the same command goes on from here" in done.stderr
    child, until = int(done.stdout), time.monotonic() + 10  # on a busy machine a killed process takes a moment to go
    while lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not lives(child)


def lives(process: int) -> bool:
    """Whether it runs still; a killed one may stand in the table until its parent asks for it."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
