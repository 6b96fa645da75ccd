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
