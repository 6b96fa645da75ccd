"""What every request to an endpoint passes before Ray sees it: key, size, caps, queue, rates, a deadline.

An ASGI middleware (asgi.readthedocs.io, HTTP scope), because Ray Serve has none of this: its queues have no end and its
bodies no limit."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import keys, rates
from serving.refusals import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
OPEN = ("/health",)  # asked by load balancers, which have no key


@dataclass(frozen=True)
class Limits:
    """Bounds of one endpoint. `seats`: requests a model's engine works on at once; `waiting`: those that may wait for
    one of them besides. `output_tokens`: the most a sample may have. `samples`: the largest `n`."""

    seats: int
    output_tokens: int
    waiting: int = 256
    body_bytes: int = 8 << 20
    samples: int = 16
    seconds: float = 600.0


class Gate:
    """Lets through to `app` what `limits` and the keys in `keys_file` (None: anybody) allow, and answers the rest
    itself, with errors as the OpenAI API has them: 400, 401, 404, 413, 429 with Retry-After, 504."""

    def __init__(self, app: Any, models: tuple[str, ...], limits: Limits, keys_file: Path | None = None) -> None:
        self.app, self.models, self.limits = app, models, limits
        self.keys = keys.KeysFile(keys_file) if keys_file else None
        self.rates = rates.Rates()
        self.here: Counter[str] = Counter()  # model → places taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the application's start and end, which pass)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            key = self._known(scope)
            if scope["method"] != "POST":
                await self._through(scope, receive, send)
                return
            body = await self._body(scope, receive)
            asked = _parsed(body)
            model, places = self._admitted(asked, key)
        except Refused as refused:
            await refused.answer(send)
            return
        await self._through(scope, _again(body, receive), send, model, places)

    def _known(self, scope: Scope) -> keys.Key | None:
        """Whose key came with the request. Raises Refused (401)."""
        if self.keys is None or scope["path"] in OPEN:
            return None
        found = self.keys.keys()
        if self.keys.error:
            logging.getLogger("ray.serve").warning("keys stay as they were: %s", self.keys.error)
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, secret = said.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Refused(401, "no API key was given; send it as 'Authorization: Bearer KEY'", "missing_api_key")
        key = keys.find(found, secret.strip())
        if key is None:
            raise Refused(401, "this API key is not known here", "invalid_api_key")
        return key

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises Refused (413) as soon as it is known to be too long, (408) where it takes too long."""
        most = self.limits.body_bytes
        large = Refused(413, f"the body is larger than {most:,} bytes", "request_too_large")
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not told.isdigit() or int(told) > most:
            raise large
        parts, size = [], 0
        try:
            async with asyncio.timeout(min(60.0, self.limits.seconds)):
                while True:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise large
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time", "request_timeout") from None

    def _admitted(self, asked: dict[str, Any], key: keys.Key | None) -> tuple[str, int]:
        """The model whose queue the request enters, and how many places it takes there, once nothing speaks against
        it. Raises Refused."""
        model = asked.get("model")
        if model is None and len(self.models) > 1:
            raise Refused(400, f"which model? one of {', '.join(self.models)}", "missing_model", "model")
        model = self.models[0] if model is None else model
        allowed = self.models if key is None or key.models is None else [m for m in self.models if m in key.models]
        if model not in allowed:
            named = f"no model {str(model)[:100]!r} for this key; GET /v1/models lists all models"
            raise Refused(404, named, "model_not_found", "model")
        samples, tokens = self._sizes(asked)
        room = self.limits.seats + self.limits.waiting
        if samples > room:
            raise Refused(400, f"prompts times n are at most {room}", "invalid_value", "prompt")
        if self.here[model] + samples > room:
            raise Refused(429, f"the queue of model {model} is full; try again", "queue_full", retry_after=1)
        if key:
            self.rates.take(key, samples * tokens, time.monotonic())
        return model, samples

    def _sizes(self, asked: dict[str, Any]) -> tuple[int, int]:
        """How many samples are asked for, over all prompts, and the most tokens that each may have. Raises Refused
        (400)."""
        most, said = self.limits.output_tokens, {}
        for name in ("n", "best_of", "max_tokens", "max_completion_tokens"):
            value, bound = asked.get(name), most if name.startswith("max") else self.limits.samples
            if value is None:
                continue
            if not isinstance(value, int):  # "17" and 17.0 too, which the application would take
                raise Refused(400, f"{name} is a whole number", "invalid_type", name)
            if value > bound:
                raise Refused(400, f"{name} is at most {bound}", "invalid_value", name)
            said[name] = value
        prompt = asked.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        tokens = max(said.get("max_tokens", 0), said.get("max_completion_tokens", 0))
        return prompts * max(1, said.get("n", 1)), tokens or most

    async def _through(self, scope: Scope, receive: Receive, send: Send, model: str = "", places: int = 0) -> None:
        """Hand the request on, within the deadline; meanwhile it takes so many places in the model's queue."""
        begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self.here[model] += places
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, receive, watched)
        except TimeoutError:
            if begun:  # a stream that is cut: the client sees that it has no end
                raise
            late = Refused(504, f"no answer within {self.limits.seconds:g} s", "deadline_exceeded")
            await late.answer(send)
        finally:
            self.here[model] -= places


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused (400)."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON in UTF-8", "invalid_json") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body is not a JSON object", "invalid_json")
    return asked


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes after it."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
