"""What came through an endpoint: figures for Prometheus, and a line of JSON a request. No prompt, answer or key."""

import collections
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.refusals import Message, Scope, Send, respond

VISIT = "regrow.visit"
LEFT = 499  # the status of a request whose client left before an answer began, as nginx writes it
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 600)
SHOWN = 100  # characters of a path


class Visit:
    """One request, and the `send` that it is answered through. `key` is the name of its key, `model` one that is served
    here; `places` as the gate counts them, `held` those that it takes now, by model. `move(models)` has it take its
    places in the queues of other models, and says whether there was room. It stands in the request's scope under
    `VISIT`."""

    def __init__(self, scope: Scope, send: Send, tokens: Counter) -> None:
        scope[VISIT] = self
        self._send, self._tokens, self.began = send, tokens, time.monotonic()
        self.tokens = {"prompt": 0, "completion": 0}
        self.method, self.path = scope["method"], scope["path"][:SHOWN]
        self.key = self.model = ""
        self.places, self.status, self.whole = 0, LEFT, False
        self.held = collections.Counter[str]()
        self.move: Callable[[collections.Counter[str]], bool] = lambda models: True
        self.first: float | None = None

    async def send(self, message: Message) -> None:
        """One message of the answer."""
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.first = self.first or self.seconds()
            self.whole = not message.get("more_body", False)

    def count(self, kind: str, tokens: int) -> None:
        """So many `tokens` more, of the `kind` prompt or completion."""
        self.tokens[kind] += tokens
        self._tokens.labels(self.model, kind).inc(tokens)

    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self.began


class Accounts:
    """Of one endpoint. `taken`: the places that are taken now, by model; `log`: the file of the access log, which may
    be moved away while it is written."""

    def __init__(self, models: tuple[str, ...], taken: Callable[[str], int], log: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("regrow_requests", "Requests by the status they got", ("model", "status"), **of)
        timed: dict[str, Any] = {"labelnames": ("model",), "buckets": SECONDS, **of}
        self.whole = Histogram("regrow_request_seconds", "To the end of the answer", **timed)
        self.first = Histogram("regrow_first_byte_seconds", "To the answer's first byte", **timed)
        self.tokens = Counter("regrow_tokens", "Tokens read and written", ("model", "kind"), **of)
        places = Gauge("regrow_places", "Samples at work or waiting", ("model",), **of)
        for model in models:
            places.labels(model).set_function(partial(taken, model))
            for kind in ("prompt", "completion"):
                self.tokens.labels(model, kind)
        self.models, self.began, self.log = models, time.time(), _logger(log) if log else None

    @contextmanager
    def visit(self, scope: Scope, send: Send) -> Iterator[Visit]:
        """Account for a request when the block is left."""
        one = Visit(scope, send, self.tokens)
        try:
            yield one
        finally:
            self._note(one)

    async def answer(self, send: Send) -> None:
        """The figures in Prometheus' text format, as an ASGI response."""
        await respond(send, 200, generate_latest(self.registry), kind=CONTENT_TYPE_LATEST)

    def told(self) -> dict[str, dict[str, Any]]:
        """Of each model since the start: requests by status, and tokens by kind."""
        told: dict[str, dict[str, Any]] = {model: {"requests": {}, "tokens": {}} for model in self.models}
        for counter, by, label in ((self.requests, "requests", "status"), (self.tokens, "tokens", "kind")):
            for sample in next(iter(counter.collect())).samples:
                if sample.name.endswith("_total") and (model := sample.labels["model"]) in told:
                    told[model][by][sample.labels[label]] = int(sample.value)
        return told

    def _note(self, one: Visit) -> None:
        seconds = one.seconds()
        self.requests.labels(one.model, str(one.status)).inc()
        if one.model and one.status < 400:
            self.whole.labels(one.model).observe(seconds)
            self.first.labels(one.model).observe(one.first or seconds)
        if self.log:
            line = {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "key": one.key, "method": one.method,
                "path": one.path, "model": one.model, "places": one.places, "status": one.status, "whole": one.whole,
                "prompt_tokens": one.tokens["prompt"], "completion_tokens": one.tokens["completion"],
                "seconds": round(seconds, 4), "first_byte_seconds": round(one.first, 4) if one.first else None,
            }  # fmt: skip
            self.log.info(json.dumps(line))


def _logger(file: Path) -> logging.Logger:
    made = logging.Logger("regrow.access")  # one of its own: Ray's handlers are none of it
    handler = WatchedFileHandler(file, encoding="utf8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    made.addHandler(handler)
    return made
