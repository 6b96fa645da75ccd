"""Bodies of requests: read within bounds, parsed, and what they ask for counted."""

import asyncio
import json
import re
from typing import Any

from serving.refusals import Message, Receive, Refused, Scope

GRAMMAR = 64 << 10  # bytes of JSON that say how an answer must look: compiling them takes an engine's time
GRAMMARS = ("structured_outputs", "response_format", "tools")
JSON = re.compile(rb"application/([\w.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)


class Gone(Exception):
    """The client left before its request was whole."""


async def read(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """The whole body, of JSON. Raises Refused (415) for another kind, (413) as soon as it is known to be longer than
    `most` bytes, (408) where it takes longer than `seconds`; Gone."""
    headers = dict(scope["headers"])
    if not JSON.fullmatch(headers.get(b"content-type", b"")):
        raise Refused(415, "send JSON, with the header 'Content-Type: application/json'", "unsupported_media_type")
    large = Refused(413, f"the body is larger than {most:,} bytes", "request_too_large")
    told = headers.get(b"content-length", b"0")
    if not told.isdigit() or len(told) > 20 or int(told) > most:
        raise large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise large
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, "the body did not arrive in time", "request_timeout") from None


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, once, and then what comes after it."""
    left = [body]

    async def replay() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return replay


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused (400)."""
    try:
        asked = json.loads(body, parse_int=_int)
        if b"\\ud" in body or b"\\uD" in body:  # half a pair is text for JSON, and for nothing behind it
            json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "the body holds half a surrogate pair", "invalid_json") from None
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON in UTF-8", "invalid_json") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body is not a JSON object", "invalid_json")
    for name in GRAMMARS:
        if asked.get(name) and len(json.dumps(asked[name])) > GRAMMAR:
            raise Refused(400, f"{name} is at most {GRAMMAR >> 10} KiB of JSON", "invalid_value", name)
    return asked


def sizes(asked: dict[str, Any], path: str, most: int, samples: int) -> tuple[int, int]:
    """How many samples are asked for, over all prompts, and the most tokens that each may have; nothing is written
    for paths that only count or look up. `most` tokens and `samples` a prompt are let in. Raises Refused (400)."""
    said = {}
    for name in ("n", "best_of", "max_tokens", "max_completion_tokens"):
        value, bound = asked.get(name), most if name.startswith("max") else samples
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):  # "17" and 17.0 too, which the application would take
            raise Refused(400, f"{name} is a whole number", "invalid_type", name)
        if value > bound:
            raise Refused(400, f"{name} is at most {bound}", "invalid_value", name)
        said[name] = value
    prompt = asked.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    chat = path.endswith("/chat/completions")
    tokens = max(said.get("max_tokens", 0), said.get("max_completion_tokens", 0) if chat else 0) or most
    return prompts * max(1, said.get("n", 1)), tokens if path.endswith("/completions") else 0


def _int(digits: str) -> int:
    """A whole number that 64 bits hold, as everything behind the gate wants it."""
    if len(digits) > 19 or not -(2**63) <= int(digits) < 2**63:
        raise Refused(400, "the body holds a whole number that 64 bits do not", "invalid_value")
    return int(digits)
