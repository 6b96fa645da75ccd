"""Ctrl-C and SIGTERM as exceptions in the main thread, raised again where one got lost, and an end to cleaning up.

Python drops an exception that a signal handler raises inside `__del__` or a library's callback, and a
long stage runs through many of those (Ray's object references, pyarrow): without a second attempt the
command would go on as if nobody had asked it to stop. Code in C makes an error of its own of it ("returned a
result with an exception set"), so once asked for, whatever ends the block is the interruption.
"""

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil  # here, whole: an import that an interruption breaks off leaves half a module behind

AGAIN = 2.0  # seconds after which a lost exception is raised again
PATIENCE = 25.0  # seconds for cleaning up; Kubernetes kills after 30
_forks = threading.local()  # .apart: whether what this thread forks gets a process group
_asked: list[BaseException] = []  # the interruptions that came, first one first


class Left(SystemExit):
    """The end of a command that only watched: what it watched goes on, and what is to be said of that is said."""


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block, in the main thread: SIGINT raises KeyboardInterrupt, SIGTERM SystemExit(143), and an error that
    leaves the block after one of them is raised as that one. A process that still cleans up PATIENCE seconds later
    kills its children and ends, with status 130 or 143."""
    _asked.clear()
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except BaseException as error:
        if _asked and error is not _asked[0] and not isinstance(error, Left):
            raise _asked[0] from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def kept() -> Iterator[None]:
    """Leaves the block with the SIGTERM handler that was there before: every `ray.init` puts Ray's own in place,
    which exits with another status, some of Ray's libraries call it again inside a session, and `ray.shutdown` sets
    the system's default, unseen by Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def apart() -> Iterator[None]:
    """Puts the servers that `ray.init` starts in the block into process groups of their own. A signal to this
    process's whole group (`timeout`, systemd) would else end the raylet before this process has let go of it, and
    then Ray ends this process from within, with status 1. They still die with this process (PDEATHSIG)."""
    _hook()
    _forks.apart = True
    try:
        yield
    finally:
        _forks.apart = False


@functools.cache  # a fork hook cannot be taken back
def _hook() -> None:
    os.register_at_fork(after_in_child=lambda: os.setpgid(0, 0) if getattr(_forks, "apart", False) else None)


def leave(error: BaseException) -> None:
    """End this process and its children now, with the status of the interruption `error`; outside `interruptible`, do
    nothing. Ray's libraries call it from threads that have no way to be told to stop, and shut down under such a
    thread, Ray ends the process with status 1."""
    status, word = (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (143, "terminated")
    asked = status == 130 or getattr(error, "code", None) == status
    if not asked or signal.getsignal(signal.SIGTERM) is not _terminated:
        return
    with suppress(OSError):
        sys.stdout.flush()
    print(f"regrow: {word}; the same command goes on from here", file=sys.stderr, flush=True)
    _end(psutil.Process().children(recursive=True), status)


def _interrupted(*_: Any) -> None:
    _stop(KeyboardInterrupt(), 130)


def _terminated(*_: Any) -> None:
    _stop(SystemExit(143), 143)


def _stop(error: BaseException, status: int) -> None:
    _asked.append(error)
    threading.Thread(target=_give_up, args=(status,), daemon=True).start()

    def again(*_: Any) -> None:
        if not _unwinding(sys.exc_info()[1]):
            raise error

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise error


def _give_up(status: int) -> None:
    me = psutil.Process()
    family = me.children(recursive=True)  # now: once Ray's raylet is gone, its workers are nobody's children
    time.sleep(PATIENCE)
    print("regrow: stopped without cleaning up; the same command goes on from here", file=sys.stderr, flush=True)
    _end([*family, *me.children(recursive=True)], status)


def _end(family: list[Any], status: int) -> None:
    for child in set(family):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(status)


def _unwinding(handled: BaseException | None) -> bool:
    """Whether what is being handled right now (in a `finally`, an `__exit__`) goes back to an interruption."""
    while handled is not None:
        if isinstance(handled, KeyboardInterrupt | SystemExit):
            return True
        handled = handled.__context__
    return False
