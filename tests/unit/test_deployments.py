"""What is known of engines while Serve's controller does not answer."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from serving import deployments
from serving.deployments import Deployments, State


class Slow(Deployments):
    """Its controller answers when `go` is set."""

    def __init__(self) -> None:
        super().__init__({"m": "x"})
        self.go, self.asked = threading.Event(), 0

    def _asked(self) -> dict[str, State]:
        self.asked += 1
        self.go.wait(30)
        return {"m": State(running=self.asked)}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(deployments, "PATIENCE", seconds)


def test_a_controller_that_is_away_does_not_hold_up_the_answer(patience: Callable[[float], None]) -> None:
    patience(0.2)

    async def watch() -> None:
        engines = Slow()
        began = time.monotonic()
        answers = await asyncio.gather(*(engines.health() for _ in range(8)))
        assert {answer.status_code for answer in answers} == {503} and time.monotonic() - began < 5
        assert await engines.states() == {} and engines.asked == 1, "nothing is known, and one question is under way"
        engines.go.set()
        patience(30)
        assert (await engines.states())["m"].running == 1 and (await engines.health()).status_code == 200
        engines.go.clear()
        patience(0.2)
        engines._until = 0
        assert (await engines.states())["m"].running == 1, "what was known stands"
        engines.go.set()

    asyncio.run(watch())
