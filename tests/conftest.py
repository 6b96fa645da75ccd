"""Shared by all tests: one Ray cluster for the whole session, and a `regrow` to call."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real local Ray cluster, started once."""
    from cluster.session import session

    with session("local", 8):
        yield


@pytest.fixture
def regrow(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command itself, in a process of its own, in an empty directory."""

    def call(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "regrow"), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=timeout, check=False)

    return call


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on a server of this test's own."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="regrow")
    yield "s3://regrow"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    s3fs.S3FileSystem.clear_instance_cache()


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
            capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": "/mnt/code"},
        )  # fmt: skip

    return call
