"""Leases that many want at once, and storage that fails meanwhile: never two inside."""

import concurrent.futures
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import lease, storage
from cluster.lock import Busy
from tests.faulty_s3 import FaultyBucket


class Steps:
    """A clock that goes on with the real one, `speed` times as fast, and steps when told to."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed, self.offset, self.began = speed, 0.0, time.monotonic()

    def __call__(self) -> float:
        return 1_800_000_000 + (time.monotonic() - self.began) * self.speed + self.offset


def test_a_holder_that_wakes_between_look_and_write_keeps_it(place: str) -> None:
    """The contender has seen no beat for `ttl` seconds; the beat comes just before it writes its number."""
    with lease.held(place, ttl=3600) as mine:
        mine._record["boot"] = "another"
        mine._renew()
        clock, naps, real = Steps(), [], storage.create

        def sleep(seconds: float) -> None:
            """The contender's `ttl` passes in its first nap; in the next ones the holder beats."""
            naps.append(seconds)
            if len(naps) == 1:
                clock.offset += 4000
            else:
                mine._renew()

        def create(url: str, data: bytes) -> bool:
            mine._renew()
            return real(url, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "create", create)
            with pytest.raises(Busy), lease.held(place, ttl=3600, monotonic=clock, sleep=sleep):
                pass
        assert len(naps) == 2 and mine.lost() is None
        assert len(storage.files(storage.join(place, "_lease"))) == 1, "the contender's number is withdrawn"


@pytest.mark.parametrize("before", [0, 1])
def test_a_number_tidied_away_meanwhile_is_not_won(place: str, before: int) -> None:
    """Between a contender's look and its write the next two came; the number that it wants is free again."""
    for _ in range(before):
        with lease.held(place):
            pass
    with contextlib.ExitStack() as others, pytest.MonkeyPatch.context() as patch:
        real, third = storage.create, []

        def create(url: str, data: bytes) -> bool:
            patch.setattr(storage, "create", real)
            with lease.held(place) as second:
                assert second.number == before + 1
            third.append(others.enter_context(lease.held(place)))
            assert storage.files(storage.join(place, "_lease")).keys() == {f"0000000{before + 2}.json"}
            return real(url, data)

        patch.setattr(storage, "create", create)
        with pytest.raises(Busy), lease.held(place):
            pass
        assert third[0].number == before + 2 and third[0].lost() is None
        assert storage.files(storage.join(place, "_lease")).keys() == {f"0000000{before + 2}.json"}


def test_of_many_contenders_one_gets_it(faulty_bucket: FaultyBucket, tmp_path: Path) -> None:
    """Six at once, twelve rounds, answers and uploads lost on the way: never two inside."""
    url, inside, most = f"{faulty_bucket.url}/{tmp_path.name}", [0], [0]
    faulty_bucket.rates = {"drop_answer": 0.15, "500": 0.1}
    turn, barrier = threading.Lock(), threading.Barrier(6)

    def enter(_: int) -> bool:
        barrier.wait()
        try:
            with lease.held(url, ttl=5):
                with turn:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                barrier.wait()
                with turn:
                    inside[0] -= 1
                return True
        except Busy:
            barrier.wait()
            return False

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(12):
            assert sum(pool.map(enter, range(6))) == 1
    assert most == [1] and faulty_bucket.counts["drop_answer"] > 3


def test_of_many_processes_one_at_a_time(place: str) -> None:
    """Four processes come and go; each creates a key when it is in and removes it when it is out."""
    code = """
import os, sys, time
from cluster import lease, storage
from cluster.lock import Busy
won = 0
for _ in range(12):
    try:
        with lease.held(sys.argv[1], ttl=5):
            assert storage.create(storage.join(sys.argv[1], "inside"), str(os.getpid()).encode()), "two inside"
            time.sleep(0.02)
            storage.remove(storage.join(sys.argv[1], "inside"))
            won += 1
    except Busy:
        time.sleep(0.03)
print(won)
"""
    words = [sys.executable, "-c", code, place]
    everyone = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    won = [int(process.communicate(timeout=600)[0] or -100) for process in everyone]
    assert [process.returncode for process in everyone] == [0] * 4
    assert sum(won) >= 8, "it changes hands"


def test_a_lease_whose_answer_got_lost_is_ours(faulty_bucket: FaultyBucket, tmp_path: Path) -> None:
    url = f"{faulty_bucket.url}/{tmp_path.name}"
    faulty_bucket.once("drop_answer", method="PUT", key="_lease")
    with lease.held(url) as mine:
        assert mine.number == 1 and mine.lost() is None
    assert faulty_bucket.counts["drop_answer"] == 1


def test_a_holder_that_cannot_reach_the_storage_does_not_trust_itself(
    faulty_bucket: FaultyBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import s3

    clock = Steps()
    with lease.held(f"{faulty_bucket.url}/{tmp_path.name}", ttl=40, monotonic=clock) as mine:
        monkeypatch.setattr(s3, "PATIENCE", 2.0)  # from here on: a busy machine may need longer to get so far
        faulty_bucket.rates = {"500": 1.0}
        assert mine.lost() is None, "nobody can have given it up yet"
        clock.offset += 41
        with pytest.raises(OSError, match="did not succeed within"):
            mine.lost()
        faulty_bucket.calm()
        assert mine.lost() is None
