"""Errors of the application on their way out: in the OpenAI API's shape, and without what lies behind them."""

import json

from serving.refusals import Message, Refused, Send

LONGEST = 1 << 20  # bytes of an error that are read, characters of its message that are told
TOLD = 1000
CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 429: "rate_limit_exceeded"}
BUSY = (429, 503)  # trying again soon makes sense


class Shaped:
    """A `send` for one response: errors are held back until they are whole and sent anew, all else passes."""

    def __init__(self, send: Send) -> None:
        self.send, self.begun = send, False
        self.status, self.body = 0, bytearray()

    async def __call__(self, message: Message) -> None:
        """One message of the application."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.status = message["status"]
        elif self.status and message["type"] == "http.response.body":
            self.body += message.get("body", b"")[: LONGEST - len(self.body)]
            if not message.get("more_body"):
                self.begun = True
                await refused(self.status, bytes(self.body)).answer(self.send)
        else:
            self.begun = True
            await self.send(message)


def refused(status: int, body: bytes) -> Refused:
    """An error of the application. Of its own failures nothing is told: they are in the log, under the request's id."""
    again = 1.0 if status in BUSY else None
    if status >= 500:
        busy = status == 503
        message = "no replica is free for this request; try again" if busy else "the server failed at this request"
        return Refused(status, message, "overloaded" if busy else "internal_error", retry_after=again)
    message, param = _message(body)
    return Refused(status, message or "this cannot be asked", CODES.get(status, "invalid_value"), param, again)


def _message(body: bytes) -> tuple[str, str | None]:
    """What the application says, without the names of its inner parts, and of which parameter."""
    try:
        said = json.loads(body)
    except ValueError:
        return body.decode("utf8", "replace")[:TOLD], None
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        text, param = str(error.get("message") or ""), error.get("param")
    else:
        text, param = str(said.get("detail") or "") if isinstance(said, dict) else "", None
    for inner in (" (Request ID: ", ", Internal exception: ", ", original exception: "):
        text = text.partition(inner)[0]
    return text.removeprefix("Message: ")[:TOLD], param if isinstance(param, str) and len(param) < 100 else None
