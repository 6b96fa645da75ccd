"""A TCP proxy whose connections a test can cut, as a port-forward or a load balancer does."""

import contextlib
import socket
import threading


class Cut:
    """Listens on `port` and passes on to `target` of this machine."""

    def __init__(self, target: int) -> None:
        self.target, self.cuts = target, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection there is."""
        self.cuts += 1
        self._reset()

    def _reset(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()
        self._reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for ended in (one, other):
            with contextlib.suppress(OSError):
                ended.shutdown(socket.SHUT_RDWR)
