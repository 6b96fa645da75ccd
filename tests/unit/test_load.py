"""The load test, against an endpoint that misbehaves."""

import asyncio
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines import cli_loadtest
from serving import load
from serving.load import Outcome, Shape
from tests.endpoints import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def test_figures_are_those_of_numpy() -> None:
    outcomes = [Outcome(i / 10, 200, 1.0 + i / 100, 0.2 + i / 1000, 5, 11) for i in range(101)]
    outcomes += [Outcome(1, 429, 0.01, 0, 0, 0), Outcome(2, 0, 0.5, 0, 0, 0, "ClientError: gone")]
    told = load.summary(outcomes)
    assert told["statuses"] == {"0": 1, "200": 101, "429": 1} and told["errors"] == ["ClientError: gone"]
    assert told["seconds"] == 12.0 and told["output_tokens_per_second"] == pytest.approx(101 * 11 / 12, abs=1e-3)
    assert told["first_token"] == pytest.approx({"p50": 0.25, "p95": 0.295, "p99": 0.299})
    assert told["answer"] == pytest.approx({"p50": 1.5, "p95": 1.95, "p99": 1.99})
    assert told["token"]["p50"] == pytest.approx((1.5 - 0.25) / 10) and told["refusal"]["p50"] == 0.01
    assert load.summary([])["requests"] == 0


def test_no_two_requests_are_alike_and_all_are_known_by_their_seed() -> None:
    shape = Shape("m", words=20)
    bodies = [shape.body(number, 1)["prompt"] for number in range(50)]
    assert len(set(bodies)) == 50 and bodies == [shape.body(number, 1)["prompt"] for number in range(50)]
    assert bodies[0] != shape.body(0, 2)["prompt"] and len(bodies[0].split()) == 21


def test_lengths_are_spread_evenly_where_asked() -> None:
    bodies = [Shape("m", words=20, max_tokens=100, spread=0.5).body(number, 1) for number in range(400)]
    for lengths, middle in (
        ([len(one["prompt"].split()) - 1 for one in bodies], 20),
        ([one["max_tokens"] for one in bodies], 100),
    ):
        assert min(lengths) >= middle / 2 and max(lengths) <= middle * 1.5
        assert sum(length < middle for length in lengths) > 150 < sum(length > middle for length in lengths)


def test_refusals_are_counted_not_repeated(server: Server) -> None:
    server.always = 429
    seen: list[int] = []
    asked = load.opened(server.url, Shape("m"), 40, 1.0, done=lambda one: seen.append(one.status))
    outcomes = asyncio.run(asked)
    assert {one.status for one in outcomes} == {429} and len(outcomes) == len(seen) == sum(server.asked.values())
    assert 20 <= len(outcomes) <= 65, "40 a second, Poisson: 40 ± 6.3"
    assert all(0 <= one.sent < 1.2 for one in outcomes)


def test_an_endpoint_that_is_not_there() -> None:
    outcomes = asyncio.run(load.closed("http://127.0.0.1:9/v1", Shape("m"), 2, 0.3))
    assert 2 <= len(outcomes) <= 20 and {one.status for one in outcomes} == {0} and "Connect" in outcomes[0].error


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
TOKEN, DONE = b'data: {"choices":[{"text":"x"}]}\n\n', b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("stream", "status", "tokens", "error"),
    [
        (TOKEN + TOKEN + USAGE + DONE, 200, 2, ""),
        (TOKEN, 0, 0, "the stream broke off"),
        (TOKEN + b'data: {"error": {"message": "the engine died"}}\n\n' + DONE, 0, 0, "the engine died"),
    ],
)
def test_streams_that_end_and_that_do_not(server: Server, stream: bytes, status: int, tokens: int, error: str) -> None:
    server.always = stream
    outcomes = asyncio.run(load.closed(server.url, Shape("m"), 3, 0.3))
    assert len(outcomes) > 3 and {one.status for one in outcomes} == {status}
    assert {one.completion_tokens for one in outcomes} == {tokens} and all(error in one.error for one in outcomes)
    assert all(0 < one.first <= one.seconds for one in outcomes)


@pytest.mark.parametrize(
    "content", ["<html>hello</html>", "[]", "3", '{"data": null}', '{"data": []}', '{"data": [3]}']
)
def test_what_lists_no_models(content: str, tmp_path: Path) -> None:
    """A page, JSON of another kind, an empty list: a sentence with the address in it."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text(content)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RuntimeError, match=rf"127.0.0.1:{server.server_port}/v1/models lists no model"):
            cli_loadtest._first(f"http://127.0.0.1:{server.server_port}/v1", "")
        server.shutdown()


def test_the_first_model_is_asked(server: Server) -> None:
    assert cli_loadtest._first(server.url, "") == "m"
    server.always, server.said = 401, "no such key"
    with pytest.raises(RuntimeError, match="no such key"):
        cli_loadtest._first(server.url, "x")
    with pytest.raises(RuntimeError, match="no connection"):
        cli_loadtest._first("http://127.0.0.1:9/v1", "")
