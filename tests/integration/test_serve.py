"""Two tiny models behind one endpoint: one Ray cluster, one application, real engines on CPU."""

import importlib.util
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from pipelines import evaluate, lm_tasks
from pipelines.recipe import Recipe
from serving.listening import Http
from serving.settings import Endpoint
from tests import browser, drivers, ports, tiny

MARK = "zebra 7731 quagga"  # stands in prompts, and must stand in no log
TASKS = Path(lm_tasks.__file__).parent / "recipes" / "lm_tasks"
LENGTH, DEADLINE = 384, 40.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    # Weights ten times the usual spread: the best token then leads by far more than rounding.
    home = tmp_path_factory.mktemp("models")
    return {name: tiny.model_dir(home / name, seed=seed, initializer_range=0.2) for seed, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module")
def url(models: dict[str, Path]) -> Iterator[str]:
    from cluster.session import session
    from serving import endpoint

    what = Endpoint(
        models={name: str(path) for name, path in models.items()}, max_model_len=LENGTH, max_num_seqs=16,
        max_body_bytes=100_000, queue=1000, timeout_seconds=DEADLINE, access_log=str(models["a"].with_name("log")),
    )  # fmt: skip
    with session("local", None), endpoint.endpoint(what, Http(port=ports.free())) as base_url:
        yield base_url


def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key="none")


def loaded(model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval(), AutoTokenizer.from_pretrained(model)


def greedy(model: Path, ids: list[int], new: int) -> list[int]:
    """transformers' greedy continuation, without the end token."""
    import torch

    net, words = loaded(model)
    made = net.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)[0, len(ids) :].tolist()
    return [token for token in made if token != words.eos_token_id]


def log_probabilities(model: Path, ids: list[int]) -> list[float]:
    """transformers' log-probability of each token after the first."""
    import torch

    net, _ = loaded(model)
    with torch.no_grad():
        scores = net(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return scores[torch.arange(len(scores)), torch.tensor(ids[1:])].tolist()


def log_likelihood(model: Path, context: list[int], continuation: list[int]) -> float:
    return sum(log_probabilities(model, context + continuation)[len(context) - 1 :])


def test_task_files_are_what_their_function_makes() -> None:
    spec = importlib.util.spec_from_file_location("tiny_tasks", TASKS / "tiny.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (TASKS / "tiny_answers.jsonl").read_text() == made.render(made.answers())
    assert (TASKS / "tiny_choices.jsonl").read_text() == made.render(made.choices())


def test_both_models_are_listed(url: str) -> None:
    assert {model.id for model in client(url).models.list()} == {"a", "b"}


def test_chat_is_the_models_own_greedy_text(url: str, models: dict[str, Path]) -> None:
    messages = [{"role": "user", "content": f"{MARK}: what is 3 + 4?"}]
    said = {}
    for name, path in models.items():
        _, words = loaded(path)
        ids = words.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        reply = client(url).chat.completions.create(model=name, messages=messages, max_tokens=24, temperature=0)
        said[name] = reply.choices[0].message.content
        assert said[name] == words.decode(greedy(path, ids, 24), skip_special_tokens=True)
        assert reply.usage.prompt_tokens == len(ids)
    assert said["a"] != said["b"]


def test_completions_are_greedy_token_by_token(url: str, models: dict[str, Path]) -> None:
    for name, path in models.items():
        _, words = loaded(path)
        for prompt in ("What is 17 + 5?", f"{MARK} 1 2 3", "x"):
            ids = words(prompt)["input_ids"]
            more = {"return_token_ids": True}
            reply = client(url).completions.create(
                model=name, prompt=prompt, max_tokens=32, temperature=0, extra_body=more
            )
            made = [token for token in reply.choices[0].token_ids if token != words.eos_token_id]
            assert made == greedy(path, ids, 32)


def test_echoed_log_probabilities_are_those_of_transformers(url: str, models: dict[str, Path]) -> None:
    for name, path in models.items():
        ids = loaded(path)[1](f"{MARK} and 12 + 30 = 42")["input_ids"]
        asked: dict[str, Any] = {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        found = client(url).completions.create(model=name, **asked).choices[0].logprobs.token_logprobs
        assert len(found) == len(ids) + 1 and found[0] is None
        # 1e-3: fp32 on both sides, other kernels and other orders of summing
        assert found[1:-1] == pytest.approx(log_probabilities(path, ids), abs=1e-3)


def test_other_origins_get_no_permission(url: str) -> None:
    for method in ("GET", "OPTIONS"):
        asked = urllib.request.Request(f"{url}/models", method=method, headers={"Origin": "http://elsewhere.example"})
        asked.add_header("Access-Control-Request-Method", "GET")
        try:
            headers = urllib.request.urlopen(asked).headers
        except urllib.error.HTTPError as error:
            headers = error.headers
        assert not [key for key in headers if key.lower().startswith("access-control")]


SAID: dict[str, Any] = {"model": "a", "prompt": "1", "max_tokens": 4}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b" " * 100_001, 413),
        ({"model": "c"}, 404),
        ({"model": None}, 400),
        ({"max_tokens": 10**9}, 400),
        ({"max_tokens": -1}, 400),
        ({"max_tokens": "many"}, 400),
        ({"n": 10_000}, 400),
        ({"temperature": -1}, 400),
        ({"temperature": float("nan")}, 400),
        ({"prompt": {"a": 1}}, 400),
        ({"logprobs": 10_000}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}}, 400),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, 400),
        ({"prompt": "half a pair \ud800"}, 400),
        ({"request_id": "\ud83d"}, 400),
        ({"top_k": 10**20}, 400),
        ({"messages": None}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "zzz", "zzz": MARK}]}]}, 400),
        ({"messages": [{"role": "user", "content": "1"}], "chat_template_kwargs": {"conversation": "x"}}, 400),
        ({"messages": [{"role": MARK, "content": {"a": MARK}}]}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_apis_own_shape(url: str, body: Any, status: int) -> None:
    data = body if isinstance(body, bytes) else json.dumps(SAID | body).encode()
    way = "chat/completions" if isinstance(body, dict) and "messages" in body else "completions"
    refused(urllib.request.Request(f"{url}/{way}", data, {"Content-Type": "application/json"}), status)
    assert client(url).completions.create(**SAID).usage.completion_tokens > 0, "the engine is well"


def refused(asked: urllib.request.Request, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(asked, timeout=60)
    said = answer.value.read().decode()
    assert answer.value.code == status, said
    error = json.loads(said)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and len(said) < 1500
    for inner in ("Traceback", "ray.", "/site-packages", "0x"):
        assert inner not in said


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("DELETE", "/models", {}, 405),
        ("POST", "/completions", {"Content-Type": "text/plain"}, 415),
        ("POST", "/completions", {"Content-Type": "application/json", "Content-Length": "0" * 5000 + "2"}, 413),
    ],
)
def test_other_ways_of_asking_wrong(url: str, method: str, path: str, headers: dict[str, str], status: int) -> None:
    data = json.dumps(SAID).encode() if method == "POST" else None
    refused(urllib.request.Request(url + path, data, headers, method=method), status)


def test_balancers_learn_that_it_is_ready(url: str) -> None:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health") as answer:
        assert answer.status == 200 and json.load(answer) == {"status": "ready"}


def test_an_engine_on_cpu_is_one_process(url: str) -> None:
    assert len(drivers.processes("VLLM::EngineCore")) == 2 and not drivers.processes("VLLM::Worker")


def engines() -> float:
    """CPU seconds that the engines' processes have used."""
    every = drivers.processes("VLLM::")
    assert every, "no engine is seen"
    return sum(sum(one.cpu_times()[:2]) for one in every)


def spent(until_idle: float = 2.0) -> float:
    """CPU seconds that the engines use from now on until they rest."""
    first = last = engines()
    while True:
        time.sleep(until_idle)
        now = engines()
        if now - last < 0.05 * until_idle:
            return now - first
        last = now


LONG: dict[str, Any] = {"model": "a", "prompt": ["1 2 3"] * 4, "max_tokens": 360, "n": 16, "temperature": 1.0}
ENDLESS = {"ignore_eos": True}


def test_an_engine_stops_when_its_reader_leaves(url: str) -> None:
    began = engines()
    client(url).completions.create(**LONG, extra_body=ENDLESS)
    whole = engines() - began
    stream = client(url).completions.create(**LONG, extra_body=ENDLESS, stream=True)
    next(iter(stream))
    stream.close()
    assert spent() < 0.5 * whole


def test_an_engine_stops_when_the_deadline_has_passed(url: str) -> None:
    """A request for minutes of work gets its 504, and the next finds an engine that has nothing to do."""
    import openai

    asked = LONG | {"prompt": ["1 2 3"] * 60}
    with pytest.raises(openai.APIStatusError) as late:
        client(url).with_options(max_retries=0).completions.create(**asked, extra_body=ENDLESS)
    assert late.value.status_code == 504 and late.value.body["code"] == "deadline_exceeded"
    assert spent() < 5
    assert client(url).completions.create(**SAID).usage.completion_tokens > 0


def recipe(**more: Any) -> Recipe:
    asked = {"max_tokens": 16, "concurrency": 8, "lm_eval_limit": 5} | more
    return Recipe.model_validate(
        {
            "name": "t",
            "dataset": [{"name": "d", "source": "tiny-tasks"}],
            "prune": {"layers": 1},
            "teacher": {"max_model_len": LENGTH},
            "evaluate": asked,
        }
    )


def rows(text: str, answer: str) -> list[dict[str, Any]]:
    """Six test records of two tasks, a seventh that is too long and an eighth without a right answer."""
    base = {"context": "", "history": "", "reference": "", "kind": "text", "split": "test", "answer": answer}
    made = [{**base, "id": str(i), "task": f"task{i % 2}", "input": text} for i in range(6)]
    made.append({**base, "id": "6", "task": "task0", "input": f"{MARK} " * 100})
    return [*made, {**base, "id": "7", "task": "open", "input": text, "answer": "", "kind": "none"}]


def test_evaluate_scores_what_the_endpoint_says(url: str, models: dict[str, Path], tmp_path: Path) -> None:
    from pipelines import answers, prompts

    text = f"{MARK}: say something"
    _, words = loaded(models["a"])
    ids = words.apply_chat_template(prompts.answer(text), add_generation_prompt=True)["input_ids"]
    own = words.decode(greedy(models["a"], ids, 16), skip_special_tokens=True)
    asked = {"model": "a", "messages": prompts.answer(text), "max_tokens": 16, "temperature": 0}
    served = client(url).chat.completions.create(**asked).choices[0].message.content
    right = answers.extract(served, "text")
    summary = evaluate.score(recipe(), url, "a", models["a"], rows(text, right or "-"), tmp_path)
    items = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert [item["id"] for item in items] == [str(i) for i in range(8)]
    # Without a last character that the token limit cut in half: engine and tokenizer show it differently.
    whole = {item["text"].rstrip("\ufffd") for item in items if item["id"] != "6"}
    assert whole == {own.rstrip("\ufffd")}
    assert items[6]["finish_reason"] == "refused" and not items[6]["correct"] and summary["refused"] == 1
    scores = {row["task"]: row for row in json.loads((tmp_path / "scores.json").read_text())}
    assert set(scores) == {"task0", "task1"}
    hits = float(bool(right))
    assert scores["task1"]["value"] == hits and scores["task1"]["n"] == 3 and scores["task1"]["stderr"] == 0
    assert scores["task0"]["value"] == pytest.approx(hits * 3 / 4) and scores["task0"]["n"] == 4


def test_lm_eval_scores_through_the_endpoint(url: str, models: dict[str, Path], tmp_path: Path) -> None:
    tasks = (str(TASKS / "tiny_answers.yaml"), str(TASKS / "tiny_choices.yaml"))
    evaluate.score(recipe(lm_eval=tasks), url, "b", models["b"], [], tmp_path)
    scores = {row["task"]: row for row in json.loads((tmp_path / "scores.json").read_text())}
    assert scores["tiny_answers"]["metric"] == "exact_match" and scores["tiny_answers"]["n"] == 5
    _, words = loaded(models["b"])
    picked = []
    for line in (TASKS / "tiny_choices.jsonl").read_text().splitlines()[:5]:
        doc = json.loads(line)
        context = words.apply_chat_template([{"role": "user", "content": doc["question"]}], add_generation_prompt=True)
        found = [log_likelihood(models["b"], context["input_ids"], words(c)["input_ids"]) for c in doc["choices"]]
        picked.append(found.index(max(found)) == doc["label"])
    assert scores["tiny_choices"]["metric"] == "acc" and scores["tiny_choices"]["n"] == 5
    assert scores["tiny_choices"]["value"] == pytest.approx(sum(picked) / 5)


def test_lm_eval_log_likelihoods_are_those_of_transformers(url: str, models: dict[str, Path]) -> None:
    from lm_eval.api.instance import Instance

    asked, chat = lm_tasks.served(url, "a", models["a"], 8, LENGTH)
    assert chat
    pairs = [("What is 3 + 4?", " The answer is 7."), ("What is", " 1 + 2? The answer is 3."), (MARK, " 12")]
    found = asked.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    _, words = loaded(models["a"])
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        whole, first = words(context + continuation)["input_ids"], words(context)["input_ids"]
        direct = log_likelihood(models["a"], whole[: len(first)], whole[len(first) :])
        assert value == pytest.approx(direct, abs=5e-3)  # sums of up to 20 tokens, each within some 1e-4


def test_every_request_is_counted_and_logged(url: str, models: dict[str, Path]) -> None:
    asked = LONG | {"prompt": ["1 2 3"] * 60}  # minutes of work: it cannot be done when its reader leaves
    stream = client(url).completions.create(**asked, extra_body=ENDLESS, stream=True)
    next(iter(stream))
    stream.close()
    assert spent() < 20, "the line of a request is there once it has ended"
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics") as answer:
        figures = answer.read().decode()
    lines = [json.loads(line) for line in models["a"].with_name("log").read_text().splitlines()]
    for model in models:
        right = sum(line["model"] == model and line["status"] == 200 for line in lines)
        assert right and f'regrow_requests_total{{model="{model}",status="200"}} {float(right)}' in figures
    streamed = [line for line in lines if line["status"] == 200 and line["model"] and not line["whole"]]
    assert streamed and all(line["first_byte_seconds"] < line["seconds"] for line in streamed), "its reader left"
    assert MARK not in models["a"].with_name("log").read_text()


def test_the_status_page_in_a_browser(url: str, tmp_path: Path) -> None:
    """A card a model, and no word of the console: the page may do what it does."""
    root = url.removesuffix("v1")
    shown, console = browser.chromium(tmp_path, root, "--dump-dom", "--virtual-time-budget=9000")
    assert console == [] and shown.count("<article") == 2, shown[-3000:]
    for name in ("a", "b"):
        card = shown.split(f'data-model="{name}"', 1)[1].split("</article>")[0]
        assert "dot good" in card and "<dd>1 up</dd>" in card and "<dd>0 of 16 seats</dd>" in card
        assert "<polyline points" in card and "output tokens/s</dt><dd>0.0</dd>" in card
    with urllib.request.urlopen(root) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "prompt messages max_tokens max_completion_tokens min_tokens n best_of temperature top_p top_k min_p stop seed "
    "stream stream_options logprobs top_logprobs echo suffix logit_bias presence_penalty frequency_penalty user "
    "response_format structured_outputs tools tool_choice ignore_eos skip_special_tokens prompt_logprobs "
    "chat_template_kwargs add_generation_prompt bad_words priority request_id return_token_ids allowed_token_ids "
    "truncate_prompt_tokens documents reasoning_effort tokens text stop_token_ids detokenize length_penalty"
).split()
PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/embeddings", "/v1/score",
         "/v1/models", "/metrics", "/status", "/health", "/", "/v1/audio/transcriptions")  # fmt: skip
TOLD = (200, 400, 404, 405, 408, 413, 415, 422, 429, 501)


def fuzzed(url: str, examples: int) -> None:
    """Requests whose fields hold anything: no answer is a 500, and the engines are well afterwards."""
    import httpx
    from hypothesis import HealthCheck, given, settings

    counts = Counter[int]()
    sound = st.fixed_dictionaries({"model": st.sampled_from(("a", "b")), "max_tokens": st.just(2)})
    said = st.sampled_from(({"prompt": "1"}, {"messages": [{"role": "user", "content": "1"}]}, {"tokens": [65]}))
    strange = st.dictionaries(st.sampled_from(FIELDS), ANY | st.integers(0, 3), max_size=3)
    bodies = st.tuples(sound, said, strange).map(lambda parts: parts[0] | parts[1] | parts[2])
    with httpx.Client(base_url=url.removesuffix("/v1"), timeout=60) as asking:

        @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(st.sampled_from(PATHS), st.sampled_from(("POST",) * 8 + ("GET", "PUT", "HEAD")), bodies | ANY)
        def ask(path: str, method: str, body: Any) -> None:
            content = json.dumps(body).encode()
            answer = asking.request(method, path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in TOLD, (answer.status_code, path, body, answer.text[:300])
            assert "Traceback" not in answer.text and "site-packages" not in answer.text
            counts[answer.status_code] += 1

        ask()
    print(f"{sum(counts.values())} requests: {dict(counts)}")
    for name in ("a", "b"):
        assert client(url).completions.create(**SAID | {"model": name}).usage.completion_tokens > 0


def test_whatever_is_asked(url: str) -> None:
    fuzzed(url, 300)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whatever_is_asked_for_long(url: str) -> None:
    fuzzed(url, 6000)


def test_no_prompt_stands_in_a_log(url: str) -> None:
    """Last: after all the requests above."""
    import ray

    reply = client(url).completions.create(model="a", prompt=f"{MARK} once more", max_tokens=1)
    assert reply.choices[0].finish_reason in ("length", "stop")  # sampled: it may be the end
    home = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = [path for path in home.rglob("*") if path.is_file()]
    assert any("replica" in path.name for path in logs)
    assert [str(path) for path in logs if MARK.encode() in path.read_bytes()] == []
