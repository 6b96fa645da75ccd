"""The writer over a network: what it asks, what it hands back, and what it says of wrong settings."""

import logging
from typing import Any

import pytest

from serving.writers.remote import Remote
from serving.writers.request import Request, Sample, Sampling, Written
from tests.endpoints import Handler, Server, ask, run, started, texts


def test_every_request_is_answered_and_few_are_in_flight(server: Server) -> None:
    ends = ask(server, *[f"p{place}" for place in range(40)], concurrency=5)
    assert texts(ends) == [f"echo p{place} 0" for place in range(40)]
    assert ends[0] == Written([Sample("echo p0 0", "stop", 7)], 3)
    assert 2 <= server.most <= 5 and server.keys == {"Bearer none"}


def test_what_is_asked_reaches_the_endpoint(server: Server) -> None:
    sampling = Sampling(0.5, 0.9, 11, 2, ("END",), {"type": "object"})

    async def job() -> None:
        writer = await started(server, sampling)
        await writer.write(Request("a", "plain", seed=4))
        await writer.write(Request("b", [{"role": "user", "content": "chatty"}], seed=5))
        await writer.close()

    run(job())
    (path, plain), (chat_path, chat) = server.bodies
    assert (path, chat_path) == ("/v1/completions", "/v1/chat/completions")
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    same = {
        "model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 11, "n": 2, "stop": ["END"],
        "response_format": {"type": "json_schema", "json_schema": schema},
    }  # fmt: skip
    assert plain == same | {"prompt": "plain", "seed": 4}
    assert chat == same | {"messages": [{"role": "user", "content": "chatty"}], "seed": 5}


def test_nothing_is_asked_that_was_not_given(server: Server) -> None:
    ask(server, "p")
    assert server.bodies[0][1].keys() == {"model", "prompt", "max_tokens", "temperature", "top_p", "n"}


def test_samples_come_from_one_request_and_missing_ones_are_asked_again(server: Server) -> None:
    first = {"index": 0, "finish_reason": "length", "text": "first"}
    server.plan = {"few": [{"choices": [first], "usage": None}]}

    async def job() -> tuple[Written, Written]:
        writer = await started(server, Sampling(temperature=1.0, n=3))
        both = await writer.write(Request("a", "all", seed=10)), await writer.write(Request("b", "few", seed=10))
        await writer.close()
        return both

    whole, few = run(job())
    assert [(sample.text, sample.tokens) for sample in whole.samples] == [
        ("echo all 10", 3), ("echo all 11", 2), ("echo all 12", 2),
    ]  # fmt: skip
    assert few.samples == [
        Sample("first", "length", 0), Sample("echo few 11", "stop", 4), Sample("echo few 12", "stop", 3),
    ]  # fmt: skip
    assert server.asked == {"all": 1, "few": 2} and server.bodies[2][1]["n"] == 2


@pytest.mark.parametrize(("status", "told"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "m, other")])
def test_what_is_set_wrongly_ends_the_job_and_is_named(server: Server, status: int, told: str) -> None:
    server.plan = {"a": [status]}
    (end,) = ask(server, "a")
    assert isinstance(end, RuntimeError) and told in str(end) and server.asked["a"] == 1


def test_other_statuses_end_the_job(server: Server) -> None:
    server.plan = {"a": [402]}
    (end,) = ask(server, "a")
    assert isinstance(end, RuntimeError) and str(end) == f"{server.url} answered with status 402: no"


def test_a_start_names_the_models_that_there_are(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"has no model 'nope': write one of m, other"):
        run(Remote(server.url, "nope", Sampling()).start())
    with pytest.raises(RuntimeError, match=r"lists no models.*as in http://host:8000/v1"):
        run(Remote(server.url.removesuffix("/v1"), "m", Sampling()).start())
    server.always = 401
    with pytest.raises(RuntimeError, match=r"did not accept the key \(401\): set OPENAI_API_KEY"):
        run(Remote(server.url, "m", Sampling()).start())
    server.always = 503
    with pytest.raises(RuntimeError, match=r"does not answer: \(503\) no"):
        run(Remote(server.url, "m", Sampling()).start())
    with pytest.raises(RuntimeError, match="does not answer: Connection error"):
        run(Remote("http://127.0.0.1:9/v1", "m", Sampling(), retries=0).start())


def test_no_secret_is_told(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key nor a password in the address, in messages or the most talkative log."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    server.said = "wrong: sk-secret"
    server.plan = {"a": [400], "b": [401], "c": [402], "d": [500] * 9}
    ends = ask(server, "a", "b", "c", "d", retries=1)
    assert server.keys == {"Bearer sk-secret"}
    assert len(ends) == 4 and all(isinstance(end, Exception) for end in ends)
    assert not any(said in f"{end}{end.__cause__}" for end in ends for said in ("sk-secret", "password"))
    assert "sk-secret" not in caplog.text
    known = Remote(server.url.replace("//", "//user:password@"), "nope", Sampling())
    with pytest.raises(RuntimeError) as raised:
        run(known.start())
    assert server.url in str(raised.value) and "password" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"base_url": "localhost:8000"}, "http://host:8000/v1"), ({"concurrency": 0}, "0"), ({"retries": -1}, "-1")],
)
def test_bad_settings_are_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Remote(given.pop("base_url", "http://h/v1"), "m", Sampling(), **given)


def test_a_page_instead_of_an_interface_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a proxy that shows its log-in page, at the start and later on."""

    def page(handler: Handler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", "13")
        handler.end_headers()
        handler.wfile.write(b"<p>Log in</p>")

    monkeypatch.setattr(Handler, "do_POST", page)
    (end,) = ask(server, "a")
    assert isinstance(end, RuntimeError) and "answered without a text: '<p>Log in</p>'" in str(end)
    monkeypatch.setattr(Handler, "do_GET", page)
    with pytest.raises(RuntimeError, match="lists no models"):
        run(Remote(server.url, "m", Sampling()).start())


def test_a_writer_that_is_not_up_says_so(server: Server) -> None:
    async def job() -> None:
        writer = Remote(server.url, "m", Sampling())
        with pytest.raises(RuntimeError, match="not started"):
            await writer.write(Request("a", "a"))
        await writer.start()
        await writer.close()
        with pytest.raises(RuntimeError, match="closed"):
            await writer.write(Request("a", "a"))

    run(job())
