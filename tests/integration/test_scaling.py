"""Autoscaling for real: no engine while nobody asks, more under load, and none of what is under way is lost."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipelines.recipe import Serve
from serving.listening import Http, check_port
from serving.settings import Bounds, Endpoint
from tests import ports, tiny
from tests.asking import running

pytestmark = pytest.mark.timeout(900)
LENGTH = 512
# Neither an end token nor a limit that a test would wait for
LONG: dict[str, Any] = {"model": "a", "prompt": "1 2 3", "max_tokens": 400, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from cluster.session import session
    from serving import endpoint

    models = {"a": str(tiny.model_dir(tmp_path_factory.mktemp("model")))}
    what = Endpoint(
        models=models, max_model_len=LENGTH, max_num_seqs=2, min_replicas=0, max_replicas=2, idle_seconds=4,
        timeout_seconds=300,
    )  # fmt: skip
    http = Http(port=ports.free())
    with session("local", None):
        with ThreadPoolExecutor(1) as pool, endpoint.endpoint(what, http) as base_url:
            yield base_url
            late = pool.submit(client(base_url).completions.create, **LONG, n=16)
            time.sleep(2)
            began = time.monotonic()
        assert late.exception() and time.monotonic() - began < 20, "the end does not wait for what is under way"
        check_port("127.0.0.1", http.port)


def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=400)


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for `condition`; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "not in time"
        time.sleep(0.2)
    return time.monotonic() - began


def test_replicas_rise_and_fall_with_the_load(url: str) -> None:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health") as answer:
        assert json.load(answer) == {"status": "ready"}, "a model that rests is ready"
    assert running() == 0 and [model.id for model in client(url).models.list()] == ["a"]
    first = client(url).completions.create(model="a", prompt="1", max_tokens=2)
    assert first.usage.completion_tokens > 0 and running() == 1, "the first request waited for its engine"

    enough, answered = threading.Event(), []

    def ask(_: int) -> None:
        while not enough.is_set():
            answered.append(client(url).completions.create(**LONG).usage.completion_tokens)

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number) for number in range(8)]
        try:
            rose = until(lambda: running() == 2, 300)
        finally:
            enough.set()
        for one in asking:
            one.result()
    assert set(answered) == {400}, "every request was answered in full"

    with ThreadPoolExecutor(1) as pool:  # sixteen answers on two seats: longer than an engine too many is kept
        late = pool.submit(lambda: client(url).completions.create(**LONG, n=16))
        fell = until(lambda: running() < 2, 120)
        assert not late.done()
        assert late.result().usage.completion_tokens == 16 * 400, "what is under way is not lost"
    rested = until(lambda: running() == 0, 120)
    print(f"second engine after {rose:.0f} s, gone after {fell:.0f} s, none after {rested:.0f} s")
    assert client(url).completions.create(model="a", prompt="1", max_tokens=2).usage.completion_tokens > 0


def test_engines_that_the_gpus_do_not_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from serving import engine

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 3.0})
    engine.check_room(3, 1)
    with pytest.raises(RuntimeError, match=r"2 engines of 2 GPU\(s\) each, but the cluster has 3 GPU\(s\); lower"):
        engine.check_room(2, 2)


def test_options_of_one_engine_are_fixed() -> None:
    from serving import scaling

    assert scaling.options(Bounds(max_num_seqs=16))["num_replicas"] == 1
    scaled = scaling.options(Bounds(max_num_seqs=16, min_replicas=0, max_replicas=4, timeout_seconds=60))
    assert "num_replicas" not in scaled and scaled["graceful_shutdown_timeout_s"] == 60.0
    assert scaled["autoscaling_config"]["target_ongoing_requests"] == pytest.approx(12.8)


def test_least_is_no_more_than_most() -> None:
    with pytest.raises(ValueError, match="min_replicas = 3 is more than max_replicas = 2; raise max_replicas"):
        Serve(min_replicas=3, max_replicas=2)
