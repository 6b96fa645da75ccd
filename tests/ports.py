"""Ports for endpoints of tests."""

import socket


def free() -> int:
    """A port that nobody listens on: tests of two checkouts on one machine do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
