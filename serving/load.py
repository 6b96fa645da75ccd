"""A load test of an OpenAI-compatible endpoint: requests as fast as answers come (closed), or at a rate (open)."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

CONNECTIONS = 4096  # open at once, at most
PAUSE = 0.05  # seconds for which a client rests that got no answer
WORDS = "the a of to and in is it you that he was for on are with as his they at be this from have or by one had not"


@dataclass(frozen=True)
class Shape:
    """One request: `words` of random text, at most `max_tokens` of answer (exactly so many with `ignore_eos`, which
    vLLM knows), streamed, so that the time to the first token is known. With `spread`, both lengths are drawn for each
    request, evenly, from so large a share below to as much above."""

    model: str
    words: int = 64
    max_tokens: int = 64
    ignore_eos: bool = False
    spread: float = 0.0

    def body(self, number: int, seed: int) -> dict[str, Any]:
        """The request number `number`: each another text, so that no cache of prefixes answers it."""
        chosen = random.Random(f"{seed} {number}")
        words, max_tokens = (max(1, round(n * chosen.uniform(1 - self.spread, 1 + self.spread)))
                             for n in (self.words, self.max_tokens))  # fmt: skip
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": f"{number} " + " ".join(chosen.choices(WORDS.split(), k=words)),
        }
        body |= {"max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}
        return body | ({"ignore_eos": True} if self.ignore_eos else {})


class Outcome(NamedTuple):
    """What came of one request: `sent` after so many seconds of the test, its HTTP `status` (0: none came, or the
    stream broke off), `seconds` to its end and to the `first` token (0: none)."""

    sent: float
    status: int
    seconds: float
    first: float
    prompt_tokens: int
    completion_tokens: int
    error: str = ""


async def closed(base_url: str, shape: Shape, concurrency: int, seconds: float, **more: Any) -> list[Outcome]:
    """`concurrency` clients for `seconds`, each of which asks as soon as it has its answer."""
    test = _Test(base_url, shape, **more)
    async with test:

        async def client() -> None:
            while test.now() < seconds:
                if not await test.one():
                    await asyncio.sleep(PAUSE)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())
    return test.outcomes


async def opened(base_url: str, shape: Shape, rate: float, seconds: float, **more: Any) -> list[Outcome]:
    """`rate` requests a second for `seconds`, at the times of a Poisson process, whatever becomes of those before."""
    test = _Test(base_url, shape, **more)
    times, at = random.Random(f"{test.seed} times"), 0.0
    async with test, asyncio.TaskGroup() as group:
        while (at := at + times.expovariate(rate)) < seconds:
            await asyncio.sleep(at - test.now())
            group.create_task(test.one())
    return test.outcomes


class _Test:
    """The outcomes of one test. `done` is called with each; `key`: an API key, sent as a bearer token."""

    def __init__(
        self, base_url: str, shape: Shape, key: str = "", seed: int = 0, done: Callable[[Outcome], None] | None = None
    ) -> None:
        self.url, self.shape, self.seed, self.done = f"{base_url.rstrip('/')}/completions", shape, seed, done
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.numbers, self.outcomes, self.began = itertools.count(), list[Outcome](), 0.0

    async def __aenter__(self) -> "_Test":
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self.session = aiohttp.ClientSession(headers=self.headers, timeout=timeout, connector=connector)
        self.began = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def now(self) -> float:
        """Seconds since the test began."""
        return time.monotonic() - self.began

    async def one(self) -> int:
        """Ask once; the status."""
        import aiohttp

        sent, first, status, error = self.now(), 0.0, 0, ""
        usage: dict[str, int] = {}
        try:
            async with self.session.post(self.url, json=self.shape.body(next(self.numbers), self.seed)) as reply:
                whole = reply.status != 200
                if whole:
                    error = (await reply.text())[:300]
                async for line in reply.content:
                    if line.startswith(b'data: {"error"'):
                        error = line[6:306].decode("utf8", "replace").strip()
                    elif line.startswith(b"data: {"):
                        first = first or self.now() - sent
                        usage = json.loads(line[6:]).get("usage") or usage if b'"usage":{' in line else usage
                    whole = whole or (line.startswith(b"data: [DONE]") and not error)
                status = reply.status if whole else 0
                error = error or ("" if whole else "the stream broke off")
        except (aiohttp.ClientError, TimeoutError, ValueError) as failed:
            error = f"{type(failed).__name__}: {failed}"[:300]
        tokens = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        self.outcomes.append(Outcome(sent, status, self.now() - sent, first, *tokens, error))
        if self.done:
            self.done(self.outcomes[-1])
        return status


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """The figures of a test: answers and refusals by status, output tokens a second over the time from the first
    request to the last answer, and percentiles (50, 95, 99) in seconds."""
    answered = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status in (429, 503)]
    length = max((one.sent + one.seconds for one in outcomes), default=0.0)
    statuses = sorted({one.status for one in outcomes})
    return {
        "requests": len(outcomes),
        "seconds": round(length, 3),
        "statuses": {str(status): sum(one.status == status for one in outcomes) for status in statuses},
        "requests_per_second": _rate(len(answered), length),
        "output_tokens_per_second": _rate(sum(one.completion_tokens for one in answered), length),
        "input_tokens_per_second": _rate(sum(one.prompt_tokens for one in answered), length),
        "first_token": _percentiles([one.first for one in answered if one.first]),
        "answer": _percentiles([one.seconds for one in answered]),
        "token": _percentiles(
            [(one.seconds - one.first) / (one.completion_tokens - 1) for one in answered if one.completion_tokens > 1]
        ),
        "refusal": _percentiles([one.seconds for one in refused]),
        "errors": sorted({one.error for one in outcomes if one.error and one.status not in (429, 503)})[:5],
    }


def record(shape: Shape, outcomes: list[Outcome]) -> dict[str, Any]:
    """Everything of a test, for a file."""
    return {"shape": asdict(shape), "summary": summary(outcomes), "outcomes": [one._asdict() for one in outcomes]}


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, (50, 95, 99))
    return {f"p{p}": round(float(value), 5) for p, value in zip((50, 95, 99), found, strict=True)}
