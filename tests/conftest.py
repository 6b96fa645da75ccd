"""Shared by all tests: one Ray cluster for the whole session, and a `regrow` to call."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.faulty_s3 import FaultyBucket, served
from tests.start import sitecustomize  # noqa: F401 for this process itself

ROOT = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# More files at a time than there are cores, each with processes of its own: threads that wait must not spin on a core
# that others need, nor Ray's workers stand back behind whatever torch does in another file's process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_worker_niceness", "0")
# Nor may a cluster kill its own actors for the memory that the others have.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
# Ray's autoscaler, which has nothing to do in a local cluster, looks for it every 5 s.
os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", "60")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests/start"), os.environ.get("PYTHONPATH")]))
logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's every request would bury why a test failed


# Engines for minutes, at 1.5 GB each: one of these files after the other, from the start on.
SERVING = ("test_serve_deployed", "test_serve_node", "test_serve", "test_scaling", "test_routing")


class Files(LoadFileScheduling):
    """A file's tests run in one process, and those of `SERVING` all in the same."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "serving" if Path(file).stem in SERVING else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Files:
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in SERVING)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real local Ray cluster, started once."""
    from cluster.session import session

    with session("local", 8):
        yield


@pytest.fixture
def regrow(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command itself, in a process of its own, in an empty directory."""

    def call(*words: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "regrow"), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=timeout, check=False)

    return call


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on a server of this test's own."""
    with moto() as endpoint, s3_at(endpoint):
        yield "s3://regrow"


@pytest.fixture
def faulty_bucket() -> Iterator[FaultyBucket]:
    """The like, behind a proxy that fails when told to: knobs and counts in tests/faulty_s3.py. The faults
    meet every process that inherits this one's environment."""
    with moto() as endpoint:
        proxy, faults = served(endpoint)
        with s3_at(faults.endpoint):
            yield faults
        proxy.stop()


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """The endpoint of an S3 server with an empty bucket `regrow`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    ).create_bucket(Bucket="regrow")
    yield endpoint
    server.stop()


@contextlib.contextmanager
def s3_at(endpoint: str) -> Iterator[None]:
    """Every S3 client, also of processes started meanwhile, goes to `endpoint`."""
    import s3fs

    from cluster.s3 import PatientS3

    given = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    for kind in (s3fs.S3FileSystem, PatientS3):
        kind.clear_instance_cache()
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    for kind in (s3fs.S3FileSystem, PatientS3):
        kind.clear_instance_cache()


# The checkout and its environment, seen under /mnt: a script may mount over the directory that they are in.
ELSEWHERE = """
mount -t tmpfs tmpfs /mnt && mkdir /mnt/code /mnt/env || exit 99
mount --bind "$0" /mnt/code && mount --bind "$1" /mnt/env || exit 99
python() { /mnt/env/bin/python "$@"; }
regrow() { python -m pipelines.cli "$@"; }
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a shell script with mounts of its own, gone with it: `disk SIZE DIR` mounts a file system that small.

    Needs the right to mount, of root or through a user namespace."""
    ways = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
    able = [way for way in ways if subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0]
    if not able:
        pytest.skip("mounting needs root or user namespaces")

    def call(script: str) -> subprocess.CompletedProcess[str]:
        disk = 'disk() { mkdir -p "$2" && mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 99; }\n'
        return subprocess.run(
            [*able[0], "sh", "-c", ELSEWHERE + disk + script, str(ROOT), sys.prefix],
            capture_output=True, text=True, cwd=tmp_path, timeout=1200, check=False,
            env={**os.environ, "PYTHONPATH": "/mnt/code"},
        )  # fmt: skip

    return call


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A directory, or a prefix behind the proxy, where create-only is atomic as it is on S3 (moto's is not)."""
    return (
        str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('faulty_bucket').url}/{tmp_path.name}"
    )
