"""One process at a time below a URL of storage that has no locks: a lease that its holder keeps renewing.

A lease is a numbered key below `_lease/` that is created, never overwritten by another: of all who want
number n + 1, one gets it. Whoever stands under the highest number holds the lease. Its holder rewrites its
key, with one beat more, a few times in `ttl` seconds. Whoever wants the lease and finds it held watches
that key: a change says that the holder lives; `ttl` seconds by the watcher's own monotonic clock without
one say that it is dead. No two clocks are ever compared, and no time of day counts. On the holder's own
machine the process itself is looked at, and nobody has to wait.

The highest key is never removed, so that numbers never start again: a released lease stays, marked so.
A holder that was suspended past `ttl` may have been given up; `Lease.lost` tells it before it writes.
"""

import contextlib
import datetime
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster import processes, storage
from cluster.lock import Busy

FOLDER = "_lease"
BEATS = 4  # renewals in `ttl` seconds
LOOKS = 20  # looks of a watcher in `ttl` seconds
SHORTEST = 0.05  # seconds between two looks

Record = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key as it was read; 0 and nothing where there was none."""

    number: int
    content: bytes

    @property
    def record(self) -> Record:
        """What its holder wrote, as far as it can be understood."""
        with contextlib.suppress(ValueError):
            there = json.loads(self.content)
            return there if isinstance(there, dict) else {}
        return {}


@dataclass(frozen=True)
class Clocks:
    """`clock` tells the time of day, for people alone; `monotonic` measures and `sleep` waits, in seconds."""

    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


class Lease:
    """The right to write below `url`, held by this process. `number` is higher than that of any holder before."""

    def __init__(self, url: str, number: int, record: Record, since: float, clocks: Clocks) -> None:
        self.url, self.number, self._record, self._clocks = url, number, record, clocks
        self._confirmed, self._taken = since, ""
        self._ending, self._turn = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {url}", daemon=True)

    def lost(self) -> str | None:
        """None while the lease is ours; else who has it now, for good.

        Asks the storage only where the last renewal is older than `ttl` (this process was suspended, or the
        storage did not answer); raises OSError where it does not answer now either: then nothing may be
        written, for another process may have taken over."""
        if not self._taken and self._clocks.monotonic() - self._confirmed >= self._record["ttl"]:
            self._renew()
        return self._taken or None

    def _keep(self) -> None:
        while not self._ending.wait(self._record["ttl"] / BEATS) and not self._taken:
            with contextlib.suppress(OSError):  # tried again at the next beat; `lost` tells when it is too late
                self._renew()

    def _renew(self) -> None:
        with self._turn:
            began = self._clocks.monotonic()
            self._record["beats"] += 1
            self._write()
            newest = _newest(self.url)
            if newest.number > self.number:
                self._taken = processes.named(newest.record)
            else:
                self._confirmed = began  # what others saw at the earliest: their `ttl` begins no sooner

    def _write(self, **fields: Any) -> None:
        self._record |= {"renewed": _date(self._clocks.clock()), **fields}
        storage.replace(_key(self.url, self.number), json.dumps(self._record).encode())

    def _end(self) -> None:
        self._ending.set()
        self._thread.join(self._record["ttl"])
        with contextlib.suppress(OSError):  # others find the process gone, or watch the key for `ttl` seconds
            if not self._taken:
                self._write(released=True)


def suspended_too() -> float:
    """Seconds of a clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@contextlib.contextmanager
def held(
    url: str,
    ttl: float = 30.0,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = suspended_too,
    sleep: Callable[[float], None] = time.sleep,
    watching: Callable[[str], None] | None = None,
) -> Iterator[Lease]:
    """Hold the lease of `url` for the length of the block.

    `ttl` is the time in seconds after which a holder that does not renew is taken for dead. `watching` is
    told whose lease is watched, once, where that may take so long. Raises Busy where another process has
    it, which takes up to `ttl / 4` seconds to tell when that is on another machine; OSError where the
    storage fails."""
    clocks = Clocks(clock, monotonic, sleep)
    record: Record = {
        **processes.myself(),
        "holder": uuid.uuid4().hex,
        "since": _date(clock()),
        "ttl": ttl,
        "beats": 0,
        "released": False,
    }
    number, since = _take(url, record, clocks, watching or (lambda who: None))
    lease = Lease(url, number, record, since, clocks)
    lease._thread.start()
    try:
        with contextlib.suppress(OSError):  # the next holder tidies up
            for old in _numbers(url):
                if old < number:
                    storage.remove(_key(url, old))
        yield lease
    finally:
        lease._end()


def _take(url: str, mine: Record, clocks: Clocks, watching: Callable[[str], None]) -> tuple[int, float]:
    """The number under which `mine` stands as the highest, and when it was begun to be written."""
    before = None
    while True:
        newest = _newest(url)
        came = before is not None and newest.number > before
        before = newest.number
        if not _free(url, newest, came, mine, clocks, watching):
            continue
        began, number = clocks.monotonic(), newest.number + 1
        mine["renewed"] = _date(clocks.clock())
        if not storage.create(_key(url, number), json.dumps(mine).encode()):
            continue
        # Since the look at it, its holder may have come back to life, or another have come, gone, and
        # tidied up. The holder writes its beat and then looks for a higher number, this writes the higher
        # number and then looks for a beat: one of the two sees the other.
        if max(_numbers(url), default=0) == number and _read(url, newest.number) == newest.content:
            return number, began
        storage.remove(_key(url, number))


def _free(url: str, newest: Key, came: bool, mine: Record, clocks: Clocks, watching: Callable[[str], None]) -> bool:
    """Whether the lease `newest` may be taken over; False where it must be looked at anew. Raises Busy
    where its holder lives, as it does where it `came` while we looked."""
    there = newest.record
    if not newest.number or there.get("released"):
        return True
    if processes.in_sight(there, mine):
        if processes.runs(there):
            raise Busy(f"{url} is in use by {processes.named(there)}")
        return True
    if came:
        raise Busy(f"{url} is in use by {processes.named(there)}")
    watching(processes.named(there))
    return _silent(url, newest, max(float(there.get("ttl", 0)), mine["ttl"]), clocks)


def _silent(url: str, newest: Key, ttl: float, clocks: Clocks) -> bool:
    """Whether the holder of `newest` does not beat for `ttl` seconds; False where another key is the
    highest, or it is released meanwhile. Raises Busy at the first beat."""
    began = clocks.monotonic()
    while clocks.monotonic() - began < ttl:
        clocks.sleep(max(ttl / LOOKS, SHORTEST))
        now = _newest(url)
        if now.number != newest.number or now.record.get("released"):
            return False
        if now.content != newest.content:
            raise Busy(f"{url} is in use by {processes.named(now.record)}")
    return True


def _newest(url: str) -> Key:
    number = max(_numbers(url), default=0)
    return Key(number, _read(url, number))


def _key(url: str, number: int) -> str:
    return storage.join(url, FOLDER, f"{number:08}.json")


def _numbers(url: str) -> list[int]:
    """The numbers of the keys that stand."""
    names = (name.removesuffix(".json") for name in storage.files(storage.join(url, FOLDER)))
    return [int(name) for name in names if name.isdecimal()]


def _read(url: str, number: int) -> bytes:
    """What stands under `number`; nothing where there is none."""
    try:
        return storage.read(_key(url, number))
    except FileNotFoundError:
        return b""


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
