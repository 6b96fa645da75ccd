"""An S3 server that fails when told to: a proxy in front of moto's, which tests switch while others use it.

Kinds of faults, each a share of the requests (`rates`, by a seeded draw) or the next so many (`once`):
  500, 503        the answer is an error, nothing reaches the server
  slow            the answer comes `seconds` late
  hang            no answer within `seconds`, nothing reaches the server, then the connection is dropped
  drop_upload     the connection is dropped after half of the body was read; nothing reaches the server
  drop_answer     the request is carried out, and the connection dropped before the answer
  drop_download   the connection is dropped in the middle of the answer's body
"""

import collections
import http.client
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITES = ("PUT", "POST", "DELETE")
FITS = {"drop_upload": ("PUT",), "drop_answer": WRITES, "drop_download": ("GET",)}  # the others fit all methods
BETWEEN = {"connection", "expect", "transfer-encoding", "keep-alive"}  # headers of one connection alone
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>as told</Message><RequestId>0</RequestId></Error>"
SAID = {"500": b"InternalError", "503": b"SlowDown"}


@dataclass
class FaultyBucket:
    """The knobs. All may be turned at any time, from any thread of the process that has the fixture."""

    url: str = "s3://regrow"
    endpoint: str = ""
    seconds: float = 1.0  # of `slow` and `hang`
    rates: dict[str, float] = field(default_factory=dict)  # kind -> share of the requests it fits
    counts: collections.Counter[str] = field(default_factory=collections.Counter)  # kind -> injected so far
    requests: collections.Counter[str] = field(default_factory=collections.Counter)  # method -> asked so far
    seed: int = 0

    def __post_init__(self) -> None:
        self._lock, self._draw = threading.Lock(), random.Random(self.seed)
        self._once: list[dict[str, Any]] = []

    def once(self, kind: str, times: int = 1, method: str = "", key: str = "") -> None:
        """Inject `kind` into the next `times` requests of `method` whose path and query have `key` in them."""
        with self._lock:
            self._once.append({"kind": kind, "left": times, "method": method, "key": key})

    def calm(self) -> None:
        """No more faults, from now on; the counts stay."""
        with self._lock:
            self.rates = {}
            self._once.clear()

    def reset(self) -> None:
        """As new: calm, the counts at nought, the draws from the beginning."""
        self.calm()
        with self._lock:
            self.counts.clear()
            self.requests.clear()
            self.seconds, self._draw = 1.0, random.Random(self.seed)

    def fault(self, method: str, target: str, has_body: bool) -> str:
        """The fault of one request, "" for none."""

        def fits(kind: str) -> bool:
            return method in FITS.get(kind, (method,)) and (kind != "drop_upload" or has_body)

        with self._lock:
            self.requests[method] += 1
            chosen = ""
            for plan in self._once:
                asked = plan["method"] in ("", method) and plan["key"] in unquote(target)
                if plan["left"] and asked and fits(plan["kind"]):
                    plan["left"] -= 1
                    chosen = plan["kind"]
                    break
            at = self._draw.random()  # one draw a request, so that a seed means something
            for kind, share in self.rates.items() if not chosen else ():
                if fits(kind) and at < share:
                    chosen = kind
                    break
                at -= share if fits(kind) else 0
            if chosen:
                self.counts[chosen] += 1
            return chosen


class Proxy(ThreadingHTTPServer):
    """The server; `upstream` is moto's `(host, port)`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int], faults: FaultyBucket) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.faults = upstream, faults
        self.turn = threading.Lock()  # moto stores a key in several steps that others can see between; S3 in one
        faults.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news here."""

    def stop(self) -> None:
        """Close the port; connections in use end by themselves."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def do(self) -> None:
        """Read one request, spoil it or pass it on."""
        faults = self.server.faults
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        # Whether the upload is to be dropped is known before it is read: half of it is read then, no more.
        kind = faults.fault(self.command, self.path, chunked or length > 1)
        if kind == "drop_upload":
            self.rfile.read(length // 2)
            return self._drop()
        body = self._chunks() if chunked else self.rfile.read(length)
        if kind in SAID:
            return self._answer(int(kind), {"Content-Type": "application/xml"}, ERROR % SAID[kind])
        if kind in ("slow", "hang"):
            time.sleep(faults.seconds)
        if kind == "hang":
            return self._drop()
        status, headers, content = self._upstream(body)
        if kind == "drop_answer":
            return self._drop()
        return self._answer(status, headers, content, cut=kind == "drop_download")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return whole

    def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in BETWEEN}
        headers["Content-Length"] = str(len(body))
        with self.server.turn:
            link = http.client.HTTPConnection(*self.server.upstream, timeout=60)
            try:
                link.request(self.command, self.path, body, headers)
                answer = link.getresponse()
                content = answer.read()
            finally:
                link.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in BETWEEN}
        return answer.status, kept, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        if self.command != "HEAD" and status not in (204, 304):
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._drop()

    def _drop(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def served(upstream: str) -> tuple[Proxy, FaultyBucket]:
    """A proxy in front of the S3 server at `upstream` (`http://host:port`), and its knobs."""
    faults = FaultyBucket()
    address = urlsplit(upstream)
    return Proxy((str(address.hostname), int(address.port or 80)), faults), faults
