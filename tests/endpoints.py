"""An OpenAI-compatible endpoint that misbehaves as endpoints do: a real HTTP server on a port of its own."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving.writers.remote import Remote
from serving.writers.request import Request, Sampling


class Server(ThreadingHTTPServer):
    """Echoes prompts. `plan` maps a prompt to what it gets before it gets answers: a status, "drop", "slow", a
    body, or what to change in the answer. `always` is what every prompt gets, the plan's included, while it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.plan: dict[str, list[Any]] = {}
        self.always: Any = None
        self.headers = {"retry-after-ms": "1"}
        self.said = "no"
        self.asked, self.lock = Counter[str](), threading.Lock()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str] = set()
        self.now = self.most = 0
        self.slow = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        if self.server.always:
            return self.reply(self.server.always, {"error": {"message": self.server.said}})
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in ("m", "other")]
        self.reply(200 if self.path == "/v1/models" else 404, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            self.server.asked[prompt] += 1
            self.server.bodies.append((self.path, body))
            steps = self.server.plan.get(prompt, [])
            step = self.server.always or (steps.pop(0) if steps else {})
        threading.Event().wait(0.005)
        with self.server.lock:
            self.server.now -= 1
        if step == "slow":
            self.server.slow.wait(30)
        if step in ("drop", "slow"):
            self.close_connection = True
        elif isinstance(step, int):
            self.reply(step, {"error": {"message": self.server.said}})
        elif isinstance(step, bytes):
            self.send(200, step)
        else:
            self.reply(200, answer(body, prompt, chat) | step)

    def reply(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, json.dumps(body).encode())

    def send(self, status: int, written: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        for name, value in self.server.headers.items() if status != 200 else ():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def answer(body: dict[str, Any], prompt: str, chat: bool) -> dict[str, Any]:
    choices = []
    for place in range(body.get("n", 1)):
        said = f"echo {prompt} {body.get('seed', 0) + place}"
        choice = {"index": place, "finish_reason": "stop"}
        choices.append(choice | ({"message": {"role": "assistant", "content": said}} if chat else {"text": said}))
    usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    return {"id": "1", "object": "x", "created": 0, "model": "m", "choices": choices, "usage": usage}


@contextmanager
def serving() -> Iterator[Server]:
    """The server, while the block runs."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.slow.set()
        server.shutdown()
        server.server_close()


async def started(server: Server, sampling: Sampling | None = None, **given: Any) -> Remote:
    writer = Remote(server.url, "m", sampling or Sampling(), **given)
    await writer.start()
    return writer


def run(job: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(job, 60)

    return asyncio.run(bounded())


def ask(server: Server, *prompts: Any, sampling: Sampling | None = None, **given: Any) -> list[Any]:
    """The answer to each prompt, or the error it raised, all asked together."""

    async def job() -> list[Any]:
        writer = await started(server, sampling, **given)
        asked = [writer.write(Request(str(place), prompt)) for place, prompt in enumerate(prompts)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        await writer.close()
        return ends

    return run(job())


def texts(ends: list[Any]) -> list[str]:
    return [end.samples[0].text for end in ends]
