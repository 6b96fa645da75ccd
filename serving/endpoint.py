"""Models up behind one endpoint for as long as a block runs, or until Ctrl-C."""

import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from serving.gate import Limits

APP = "regrow"
LAST_SECONDS = 4.0  # for what is under way when all ends
QUIET = ("ray", "ray.serve", "vllm")


class Tls(NamedTuple):
    """A certificate (with its chain) and its private key, PEM files on the node that listens."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise ValueError where the two cannot be read or do not belong together."""
        try:
            # The password is asked for nowhere: a key that needs one is refused, and nobody waits for an answer.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise ValueError(f"{self.certificate} and {self.key}: {why}") from error

    def options(self) -> dict[str, str]:
        """As Serve's proxy takes them."""
        return {"ssl_certfile": str(self.certificate.resolve()), "ssl_keyfile": str(self.key.resolve())}


class Settings(Protocol):
    """What a recipe's `serve` section says."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def queue(self) -> int: ...
    @property
    def max_output_tokens(self) -> int | None: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def timeout_seconds(self) -> float: ...
    @property
    def min_replicas(self) -> int: ...
    @property
    def max_replicas(self) -> int: ...
    @property
    def idle_seconds(self) -> float: ...


@contextmanager
def endpoint(
    models: dict[str, Path],
    settings: Settings,
    max_model_len: int,
    dtype: str = "auto",
    tensor_parallel: int = 1,
    keys: Path | None = None,
    tls: "Tls | None" = None,
    log: Path | None = None,
) -> Iterator[str]:
    """Serve `models` ({name: checkpoint directory}) inside a Ray session, to whom has one of the API keys in the
    file `keys` (None: to all), over `tls` where it is given, with an access log in the file `log`; yields
    `http://host:port/v1` once every model runs (those that may have no engine start at their first request), and shuts
    Serve down at the end.

    Raises OSError where the port is taken, RuntimeError where an engine does not start."""
    check_port(settings.host, settings.port)
    import ray

    if not ray.is_initialized():
        raise RuntimeError("no Ray session: open one (cluster.session.session) around the endpoint")
    from ray import serve

    try:
        with _own_logging():
            from serving import app, scaling

            engines = (max_model_len, settings.max_num_seqs, dtype, tensor_parallel)
            bounds = limits(settings, max_model_len)
            scaled = scaling.Scaling(settings.min_replicas, settings.max_replicas, settings.idle_seconds)
            application = app.build(models, *engines, limits=bounds, keys=keys, scaled=scaled, log=log)
        options = {"host": settings.host, "port": settings.port, **(tls.options() if tls else {})}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=app.LOGGING)
        _run(application, list(models))
        base_url = f"{'https' if tls else 'http'}://{reachable(settings.host)}:{settings.port}/v1"
        open_to_all = keys is None and tls is None  # with keys no answer is to be had without one
        for name in models if open_to_all and settings.min_replicas else ():
            _wait(base_url, name)
        yield base_url
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


def serve_forever(
    models: dict[str, Path],
    settings: Settings,
    max_model_len: int,
    dtype: str = "auto",
    tensor_parallel: int = 1,
    keys: Path | None = None,
    tls: "Tls | None" = None,
    log: Path | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; prints the address and how to ask it. Once all is down, the
    KeyboardInterrupt goes on to the caller, or for SIGTERM a SystemExit(143)."""

    def terminated(*_: object) -> None:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, terminated)  # Ray's own handler would leave with another status
    try:
        each = settings.min_replicas
        how = f"{each} engine(s) each" if each else "no engine before the first request"
        print(f"starting {len(models)} model(s): {', '.join(models)}, {how} …", flush=True)
        with endpoint(models, settings, max_model_len, dtype, tensor_parallel, keys, tls, log) as base_url:
            print(how_to_ask(base_url, list(models), keys is not None), flush=True)
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


def limits(settings: Settings, max_model_len: int) -> "Limits":
    """What the endpoint's gate lets in; no answer is longer than the model's length."""
    from serving.gate import Limits

    tokens = min(settings.max_output_tokens or max_model_len, max_model_len)
    return Limits(
        seats=settings.max_num_seqs * settings.max_replicas,
        waiting=settings.queue,
        body_bytes=settings.max_body_bytes,
        output_tokens=tokens,
        seconds=settings.timeout_seconds,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Raises OSError where something listens on the port already, or the address is not this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's remains do not count
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                message = f"cannot listen on {host}:{port} ({error.strerror}); set serve.host"
                raise OSError(error.errno, message) from error
            message = f"port {port} on {host} is in use; stop what listens there, or choose another with serve.port=N"
            raise OSError(errno.EADDRINUSE, message) from error


def reachable(host: str) -> str:
    """The address by which this machine asks an endpoint that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Keep this process's logging as it is: on import, ray.llm makes the root logger print every INFO line
    as JSON (each HTTP request, say), and Serve's progress, a line a second, would drown the stage's."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)


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
