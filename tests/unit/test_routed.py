"""Routed models: what is read of their directories, which sub-network a prompt takes, and what waits for it."""

import asyncio
import json
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from cluster import storage
from pipelines import masks, prompts, served, units
from pipelines.ifp import clusters
from serving import choosing, routed, routing
from serving.accounts import VISIT
from serving.gate import Gate, Limits
from serving.settings import Endpoint
from tests import predictors, tiny

K, BLOCKS, WIDTH, UNITS = 3, 2, 16, 4


def kept(seed: int = 0, k: int = K) -> torch.Tensor:
    scores = torch.rand(k, BLOCKS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return units.top(scores, UNITS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A routed model without weights."""
    made = tmp_path / "model"
    about = {"format": 1, "predictor": "predictor", "subnetworks": [f"subnetworks/{i}" for i in range(K)]}
    config = {"num_hidden_layers": BLOCKS, "intermediate_size": UNITS, "max_position_embeddings": 300}
    told = {"blocks": BLOCKS, "width": WIDTH, "units": UNITS, "temperature": 1.0}
    files = {"router.json": about | {"units": UNITS}, "predictor/predictor.json": told}
    for name, content in (files | {f"subnetworks/{i}/config.json": config for i in range(K)}).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(json.dumps(content))
    save_file({"masks": kept()}, made / "centroids.safetensors")
    return made


def changed(file: Path, **more: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def test_a_routed_model_is_read(folder: Path) -> None:
    found = routed.read(str(folder))
    assert found.subnetworks == tuple(str(folder / "subnetworks" / str(i)) for i in range(K))
    assert (found.kept == (kept() != 0).numpy()).all() and found.units == UNITS
    assert routed.is_routed(str(folder)) and not routed.is_routed(found.subnetworks[0])


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda at: (at / "router.json").unlink(), "is no routed model: it has no router.json"),
    (lambda at: (at / "router.json").write_text("{"), r"router\.json: Invalid JSON"),
    (lambda at: changed(at / "router.json", format=2), r"router\.json: format: Input should be 1"),
    (lambda at: changed(at / "router.json", subnetworks=[]), r"router\.json: subnetworks"),
    (lambda at: changed(at / "router.json", subnetworks=["subnetworks/0"]), r"\(3, 2, 16\), but router.json names 1"),
    (lambda at: changed(at / "router.json", units=5), r"keep 4 to 4 units a block, and router.json says 5"),
    (lambda at: (at / "centroids.safetensors").unlink(), r"there is no .*centroids\.safetensors; copy"),
    (lambda at: (at / "centroids.safetensors").write_bytes(b"torn"), r"centroids\.safetensors is torn"),
    (lambda at: save_file({"masks": kept()[0]}, at / "centroids.safetensors"), r"masks of shape \(2, 16\)"),
    (lambda at: save_file({"other": kept()}, at / "centroids.safetensors"), "holds no masks"),
    (lambda at: (at / "predictor" / "predictor.json").unlink(), "predictor is no mask predictor"),
    (lambda at: changed(at / "predictor" / "predictor.json", width=32), "chooses 4 of 32 units in 2 blocks, but"),
    (lambda at: changed(at / "predictor" / "predictor.json", units=8), "chooses 8 of 16 units in 2 blocks, but"),
    (lambda at: (at / "subnetworks/1/config.json").unlink(), "sub-network .*/subnetworks/1 has no config.json"),
    (lambda at: changed(at / "subnetworks/2/config.json", intermediate_size=16), "has 2 blocks of 16 FFN units, but"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_parts_that_do_not_fit(folder: Path, fault: Callable[[Path], object], said: str) -> None:
    fault(folder)
    with pytest.raises(ValueError, match=said):
        routed.read(str(folder))


def test_its_sub_networks_are_models_of_the_endpoint(folder: Path) -> None:
    made = served.of_models([f"ifp={folder}"], warm_subnetworks=2)
    assert list(made.models) == made.subnetworks("ifp") == ["ifp/0", "ifp/1", "ifp/2"]
    assert made.routed == {"ifp": str(folder)} and made.max_model_len == 300
    assert list(made.engines) == ["ifp", "ifp/0", "ifp/1", "ifp/2"]
    assert [made.least(name) for name in made.models] == [1, 1, 0], "those past the second rest"
    assert routed.expanded(made) == made, "expanded already"
    assert routed.expanded(Endpoint(models={"ifp": str(folder)}, max_model_len=300)) == made
    resting = made.model_copy(update={"min_replicas": 0})
    assert [resting.least(name) for name in resting.models] == [0, 0, 0]


def test_one_on_s3(folder: Path, bucket: str) -> None:
    for file in (one for one in folder.rglob("*") if one.is_file()):
        storage.replace(storage.join(bucket, "x", str(file.relative_to(folder))), file.read_bytes())
    assert routed.is_routed(f"{bucket}/x") and not routed.is_routed(f"{bucket}/y")
    made = served.of_models([f"ifp={bucket}/x"])
    assert made.models["ifp/1"] == f"{bucket}/x/subnetworks/1" and made.max_model_len == 300
    assert (routed.read(f"{bucket}/x").kept == routed.read(str(folder)).kept).all()


def test_names_that_clash(folder: Path, tmp_path: Path) -> None:
    for words, said in (
        ([f"ifp={folder}", "ifp/1=tiny"], "'ifp/1' is the name of a model and of a sub-network of 'ifp'"),
        ([f"i:p={folder}"], "a name has no colon"),
    ):
        with pytest.raises(ValueError, match=said):
            served.of_models(words)
    with pytest.raises(ValueError, match="routed model 'ifp' has no sub-network 'ifp/0' among the models"):
        Endpoint(models={"a": "x"}, routed={"ifp": str(folder)}, max_model_len=10)
    with pytest.raises(ValueError, match="a is the name of a model and of an adapter"):
        Endpoint(models={"a": "x", "a/0": "y"}, routed={"a": str(folder)}, max_model_len=10)


@pytest.mark.parametrize("word", ["ifp={0}", "{0}"])
def test_the_command_refuses_one_that_does_not_fit(
    folder: Path, regrow: Callable[..., subprocess.CompletedProcess[str]], word: str
) -> None:
    (folder / "subnetworks/1/config.json").unlink()
    done = regrow("serve", word.format(folder), timeout=120)
    assert done.returncode == 2 and "subnetworks/1 has no config.json" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh 123", k=rng.randint(1, 40))) for _ in range(count)]


def test_prompts_take_the_nearest_sub_network() -> None:
    """The one that the pipeline's own measure finds."""
    reader = predictors.reader(BLOCKS, WIDTH, UNITS)
    own = masks.mask(reader.scores(texts(40)), UNITS, 1.0)
    made = routed.Router(reader, kept(k=8), UNITS).choose(texts(40))
    assert made == clusters.assign(own, kept(k=8)).which.tolist() and len(set(made)) > 3
    assert routed.Router(reader, kept(k=1).repeat(4, 1, 1), UNITS).choose(texts(5)) == [0] * 5, "the first of equals"


def test_units_that_tie() -> None:
    scores = torch.randint(0, 4, (20, BLOCKS, WIDTH), generator=torch.Generator().manual_seed(1)).float()
    for t in (1, UNITS, WIDTH):
        assert (routed._top(scores, t) == (units.top(scores, t) != 0)).all()


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "1 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}],
    [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}, {"role": "user", "content": "why?"}],
    [{"role": "assistant", "content": "Ask!"}, {"role": "user", "content": "1 + 2?"}],
    [{"role": "system", "content": "Say something."}],
]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_predictors_read_what_they_were_trained_on(messages: list[dict[str, Any]], chat: bool) -> None:
    words = tiny.tokenizer(chat)
    wanted = prompts.text(words, choosing.opening(messages))
    parts = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in messages]
    assert choosing.text(words, messages) == choosing.text(words, parts) == wanted
    assert choosing.text(words, "1 + 2?") == "1 + 2?" == choosing.text(words, words("1 + 2?")["input_ids"])


def test_two_parts_of_a_message_are_two_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert choosing.opening([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "assistant", "content": "3"}], "no message of the user"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "more than text"),
    ],
)
def test_conversations_that_choose_nothing(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choosing.text(tiny.tokenizer(), messages)


def test_a_template_that_takes_no_such_conversation() -> None:
    words = tiny.tokenizer()
    words.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(ValueError, match="does not take this conversation: no system turn"):
        choosing.text(words, CONVERSATIONS[1])


class Work:
    """Answers with the texts' lengths, once `go` is set; `bad` is a fault."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), list[list[str]]()

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.calls.append(list(texts))
        assert self.go.wait(30)
        if "bad" in texts:
            raise ValueError("bad")
        return [len(text) for text in texts]


def test_what_waits_goes_together() -> None:
    """And neither a fault nor somebody who leaves keeps the others from their answers."""

    async def watch() -> None:
        work = Work()
        together = choosing.Together(work)
        first = asyncio.create_task(together.one("a"))
        while not work.calls:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(together.one(text)) for text in ("bb", "bad", "left", "cccc")]
        await asyncio.sleep(0.05)
        others[2].cancel()
        work.go.set()
        ends = await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), 30)
        assert ends[:2] == [1, 2] and ends[4] == 4 and isinstance(ends[2], ValueError)
        assert isinstance(ends[3], asyncio.CancelledError)
        assert work.calls[:2] == [["a"], ["bb", "bad", "left", "cccc"]], "one call for those that waited"
        assert await asyncio.wait_for(together.one("again"), 30) == 5

    asyncio.run(watch())


def test_long_prompts_do_not_pad_the_others() -> None:
    async def watch() -> None:
        work = Work()
        together = choosing.Together(work)
        sizes = [1, *([choosing.ROOM // 4] * 6), choosing.ROOM * 2, 5, 5]
        asked = [asyncio.create_task(together.one("x" * size)) for size in sizes[:1]]
        while not work.calls:
            await asyncio.sleep(0.01)
        asked += [asyncio.create_task(together.one("x" * size)) for size in sizes[1:]]
        await asyncio.sleep(0.05)
        work.go.set()
        assert await asyncio.wait_for(asyncio.gather(*asked), 30) == sizes, "in the order they came"
        assert [len(call) for call in work.calls] == [1, 4, 2, 1, 2]

    asyncio.run(watch())


class Body:
    def __init__(self, prompt: Any, stream: bool = False) -> None:
        self.prompt, self.stream = prompt, stream


def test_prompts_of_a_request() -> None:
    assert routing.asked(Body("a")) == ["a"] and routing.asked(Body([1, 2])) == [[1, 2]]
    assert routing.asked(Body(["a", "b"])) == ["a", "b"] and routing.asked(Body([[1], [2]])) == [[1], [2]]
    assert routing.asked(Body(["a"], stream=True)) == ["a"]
    for empty in ("", [], None):
        with pytest.raises(ValueError, match="the prompt is empty"):
            routing.asked(Body(empty))
    with pytest.raises(ValueError, match="ask for a stream with one prompt"):
        routing.asked(Body(["a", "b"], stream=True))


def test_places_move_to_the_sub_network_that_was_chosen(tmp_path: Path) -> None:
    """So that a routed model's queue is that of its sub-networks, each with its own bound, and the log says which."""
    room, going = list[bool](), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        models = json.loads((await receive())["body"])["prompt"]
        room.append(routing.moved(scope[VISIT], models))
        await going.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def watch() -> None:
        names = {name: name for name in ("ifp", "ifp/0", "ifp/1")}
        gate = Gate(app, names, Limits(seats=2, waiting=2, output_tokens=9), log=tmp_path / "log")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:

            async def ask(*models: str, n: int = 1) -> httpx.Response:
                return await client.post("/v1/completions", json={"model": "ifp", "prompt": models, "n": n})

            asked = [asyncio.create_task(ask("ifp/0", n=3))]
            await asyncio.sleep(0.1)
            assert gate.here["ifp"] == 0 and gate.here["ifp/0"] == 3
            asked.append(asyncio.create_task(ask("ifp/0", "ifp/1", "ifp/1")))
            await asyncio.sleep(0.1)
            assert (gate.here["ifp"], gate.here["ifp/0"], gate.here["ifp/1"]) == (0, 4, 2)
            asked.append(asyncio.create_task(ask("ifp/0")))
            await asyncio.sleep(0.1)
            assert room == [True, True, False] and gate.here["ifp"] == 1, "it has kept its place where it was"
            going.set()
            assert {(await one).status_code for one in asked} == {200}
            assert not any(gate.here.values())

    asyncio.run(watch())
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(line["model"] for line in lines) == {"ifp/0": 1, "ifp": 2}


def test_models_that_are_evaluated_together() -> None:
    from pipelines.evaluate import waves

    assert waves({"a": 1, "b": 1, "c": 1}, 2) == [["a", "b"], ["c"]]
    assert waves({"a": 1, "ifp": 4, "b": 1, "c": 1}, 3) == [["a"], ["ifp"], ["b", "c"]], "one that needs more is alone"
    assert waves({"ifp": 2, "a": 1}, 3) == [["ifp", "a"]]
