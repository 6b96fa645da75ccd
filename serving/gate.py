"""What every request to an endpoint passes before Ray sees it: key, size, caps, queue, rates, a deadline.

An ASGI middleware (asgi.readthedocs.io, HTTP scope), because Ray Serve has none of this: its queues have no end and its
bodies no limit."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving import bodies, keys, rates, status
from serving.accounts import Accounts, Visit
from serving.deployments import Deployments
from serving.refusals import Receive, Refused, Scope, Send
from serving.replies import Shaped

FIGURES, STATUS = "/metrics", "/status"
OPEN = ("/health", "/")  # asked by load balancers, which have no key; and a page without figures, which asks for one


@dataclass(frozen=True)
class Limits:
    """Bounds of one endpoint. `seats`: requests a model's engines work on at once; `waiting`: those that may wait for
    one of them besides. `output_tokens`: the most a sample may have. `samples`: the largest `n`. `held_bytes`: of all
    requests' bodies together."""

    seats: int
    output_tokens: int
    waiting: int = 256
    body_bytes: int = 2 << 20
    held_bytes: int = 256 << 20
    samples: int = 16
    seconds: float = 600.0


class Gate:
    """Lets through to `app` what `limits` and the keys in `keys_file` (None: anybody) allow, and answers the rest
    itself, with errors as the OpenAI API has them: 400, 401, 404, 413, 415, 429 with Retry-After, 504.

    `models`: name → the model whose engine answers it. `growing`: models with adapters that are asked for as
    `model:adapter`. `engines`: whose states the status page shows."""

    def __init__(
        self,
        app: Any,
        models: dict[str, str],
        limits: Limits,
        keys_file: Path | None = None,
        log: Path | None = None,
        growing: frozenset[str] = frozenset(),
        engines: Deployments | None = None,
    ) -> None:
        self.app, self.models, self.limits, self.growing, self.engines = app, models, limits, growing, engines
        self.keys = keys.KeysFile(keys_file) if keys_file else None
        self.rates = rates.Rates()
        self.here: Counter[str] = Counter()  # model → places taken
        self.room = limits.seats + limits.waiting  # a model's places
        self.accounts = Accounts(tuple(dict.fromkeys(models.values())), self.here.__getitem__, log)
        self.held = 0  # bytes of bodies
        self.warned = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the application's start and end, which pass)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.accounts.visit(scope, send) as visit:
            try:
                await self._asked(scope, receive, visit)
            except bodies.Gone:
                return
            except Refused as refused:
                await refused.answer(visit.send)

    async def _asked(self, scope: Scope, receive: Receive, visit: Visit) -> None:
        """An HTTP request. Raises Refused, bodies.Gone."""
        key = self._known(scope)
        visit.key = key.name if key else ""
        if scope["method"] == "POST":
            if key:
                self.rates.take(key, "requests", 1, time.monotonic())
            await self._posted(scope, receive, visit, key)
        elif scope["path"] == FIGURES and scope["method"] == "GET":
            await self.accounts.answer(visit.send)
        elif scope["path"] == STATUS and scope["method"] == "GET" and self.engines:
            await status.answer(visit.send, self.accounts, await self.engines.states(), self.here, self.limits.seats)
        else:
            await self._through(scope, receive, visit)

    async def _posted(self, scope: Scope, receive: Receive, visit: Visit, key: keys.Key | None) -> None:
        """A request with a body. Raises Refused, bodies.Gone."""
        body = await bodies.read(scope, receive, self.limits.body_bytes, min(60.0, self.limits.seconds))
        size = len(body)
        if self.held + size > self.limits.held_bytes:
            raise Refused(429, "too many large requests at once; try again", "queue_full", retry_after=1)
        self.held += size
        try:
            asked = bodies.parsed(body)
            visit.model = self._meant(asked, key)
            visit.places = self._admitted(asked, visit.model, scope["path"], key)
            visit.move = partial(self._moved, visit)
            del asked
            replay = bodies.again(body, receive)
            del body  # a request that waits holds it once
            await self._through(scope, replay, visit)
        finally:
            self.held -= size

    def _known(self, scope: Scope) -> keys.Key | None:
        """Whose key came with the request. Raises Refused (401)."""
        strange = [name for name, value in scope["headers"] if name != b"authorization" and not value.isascii()]
        if strange:
            raise Refused(
                400, f"the header {strange[0].decode('latin-1')} holds other letters than ASCII", "invalid_header"
            )
        if self.keys is None or (scope["path"] in OPEN and scope["method"] in ("GET", "HEAD")):
            return None
        found = self.keys.keys()
        if self.keys.error not in ("", self.warned):
            logging.getLogger("ray.serve").warning("keys stay as they were: %s", self.keys.error)
        self.warned = self.keys.error
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, secret = said.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Refused(401, "no API key was given; send it as 'Authorization: Bearer KEY'", "missing_api_key")
        key = keys.find(found, secret.strip())
        if key is None:
            raise Refused(401, "this API key is not known here", "invalid_api_key")
        return key

    def _admitted(self, asked: dict[str, Any], model: str, path: str, key: keys.Key | None) -> int:
        """How many places in its model's queue the request takes, once nothing speaks against it. Raises Refused."""
        samples, tokens = bodies.sizes(asked, path, self.limits.output_tokens, self.limits.samples)
        if samples > self.room:
            raise Refused(400, f"prompts times n are at most {self.room}", "invalid_value", "prompt")
        if self.here[model] + samples > self.room:
            raise Refused(429, f"the queue of model {model} is full; try again", "queue_full", retry_after=1)
        if key and tokens:
            self.rates.take(key, "tokens", samples * tokens, time.monotonic())
        return samples

    def _meant(self, asked: dict[str, Any], key: keys.Key | None) -> str:
        """The model whose engine answers a request. Raises Refused where there is none for this key."""
        name = asked.get("model")
        if name is None:
            if len(self.models) > 1:
                raise Refused(400, f"which model? one of {', '.join(self.models)}", "missing_model", "model")
            name = next(iter(self.models))
        known = name if isinstance(name, str) else ""
        base, colon, _ = known.partition(":")
        model = base if colon and base in self.growing else self.models.get(known)
        if model is None or not (key is None or key.models is None or key.models.intersection((known, base))):
            named = f"no model {str(name)[:100]!r} for this key; GET /v1/models lists all models"
            raise Refused(404, named, "model_not_found", "model")
        return model

    async def _through(self, scope: Scope, receive: Receive, visit: Visit) -> None:
        """Hand the request on, within the deadline; meanwhile it takes its places in the model's queue."""
        shaped = Shaped(visit.send)
        visit.held = Counter({visit.model: visit.places})
        self.here.update(visit.held)
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, receive, shaped)
        except TimeoutError:
            if shaped.begun:  # a stream that is cut: the client sees that it has no end
                raise
            late = Refused(504, f"no answer within {self.limits.seconds:g} s", "deadline_exceeded")
            await late.answer(visit.send)
        finally:
            self.here.subtract(visit.held)

    def _moved(self, visit: Visit, models: Counter[str]) -> bool:
        """Have a request take its places in the queues of `models`, those that were chosen for it, if there is room."""
        if any(self.here[model] + places > self.room for model, places in models.items()):
            return False
        self.here.subtract(visit.held)
        self.here.update(models)
        visit.held = models
        return True
