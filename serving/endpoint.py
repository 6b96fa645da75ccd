"""Models up behind one endpoint for as long as a block runs, or until Ctrl-C."""

import json
import logging
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from serving import routed
from serving.listening import Http, check_port
from serving.settings import Endpoint

APP = "regrow"
LAST_SECONDS = 4.0  # for what is under way when all ends
QUIET = ("ray", "ray.serve", "vllm")


@contextmanager
def endpoint(what: Endpoint, http: Http) -> Iterator[str]:
    """Serve `what` inside a Ray session at `http`; yields `http://host:port/v1` once every model runs (those that may
    have no engine start at their first request), and shuts Serve down at the end.

    Raises OSError where the port is taken, ValueError for a routed model whose parts do not fit, RuntimeError where an
    engine does not start."""
    check_port(http.host, http.port)
    what = routed.expanded(what)
    import ray

    if not ray.is_initialized():
        raise RuntimeError("no Ray session: open one (cluster.session.session) around the endpoint")
    from ray import serve

    try:
        with _own_logging():
            from serving import app

            application = app.application(what, tries=1)  # half a minute each, and a second one tells no more
        serve.start(proxy_location="HeadOnly", http_options=http.options(), logging_config=app.LOGGING)
        _run(application, list(what.models))
        open_to_all = what.keys is None and http.tls is None  # with keys no answer is to be had without one
        for name in filter(what.least, what.models) if open_to_all else ():
            _wait(http.base_url(), name)
        yield http.base_url()
    finally:
        late = threading.Timer(LAST_SECONDS, _end_engines)
        late.start()
        serve.shutdown()
        late.cancel()


def _end_engines() -> None:
    """Kill what is left of the engines. One that may finish its requests when load falls must not do so for minutes
    when all ends: on a cluster that stays, Serve would take no application meanwhile."""
    import ray

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{APP}#"):
            with suppress(ValueError):  # it is gone
                ray.kill(ray.get_actor(actor["name"], actor["namespace"]))


def serve_forever(what: Endpoint, http: Http) -> None:
    """Serve until Ctrl-C or SIGTERM; prints the address and how to ask it. Once all is down, the
    KeyboardInterrupt goes on to the caller, or for SIGTERM a SystemExit(143)."""

    def terminated(*_: object) -> None:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, terminated)  # Ray's own handler would leave with another status
    try:
        each, resting = what.min_replicas, [name for name in what.models if not what.least(name)]
        how = f"{each} engine(s) each" if each else "no engine before the first request"
        if each and resting:
            how += f", but none of {', '.join(resting)} before the first request for it"
        print(f"starting {len(what.models)} model(s): {', '.join(what.models)}, {how} …", flush=True)
        with endpoint(what, http) as base_url:
            print(how_to_ask(base_url, list(what.engines), what.keys is not None), flush=True)
            threading.Event().wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        print("stopped", flush=True)


def how_to_ask(base_url: str, models: list[str], with_key: bool = False) -> str:
    """The address, a curl line and a Python snippet; `with_key` where one is needed, as $OPENAI_API_KEY."""
    header = ' -H "Authorization: Bearer $OPENAI_API_KEY"' if with_key else ""
    key = "" if with_key else ', api_key="none"'
    body = json.dumps({"model": models[0], "messages": [{"role": "user", "content": "What is 3 + 42 + 20?"}]})
    return f"""serving {", ".join(models)} at {base_url}

curl {base_url}/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'

from openai import OpenAI
client = OpenAI(base_url="{base_url}"{key})
asked = [{{"role": "user", "content": "What is 3 + 42 + 20?"}}]
reply = client.chat.completions.create(model="{models[0]}", messages=asked)
print(reply.choices[0].message.content)

Ctrl-C stops it."""


@contextmanager
def _own_logging() -> Iterator[None]:
    """Keep this process's logging as it is: on import, ray.llm makes the root logger print every INFO line
    as JSON (each HTTP request, say), and Serve's progress, a line a second, would drown the stage's."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    quiet = [logging.getLogger(name) for name in QUIET]
    try:
        for one in quiet:
            one.setLevel(logging.ERROR)
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for one in quiet:
            one.setLevel(logging.ERROR)


def _run(application: Any, names: list[str]) -> None:
    """Deploy and wait until all replicas run."""
    from ray import serve

    try:
        serve.run(application, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"an engine did not start ({', '.join(names)}): {_reason()}") from error


def _reason() -> str:
    """The last words of the deployment that failed, as Serve has them."""
    from ray import serve

    application = serve.status().applications.get(APP)
    deployments = application.deployments.values() if application else []
    lines = [line.strip() for deployment in deployments for line in deployment.message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["see the logs of Ray Serve"])[-1]


def _wait(base_url: str, model: str, seconds: float = 60.0) -> None:
    """Until `model` completes one token."""
    body = json.dumps({"model": model, "prompt": "1", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{base_url}/completions", body, {"Content-Type": "application/json"})
    began = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"model {model} is up but does not answer at {base_url}: {error}") from error
            time.sleep(0.3)
