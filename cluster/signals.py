"""Ctrl-C and SIGTERM as exceptions in the main thread, raised again where one got lost, and an end to cleaning up.

Python drops an exception that a signal handler raises inside `__del__` or a library's callback, and a
long stage runs through many of those (Ray's object references, pyarrow): without a second attempt the
command would go on as if nobody had asked it to stop. And where the signal went to the whole process
group (`timeout`, systemd), Ray's own servers may be gone by now, and its clients wait for them.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

AGAIN = 2.0  # seconds after which a lost exception is raised again
PATIENCE = 25.0  # seconds for cleaning up; Kubernetes kills after 30


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block, in the main thread: SIGINT raises KeyboardInterrupt, SIGTERM SystemExit(143). A process that
    still cleans up PATIENCE seconds later kills its children and ends, with status 130 or 143."""
    signal.signal(signal.SIGINT, lambda *_: _stop(KeyboardInterrupt(), 130))
    signal.signal(signal.SIGTERM, lambda *_: _stop(SystemExit(143), 143))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def kept() -> Iterator[None]:
    """Leaves the block with the SIGTERM handler that was there before: every `ray.init` puts Ray's own in place,
    which exits with another status, and some of Ray's libraries call it again inside a session."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(error: BaseException, status: int) -> None:
    threading.Thread(target=_give_up, args=(status,), daemon=True).start()

    def again(*_: Any) -> None:
        if not _unwinding(sys.exc_info()[1]):
            raise error

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise error


def _give_up(status: int) -> None:
    import psutil

    me = psutil.Process()
    family = me.children(recursive=True)  # now: once Ray's raylet is gone, its workers are nobody's children
    time.sleep(PATIENCE)
    print("regrow: stopped without cleaning up; the same command goes on from here", file=sys.stderr, flush=True)
    for child in {*family, *me.children(recursive=True)}:
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
