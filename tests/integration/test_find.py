"""What a file name, a directory or a pattern finds, on a local disk and on S3."""

import time
from pathlib import Path

import pytest

from cluster import storage
from tests.faulty_s3 import FaultyBucket

KINDS = ("500", "503", "slow", "drop_upload", "drop_answer", "drop_download")
PASSING = [*KINDS, "hang"]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_find_takes_files_directories_and_patterns(place: str) -> None:
    names = ["a.jsonl", "b.txt", "sub/c.jsonl", "sub/deep/d.jsonl", "odd[1].jsonl"]
    aside = [".hidden.jsonl", "_temporary/e.jsonl", "sub/.git/f.jsonl", "sub/_SUCCESS"]
    for size, name in enumerate([*names, *aside], start=1):
        storage.create(storage.join(place, name), b"x" * size)

    def found(pattern: str) -> list[str]:
        return [url.removeprefix(place + "/") for url in storage.find(storage.join(place, pattern))]

    assert storage.find(storage.join(place, "a.jsonl")) == {storage.join(place, "a.jsonl"): 1}
    assert storage.find(place) == {storage.join(place, name): names.index(name) + 1 for name in sorted(names)}
    assert found("sub/") == found("sub") == ["sub/c.jsonl", "sub/deep/d.jsonl"]
    assert found("*.jsonl") == ["a.jsonl", "odd[1].jsonl"]
    assert found("**/*.jsonl") == ["a.jsonl", "odd[1].jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]
    assert found("*/c.*") == ["sub/c.jsonl"]
    assert found("odd[1].jsonl") == ["odd[1].jsonl"], "a name that exists is no pattern"
    assert found("_temporary/*") == ["_temporary/e.jsonl"], "spelled, so meant"
    assert found(".hidden.jsonl") == [".hidden.jsonl"]
    for nothing in ("none", "*.csv", "none/**", ".nothing*"):
        with pytest.raises(ValueError, match="nothing found at .*" + nothing.replace("*", r"\*")):
            storage.find(storage.join(place, nothing))


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("rows", True), ("/a/b*.jsonl", True), ("file:///a", True), ("s3://b/in", True), ("s3a://b", True),
        ("gs://b/in", False), ("hf://datasets/a/b", False), ("https://host/a.jsonl", False), ("S3://b/in", False),
        ("s3://", False), ("s3:///in", False), ("simplecache::s3://b/in", False),
    ],
)  # fmt: skip
def test_what_is_read_and_written(url: str, taken: bool) -> None:
    assert storage.taken(url) is taken


def test_folders_beside(place: str) -> None:
    for name in ("out/a", "out-1/a", "out-2/deep/b", "other/a", "deep/out-3/a"):
        storage.create(storage.join(place, name), b"x")
    expected = [storage.join(place, "out-1"), storage.join(place, "out-2")]
    assert storage.beside(storage.join(place, "out")) == storage.beside(storage.join(place, "out/")) == expected
    assert storage.beside(storage.join(place, "none")) == storage.beside(storage.join(place, "no/where")) == []


def test_the_mark_of_an_empty_folder_is_no_file(bucket: str, tmp_path: Path) -> None:
    """Consoles of S3 make folders so."""
    import boto3

    for name in ("", "sub/"):
        boto3.client("s3").put_object(Bucket="regrow", Key=f"{tmp_path.name}/{name}", Body=b"")
    place = storage.join(bucket, tmp_path.name)
    assert storage.files(place) == {}
    storage.create(storage.join(place, "sub", "a"), b"x")
    assert storage.files(place) == {"sub/a": 1} and storage.find(place) == {storage.join(place, "sub/a"): 1}


def test_find_on_a_local_disk_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/a.jsonl").write_text("{}")
    for pattern in ("data", "data/*.jsonl", "data/a.jsonl", f"file://{tmp_path}/data"):
        assert storage.find(pattern) == {str(tmp_path / "data/a.jsonl"): 2}


def test_ten_thousand_files_are_found_in_one_listing(faulty_bucket: FaultyBucket, tmp_path: Path) -> None:
    """Ten pages of a thousand, and no question about each."""
    from moto.backends import get_backend

    backend = get_backend("s3")["123456789012"]["aws"]
    for number in range(10_000):
        backend.put_object("regrow", f"{tmp_path.name}/in/part-{number:05}.jsonl", b"{}")
    for pattern in ("in", "in/part-*.jsonl", "**"):
        faulty_bucket.reset()
        began = time.monotonic()
        found = storage.find(f"{faulty_bucket.url}/{tmp_path.name}/{pattern}")
        assert len(found) == 10_000 and set(found.values()) == {2}
        assert time.monotonic() - began < 120, "a quiet machine of two cores needs 1 s, ten thousand requests minutes"
        assert sum(faulty_bucket.requests.values()) <= 15
