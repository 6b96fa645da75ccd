"""Shared by the tests of the writer over a network."""

from collections.abc import Iterator

import pytest

from serving.writers import remote
from tests.endpoints import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An endpoint of this test's own; the writer's pauses are short."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    with serving() as server:
        yield server
