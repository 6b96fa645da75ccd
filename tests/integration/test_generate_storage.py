"""Storage that fails under `regrow generate`: S3 that stumbles, drops connections or stays away, a full disk, a full
object store, two drivers on one output. No row is lost, none is written twice, and the same command goes on."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import storage
from pipelines import parts
from pipelines.generation import asking, board, flow, shards, source
from tests import generated
from tests.faulty_s3 import FaultyBucket

pytestmark = pytest.mark.timeout(1800)
Run = Callable[..., subprocess.CompletedProcess[str]]
ECHO = ("generate", "--model", "echo")
SHARE = {"500": 0.05, "503": 0.05, "slow": 0.05, "drop_upload": 0.1, "drop_answer": 0.1, "drop_download": 0.1}


def test_faulty_s3(faulty_bucket: FaultyBucket, regrow: Run) -> None:
    """First S3 stays away from the fourth part on: a message, status 1, what is committed is whole. Then it comes
    back, and fails for a third of all requests in every way: the same command completes, each row once."""
    for number in range(3):
        rows = generated.lines(generated.rows(24, 24 * number)).encode()
        storage.create(f"{faulty_bucket.url}/in/{number}.jsonl", rows)
    given, out = f"{faulty_bucket.url}/in", f"{faulty_bucket.url}/out"
    command = (*ECHO, "--input", given, "--output", out, "--shard-rows", "4")

    proxied = threading.Thread(target=_away_after, args=(faulty_bucket, out, 3), daemon=True)
    proxied.start()
    done = regrow(*command, timeout=1200)
    faulty_bucket.calm()
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("regrow: s3://regrow/out/") and "did not succeed within" in last, done.stderr
    assert "Traceback" not in done.stderr and "test" not in last, "no credentials"
    before = generated.bytes_of(out)
    assert 3 <= len(before) < 18
    assert not storage.exists(storage.join(out, parts.MANIFEST))

    faulty_bucket.reset()
    faulty_bucket.rates = SHARE
    for kind in SHARE:  # each at least once: which requests the draws meet depends on their order
        faulty_bucket.once(kind)
    done = regrow(*command, timeout=1200)
    faulty_bucket.calm()
    assert done.returncode == 0, done.stderr
    assert set(faulty_bucket.counts) == set(SHARE), faulty_bucket.counts
    generated.check(out, range(72), before=before)


def _away_after(bucket: FaultyBucket, out: str, count: int) -> None:
    """Let all writes of parts fail once `count` are there."""
    while len(parts.names(out)) < count:
        threading.Event().wait(0.05)
    bucket.once("503", 1 << 30, key="/out/data/")


def test_full_disk(small_disk: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """No room for all parts: a message and status 1, nothing torn; with room the same command goes on."""
    draw = random.Random(0)
    rows = [{"prompt": draw.randbytes(20_000).hex(), "mark": n} for n in range(64)]
    generated.write(tmp_path / "in.jsonl", rows)
    command = "regrow generate --model echo --input in.jsonl --output disk/out --shard-rows 4"
    done = small_disk(
        f"disk 2m disk; {command}; echo first $?; ls -A disk/out/data | grep -vc '^part-.*parquet$'; "
        f"mkdir before && cp disk/out/data/* before; mount -o remount,size=64m disk && {command}; echo second $?; "
        "cp -r disk/out out"
    )
    assert "first 1\n0\n" in done.stdout and "second 0" in done.stdout, done
    assert "no space left on device" in done.stderr.lower() and "/disk/out/data/part-" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "DataContext" not in done.stderr, done.stderr
    before = {path.stem: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    assert 1 <= len(before) < 16
    generated.check(tmp_path / "out", range(64), before=before)


SMALL = """
import sys
from cluster import session
from pipelines import cli
session.OBJECT_STORE = 80 << 20
sys.argv = ["regrow", *sys.argv[1:]]
cli.main()
"""


def test_full_object_store(tmp_path: Path) -> None:
    """Rows of several times the object store's size flow through it, and through workers of bounded memory."""
    draw, count = random.Random(0), 600
    words = [draw.randbytes(48).hex() for _ in range(2000)]
    given = generated.write(
        tmp_path / "in.jsonl", ({"prompt": " ".join(draw.sample(words, 1900)), "mark": n} for n in range(count))
    )
    assert given.stat().st_size > 100 << 20  # and in a packet a row is there three times
    command = ["--input", str(given), "--output", str(tmp_path / "out"), "--max-tokens", "100000"]
    with open(tmp_path / "said", "w") as said:  # noqa: PTH123
        job = subprocess.Popen([sys.executable, "-c", SMALL, *ECHO, *command], cwd=tmp_path, stdout=said, stderr=said)
        largest = _largest(job)
    assert job.returncode == 0, (tmp_path / "said").read_text()
    generated.check(tmp_path / "out", range(count))
    assert largest < 1200, f"a worker took {largest} MB beside the object store"


def _largest(job: subprocess.Popen[bytes]) -> int:
    """The most memory of its own, in MB, that one of the job's Ray workers has until it ends."""
    import psutil

    largest = 0
    while job.poll() is None:
        for one in psutil.Process(job.pid).children(recursive=True):
            try:
                if one.cmdline()[0].startswith("ray::"):
                    status = Path(f"/proc/{one.pid}/status").read_text()
                    largest = max(largest, int(status.partition("RssAnon:")[2].split()[0]) // 1024)
            except (psutil.Error, OSError, IndexError):
                pass
        threading.Event().wait(0.5)
    return largest


CLAIM = """
import sys
from pipelines.generation.settling import claimed
with claimed(sys.argv[1]):
    print("has it", flush=True)
    sys.stdin.read()
"""


@contextmanager
def claimed(output: str) -> Iterator[int]:
    """Another driver's hold on `output`, for the length of the block; its process id."""
    driver = subprocess.Popen([sys.executable, "-c", CLAIM, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert driver.stdout and driver.stdout.readline() == b"has it\n"
    yield driver.pid
    driver.communicate()


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_second_driver(where: str, bucket: str, tmp_path: Path, ray_session: None) -> None:
    """While one driver works on an output a second is told which, and leaves what is there as it is."""
    given = generated.write(tmp_path / "in.jsonl", generated.rows(4))
    out = str(tmp_path / "out") if where == "disk" else f"{bucket}/second"
    with claimed(out) as first:
        status, said = generated.command(given, out)
        assert status == 2 and f"{out} is in use by process {first} on " in said, said
        assert "another --output" in said and parts.names(out) == {}
    if where == "disk":
        assert generated.command(given, out)[0] == 0
        generated.check(out, range(4))


def test_two_drivers_at_once(tmp_path: Path, ray_session: None) -> None:
    """Where no lock keeps two drivers apart, they commit the same plan: who is first with a part has made it."""
    long = [{"prompt": f"row {n} has more words than one", "mark": n} for n in range(64)]
    given = generated.write(tmp_path / "in.jsonl", long)
    units = source.units(storage.find(str(given)))
    scanned = [source.scan(unit) for unit in units]
    (work,) = shards.plan(scanned, units, 4, shards.SHARD_BYTES, None, set(), lambda name: []).work
    jobs = [asking.settled(generated.job(tmp_path / "out", max_tokens=most), scanned[0].columns) for most in (9, 1)]

    def drive(job: generated.Job, some: list[source.Shard]) -> int:
        todo = [shards.Work(work.unit, 0, some)]
        return sum(one["rows"] for one in flow.run(job, None, scanned[0].columns, todo, board.put_up()))

    assert drive(jobs[0], work.shards[:4]) == 16
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (tmp_path / "out/data").iterdir()}
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(drive, jobs, [work.shards] * 2)) == [64, 64]
    assert all((path.read_bytes(), path.stat().st_ino) == as_was for path, as_was in before.items())
    there = generated.answered(tmp_path / "out")
    assert sorted(row["mark"] for row in there) == list(range(64)) and len({row["id"] for row in there}) == 64
    assert len(os.listdir(tmp_path / "out/data")) == 16  # noqa: PTH208
    assert {len(row["text"].split()) for row in there} <= {1, 7}
