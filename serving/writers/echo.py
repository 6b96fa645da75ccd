"""A writer without a model: it answers with the prompt's own words, to try data, storage and a cluster. With
REGROW_ECHO_SECONDS set, each row takes so long, so that a job can be interrupted in the middle of its rows."""

import asyncio
import os

from serving.writers.request import Request, Sample, Sampling, Written


def seconds() -> float:
    """How long a row takes, of REGROW_ECHO_SECONDS. Raises ValueError where that is not a number of seconds."""
    given = os.environ.get("REGROW_ECHO_SECONDS") or "0"
    try:
        found = float(given)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ValueError(f"REGROW_ECHO_SECONDS is {given!r}: write the seconds that a row takes, as in 0.5")
    return found


class Echo:
    """Answers every request with the first `max_tokens` words of its prompt, or of its last message; a word counts as
    a token. `finish_reason` is `length` where words were cut off. Raises ValueError as `seconds` does."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._seconds = seconds()

    async def start(self) -> None:
        """Nothing has to come up."""

    async def write(self, request: Request) -> Written:
        """The prompt's words, `n` times."""
        if self._seconds:
            await asyncio.sleep(self._seconds)
        prompt = request.prompt
        if not isinstance(prompt, str):
            prompt = prompt[-1]["content"] if prompt else ""
        words = prompt.split()
        kept = words[: self._sampling.max_tokens]
        sample = Sample(" ".join(kept), "stop" if len(kept) == len(words) else "length", len(kept))
        return Written([sample] * self._sampling.n, len(words))

    async def close(self) -> None:
        """Nothing runs."""
