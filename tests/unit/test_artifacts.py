"""Artifacts and the create-only commit, on a local disk and on a real S3 server (moto's)."""

import concurrent.futures
import json
import threading
from pathlib import Path

import pytest

from cluster import storage
from cluster.artifacts import artifact


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_create_is_first_come(place: str) -> None:
    url = storage.join(place, "a", "b.parquet")
    assert storage.create(url, b"first") and not storage.create(url, b"second")
    assert storage.read(url) == b"first"


def test_of_many_writers_one_wins(place: str) -> None:
    url, barrier = storage.join(place, "race"), threading.Barrier(8)

    def write(number: int) -> bool:
        barrier.wait()
        return storage.create(url, f"{number}".encode() * 1000)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert storage.read(url) == f"{won.index(True)}".encode() * 1000
    assert list(storage.files(place)) == ["race"], "temporary files stay behind"


def test_an_artifact_is_whole_once_its_manifest_is_there(place: str) -> None:
    out = artifact(place, "prune", {"layers": 3})
    with out.writing() as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(b"w" * 10)
    assert out.manifest() is None
    out.commit({"stage": "prune"}, 1.5, {"rows": 2})
    manifest = out.manifest()
    assert manifest and manifest["files"]["model/weights"]["size"] == 10 and manifest["summary"] == {"rows": 2}
    assert (out.local() / "model" / "weights").read_bytes() == b"w" * 10


def test_what_was_broken_off_is_there_again_and_gone_once_it_is_whole(place: str) -> None:
    out, other = artifact(place, "train", {"a": 1}), artifact(f"{place}/elsewhere", "train", {"a": 1})
    with pytest.raises(KeyboardInterrupt), out.writing() as folder:
        (folder / "checkpoint").write_bytes(b"c")
        raise KeyboardInterrupt
    assert storage.files(place).keys() <= {f"artifacts/{out.name}-{out.id}/checkpoint"}  # nothing is uploaded
    with other.writing() as elsewhere:
        assert not (elsewhere / "checkpoint").exists(), "another run's"
    with out.writing() as again:
        assert (again / "checkpoint").read_bytes() == b"c"
    assert (out.local() / "checkpoint").read_bytes() == b"c"
    assert storage.is_local(place) or not again.exists()


def test_the_first_manifest_stands(place: str) -> None:
    out = artifact(place, "x", {"a": 1})
    first = out.commit({}, 1.0, {"by": "first"})
    assert out.commit({}, 2.0, {"by": "second"}) == json.loads(json.dumps(first))


def test_ids_follow_content_and_nothing_else(place: str) -> None:
    assert artifact(place, "x", {"a": 1, "b": 2}).id == artifact("elsewhere", "x", {"b": 2, "a": 1}).id
    assert artifact(place, "x", {"a": 1}).id != artifact(place, "x", {"a": 2}).id
    assert artifact(place, "x", {"a": 1}).id != artifact(place, "y", {"a": 1}).id
