"""Two processes and one URL without locks: one works there, who comes second is told, and the dead hold nothing.

Real processes against moto's server; where clocks step, clocks of the test's own are passed in.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import lease, storage
from cluster.lock import Busy
from tests.leases import HOLD, TTL


@pytest.fixture
def holder() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that hold the lease of a URL; each line given to one is answered by `lost()`."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, ttl: float = 30.0) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, url, str(ttl)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline().strip().isdecimal()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def key(url: str) -> str:
    """The newest key."""
    folder = storage.join(url, "_lease")
    return storage.join(folder, max(storage.files(folder)))


def elsewhere(url: str, **fields: Any) -> None:
    """As though the holder ran on another machine."""
    there = json.loads(storage.read(key(url)))
    storage.replace(key(url), json.dumps({**there, "boot": "another", **fields}).encode())


class Steps:
    """A clock that goes on with the real one, `speed` times as fast, and steps when told to."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed, self.offset, self.began = speed, 0.0, time.monotonic()

    def __call__(self) -> float:
        return 1_800_000_000 + (time.monotonic() - self.began) * self.speed + self.offset


def test_who_comes_second_is_told_who_was_first(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    first = holder(place)
    began = time.monotonic()
    with pytest.raises(Busy, match=rf"in use by process {first.pid} on \S+ since 20\S+ \(`-c "), lease.held(place):
        pass
    assert time.monotonic() - began < 20, "on its own machine nobody waits for the beat"


def test_a_killed_holder_is_succeeded_at_once(place: str, holder: Callable[..., subprocess.Popen[str]]) -> None:
    """It is not even waited for by its parent: a process that has ended, and is still in the table."""
    first = holder(place)
    first.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    began = time.monotonic()
    with lease.held(place) as mine:
        assert mine.number == 2 and mine.lost() is None
        assert time.monotonic() - began < 20
        assert [*storage.files(storage.join(place, "_lease"))] == ["00000002.json"], "old keys are removed"


def test_a_number_used_again_is_not_the_holder(place: str) -> None:
    """A process lives that has the holder's number, but was started at another time."""
    with lease.held(place) as mine:
        there = json.loads(storage.read(key(place)))
    storage.replace(key(place), json.dumps({**there, "released": False}).encode())
    with pytest.raises(Busy), lease.held(place):
        pass
    storage.replace(key(place), json.dumps({**there, "released": False, "started": 1}).encode())
    with lease.held(place) as next_one:
        assert next_one.number == mine.number + 1


def test_the_same_number_in_another_container_says_nothing(place: str) -> None:
    """No process of that number here, but the holder counts its processes apart: it is watched, and lives."""
    with lease.held(place, ttl=TTL) as mine:
        mine._record |= {"processes": "pid:[1]", "pid": 999_999_999}
        mine._renew()
        with pytest.raises(Busy, match="process 999999999"), lease.held(place, ttl=TTL):
            pass


def test_released_and_taken_again_the_numbers_go_on(place: str) -> None:
    for number in (1, 2, 3):
        with lease.held(place) as mine, pytest.raises(Busy, match=f"process {os.getpid()} "), lease.held(place):
            pass
        assert mine.number == number
    assert [*storage.files(storage.join(place, "_lease"))] == ["00000003.json"]


def test_the_holder_on_another_machine_is_watched(place: str) -> None:
    """While it beats, others are refused within one beat; without a beat it is succeeded after `ttl`."""
    seen: list[str] = []
    with lease.held(place, ttl=TTL) as mine:
        mine._record["boot"] = "another"
        mine._renew()
        with pytest.raises(Busy), lease.held(place, ttl=TTL, watching=seen.append):
            pass
    assert len(seen) == 1 and f"process {os.getpid()} on" in seen[0]
    elsewhere(place, released=False)
    began = time.monotonic()
    with lease.held(place, ttl=TTL) as second:
        assert TTL <= time.monotonic() - began < TTL + 20 and second.number == 2


def test_a_lease_that_came_while_we_looked_is_alive(place: str) -> None:
    """Of two who watch a dead one the second need not watch the first."""
    with lease.held(place, ttl=TTL):
        pass
    elsewhere(place, released=False)
    there, naps = json.loads(storage.read(key(place))), []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 1:
            storage.create(storage.join(place, "_lease", "00000002.json"), json.dumps({**there, "pid": 77}).encode())
        time.sleep(seconds)

    with pytest.raises(Busy, match="process 77 "), lease.held(place, ttl=TTL, sleep=sleep):
        pass
    assert len(naps) == 1


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
@pytest.mark.parametrize("who", ["holder", "contender"])
def test_clocks_that_step_neither_let_two_in_nor_lock_out(place: str, step: float, who: str) -> None:
    """A day back or forth, before and in the middle of the watch, on either side."""
    clocks = {"holder": Steps(), "contender": Steps()}
    clocks[who].offset = step
    with lease.held(place, ttl=TTL, clock=clocks["holder"]) as mine:
        mine._record["boot"] = "another"
        mine._renew()
        for _ in range(3):
            clocks[who].offset -= 2 * step
            with pytest.raises(Busy), lease.held(place, ttl=TTL, clock=clocks["contender"]):
                pass
            assert mine.lost() is None
    elsewhere(place, released=False)
    stepping = threading.Timer(TTL / 2, lambda: setattr(clocks[who], "offset", step))
    stepping.start()
    began = time.monotonic()
    with lease.held(place, ttl=TTL, clock=clocks["contender"]) as second:
        assert TTL <= time.monotonic() - began < TTL + 20 and second.lost() is None
    stepping.join()


def test_a_suspended_holder_learns_that_it_was_succeeded(
    place: str, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    """Stopped in its tracks, given up by another machine, woken up: it is told before it writes."""
    first = holder(place, ttl=TTL)
    assert first.stdin and first.stdout
    first.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    elsewhere(place)
    with lease.held(place, ttl=TTL) as mine:
        first.send_signal(signal.SIGCONT)
        print("?", file=first.stdin, flush=True)
        assert f"process {os.getpid()} on" in first.stdout.readline()
        first.stdin.close()
        assert first.wait(20) == 0
        assert mine.lost() is None, "it went without touching what is not its own any more"
    with lease.held(place) as third:
        assert third.number == 3, "the second released it"


def test_a_suspended_holder_whom_nobody_succeeded_goes_on(
    place: str, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    first = holder(place, ttl=TTL)
    assert first.stdin and first.stdout
    first.send_signal(signal.SIGSTOP)
    time.sleep(2 * TTL)
    first.send_signal(signal.SIGCONT)
    print("?", file=first.stdin, flush=True)
    assert first.stdout.readline() == "None\n"


def test_a_key_that_cannot_be_understood_is_watched(place: str) -> None:
    storage.create(storage.join(place, "_lease", "00000007.json"), b"\xff not json")
    began = time.monotonic()
    with lease.held(place, ttl=TTL) as mine:
        assert mine.number == 8 and time.monotonic() - began >= TTL
