"""A writer over a network: any OpenAI-compatible endpoint, so many requests in flight, its pauses and refusals obeyed,
and a row that the endpoint cannot answer told apart from an endpoint that is gone."""

import asyncio
import json
import os
import random
import time
from typing import Any

from serving.writers import address
from serving.writers.request import Message, Refused, Request, Sample, Sampling, Written

MESSAGE_LENGTH = 500
# Seconds to wait for a connection: a wrong address must not hold up a job for the minutes that an answer may take.
CONNECT = 10.0
# Seconds, at most, before a row goes on that the endpoint's rate limit held back through all its retries.
PAUSE = 8.0
REFUSALS = (400, 413, 422)
PASSING = (408, 409, 429)


class _Away(Exception):
    """No answer came in all tries. `limited`: for the endpoint's rate limit."""

    def __init__(self, reason: str, attempts: int = 1, limited: bool = False) -> None:
        super().__init__(reason)
        self.attempts = attempts
        self.limited = limited


class Remote:
    """Asks the endpoint at `base_url` (as in http://host:8000/v1) for texts of `model`, at most `concurrency` requests
    in flight. Texts go to its completions, messages to its chat.

    429, 5xx, timeouts (`timeout` seconds a try) and lost connections are tried again `retries` times, with growing
    pauses up to 8 s, or those up to two minutes that the endpoint asks for. The key is OPENAI_API_KEY of the process
    that calls `start`, "none" where it is not set. An endpoint tells the tokens of all samples of a request in one
    figure: it is divided among them in equal shares."""

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: Sampling,
        concurrency: int = 64,
        retries: int = 12,
        timeout: float = 600.0,
    ) -> None:
        given = address.parsed(base_url)
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ValueError(
                f"concurrency is {concurrency}, retries {retries}, timeout {timeout:g}: write at least one request in "
                "flight, 0 or more retries, and more than 0 seconds"
            )
        self._base_url, self._model, self._sampling = base_url, model, sampling
        self._retries, self._timeout = retries, timeout
        # What messages call it: an address may hold a password.
        self._shown = given._replace(netloc=given.netloc.rpartition("@")[2], query="", fragment="").geturl()
        self._seats = asyncio.Semaphore(concurrency)
        self._checking = asyncio.Lock()
        self._client: Any = None
        self._brief: Any = None
        self._key = ""
        self._gone = "the writer was not started"
        # When the newest request that was answered was sent, and when the last answer came.
        self._good = self._last = 0.0

    async def start(self) -> None:
        """Connect. Raises RuntimeError where the endpoint does not answer, takes no such key or has no such model."""
        import openai

        await self.close()
        self._key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._key,
            max_retries=self._retries,
            timeout=openai.Timeout(self._timeout, connect=CONNECT),
        )
        self._brief = self._client.with_options(max_retries=min(2, self._retries))
        try:
            offered = await self._offered()
        except openai.OpenAIError as error:
            meaning = await self._meaning(error, self._brief.max_retries)
            told = str(meaning) if isinstance(meaning, RuntimeError) else f"{self._shown} does not answer: {meaning}"
            # Not chained: the package's errors hold the request with its key, and do not survive a pickle.
            raise RuntimeError(told) from None
        if self._model not in offered:
            raise RuntimeError(f"{self._shown} has no model {self._model!r}: {_listed(offered)}")
        self._gone = ""

    async def write(self, request: Request) -> Written:
        """The answer to one request.

        Raises Refused for a row that the endpoint will not take or fails at while it answers others, RuntimeError
        where it answers nobody any more."""
        async with self._seats:
            samples: list[Sample] = []
            prompt_tokens = 0
            while missing := self._sampling.n - len(samples):
                reply = await self._insist(request.prompt, self._settings(request, missing))
                # Some endpoints ignore `n`: what is missing is asked for again.
                samples += _samples(reply, missing)
                prompt_tokens = getattr(reply.usage, "prompt_tokens", 0) or 0
            return Written(samples, prompt_tokens)

    async def close(self) -> None:
        """Leave no connection open."""
        client, self._client = self._client, None
        self._gone = "the writer was closed"
        if client is not None:
            await client.close()

    def _settings(self, request: Request, missing: int) -> dict[str, Any]:
        given = self._sampling
        settings: dict[str, Any] = {
            "max_tokens": given.max_tokens, "temperature": given.temperature, "top_p": given.top_p, "n": missing,
        }  # fmt: skip
        if given.stop:
            settings["stop"] = list(given.stop)
        if request.seed is not None:
            # With the same seed again, the same text would come again.
            settings["seed"] = request.seed + given.n - missing
        if given.schema is not None:
            schema = {"name": "answer", "schema": given.schema, "strict": True}
            settings["extra_body"] = {"response_format": {"type": "json_schema", "json_schema": schema}}
        return settings

    async def _insist(self, prompt: str | list[Message], settings: dict[str, Any]) -> Any:
        """The endpoint's reply; a row that failed is tried once more after the endpoint was seen to answer others."""
        attempts = failures = 0
        while True:
            if self._gone:
                raise RuntimeError(self._gone)
            began = time.monotonic()
            try:
                reply = await self._send(self._brief if failures else self._client, prompt, settings)
            except _Away as away:
                attempts += away.attempts
                failures += not away.limited
                await self._check(prompt, away, began)
                if failures == 2:
                    said = f"{self._shown} answers others, but not this row in {attempts} tries: {away}"
                    raise Refused(said, attempts) from None
                if away.limited:
                    await asyncio.sleep(PAUSE * random.uniform(0.5, 1))
            else:
                self._good, self._last = max(self._good, began), time.monotonic()
                return reply

    async def _check(self, prompt: str | list[Message], away: _Away, began: float) -> None:
        """Returns if the endpoint answers others: a request sent since the failure, or a short one of its own. A rate
        limit is everybody's: there any other answer since `began` is enough. Raises RuntimeError if there is none."""
        failed = time.monotonic()
        async with self._checking:
            if self._gone:
                raise RuntimeError(self._gone)
            if self._good >= failed or (away.limited and self._last >= began):
                return
            if not away.limited:
                sent = time.monotonic()
                hello: str | list[Message] = (
                    "Hello" if isinstance(prompt, str) else [{"role": "user", "content": "Hello"}]
                )
                try:
                    await self._send(self._brief, hello, {"max_tokens": 1})
                except (Refused, _Away) as error:
                    if isinstance(error, Refused) or self._good >= failed:
                        return
                else:
                    self._good = max(self._good, sent)
                    return
            self._gone = f"{self._shown} no longer answers for model {self._model}: {away}"
            raise RuntimeError(self._gone) from None

    async def _send(self, client: Any, prompt: str | list[Message], settings: dict[str, Any]) -> Any:
        import openai

        try:
            if isinstance(prompt, str):
                reply = await client.completions.create(model=self._model, prompt=prompt, **settings)
            else:
                reply = await client.chat.completions.create(model=self._model, messages=prompt, **settings)
        except openai.OpenAIError as error:
            raise await self._meaning(error, client.max_retries) from None
        except json.JSONDecodeError as error:
            raise _Away(f"it answered with broken JSON ({error})") from None
        if not getattr(reply, "choices", None):
            raise _Away(self._clean(f"it answered without a text: {reply!r}"))
        return reply

    async def _meaning(self, error: Exception, retries: int) -> Exception:
        """What an error of the package means here: Refused, _Away or RuntimeError."""
        import openai

        request = getattr(error, "request", None)
        tried = int(request.headers.get("x-stainless-retry-count", 0)) + 1 if request is not None else 1
        if not isinstance(error, openai.APIStatusError):
            return _Away(self._clean(f"{error}"), tried)
        status, said = error.status_code, self._clean(_message(error))
        if status in REFUSALS:
            return Refused(f"the endpoint refused it ({status}): {said}", tried)
        if status in PASSING or status >= 500:
            wait = error.response.headers.get("retry-after")
            # The package stops early where it is told to wait for more than two minutes, or not to come again.
            if tried <= retries and (wait or status == 429):
                asked = f"asks to come back in {wait} s" if wait else "asks not to come back"
                return RuntimeError(f"{self._shown} {asked} ({status}): {said}. Run the same command again later")
            return _Away(f"({status}) {said}", tried, limited=status == 429)
        if status in (401, 403):
            # Its message may quote the key.
            return RuntimeError(
                f"{self._shown} did not accept the key ({status}): set OPENAI_API_KEY to one that may use {self._model}"
            )
        if status == 404:
            try:
                offered = await self._offered()
            except openai.OpenAIError:
                offered = []
            return RuntimeError(
                f"{self._shown} has no model {self._model!r}, or not this way to ask it: {_listed(offered)}"
            )
        return RuntimeError(f"{self._shown} answered with status {status}: {said}")

    async def _offered(self) -> list[str]:
        try:
            page = await self._brief.models.list()
        except (AttributeError, json.JSONDecodeError):
            # What the package makes of a page of text.
            return []
        return [model.id for model in page.data or []]

    def _clean(self, text: str) -> str:
        if self._key not in ("", "none"):
            text = text.replace(self._key, "***")
        return text[:MESSAGE_LENGTH]


def _message(error: Any) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and body.get("message") else str(error.message)


def _listed(offered: list[str]) -> str:
    if not offered:
        return "it lists no models. Write its address with the path of its interface, as in http://host:8000/v1"
    more = f" and {len(offered) - 20} more" if len(offered) > 20 else ""
    return f"write one of {', '.join(offered[:20])}{more}"


def _samples(reply: Any, wanted: int) -> list[Sample]:
    choices = reply.choices[:wanted]
    total = getattr(reply.usage, "completion_tokens", 0) or 0
    share, rest = divmod(total, len(choices))
    samples = []
    for place, choice in enumerate(choices):
        if choice.finish_reason == "content_filter":
            raise Refused("the endpoint's content filter stopped the text")
        text = choice.message.content if hasattr(choice, "message") else choice.text
        reason = "length" if choice.finish_reason == "length" else "stop"
        samples.append(Sample(text or "", reason, share + (place < rest)))
    return samples
