"""Storage through faults: S3 is moto's server behind a proxy that fails when told to."""

import concurrent.futures
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import s3, storage
from tests.faulty_s3 import FaultyBucket

KINDS = ("500", "503", "slow", "drop_upload", "drop_answer", "drop_download")
PASSING = [*KINDS, "hang"]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


@pytest.fixture
def here(faulty_bucket: FaultyBucket, tmp_path: Path) -> str:
    """A prefix of this test's own, behind the proxy."""
    faulty_bucket.seconds = 0.2
    return f"{faulty_bucket.url}/{tmp_path.name}"


@pytest.mark.parametrize("kind", PASSING)
def test_every_way_of_reading_and_writing_rides_a_fault_out(kind: str, faulty_bucket: FaultyBucket, here: str) -> None:
    """Each call meets the fault twice, or as a drop of every second request that has a body to drop."""
    data = os.urandom(300_000)

    def meets(times: int = 2) -> None:
        faulty_bucket.calm()
        faulty_bucket.once(kind, times)

    meets()
    assert storage.create(storage.join(here, "a.bin"), data)
    meets()
    assert not storage.create(storage.join(here, "a.bin"), b"other"), "somebody was first"
    meets()
    storage.replace(storage.join(here, "b.bin"), data)
    meets()
    assert storage.read(storage.join(here, "a.bin")) == data
    meets()
    assert storage.digest(storage.join(here, "b.bin")) == hashlib.sha256(data).hexdigest()
    meets()
    assert storage.find(here) == {storage.join(here, "a.bin"): 300_000, storage.join(here, "b.bin"): 300_000}
    meets()
    assert storage.files(here) == {"a.bin": 300_000, "b.bin": 300_000}
    meets()
    with storage.opened(storage.join(here, "a.bin"), start=250_000) as file:
        assert file.read(10) + file.read() == data[250_000:]
    assert faulty_bucket.counts[kind] >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_lost_and_the_torn_are_told_apart(kind: str, faulty_bucket: FaultyBucket, here: str) -> None:
    """Whoever looks meanwhile sees nothing or the whole, and the writer is told that it wrote it."""
    data = b"x" * 1_000_000
    faulty_bucket.rates = {kind: 0.5}
    seen: set[int] = set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(8):
            url = storage.join(here, f"{number}")
            writing = pool.submit(storage.create, url, data)
            while not writing.done():
                seen |= set(storage.files(here).values())
            assert writing.result(), "nobody else was there"
    faulty_bucket.calm()
    assert seen <= {len(data)} and faulty_bucket.counts[kind]
    assert all(storage.read(url) == data for url in storage.find(here))
    assert len(storage.find(here)) == 8


def test_of_many_writers_one_wins_though_answers_get_lost(faulty_bucket: FaultyBucket, here: str) -> None:
    faulty_bucket.rates = {"drop_answer": 0.4, "drop_upload": 0.2}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for number in range(10):
            url = storage.join(here, f"race-{number}")
            won = list(pool.map(lambda who: storage.create(url, b"%d" % who * 100), range(6)))  # noqa: B023
            assert sum(won) == 1, won
            assert storage.read(url) == b"%d" % won.index(True) * 100
    assert faulty_bucket.counts["drop_answer"] > 5


@pytest.mark.parametrize("kind", ["500", "drop_answer", "drop_upload"])
def test_an_open_file_is_written_through_faults(kind: str, faulty_bucket: FaultyBucket, here: str) -> None:
    """What libraries do with the file system that they are given."""
    fs, path = storage.filesystem(storage.join(here, "open"))
    faulty_bucket.once(kind, times=2, method="PUT")
    with fs.open(path, "wb") as file:
        file.write(b"x" * 1000)
    assert storage.read(storage.join(here, "open")) == b"x" * 1000 and faulty_bucket.counts[kind] == 2


def test_a_large_object_is_read_whole_though_it_breaks_off(faulty_bucket: FaultyBucket, here: str) -> None:
    """Above 50 MB s3fs would read pieces at once, and give up at the first that breaks off."""
    data = os.urandom(1 << 20) * 60
    storage.create(storage.join(here, "large"), data)
    faulty_bucket.once("drop_download", times=2)
    assert storage.read(storage.join(here, "large")) == data and faulty_bucket.counts["drop_download"] == 2


def test_equal_bytes_of_another_are_not_ours(place: str) -> None:
    assert storage.create(storage.join(place, "a"), b"same")
    assert not storage.create(storage.join(place, "a"), b"same")


def uploads() -> list[object]:
    import boto3

    return boto3.client("s3").list_multipart_uploads(Bucket="regrow").get("Uploads", [])


@pytest.mark.parametrize("kind", ["500", "drop_upload", "drop_answer"])
def test_a_large_object_is_created_once_through_faults(kind: str, faulty_bucket: FaultyBucket, here: str) -> None:
    """Above 32 MiB it goes up in parts; beginning, parts and end each meet the fault."""
    data, url = os.urandom(1 << 20) * 35, storage.join(here, "large")
    for key, method in (("?uploads", "POST"), ("partNumber=2", "PUT"), ("uploadId=", "POST")):
        faulty_bucket.once(kind, method=method, key=key)
    assert storage.create(url, data), "its own, though the answer got lost"
    assert faulty_bucket.counts[kind] == (1 if kind == "drop_upload" else 3)
    assert storage.digest(url) == hashlib.sha256(data).hexdigest()
    assert not storage.create(url, data[::-1]), "somebody was first"
    assert storage.digest(url) == hashlib.sha256(data).hexdigest()
    assert not [upload for upload in uploads() if "large" in str(upload)], "not even the one whose begin got no answer"


def test_parts_that_cannot_be_sent_leave_nothing(
    faulty_bucket: FaultyBucket, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENCE", 6.0)  # less, and on a busy machine the upload does not even begin
    monkeypatch.setattr(s3, "SLOWEST", 1e9)
    url = storage.join(here, "torn")
    faulty_bucket.once("drop_upload", times=1000, key="partNumber=2")
    with pytest.raises(OSError, match=r"torn: upload_part did not succeed within 6 s"):
        storage.create(url, b"x" * (33 << 20))
    faulty_bucket.calm()
    assert not storage.exists(url) and storage.files(here) == {}
    assert not [upload for upload in uploads() if "torn" in str(upload)]


@pytest.mark.parametrize(("kind", "said"), [("500", "as told"), ("503", "as told"), ("hang", ""), ("drop_answer", "")])
def test_what_lasts_ends_in_an_error_that_names_the_url(
    kind: str, said: str, faulty_bucket: FaultyBucket, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 8 if said else 2  # a busy machine may take seconds for an answer
    monkeypatch.setattr(s3, "PATIENCE", float(patience))
    monkeypatch.setattr(s3.PatientS3, "retries", 2)
    faulty_bucket.seconds, faulty_bucket.rates = 1.5, {kind: 1.0}
    began = time.monotonic()
    with pytest.raises(OSError, match=rf"^{here}/gone: put_object did not succeed within {patience} s; last: .*{said}"):
        storage.create(storage.join(here, "gone"), b"x")
    assert time.monotonic() - began < 20 + patience


def test_a_download_that_always_breaks_off_ends_in_an_error(
    faulty_bucket: FaultyBucket, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3.PatientS3, "retries", 3)
    storage.create(storage.join(here, "a"), b"x" * 100_000)
    faulty_bucket.rates = {"drop_download": 1.0}
    with pytest.raises(OSError, match=rf"{here}/a: reading broke off 3 times"):
        storage.read(storage.join(here, "a"))
    with pytest.raises(OSError, match=rf"{here}/a: reading broke off 3 times"):
        storage.digest(storage.join(here, "a"))


def test_nothing_there_is_said_at_once(faulty_bucket: FaultyBucket, here: str) -> None:
    """What is certain is not asked again."""
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        storage.read(storage.join(here, "none"))
    with pytest.raises(FileNotFoundError), storage.opened(storage.join(here, "none")):
        pass
    with pytest.raises(FileNotFoundError):
        storage.create("s3://no-such-bucket/a", b"x")
    assert not storage.exists(storage.join(here, "none"))
    assert time.monotonic() - began < 30 and sum(faulty_bucket.requests.values()) < 12


def test_no_credentials_are_asked_for_by_name(
    faulty_bucket: FaultyBucket, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    s3.PatientS3.clear_instance_cache()
    with pytest.raises(PermissionError, match=r"a: no credentials .*AWS_PROFILE"):
        storage.read(storage.join(here, "a"))


def test_replace_is_whole_or_not_at_all(place: str) -> None:
    """A reader sees the one content or the other while they are written in turn."""
    url, kinds = storage.join(place, "deep", "er", "state.json"), [b"a" * 500_000, b"b" * 700_000]
    storage.replace(url, kinds[0])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [storage.replace(url, kinds[turn % 2]) for turn in range(30)])
        while not writing.done():
            assert storage.read(url) in kinds
    assert storage.files(place) == {"deep/er/state.json": 700_000}
    assert not list(Path(place).rglob(".*")), "temporary files stay behind"


def test_a_stream_starts_where_it_is_told_to(place: str) -> None:
    data = os.urandom(10_000_000)
    storage.create(storage.join(place, "a"), data)
    with storage.opened(storage.join(place, "a"), start=3) as file:
        assert file.read(5) == data[3:8] and file.tell() == 8
    with storage.opened(storage.join(place, "a")) as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(data).digest()
    with storage.opened(storage.join(place, "a"), start=len(data)) as file:
        assert file.read() == b""


def test_a_stream_needs_little_memory(bucket: str, tmp_path: Path) -> None:
    """32 MB are read through in a process of their own, which grows by some pieces of 4 MiB."""
    url = storage.join(bucket, tmp_path.name, "large")
    storage.create(url, bytes(32_000_000))
    code = """
import re, sys
from pathlib import Path
from cluster import storage
def most(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
storage.exists(sys.argv[1])
total, before = 0, most()
with storage.opened(sys.argv[1]) as file:
    while line := file.read(100_000):
        total += len(line)
print(total, most() - before)
"""
    said = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=240, check=True)
    total, grown = map(int, said.stdout.split())
    assert total == 32_000_000 and grown < 24_000, f"{grown} KiB"


def test_a_stream_whose_object_is_replaced_ends_in_an_error(bucket: str, tmp_path: Path) -> None:
    """Half of the old content and half of the new are not to be had."""
    url = storage.join(bucket, tmp_path.name, "a")
    storage.replace(url, b"a" * 20_000_000)
    with pytest.raises(OSError, match="no longer exists"), storage.opened(url) as file:
        file.read(10)
        storage.replace(url, b"b" * 20_000_000)
        file.read()
