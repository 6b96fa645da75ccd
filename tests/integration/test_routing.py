"""A routed model behind an endpoint: a real predictor, and an engine for each of two tiny sub-networks, one at rest."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving import choosing, routed
from serving.listening import Http
from serving.settings import Endpoint
from tests import ports
from tests import routed as made

pytestmark = pytest.mark.timeout(600)
MARK = "zebra 7731 quagga"  # stands in prompts, and must stand in no log
KEY, NARROW = "sk-0123456789abcdef", "sk-fedcba9876543210"
LENGTH = 384  # tokens, more than the predictor reads
ROOM = 32  # seats and places to wait of a model
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
KEYS = f"""
[[key]]
name = "any"
key = "{KEY}"
[[key]]
name = "narrow"
key = "{NARROW}"
models = ["ifp"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made.model_dir(tmp_path_factory.mktemp("routed") / "model")
    folder.with_name("keys.toml").write_text(KEYS)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Up once the first engine is; the second starts when its sub-network is chosen."""
    from cluster.session import session
    from serving import endpoint

    what = Endpoint(
        models={"ifp": str(folder)}, max_model_len=LENGTH, max_num_seqs=ROOM // 2, queue=ROOM // 2, warm_subnetworks=1,
        keys=str(folder.with_name("keys.toml")), access_log=str(folder.with_name("log")),
    )  # fmt: skip
    with session("local", None), endpoint.endpoint(what, Http(port=ports.free())) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, str]:
    """The sub-network of each question, as torch chooses it: some for either."""
    questions = [question for kind in made.KINDS for question in made.asked(kind, 16, seed=3)]
    numbers = routed.router(routed.read(str(folder))).choose(made.texts(questions))
    assert Counter(numbers) == {0: 16, 1: 16}
    return {question: f"ifp/{number}" for question, number in zip(questions, numbers, strict=True)}


def client(url: str, key: str = KEY) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def below(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON of an answer below the endpoint's root."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url.removesuffix("/v1") + path, data, headers)) as answer:
        return json.load(answer)


def states(url: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in below(url, "/status")["models"]}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.with_name("log").read_text().splitlines()]


def test_a_sub_network_at_rest_wakes_when_it_is_chosen(url: str, wanted: dict[str, str]) -> None:
    assert [model.id for model in client(url).models.list()] == ["ifp", "ifp/0", "ifp/1"]
    assert below(url, "/health") == {"status": "ready"}
    assert {name: one["running"] for name, one in states(url).items()} == {"ifp": 1, "ifp/0": 1, "ifp/1": 0}
    began = time.monotonic()
    question = next(one for one, model in wanted.items() if model == "ifp/1")
    reply = client(url).chat.completions.create(model="ifp", messages=messages(question), **GREEDY)
    assert reply.model == "ifp/1" and reply.usage.completion_tokens > 0
    print(f"its engine answered after {time.monotonic() - began:.0f} s")


def test_choices_in_bf16_are_the_same(folder: Path, wanted: dict[str, str]) -> None:
    chooser = choosing.Chooser(str(folder), "ifp", 1, dtype="bfloat16")

    async def choose() -> list[list[str]]:
        return [part async for part in chooser.choose([messages(question) for question in wanted])]

    assert asyncio.run(choose()) == [list(wanted.values())]


def test_each_question_is_answered_by_its_own_sub_network(url: str, folder: Path, wanted: dict[str, str]) -> None:
    """All at once, half of them as streams; and what is answered is what that sub-network says in transformers."""

    def ask(number: int, question: str) -> tuple[str, str]:
        asked = {"model": "ifp", "messages": messages(question), **GREEDY}
        if number % 2:
            events = list(client(url).chat.completions.create(**asked, stream=True))
            assert len({event.model for event in events}) == 1
            return events[0].model, "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        reply = client(url).chat.completions.create(**asked)
        return reply.model, reply.choices[0].message.content

    with ThreadPoolExecutor(len(wanted)) as pool:
        said = list(pool.map(ask, range(len(wanted)), wanted))
    assert [model for model, _ in said] == list(wanted.values())
    for name in ("ifp/0", "ifp/1"):
        own = {question: text for question, (model, text) in zip(wanted, said, strict=True) if model == name}
        right = greedy(folder / "subnetworks" / name[-1], made.texts(list(own)))
        same = sum(text.rstrip("\ufffd") == one.rstrip("\ufffd") for text, one in zip(own.values(), right, strict=True))
        assert same >= len(own) - 1, "but where two tokens are as likely as each other"


def greedy(model: Path, texts: list[str]) -> list[str]:
    """transformers' greedy answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, words = (
        AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval(),
        AutoTokenizer.from_pretrained(model),
    )
    answers = []
    for text in texts:
        ids = torch.tensor([words(text, add_special_tokens=False)["input_ids"]])
        whole = net.generate(ids, max_new_tokens=GREEDY["max_tokens"], do_sample=False)[0, ids.shape[1] :]
        answers.append(words.decode(whole, skip_special_tokens=True))
    return answers


def test_a_conversation_stays_where_it_began(url: str, wanted: dict[str, str]) -> None:
    (sums, first), *_, (story, second) = wanted.items()
    assert first != second
    turns = [*messages(sums), {"role": "assistant", "content": "42"}, *messages(story)]
    parts = [{"role": "user", "content": [{"type": "text", "text": story}]}]
    for asked, model in ((turns, first), (messages(story), second), (parts, second)):
        assert client(url).chat.completions.create(model="ifp", messages=asked, **GREEDY).model == model


def test_a_sub_network_can_be_asked_by_its_name(url: str, wanted: dict[str, str]) -> None:
    question, own = next(iter(wanted.items()))
    other = "ifp/0" if own == "ifp/1" else "ifp/1"
    said = client(url).chat.completions.create(model=other, messages=messages(question), **GREEDY)
    assert said.model == other and said.usage.completion_tokens > 0


def test_prompts_of_one_request_go_to_several(url: str, wanted: dict[str, str]) -> None:
    """And their answers come back as one, in order, whether the prompts are texts or tokens."""
    words = made.tokenizer()
    texts = made.texts([list(wanted)[at] for at in (0, -1, 1, -2)])
    alone = [client(url).completions.create(model="ifp", prompt=text, **GREEDY) for text in texts]
    assert {reply.model for reply in alone} == {"ifp/0", "ifp/1"}
    for prompt in (texts, [words(text, add_special_tokens=False)["input_ids"] for text in texts]):
        reply = client(url).completions.create(model="ifp", prompt=prompt, **GREEDY)
        assert reply.model == "ifp" and [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in reply.choices] == [one.choices[0].text for one in alone]
        for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert getattr(reply.usage, field) == sum(getattr(one.usage, field) for one in alone)
    several = client(url).completions.create(model="ifp", prompt=texts, n=2, **{**GREEDY, "temperature": 1.0})
    assert [choice.index for choice in several.choices] == list(range(8))
    echoed = client(url).completions.create(model="ifp", prompt=texts, echo=True, logprobs=1, **GREEDY)
    assert [choice.text.startswith(text[:4]) for choice, text in zip(echoed.choices, texts, strict=True)]


def test_tokens_are_those_of_the_sub_networks(url: str) -> None:
    ids = made.tokenizer()("What is 3 + 4?")["input_ids"]
    assert below(url, "/tokenize", {"model": "ifp", "prompt": "What is 3 + 4?"})["tokens"] == ids
    assert below(url, "/detokenize", {"model": "ifp", "tokens": ids})["prompt"] == "What is 3 + 4?"


LONG = f"{MARK} " * 28  # past the predictor's context, within the engines'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ""}, "non-empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ["1", ""]}, "the prompt is empty"),
        ({"prompt": LONG}, "the mask predictor reads 256 at most"),
        ({"prompt": ["1", "2"], "stream": True}, "ask for a stream with one prompt"),
        ({"messages": [{"role": "user", "content": LONG}]}, "the mask predictor reads 256 at most"),
        ({"messages": [{"role": "assistant", "content": "3"}]}, "no message of the user"),
        ({"messages": []}, ""),
    ],
)
def test_what_no_sub_network_can_be_chosen_for(url: str, body: dict[str, Any], said: str) -> None:
    way = "chat/completions" if "messages" in body else "completions"
    with pytest.raises(urllib.error.HTTPError) as refused:
        below(url, f"/v1/{way}", {"model": "ifp", "max_tokens": 4} | body)
    error = json.loads(refused.value.read())["error"]
    assert refused.value.code == 400 and said in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and MARK not in error["message"]


def test_a_prompt_past_the_predictor_is_one_that_the_engines_take(url: str) -> None:
    assert client(url).completions.create(model="ifp/0", prompt=LONG, **GREEDY).usage.prompt_tokens > made.LENGTH


def test_a_key_for_the_routed_model_alone(url: str) -> None:
    import openai

    narrow = client(url, NARROW)
    assert narrow.completions.create(model="ifp", prompt="1", **GREEDY).usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError):
        narrow.completions.create(model="ifp/0", prompt="1", **GREEDY)


def test_a_full_queue_refuses_and_the_figures_are_those_of_sub_networks(
    url: str, folder: Path, wanted: dict[str, str]
) -> None:
    import openai

    question, own = next(iter(wanted.items()))
    before, lines = states(url), len(log(folder))
    asked = {"model": "ifp", "messages": messages(question), "max_tokens": 200, "n": 8}

    def ask(_: int) -> int:
        try:
            reply = client(url).chat.completions.create(**asked, extra_body={"ignore_eos": True})
        except openai.RateLimitError:
            return 0
        return int(reply.usage.completion_tokens)

    with ThreadPoolExecutor(8) as pool:
        said = Counter(pool.map(ask, range(8)))
    assert set(said) == {0, 1600} and said[1600] >= ROOM // 8
    after = states(url)
    written = {name: after[name]["tokens"]["completion"] - before[name]["tokens"]["completion"] for name in after}
    assert written == dict.fromkeys(after, 0) | {own: 1600 * said[1600]}
    assert all(one["taken"] == 0 for one in after.values())
    here = log(folder)[lines:]
    assert Counter((line["model"], line["status"]) for line in here if line["method"] == "POST") == {
        (own, 200): said[1600],
        ("ifp", 429): said[0],
    }


def test_no_prompt_stands_in_a_log(url: str, folder: Path) -> None:
    """Last: after all the requests above."""
    import ray

    client(url).completions.create(model="ifp", prompt=f"{MARK} once more", **GREEDY)
    home = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = [path for path in home.rglob("*") if path.is_file()]
    assert any("Chooser" in path.name for path in logs)
    assert [str(path) for path in (*logs, folder.with_name("log")) if MARK.encode() in path.read_bytes()] == []
