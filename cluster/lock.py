"""One process at a time in a directory: a lock that the kernel keeps.

`flock(2)` on the file `.lock`. The kernel drops the lock when its holder ends, however it ends (kill -9
too), so nothing stale is ever left to clear away. The file itself stays: were it removed, a third
process could lock a new file of that name while the second still holds the old one.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import processes

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Busy(RuntimeError):
    """Another process holds the lock; the message says which, on what host and since when."""


@contextlib.contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of `folder`, which is made if it is missing, for the length of the block.

    Yields whether it is held: False on a file system that has no locks. Raises Busy where another
    process has it and this one does not `wait`, OSError where `folder` cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    # Closed on exec: Ray's processes may outlive a killed driver and must not hold its lock on.
    handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle, folder, wait)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise Busy(f"{folder} is in use by {_holder(handle)}") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    os.ftruncate(handle, 0)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name, and `clean` can make room
        os.write(handle, json.dumps(_self()).encode())
    return True


def _self() -> dict[str, Any]:
    return processes.myself() | {"since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _holder(handle: int) -> str:
    try:
        return processes.named(json.loads(os.pread(handle, 1 << 16, 0)))
    except ValueError:  # it has not written it yet, or could not
        return processes.named({})
