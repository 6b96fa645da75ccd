"""The writer over a network against an endpoint that fails: what is tried again, what refused, what ends the job."""

import asyncio
from typing import Any

import pytest

from serving.writers.request import Refused, Request
from tests.endpoints import Server, ask, run, started, texts


def test_busy_broken_and_lost_requests_are_tried_again(server: Server) -> None:
    server.plan = {"a": [429, 503, 500], "b": [502], "c": ["drop"]}
    assert texts(ask(server, "a", "b", "c", "d")) == ["echo a 0", "echo b 0", "echo c 0", "echo d 0"]
    assert server.asked == {"a": 4, "b": 2, "c": 2, "d": 1}


def test_an_answer_that_does_not_come_is_asked_for_again(server: Server) -> None:
    server.plan = {"a": ["slow"]}
    assert texts(ask(server, "a", timeout=0.2)) == ["echo a 0"]
    assert server.asked["a"] == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_can_never_work_is_refused_once(server: Server, status: int) -> None:
    server.plan, server.said = {"long": [status]}, "too long " * 200
    refused, answered = ask(server, "long", "short")
    assert isinstance(refused, Refused) and f"({status}): too long too long" in str(refused)
    assert len(str(refused)) < 600 and refused.attempts == 1 == server.asked["long"]
    assert answered.samples[0].text == "echo short 0"


@pytest.mark.parametrize("prompt", ["bad", [{"role": "user", "content": "bad"}]])
def test_a_row_that_breaks_the_endpoint_is_refused_while_it_answers_others(server: Server, prompt: Any) -> None:
    """Also where no other row is there to show that: the last row of a job must not end it again and again."""
    server.plan = {"bad": [500] * 99}
    (refused,) = ask(server, prompt, retries=3)
    assert isinstance(refused, Refused) and refused.attempts == server.asked["bad"] == 4 + 3
    assert "answers others, but not this row in 7 tries: (500) no" in str(refused)
    assert server.asked["Hello"] == 2


def test_answers_without_a_text_are_no_answers(server: Server) -> None:
    server.plan = {"odd": [{"choices": []}], "odder": [{"choices": None}] * 9, "filtered": [filtered()]}
    server.plan["broken"] = [b'{"choices": [']
    odd, odder, stopped, broken = ask(server, "odd", "odder", "filtered", "broken", retries=1)
    assert broken.samples[0].text == "echo broken 0"
    assert odd.samples[0].text == "echo odd 0"
    assert isinstance(odder, Refused) and "without a text" in str(odder) and odder.attempts == 2
    assert isinstance(stopped, Refused) and "content filter" in str(stopped)


def filtered() -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "content_filter", "text": "half a"}]}


@pytest.mark.parametrize("step", [503, 429])
def test_an_endpoint_that_is_away_for_everybody_ends_the_job(server: Server, step: int) -> None:
    async def job() -> list[Any]:
        writer = await started(server, retries=1, concurrency=4)
        assert (await writer.write(Request("a", "a"))).samples
        server.always = step
        ends = await asyncio.gather(*[writer.write(Request("a", f"p{i}")) for i in range(40)], return_exceptions=True)
        server.always = None
        await writer.start()
        assert (await writer.write(Request("a", "again"))).samples
        await writer.close()
        return ends

    ends = run(job())
    told = f"{server.url} no longer answers for model m: ({step}) no"
    assert {(type(end), str(end)) for end in ends} == {(RuntimeError, told)}
    # Those that had no seat yet do not try in vain.
    assert sum(server.asked.values()) < 20


def test_an_endpoint_that_hung_up_ends_the_job(server: Server) -> None:
    async def job() -> None:
        writer = await started(server, retries=0)
        server.always = "drop"
        with pytest.raises(RuntimeError, match="no longer answers for model m: Connection error"):
            await writer.write(Request("a", "a"))
        await writer.close()

    run(job())


def test_an_endpoint_that_comes_back_blames_no_row(server: Server) -> None:
    """Its retries fell into the outage; after it, it is tried again."""
    server.plan = {"a": [503] * 3}
    (end,) = ask(server, "a", retries=2)
    assert end.samples[0].text == "echo a 0" and server.asked == {"a": 4, "Hello": 1}


def test_a_rate_limit_is_no_fault_of_a_row_while_others_are_answered(server: Server) -> None:
    server.plan = {"a": [429] * 35}

    async def job() -> None:
        writer = await started(server, retries=9)
        starved = asyncio.create_task(writer.write(Request("a", "a")))
        for place in range(10_000):
            if starved.done():
                break
            await writer.write(Request("b", f"b{place}"))
        assert (await starved).samples[0].text == "echo a 0"
        await writer.close()

    run(job())
    assert server.asked["a"] == 36


@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_that_asks_for_a_long_pause_ends_the_job(server: Server, status: int) -> None:
    server.plan, server.headers = {"a": [status]}, {"retry-after": "3600"}
    (end,) = ask(server, "a")
    assert isinstance(end, RuntimeError) and f"asks to come back in 3600 s ({status})" in str(end)
    assert server.asked["a"] == 1


def test_a_short_pause_that_is_asked_for_is_kept(server: Server) -> None:
    server.plan, server.headers = {"a": [429, 429]}, {"retry-after": "0.01"}
    assert texts(ask(server, "a")) == ["echo a 0"]
