"""The client against a small HTTP server that misbehaves as endpoints do."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving import client, endpoint, listening


class Server(ThreadingHTTPServer):
    """Echoes prompts; `trouble` maps a prompt to the statuses it gets before it gets an answer."""

    daemon_threads = True

    def __init__(self, trouble: dict[str, list[int]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble, self.asked, self.lock = trouble, Counter[str](), threading.Lock()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.now = self.most = 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            self.server.asked[prompt] += 1
            self.server.bodies.append((self.path, body))
            trouble = self.server.trouble.get(prompt, [])
            status = trouble.pop(0) if trouble else 200
        threading.Event().wait(0.02)
        with self.server.lock:
            self.server.now -= 1
        if status == 0:  # hang up without a word
            self.close_connection = True
            return
        said = f"echo {prompt}"
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": len(prompt) + 2}
        answer = {"id": "1", "object": "x", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}
        reply = json.dumps(answer if status == 200 else {"error": {"message": f"status {status}"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(trouble: dict[str, list[int]] | None = None) -> Iterator[tuple[Server, str]]:
    server = Server(trouble or {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_answers_come_in_the_order_of_the_prompts_and_few_are_in_flight() -> None:
    seen: list[str] = []
    with serving() as (server, url):
        found = client.ask(url, "m", [f"p{i}" for i in range(40)], 8, 5, lambda answer: seen.append(answer.text))
    assert [answer.text for answer in found] == [f"echo p{i}" for i in range(40)]
    assert found[10] == client.Answer("echo p10", 3, 2, "stop")
    assert sorted(seen) == sorted(answer.text for answer in found)
    assert 2 <= server.most <= 5


def test_messages_go_to_chat_and_texts_to_completions() -> None:
    with serving() as (server, url):
        found = client.ask(url, "m", ["plain", [{"role": "user", "content": "chatty"}]], 7, 1)
    assert [answer.text for answer in found] == ["echo plain", "echo chatty"]
    assert [path for path, _ in server.bodies] == ["/v1/completions", "/v1/chat/completions"]
    assert all(body["temperature"] == 0 and body["max_tokens"] == 7 for _, body in server.bodies)


def test_busy_broken_and_lost_requests_are_tried_again() -> None:
    with serving({"a": [429, 503], "b": [500], "c": [0, 0]}) as (server, url):
        found = client.ask(url, "m", ["a", "b", "c", "d"], 8, 4)
    assert [answer.text for answer in found] == ["echo a", "echo b", "echo c", "echo d"]
    assert server.asked == {"a": 3, "b": 2, "c": 3, "d": 1}


def test_a_request_that_can_never_work_is_refused_once_and_the_others_go_on() -> None:
    with serving({"long": [400]}) as (server, url):
        found = client.ask(url, "m", ["long", "short"], 8, 2)
    assert found[0].finish_reason == "refused" and "status 400" in found[0].error
    assert found[1].text == "echo short"
    assert server.asked["long"] == 1


def test_an_endpoint_that_stays_broken_is_an_error_that_names_it() -> None:
    with serving({"a": [500] * 9}) as (_, url), pytest.raises(RuntimeError, match="no longer answers for model m"):
        client.ask(url, "m", ["a", "b"], 8, 2, retries=2)


def test_nothing_asked_nothing_answered() -> None:
    assert client.ask("http://127.0.0.1:9/v1", "m", [], 8, 4) == []


def test_a_port_in_use_is_named_with_its_remedy() -> None:
    with serving() as (server, _):
        port = server.server_address[1]
        with pytest.raises(OSError, match=rf"port {port} on 127.0.0.1 is in use.*serve.port="):
            listening.check_port("127.0.0.1", port)
    listening.check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 203\.0\.113\.7:8000"):
        listening.check_port("203.0.113.7", 8000)


def test_the_snippets_name_the_address_and_a_model() -> None:
    shown = endpoint.how_to_ask("http://127.0.0.1:8000/v1", ["teacher", "sdd"])
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in shown and '"model": "teacher"' in shown
    compiled = shown.split("from openai", 1)[1].split("\n\nCtrl-C", 1)[0]
    compile("from openai" + compiled, "snippet", "exec")
