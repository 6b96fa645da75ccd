"""Clients of an endpoint that ask for as long as something is done to it, and how many engines they have."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any


def running() -> int:
    """Engines of the model that take requests."""
    from ray import serve

    deployments = serve.status().applications["regrow"].deployments
    (one,) = (found for name, found in deployments.items() if name.startswith("LLMServer"))
    return sum(count for state, count in one.replica_states.items() if state == "RUNNING")


class Asking:
    """Clients that ask, every other one for a stream, until the block ends. They pause for a moment between two
    questions, or an engine that starts would get no time on a small machine. `answered`: how often each was; `failed`:
    what went wrong, streams apart; `made` gives a client, which asks `model`."""

    def __init__(self, made: Callable[[], Any], clients: int = 4) -> None:
        self.made, self.over = made, threading.Event()
        self.answered, self.failed = Counter[int](), {True: list[str](), False: list[str]()}
        self.threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self) -> "Asking":
        for thread in self.threads:
            thread.start()
        self.more(2)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(300)

    def more(self, answers: int, seconds: float = 300) -> float:
        """Wait until every client has so many answers more; how long it took."""
        before, began = Counter(self.answered), time.monotonic()
        while any(self.answered[i] < before[i] + answers for i in range(len(self.threads))):
            assert time.monotonic() - began < seconds, f"{self.answered}, {self.failed}"
            time.sleep(0.1)
        return time.monotonic() - began

    def _client(self, number: int) -> None:
        client, stream = self.made(), number % 2 == 0
        asked: dict[str, Any] = {"model": "model", "prompt": "1 2 3", "max_tokens": 60, "stream": stream}
        while not self.over.is_set():
            try:
                reply = client.completions.create(**asked, extra_body={"ignore_eos": True})
                if stream:
                    assert sum(1 for _ in reply) > 1
                self.answered[number] += 1
            except Exception as error:  # noqa: BLE001 whatever a user's program would see
                self.failed[stream].append(f"{type(error).__name__}: {error}")
            time.sleep(0.2)
