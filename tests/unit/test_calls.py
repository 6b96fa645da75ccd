"""Calls of an engine that dies: what is asked again, how often, and what the client gets of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from serving import calls
from serving.counting import Counted
from serving.server import pause, together

DEATH = 'data: {"error":{"message":"EngineCore encountered an issue. See stack trace"}}\n\n'


class Engine:
    """A deployment's method: each call goes by the next of `plays`, of parts, seconds that pass, or an error."""

    def __init__(self, *plays: list[Any]) -> None:
        self.plays, self.asked, self.cancelled = list(plays), 0, 0

    def remote(self, *_: Any) -> "Engine":
        self.asked += 1
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    async def __aiter__(self) -> AsyncIterator[Any]:
        for step in self.plays.pop(0):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(calls, "AT_WORK", 0.05)


async def answer(engine: Engine) -> list[Any]:
    return [part async for part in calls.Call(engine).remote("body")]


def test_asked_again_where_nothing_was_said() -> None:
    engine = Engine([ActorDiedError()], [[DEATH]], [0.1, ActorDiedError()], ["whole"])
    assert asyncio.run(answer(engine)) == ["whole"] and engine.asked == engine.cancelled == 4


def test_a_request_that_engines_die_of_is_asked_twice() -> None:
    engine = Engine(*[[0.1, ActorDiedError()]] * 9)
    with pytest.raises(ActorDiedError):
        asyncio.run(answer(engine))
    assert engine.asked == 2
    engine = Engine(*[[ActorDiedError()]] * 9)
    with pytest.raises(ActorDiedError):
        asyncio.run(answer(engine))
    assert engine.asked == 5, "of those that died before they could read it as often as there are pauses"


def test_a_stream_keeps_what_came_before_the_end() -> None:
    """In one part with the engine's last word, too; and it is not begun anew."""
    for play in (["a", ["b", DEATH]], ["a", ["b"], ActorDiedError()]):
        engine = Engine(play, ["again"])
        first, second, last = asyncio.run(answer(engine))
        assert (first, second) == ("a", ["b"]) and engine.asked == 1
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_died"


def test_other_errors_are_the_callers() -> None:
    engine = Engine([ValueError("no")], ["again"])
    with pytest.raises(ValueError, match="no"):
        asyncio.run(answer(engine))
    assert engine.asked == 1


def test_tokens_of_a_stream_are_its_texts() -> None:
    """Not who speaks, nor an error; and a client that did not ask for usage sees none, whatever else it asked."""
    told: dict[str, int] = {"prompt": 0, "completion": 0}
    visit: Any = SimpleNamespace(count=lambda kind, tokens: told.update({kind: told[kind] + tokens}))
    body = SimpleNamespace(stream=True, stream_options=SimpleNamespace(include_usage=False))
    counted = Counted(body, visit)
    assert body.stream_options.include_usage and not body.stream_options.continuous_usage_stats
    role = 'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    text = 'data: {"choices":[{"index":0,"delta":{"content":"the \\"role\\": x"}}]}\n\n'
    assert counted.part([role, text, text]) == [role, text, text] and told["completion"] == 2
    assert counted.part(DEATH) == DEATH and told["completion"] == 2
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    assert counted.part([usage]) == [""] and told == {"prompt": 7, "completion": 3}


async def _said(*parts: Any) -> AsyncIterator[Any]:
    for part in parts:
        if isinstance(part, float):
            await asyncio.sleep(part)
        elif isinstance(part, Exception):
            raise part
        else:
            yield part


def test_parts_of_a_stream_go_together_while_one_is_under_way() -> None:
    async def lists(*parts: Any) -> list[list[str]]:
        return [some async for some in together(_said(*parts), lambda: 0.1)]

    assert asyncio.run(lists("a", 0.02, "b", 0.02, "c", 0.3, "d")) == [["a"], ["b", "c"], ["d"]]
    assert asyncio.run(lists()) == []

    async def broken() -> list[list[str]]:
        found = []
        with pytest.raises(ValueError, match="no"):
            async for some in together(_said("a", 0.02, "b", ValueError("no")), lambda: 0.1):
                found.append(some)
        return found

    assert asyncio.run(broken()) == [["a"], ["b"]]


def test_the_end_of_a_stream_waits_for_nothing() -> None:
    async def lists() -> list[list[str]]:
        return [some async for some in together(_said("a", 0.02, "b", 0.02, "c"), lambda: 60)]

    assert asyncio.run(asyncio.wait_for(lists(), 5)) == [["a"], ["b", "c"]]


def test_many_streams_wait_longer_between_messages_but_not_longer_than_eyes_do() -> None:
    assert pause(1) == pause(2) == 0.02 and pause(10) == pytest.approx(0.08) and pause(25) == pause(1000) == 0.2


def test_a_stream_that_nobody_reads_on_is_ended() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def leave() -> None:
        stream = together(endless(), 0.01)
        assert await anext(stream) == [1]
        await stream.aclose()
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(leave())
