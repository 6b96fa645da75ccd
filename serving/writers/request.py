"""What a writer is asked for one row, and what it answers: the same for a local engine, an endpoint and an echo."""

from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, for every request of a job. `temperature` 0 is greedy; `n` samples a request; `schema` a
    JSON schema that each text satisfies."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Request:
    """One row's question. `prompt` is text, or messages for a chat endpoint; `tokens` the text tokenised, where the
    writer is an engine; `seed` the row's own, None where sampling is greedy."""

    key: str
    prompt: str | list[Message]
    tokens: list[int] = field(default_factory=list)
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One text. `finish_reason` is `stop` or `length`."""

    text: str
    finish_reason: str
    tokens: int


@dataclass(frozen=True)
class Written:
    """The samples of one request, and the tokens of its prompt."""

    samples: list[Sample]
    prompt_tokens: int


class Refused(Exception):
    """This request will never be answered, others may be; the message says why. `attempts`: how often it was tried."""

    def __init__(self, reason: str, attempts: int = 1) -> None:
        super().__init__(reason)
        self.attempts = attempts


class Died(Exception):
    """The engine is gone, and every request that it held with it."""


class Writer(Protocol):
    """Answers requests, many at once."""

    async def start(self) -> None:
        """Come up, or come up again after `Died`. Raises RuntimeError where that fails for good."""

    async def write(self, request: Request) -> Written:
        """The answer to one request. Raises Refused and Died."""

    async def close(self) -> None:
        """Leave nothing running."""
