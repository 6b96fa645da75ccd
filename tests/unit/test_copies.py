"""Local copies of what is on S3 (moto's server): as it is there now, and nothing else."""

import threading
from pathlib import Path

import pytest

from cluster import copies, lock, storage


@pytest.fixture
def url(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of a bucket with a model in it; copies go below `tmp_path`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    where = f"{bucket}/{tmp_path.name}/model"
    for name, content in (("config.json", b"{}"), ("parts/1", b"one"), ("parts/2", b"two")):
        storage.replace(storage.join(where, name), content)
    return where


def held(here: Path) -> dict[str, bytes]:
    """What a copy holds, without its own files."""
    found = {str(file.relative_to(here)): file.read_bytes() for file in here.rglob("*") if file.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def test_a_copy_follows_what_it_is_of(url: str) -> None:
    """Also where a file changes and keeps its size; and what did not change is not fetched again."""
    here = copies.local(url)
    assert held(here) == {"config.json": b"{}", "parts/1": b"one", "parts/2": b"two"} and here == copies.place(url)
    same = (here / "config.json").stat().st_ino
    storage.replace(storage.join(url, "parts/1"), b"ONE")
    storage.remove(storage.join(url, "parts/2"))
    assert held(copies.local(url)) == {"config.json": b"{}", "parts/1": b"ONE"}
    assert (here / "config.json").stat().st_ino == same
    (here / "parts/1").unlink()
    assert held(copies.local(url))["parts/1"] == b"ONE", "lost here, fetched again"


def test_a_copy_that_was_interrupted_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = copies._fetch

    def broken(source: str, target: Path) -> None:
        if len(fetched) == 1:
            raise OSError("the line is dead")
        fetched.append(target.name)
        real(source, target)

    monkeypatch.setattr(copies, "_fetch", broken)
    with pytest.raises(OSError, match="line is dead"):
        copies.local(url)
    monkeypatch.setattr(copies, "_fetch", lambda source, target: (fetched.append(target.name), real(source, target)))
    assert len(held(copies.local(url))) == 3 and sorted(fetched) == ["1", "2", "config.json"], "each once"


def test_one_copies_the_others_wait(url: str) -> None:
    here, done = copies.place(url), threading.Event()
    here.mkdir(parents=True, mode=0o700)
    here.parent.chmod(0o700)
    with lock.held(here):
        other = threading.Thread(target=lambda: (copies.local(url), done.set()), daemon=True)
        other.start()
        assert not done.wait(0.5)
    assert done.wait(30) and len(held(here)) == 3


@pytest.mark.parametrize("key", ["../stolen", "parts/../../stolen"])
def test_no_key_is_written_outside_of_the_copy(url: str, tmp_path: Path, key: str) -> None:
    fs, path = storage.filesystem(url)
    fs.call_s3("put_object", Bucket=path.split("/")[0], Key=f"{path.partition('/')[2]}/{key}", Body=b"x")
    with pytest.raises(ValueError, match="would be written outside of the copy"):
        copies.local(url)
    assert not list(tmp_path.rglob("stolen*"))


def test_copies_that_others_may_change_are_not_trusted(url: str) -> None:
    folder = copies.place(url).parent
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write there; remove it, or set TMPDIR"):
        copies.local(url)


def test_nothing_to_copy(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        copies.local(f"{bucket}/nowhere")
