"""Models by hub id, from a local server that answers as the Hugging Face hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import tiny

SHA = {"main": "a" * 40, "v1": "b" * 40}
RESOLVE = "import sys; from pipelines import models; print(models.resolve(sys.argv[1]))"


class Hub(ThreadingHTTPServer):
    """Serves the files of `home` as the model acme/small, and notes what was asked."""

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.home, self.paths = home, list[str]()


class Asked(BaseHTTPRequestHandler):
    """The routes that a download takes: the revision, what it holds, and each file."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.paths.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "acme", "small"] and parts[4:5] == ["revision"] and parts[5] in SHA:
            files = [{"rfilename": file.name} for file in sorted(self.server.home.iterdir())]
            body = json.dumps({"id": "acme/small", "sha": SHA[parts[5]], "siblings": files}).encode()
            return self.answer(200, body, {})
        if parts[:5] == ["api", "models", "acme", "small", "tree"] and parts[5] in SHA.values():
            sizes = {file.name: file.stat().st_size for file in self.server.home.iterdir()}
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        if parts[:3] == ["acme", "small", "resolve"] and (self.server.home / parts[4]).exists():
            body = (self.server.home / parts[4]).read_bytes()
            tag = hashlib.sha256(body).hexdigest()
            return self.answer(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": parts[3]})
        missing = "RevisionNotFound" if "small" in parts else "RepoNotFound"
        return self.answer(404, b"{}", {"X-Error-Code": missing})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    home = tiny.model_dir(tmp_path_factory.mktemp("small"), layers=2)
    (home / "pytorch_model.bin").write_bytes(b"a pickle")
    (home / "consolidated.safetensors").write_bytes(b"the same weights once more")
    for terms in ("LICENSE", "USE_POLICY.md"):
        (home / terms).write_text(f"the {terms} of small")
    (home / "modeling_small.py").write_text("raise SystemExit('remote code was run')")
    server = Hub(home)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def call(hub: Hub, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)


def test_a_pinned_revision_comes_whole_and_without_code_or_pickles(hub: Hub, tmp_path: Path) -> None:
    done = call(hub, tmp_path, "-c", RESOLVE, "acme/small@v1")
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip().splitlines()[-1])
    assert found.name == SHA["v1"], "the revision asked for"
    names = {file.name for file in found.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"LICENSE", "USE_POLICY.md"} <= names, "the teacher's terms go with it"
    assert not names & {"pytorch_model.bin", "modeling_small.py", "consolidated.safetensors"}
    for name in names:
        assert (found / name).read_bytes() == (hub.home / name).read_bytes()
    fetched = sum(path.startswith("GET /acme") for path in hub.paths)
    again = call(hub, tmp_path, "-c", RESOLVE, "acme/small@v1")
    assert again.stdout == done.stdout
    assert sum(path.startswith("GET /acme") for path in hub.paths) == fetched, "what is there is not fetched twice"


def test_a_plan_fetches_the_config_alone(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.paths)
    words = ("run", "quickstart", "--plan", "--json", f"run_dir={tmp_path / 'run'}")
    done = call(hub, tmp_path, "-m", "pipelines.cli", *words, "teacher.model=acme/small", "prune.layers=1")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["teacher"]["from"], made["teacher"]["layers"]) == ("the hub", 2)
    fetched = {path.split("?")[0].rsplit("/", 1)[-1] for path in hub.paths[before:] if "/resolve/" in path}
    assert fetched == {"config.json"}
    again = call(hub, tmp_path, "-m", "pipelines.cli", *words, "teacher.model=acme/small", "prune.layers=1")
    assert json.loads(again.stdout)["teacher"]["from"] == "the hub's local cache"
    missing = call(hub, tmp_path, "-m", "pipelines.cli", *words, "teacher.model=acme/large")
    assert missing.returncode == 2 and "no packaged architecture" in missing.stderr, missing.stderr


def test_a_run_reads_a_hub_model(hub: Hub, tmp_path: Path) -> None:
    words = ("run", "quickstart", "teacher.model=acme/small", "--until", "prune", f"run_dir={tmp_path / 'run'}")
    done = call(hub, tmp_path, "-m", "pipelines.cli", *words)
    assert done.returncode == 2 and "choose 1 to 1" in done.stderr, "its config was read: two layers, two to remove"


@pytest.mark.parametrize("model", ["acme/small@v9", "acme/large"])
def test_what_the_hub_does_not_have_is_bad_input(hub: Hub, tmp_path: Path, model: str) -> None:
    done = call(hub, tmp_path, "-m", "pipelines.cli", "run", "quickstart", f"teacher.model={model}")
    assert done.returncode == 2 and model in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_no_hub_in_reach_is_bad_input(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "pipelines.cli", "run", "quickstart", "teacher.model=acme/small"]
    for more in ([], ["--plan"]):
        done = subprocess.run(
            [*words, *more], capture_output=True, text=True, env=environment, check=False, timeout=600
        )
        assert done.returncode == 2 and "acme/small" in done.stderr and "Traceback" not in done.stderr, done.stderr
    words[-1] = "teacher.model=qwen/qwen3-8b"
    known = subprocess.run(
        [*words, "--plan"], capture_output=True, text=True, env=environment, check=False, timeout=600
    )
    assert known.returncode == 0 and "8,190,735,360" in known.stdout, known.stderr
