"""The gate before a small ASGI application, over HTTP as httpx speaks it to ASGI."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.gate import Gate, Limits

KEY = "sk-ann-0123456789abcdef"
NARROW = "sk-bob-0123456789abcdef"


class App:
    """Answers with what it was sent, once `go` is set; counts who is inside, and who left before the end."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.inside = self.most = self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            body = (await receive())["body"] if scope["method"] == "POST" else b"{}"
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def gate(app: Any, keys: Path | None = None, **limits: Any) -> httpx.AsyncClient:
    """A client of the gate."""
    made = Gate(app, ("a", "b"), Limits(**{"seats": 1, "waiting": 1, "output_tokens": 100, **limits}), keys)
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://gate")


async def ask(client: httpx.AsyncClient, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await client.post("/v1/completions", json={"model": "a", **body}, headers=headers)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response, which has the OpenAI API's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code and error["message"]
    return error


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[key]]\nname = "ann"\nkey = "{KEY}"\n'
        f'[[key]]\nname = "bob"\nkey = "{NARROW}"\nmodels = ["b"]\nrequests_per_minute = 2\ntokens_per_minute = 150\n'
    )
    return file


def test_what_is_let_in_arrives_as_it_was_sent() -> None:
    async def run() -> None:
        async with gate(App()) as client:
            body = {"model": "a", "prompt": "ä\u2028", "n": 2, "max_tokens": 100, "temperature": 0.5}
            assert (await client.post("/v1/completions", json=body)).json() == body
            assert (await client.get("/v1/models")).status_code == 200
            assert (await ask(client, prompt=list(range(1000)))).status_code == 200, "one prompt, of tokens"

    asyncio.run(run())


def test_keys(keys: Path) -> None:
    async def run() -> None:
        async with gate(App(), keys) as client:
            assert (await ask(client, KEY)).status_code == 200
            missing = await ask(client)
            assert missing.headers["www-authenticate"] == "Bearer"
            refused(missing, 401, "missing_api_key")
            for forged in (KEY[:-1], KEY + "0", KEY.upper(), "Bearer", "ÿ"):
                headers = {"Authorization": f"Bearer {forged}".encode("latin-1")}
                error = refused(await client.get("/v1/models", headers=headers), 401, "invalid_api_key")
                assert forged not in error["message"]
            basic = {"Authorization": f"Basic {KEY}"}
            refused(await client.get("/v1/models", headers=basic), 401, "missing_api_key")
            assert (await client.get("/health")).status_code == 200, "asked by balancers, which have no key"
            refused(await ask(client, NARROW), 404, "model_not_found")
            refused(await ask(client, NARROW, model=None), 400, "missing_model")
            assert (await ask(client, NARROW, model="b", max_tokens=1)).status_code == 200
            keys.write_text(f'[[key]]\nname = "new"\nkey = "{NARROW}"\n')
            refused(await ask(client, KEY), 401, "invalid_api_key")
            assert (await ask(client, NARROW)).status_code == 200, "read again without a restart"

    asyncio.run(run())


def test_a_key_for_no_model_here_gets_none_by_naming_none(keys: Path) -> None:
    async def run() -> None:
        only = Gate(App(), ("a",), Limits(seats=1, output_tokens=100), keys)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(only), base_url="http://gate") as client:
            assert (await ask(client, KEY, model=None)).status_code == 200
            refused(await ask(client, NARROW, model=None), 404, "model_not_found")

    asyncio.run(run())


def test_rates(keys: Path) -> None:
    async def run() -> None:
        async with gate(App(), keys) as client:
            assert (await ask(client, NARROW, model="b", max_tokens=50, n=2)).status_code == 200
            late = await ask(client, NARROW, model="b", max_tokens=60)
            assert "150 tokens a minute" in refused(late, 429, "rate_limit_exceeded")["message"]
            assert 3 <= int(late.headers["retry-after"]) <= 5, "ten tokens, at 2.5 a second"
            assert (await ask(client, NARROW, model="b", max_tokens=40)).status_code == 200, "the refused one is free"
            late = await ask(client, NARROW, model="b", max_tokens=1)
            assert "2 requests a minute" in refused(late, 429, "rate_limit_exceeded")["message"]
            assert 29 <= int(late.headers["retry-after"]) <= 31
            assert (await ask(client, KEY)).status_code == 200, "nobody else waits"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "c"}, 404, "model_not_found"),
        ({"model": ["a"]}, 404, "model_not_found"),
        ({"max_tokens": 101}, 400, "invalid_value"),
        ({"max_completion_tokens": 10**30}, 400, "invalid_value"),
        ({"n": 17}, 400, "invalid_value"),
        ({"n": 2, "prompt": ["1", "2"]}, 400, "invalid_value"),
        ({"prompt": [[1], [2], [3]]}, 400, "invalid_value"),
        ({"n": "17"}, 400, "invalid_type"),
        ({"max_tokens": 17.0}, 400, "invalid_type"),
        ({"model": None}, 400, "missing_model"),
        ({"best_of": 10**9}, 400, "invalid_value"),
    ],
)
def test_caps(body: dict[str, Any], status: int, code: str) -> None:
    async def run() -> None:
        async with gate(App()) as client:
            refused(await ask(client, **body), status, code)

    asyncio.run(run())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"[" * 100_000, b"NaN", b"{}{}"])
def test_bodies_that_are_no_json_objects(body: bytes) -> None:
    async def run() -> None:
        async with gate(App()) as client:
            refused(await client.post("/v1/completions", content=body), 400, "invalid_json")

    asyncio.run(run())


def test_large_bodies_are_refused_before_they_are_read() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1 << 20):
            sent += 1
            yield b" " * 1024

    async def run() -> None:
        async with gate(App(), body_bytes=10_000) as client:
            refused(await client.post("/v1/completions", content=b" " * 10_001), 413, "request_too_large")
            refused(await client.post("/v1/completions", content=endless()), 413, "request_too_large")
            lied = {"Content-Length": "minus one"}
            refused(await client.post("/v1/completions", content=endless(), headers=lied), 413, "request_too_large")

    asyncio.run(run())
    assert sent <= 12


def test_a_full_queue_refuses_at_once_and_only_its_own_model() -> None:
    async def run() -> None:
        app = App()
        app.go.clear()
        async with gate(app) as client:
            both = [asyncio.create_task(ask(client)) for _ in range(2)]  # a seat, and a place to wait
            while app.inside < 2:
                await asyncio.sleep(0)
            full = await ask(client)
            refused(full, 429, "queue_full")
            assert full.headers["retry-after"] == "1" or int(full.headers["retry-after"]) >= 1
            other = asyncio.create_task(ask(client, model="b"))
            while app.inside < 3:
                await asyncio.sleep(0)
            app.go.set()
            assert [(await task).status_code for task in (*both, other)] == [200] * 3
            assert (await ask(client)).status_code == 200, "room again"

    asyncio.run(run())


def test_the_deadline_ends_the_work() -> None:
    async def run() -> None:
        app = App()
        app.go.clear()
        async with gate(app, seconds=0.05) as client:
            refused(await ask(client), 504, "deadline_exceeded")
            assert app.cancelled == 1 and app.inside == 0
            app.go.set()
            assert (await ask(client)).status_code == 200

    asyncio.run(run())


def test_a_client_that_leaves_frees_its_place() -> None:
    async def run() -> None:
        app = App()
        app.go.clear()
        async with gate(app, waiting=0) as client:
            task = asyncio.create_task(ask(client))
            while not app.inside:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            app.go.set()
            assert (await ask(client)).status_code == 200
        assert app.cancelled == 1

    asyncio.run(run())


def test_the_error_says_no_more_than_a_hundred_characters_of_a_model() -> None:
    async def run() -> None:
        async with gate(App()) as client:
            response = await ask(client, model={"x": "y" * 100_000})
            assert len(json.dumps(response.json())) < 500

    asyncio.run(run())
