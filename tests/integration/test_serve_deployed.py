"""The endpoint as a Serve config file deploys it, with keys and a LoRA adapter: redeployed and killed under load."""

import json
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import copies, storage
from tests import browser, drivers, ports, tiny
from tests.asking import Asking

pytestmark = pytest.mark.timeout(1800)
KEY = "sk-0123456789abcdef"
QUESTION = "What is 3 + 4?"


class Deployed:
    """`regrow serve … --write-config`, then `serve deploy`, on a cluster that outlives both."""

    def __init__(self, home: Path, dashboard: int) -> None:
        self.home, self.dashboard, self.port = home, dashboard, ports.free()
        self.s3 = f"s3://regrow/{secrets.token_hex(8)}"  # a name of its own: copies of it are this test's
        self.config, self.url = home / "serve.yaml", f"http://127.0.0.1:{self.port}/v1"
        self._bin = Path(sys.executable).parent

    def written(self) -> None:
        """The config file, as the command line writes it."""
        words = ["serve", f"model={self.s3}/model", "--adapter", "loud=adapter", "--adapters-at", f"{self.s3}/adapters",
                 "--keys", "keys.txt", "--access-log", "log.jsonl", "--max-num-seqs", "4",
                 "--port", str(self.port), "--write-config", str(self.config)]  # fmt: skip
        subprocess.run([self._bin / "regrow", *words], cwd=self.home, check=True)

    def deploy(self, **args: Any) -> None:
        """`serve deploy`, with changed arguments of the application."""
        content = yaml.safe_load(self.config.read_text())
        content["applications"][0]["args"] |= args
        self.config.write_text(yaml.safe_dump(content))
        address = f"http://127.0.0.1:{self.dashboard}"
        subprocess.run([self._bin / "serve", "deploy", str(self.config), "-a", address], check=True)

    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=300)

    def asked(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer below the endpoint's root."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ready(self) -> bool:
        try:
            return self.asked("/health") == {"status": "ready"}
        except OSError:
            return False


@pytest.fixture(scope="module")
def deployed(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The model, and adapters besides the one that the engine knows, are on S3."""
    from ray.cluster_utils import Cluster

    home = tmp_path_factory.mktemp("deployed")
    tiny.model_dir(home / "model", initializer_range=0.2)
    adapter(home, "adapter", 4)
    (home / "keys.txt").write_text(KEY + "\n")
    made = Deployed(home, ports.free())
    for folder in ("model", adapter(home, "adapters/deep", 8), adapter(home, "adapters/huge", 128)):
        put(home / folder, storage.join(made.s3, folder))
    head: dict[str, Any] = {"num_cpus": 4, "object_store_memory": 256 << 20, "dashboard_agent_listen_port": 0,
                            "include_dashboard": True, "dashboard_port": made.dashboard}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")  # as regrow's own clusters have it
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.written()
        made.deploy()
        drivers.until(made.ready, timeout=300)
        yield made
    finally:
        cluster.shutdown()
        for folder in ("model", "adapters/deep", "adapters/huge"):
            shutil.rmtree(copies.place(storage.join(made.s3, folder)), ignore_errors=True)


def adapter(home: Path, name: str, rank: int) -> str:
    """A LoRA adapter of the model that changes what it says, in the directory `name`, as peft saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(rank)
    base = AutoModelForCausalLM.from_pretrained(home / "model")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(home / name)
    return name


def put(folder: Path, url: str) -> None:
    for file in folder.iterdir():
        storage.replace(storage.join(url, file.name), file.read_bytes())


def text(model: Any, folder: Path) -> str:
    """transformers' greedy text."""
    import torch
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([words(QUESTION)["input_ids"]])
    made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=words.pad_token_id)
    return words.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_adapter_answers_by_its_name(deployed: Deployed) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    home, wanted = deployed.home, dict[str, str]()
    for name, folder in (("model", ""), ("loud", "adapter"), ("model:deep", "adapters/deep")):
        model = AutoModelForCausalLM.from_pretrained(home / "model", dtype="float32").eval()
        wanted[name] = text(PeftModel.from_pretrained(model, home / folder).eval() if folder else model, home / "model")
    asked: dict[str, Any] = {"prompt": QUESTION, "max_tokens": 12, "temperature": 0}
    client = deployed.client()
    said = {name: client.completions.create(model=name, **asked).choices[0].text for name in wanted}
    assert {name: one.rstrip("\ufffd") for name, one in said.items()} == {
        name: one.rstrip("\ufffd") for name, one in wanted.items()
    }
    assert len(set(said.values())) == 3
    assert {one.id for one in client.models.list()} == {*wanted, "model:huge"}
    assert client.models.retrieve("model:deep").id == "model:deep"


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("model:huge", 400, "the adapter huge has the rank 128; this endpoint takes up to 64"),
        ("model:none", 404, "no model 'model:none'"),
        ("model:../model", 404, "no model 'model:../model'"),
        ("model:", 404, "no model 'model:'"),
        ("loud:deep", 404, "no model 'loud:deep'"),
    ],
)
def test_an_adapter_that_cannot_answer(deployed: Deployed, name: str, status: int, said: str) -> None:
    import openai

    with pytest.raises(openai.APIStatusError) as refused:
        deployed.client().completions.create(model=name, prompt=QUESTION)
    assert refused.value.status_code == status and said in refused.value.message


def test_texts_are_tokenized(deployed: Deployed) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(deployed.home / "model")
    ids = words(QUESTION)["input_ids"]
    assert deployed.asked("/tokenize", {"model": "model", "prompt": QUESTION})["tokens"] == ids
    assert deployed.asked("/detokenize", {"model": "loud", "tokens": ids})["prompt"] == QUESTION
    messages = [{"role": "user", "content": QUESTION}]
    ids = words.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert deployed.asked("/tokenize", {"model": "model", "messages": messages})["tokens"] == ids
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert deployed.asked("/tokenize", {"model": "model:deep", "messages": parts})["tokens"] == ids


def test_tokens_are_counted(deployed: Deployed) -> None:
    """Those of streams too, whose clients see the usage where they ask for it, and else nothing of it."""
    (before,) = deployed.asked("/status")["models"]
    client, counted = deployed.client(), Counter[str]()
    for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
        reply = client.completions.create(model="model", prompt=QUESTION, max_tokens=9, n=2, **more)
        events = list(reply) if more else [reply]
        stated = [event.usage for event in events if event.usage]
        assert len(stated) == (more != {"stream": True}) and all(event.choices for event in events[:-1])
        for usage in stated:
            counted += Counter(prompt=usage.prompt_tokens, completion=usage.completion_tokens)
    (after,) = deployed.asked("/status")["models"]
    line = json.loads((deployed.home / "log.jsonl").read_text().splitlines()[-2])
    assert line["path"] == "/v1/completions" and line["key"] == "line 1"
    assert line["prompt_tokens"] == usage.prompt_tokens and line["completion_tokens"] == usage.completion_tokens
    grown = {kind: after["tokens"][kind] - before["tokens"][kind] for kind in counted}
    assert grown["prompt"] == 1.5 * counted["prompt"] and 1 <= grown["completion"] - counted["completion"] <= 18
    assert after["running"] == 1 and after["taken"] == 0 and after["seats"] == 4 and not after["failed"]


def test_the_status_page_asks_for_a_key(deployed: Deployed, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{deployed.url.removesuffix('/v1')}/status")
    page = deployed.url.removesuffix("v1")
    shown, _ = browser.chromium(tmp_path, page, "--dump-dom", "--virtual-time-budget=4000")
    assert "needs an API key" in shown and "<form>" in shown and "<article" not in shown


LONG: dict[str, Any] = {"model": "model", "prompt": "1 2 3", "n": 16, "max_tokens": 300}


def test_a_client_that_leaves_is_seen_in_the_figures(deployed: Deployed) -> None:
    """Its places are free at once, and no more tokens are written for it."""
    stream = deployed.client().completions.create(**LONG, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert _status(deployed)["taken"] == 16
    stream.close()
    drivers.until(lambda: _status(deployed)["taken"] == 0, timeout=20)
    written = _status(deployed)["tokens"]["completion"]
    time.sleep(2)
    assert _status(deployed)["tokens"]["completion"] == written
    assert deployed.client().completions.create(model="model", prompt="1", max_tokens=2).choices


def test_a_client_that_does_not_read_holds_up_nobody(deployed: Deployed) -> None:
    body = json.dumps(LONG | {"ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", deployed.port))
        slow.sendall(head.encode() + body)
        with Asking(deployed.client) as asking:
            asking.more(3)
        assert asking.failed == {True: [], False: []}, asking.failed
    drivers.until(lambda: _status(deployed)["taken"] == 0, timeout=60)


@pytest.mark.soak
def test_ten_thousand_idle_connections(deployed: Deployed) -> None:
    """Half of them have said half of a request. Everybody else is answered."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    proxy = drivers.processes("ray::ProxyActor")[0]
    before, there = proxy.memory_info().rss, list[socket.socket]()
    for number in range(10_000):
        there.append(socket.create_connection(("127.0.0.1", deployed.port), 30))
        if number % 2:
            there[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    try:
        with Asking(deployed.client) as asking:
            waited = asking.more(3)
        assert asking.failed == {True: [], False: []} and deployed.ready()
    finally:
        for one in there:
            one.close()
    print(f"answered after {waited:.1f} s; the proxy grew by {(proxy.memory_info().rss - before) >> 20} MiB")


def test_a_redeploy_loses_no_request(deployed: Deployed) -> None:
    with Asking(deployed.client) as asking:
        deployed.deploy(max_num_seqs=5)
        drivers.until(lambda: _seats(deployed) == 5, timeout=300)
        waited = asking.more(3)
    assert asking.failed == {True: [], False: []}, asking.failed
    print(f"redeployed: answers {waited:.0f} s after the new gate came")


def _status(deployed: Deployed) -> dict[str, Any]:
    """The figures of the one model."""
    (told,) = deployed.asked("/status")["models"]
    return told


def _seats(deployed: Deployed) -> int:
    try:
        return int(_status(deployed)["seats"])
    except OSError:
        return 0


# What is killed; whether streams that have begun may end with an error; whether others may fail; seconds until all
# clients are answered again, on a machine where an engine takes up to three minutes to start beside other tests.
KILLS = {
    "VLLM::EngineCore": (True, False, 240),
    "ray::ServeReplica:regrow:LLMServer": (True, False, 240),
    "ray::ServeController": (False, False, 60),
    "ray::ServeReplica:regrow:Ingress": (True, True, 120),
    "ray::ProxyActor": (True, True, 60),
}


@pytest.mark.parametrize("title", KILLS)
def test_killed_under_load(deployed: Deployed, title: str) -> None:
    streams, others, seconds = KILLS[title]
    with Asking(deployed.client) as asking:
        (victim,) = [one for one in drivers.processes(title) if one.cmdline()[0].startswith(title)]
        victim.kill()
        waited = asking.more(3, seconds)
    counted = {stream: dict(Counter(failed)) for stream, failed in asking.failed.items()}
    print(f"{title}: all clients answered again after {waited:.0f} s; {counted}")
    assert streams or not asking.failed[True], asking.failed
    assert others or not asking.failed[False], asking.failed
    for failed in asking.failed[True] + asking.failed[False]:
        assert failed.startswith(("APIError: the engine died", "APIConnectionError", "InternalServerError",
                                  "RemoteProtocolError", "APITimeoutError",
                                  # a new proxy, for a moment: it has not been told yet of what there is
                                  *(["NotFoundError: Error code: 404"] * (title == "ray::ProxyActor"))
                                  )), failed  # fmt: skip
        assert "Traceback" not in failed and "ray." not in failed
    drivers.until(deployed.ready, timeout=120)
