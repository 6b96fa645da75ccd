"""The gate before a small ASGI application, over HTTP as httpx speaks it to ASGI."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import accounts
from serving.accounts import Accounts
from serving.gate import Gate, Limits

KEY = "sk-ann-0123456789abcdef"
NARROW = "sk-bob-0123456789abcdef"
JSON = {"Content-Type": "application/json"}


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
    made = Gate(app, {"a": "a", "b": "b"}, Limits(**{"seats": 1, "waiting": 1, "output_tokens": 100, **limits}), keys)
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
        f'[[key]]\nname = "bob"\nkey = "{NARROW}"\nmodels = ["b"]\nrequests_per_minute = 3\ntokens_per_minute = 150\n'
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
            refused(await client.post("/health", json={"model": "a"}), 401, "missing_api_key")
            refused(await ask(client, NARROW), 404, "model_not_found")
            refused(await ask(client, NARROW, model=None), 400, "missing_model")
            assert (await ask(client, NARROW, model="b", max_tokens=1)).status_code == 200
            keys.write_text(f'[[key]]\nname = "new"\nkey = "{NARROW}"\n')
            refused(await ask(client, KEY), 401, "invalid_api_key")
            assert (await ask(client, NARROW)).status_code == 200, "read again without a restart"

    asyncio.run(run())


def test_a_key_for_no_model_here_gets_none_by_naming_none(keys: Path) -> None:
    async def run() -> None:
        only = Gate(App(), {"a": "a"}, Limits(seats=1, output_tokens=100), keys)
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
            assert (await ask(client, NARROW, model="b", max_tokens=40)).status_code == 200, (
                "its tokens were not counted"
            )
            late = await ask(client, NARROW, model="b", max_tokens=1)
            assert "3 requests a minute" in refused(late, 429, "rate_limit_exceeded")["message"]
            assert 19 <= int(late.headers["retry-after"]) <= 21
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
        ({"n": True}, 400, "invalid_type"),
        ({"top_k": 10**20}, 400, "invalid_value"),
        ({"seed": -(2**63) - 1}, 400, "invalid_value"),
        ({"response_format": {"x": "y" * 70_000}}, 400, "invalid_value"),
    ],
)
def test_caps(body: dict[str, Any], status: int, code: str) -> None:
    async def run() -> None:
        async with gate(App()) as client:
            refused(await ask(client, **body), status, code)

    asyncio.run(run())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"[" * 100_000, b"NaN", b"{}{}", b'{"x": "\\ud83d"}']
)
def test_bodies_that_are_no_json_objects(body: bytes) -> None:
    async def run() -> None:
        async with gate(App()) as client:
            sent = await client.post("/v1/completions", content=body, headers=JSON)
            refused(sent, 400, "invalid_json")

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
            whole = await client.post("/v1/completions", content=b" " * 10_001, headers=JSON)
            refused(whole, 413, "request_too_large")
            refused(await client.post("/v1/completions", content=endless(), headers=JSON), 413, "request_too_large")
            for lie in ("minus one", "0" * 5000 + "2"):
                lied = {"Content-Length": lie, **JSON}
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


def test_what_is_no_json_and_headers_that_are_no_ascii_are_refused() -> None:
    async def run() -> None:
        async with gate(App()) as client:
            for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonl"):
                sent = await client.post("/v1/completions", content=b'{"model": "a"}', headers={"Content-Type": kind})
                refused(sent, 415, "unsupported_media_type")
            for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
                sent = await client.post("/v1/completions", content=b'{"model": "a"}', headers={"Content-Type": kind})
                assert sent.status_code == 200
            strange = await client.get("/v1/models", headers={"X-Request-Id": b"\xff"})
            assert "x-request-id" in refused(strange, 400, "invalid_header")["message"]

    asyncio.run(run())


def test_what_is_written_is_paid_also_beyond_a_minutes_worth(keys: Path) -> None:
    """More than a minute's worth is let in where the bucket is full, and is a debt then."""

    async def run() -> None:
        async with gate(App(), keys, seats=8, output_tokens=4096) as client:
            assert (await ask(client, NARROW, model="b", max_tokens=600)).status_code == 200
            late = await ask(client, NARROW, model="b", max_tokens=1)
            refused(late, 429, "rate_limit_exceeded")
            assert 179 <= int(late.headers["retry-after"]) <= 182, "451 tokens, at 2.5 a second"

    asyncio.run(run())


def test_tokens_are_counted_as_the_path_writes_them(keys: Path) -> None:
    async def run() -> None:
        async with gate(App(), keys) as client:
            headers = {"Authorization": f"Bearer {NARROW}"}
            asked = {"model": "b", "max_tokens": None, "max_completion_tokens": 1}
            for path, status in (("/tokenize", 200), ("/v1/chat/completions", 200), ("/v1/completions", 200)):
                assert (await client.post(path, json=asked, headers=headers)).status_code == status
            made = client._transport.app.rates.buckets  # type: ignore[attr-defined]
            assert [round(one.level) for (_, what, _), one in made.items() if what == "tokens"] == [150 - 1 - 100]

    asyncio.run(run())


def test_a_client_that_leaves_before_its_body_is_whole_asks_nothing() -> None:
    app, sent = App(), []

    async def run() -> None:
        made = Gate(app, {"a": "a"}, Limits(seats=1, output_tokens=100))
        scope = {"type": "http", "method": "POST", "path": "/v1/completions",
                 "headers": [(b"content-type", b"application/json")]}  # fmt: skip
        messages = [{"type": "http.request", "body": b'{"model":"a"}', "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await made(scope, receive, send)

    asyncio.run(run())
    assert app.most == 0 and sent == []


def figures(text: str) -> dict[str, float]:
    """The samples of a Prometheus text, as its own parser reads them."""
    read = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {f"{s.name}{sorted(s.labels.values())}": s.value for s in read if not s.name.endswith("_bucket")}


def test_what_came_is_told_in_figures_and_in_a_log(keys: Path, tmp_path: Path) -> None:
    """And neither what was asked nor with which key; the log may be moved away meanwhile."""
    app, log = App(), tmp_path / "access.jsonl"

    async def run() -> tuple[dict[str, float], dict[str, float]]:
        made = Gate(app, {"a": "a", "b": "b"}, Limits(seats=1, waiting=2, output_tokens=100), keys, log)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://gate") as client:
            await client.get("/v1/models?secret")
            assert (await ask(client, KEY, prompt="quagga", n=2)).status_code == 200
            log.rename(tmp_path / "moved.jsonl")
            await ask(client, NARROW, prompt="quagga", model="quagga")
            app.go.clear()
            waiting = asyncio.create_task(ask(client, KEY, prompt="quagga", n=2))
            while not app.inside:
                await asyncio.sleep(0)
            await ask(client, KEY, n=2)
            headers = {"Authorization": f"Bearer {KEY}"}
            assert (await client.get("/metrics")).status_code == 401, "traffic is nobody's business"
            during = await client.get("/metrics", headers=headers)
            assert during.headers["content-type"].startswith("text/plain")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            return figures(during.text), figures((await client.get("/metrics", headers=headers)).text)

    during, after = asyncio.run(run())
    assert (during["regrow_places['a']"], during["regrow_places['b']"], after["regrow_places['a']"]) == (2, 0, 0)
    wanted = {
        "['200', 'a']": 1,
        "['', '401']": 2,
        "['', '404']": 1,
        "['429', 'a']": 1,
        "['', '200']": 1,
        "['499', 'a']": 1,
    }
    assert {name: after[f"regrow_requests_total{name}"] for name in wanted} == wanted
    assert after["regrow_request_seconds_count['a']"] == after["regrow_first_byte_seconds_count['a']"] == 1
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("moved.jsonl", "access.jsonl"))
    lines = [json.loads(line) for line in first + second]
    told = [(line["key"], line["path"], line["model"], line["places"], line["status"], line["whole"]) for line in lines]
    assert told == [
        ("", "/v1/models", "", 0, 401, True), ("ann", "/v1/completions", "a", 2, 200, True),
        ("bob", "/v1/completions", "", 0, 404, True), ("ann", "/v1/completions", "a", 0, 429, True),
        ("", "/metrics", "", 0, 401, True), ("ann", "/metrics", "", 0, 200, True),
        ("ann", "/v1/completions", "a", 2, 499, False), ("ann", "/metrics", "", 0, 200, True),
    ]  # fmt: skip
    for secret in ("quagga", "secret", KEY, NARROW):
        assert not any(secret in line for line in first + second)


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    made = Accounts(("a",), lambda model: 0)
    there = {sample.name for family in made.registry.collect() for sample in family.samples}
    there |= {"regrow_requests_total", *(f"regrow_{name}_seconds_bucket" for name in ("request", "first_byte"))}
    text = (Path(accounts.__file__).parent / "grafana.json").read_text()
    asked = set(
        re.findall(r"regrow_[a-z_]+", " ".join(t["expr"] for p in json.loads(text)["panels"] for t in p["targets"]))
    )
    assert len(asked) == 4 and asked <= there


def test_bodies_together_have_a_bound() -> None:
    async def run() -> None:
        app = App()
        app.go.clear()
        async with gate(app, held_bytes=150, waiting=9) as client:
            first = asyncio.create_task(ask(client, prompt="x" * 80))
            while not app.inside:
                await asyncio.sleep(0)
            refused(await ask(client, prompt="x" * 80), 429, "queue_full")
            app.go.set()
            assert (await first).status_code == 200
            assert (await ask(client, prompt="x" * 80)).status_code == 200

    asyncio.run(run())


INTERNAL = "Message: no such thing (Request ID: 7), Internal exception: ray.llm.X, original exception: /work/secret.py"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            {"error": {"message": INTERNAL, "type": "X", "param": "n", "code": 400}},
            "invalid_value",
            "no such thing",
        ),
        (404, {"detail": "Not Found"}, "not_found", "Not Found"),
        (405, {"detail": "Method Not Allowed"}, "method_not_allowed", "Method Not Allowed"),
        (422, {"detail": [{"loc": ["x"]}]}, "invalid_value", "[{'loc': ['x']}]"),
        (500, {"error": {"message": INTERNAL}}, "internal_error", "the server failed at this request"),
        (500, "Traceback: /work/secret.py", "internal_error", "the server failed at this request"),
        (503, "overloaded", "overloaded", "no replica is free for this request; try again"),
    ],
)
def test_errors_of_the_application_keep_what_lies_behind_them(status: int, body: Any, code: str, message: str) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-inner", b"1")]})
        await send({"type": "http.response.body", "body": data[:5], "more_body": True})
        await send({"type": "http.response.body", "body": data[5:]})

    async def run() -> None:
        async with gate(app) as client:
            answer = await ask(client)
            error = refused(answer, status, code)
            assert error["message"] == message and "x-inner" not in answer.headers
            assert ("retry-after" in answer.headers) == (status == 503)

    asyncio.run(run())
