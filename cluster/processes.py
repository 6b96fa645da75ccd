"""Who a process is, written down for others, and whether it is still there.

A process id means something on its machine alone, until it is restarted, among the processes that are
numbered together (containers number theirs apart), and until the number is given to another process.
"""

import contextlib
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

ENDED = ("Z", "X")  # states of a process that has ended and whose parent has not asked for its status yet


def myself() -> dict[str, Any]:
    """This process: `pid, host, boot, processes, started, command`. `boot` is empty where the system does not
    tell all of it (no /proc): others cannot look at the process then."""
    boot, processes, started = "", "", 0
    with contextlib.suppress(OSError):
        processes = str(Path("/proc/self/ns/pid").readlink())
        started = _stat("self")[1]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot,
        "processes": processes,
        "started": started,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def in_sight(there: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether the process written down as `there` would be seen from the process `mine` if it ran."""
    return all(mine[what] and there.get(what) == mine[what] for what in ("host", "boot", "processes"))


def runs(there: dict[str, Any]) -> bool:
    """Whether a process that is in sight still runs, itself and not another one with its number."""
    pid = int(there["pid"])
    try:
        state, started = _stat(pid)
    except OSError:  # gone, or another user's and hidden (mount option hidepid)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    return state not in ENDED and started == there["started"]


def named(there: dict[str, Any]) -> str:
    """A process for an error message: `there` with `since`, as far as it is known."""
    try:
        return f"process {there['pid']} on {there['host']} since {there['since']} (`{there['command']}`)"
    except KeyError:
        return "another process, which has left no name"


def _stat(pid: int | str) -> tuple[str, int]:
    """State of a process, and when it was started in ticks since the machine was: proc(5), `stat`."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])
