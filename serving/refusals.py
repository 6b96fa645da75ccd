"""Answers of an endpoint to what it does not let in, as the OpenAI API has them."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]  # ASGI's types (asgi.readthedocs.io)
Scope = Message
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


class Refused(Exception):
    """A request that is not let in: `status`, a `message` for its sender, OpenAI's `code` and `param`, and after how
    many seconds trying again makes sense."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    async def answer(self, send: Send) -> None:
        """Send it as an ASGI response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        body = json.dumps({"error": said}).encode()
        headers = []
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after + 0.5))).encode()))
        await respond(send, self.status, body, *headers)


async def respond(
    send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes], kind: str = "application/json"
) -> None:
    """Send a whole ASGI response, its `body` of the content type `kind`."""
    about = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})
