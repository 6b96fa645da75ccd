"""Where an endpoint listens: address, port, certificate."""

import errno
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any, NamedTuple


class Tls(NamedTuple):
    """A certificate (with its chain) and its private key, PEM files on the node that listens."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise ValueError where the two cannot be read or do not belong together."""
        try:
            # The password is asked for nowhere: a key that needs one is refused, and nobody waits for an answer.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise ValueError(f"{self.certificate} and {self.key}: {why}") from error

    def options(self) -> dict[str, str]:
        """As Serve's proxy takes them."""
        return {"ssl_certfile": str(self.certificate.resolve()), "ssl_keyfile": str(self.key.resolve())}


class Http(NamedTuple):
    """Where an endpoint listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls: Tls | None = None

    def options(self) -> dict[str, Any]:
        """As Serve takes them."""
        return {"host": self.host, "port": self.port, **(self.tls.options() if self.tls else {})}

    def base_url(self) -> str:
        """The address that this machine asks."""
        return f"{'https' if self.tls else 'http'}://{reachable(self.host)}:{self.port}/v1"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Raises OSError where something listens on the port already, or the address is not this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's remains do not count
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                message = f"cannot listen on {host}:{port} ({error.strerror}); set serve.host"
                raise OSError(error.errno, message) from error
            message = f"port {port} on {host} is in use; stop what listens there, or choose another with serve.port=N"
            raise OSError(errno.EADDRINUSE, message) from error


def reachable(host: str) -> str:
    """The address by which this machine asks an endpoint that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
