"""The whole story, small: interrupted at every stage, resumed to the end, run again, served; through the command."""

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import recipe_file
from tests import tls

pytestmark = pytest.mark.timeout(1800)
REGROW = str(Path(sys.executable).parent / "regrow")
RECIPE = """
name = "small"
[teacher]
model = "tiny"
max_model_len = 512
[[dataset]]
name = "tasks"
source = "tiny-tasks"
families = ["story", "sort"]
style = "notes"
rows = 64
test_rows = 4
[prune]
layers = 2
baselines = []
[generate]
max_tokens = 160
shard_rows = 16
[[student]]
name = "sdd"
lora_rank = 4
[serve]
models_at_a_time = 3
port = 8123
[evaluate]
max_tokens = 160
lm_eval_limit = 10
lm_eval = ["TASKS/tiny_answers.yaml", "TASKS/tiny_choices.yaml"]
"""
TASKS = str(recipe_file.PACKAGED / "lm_tasks")
MARK = f"regrow-test-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "small.toml").write_text(RECIPE.replace("TASKS", TASKS))
    return home


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "REGROW_TEST_MARK": MARK}
    return subprocess.Popen([REGROW, *words], cwd=home, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def lines_until(process: subprocess.Popen[str], said: str) -> list[str]:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if said in line:
            return seen
    raise AssertionError(f"{said!r} was not said:\n{''.join(seen)}")


def survivors(seconds: float = 30) -> list[str]:
    """Command lines of processes that a run of this module started and left behind, after a grace period."""

    def found() -> Iterator[str]:
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if MARK.encode() in path.read_bytes():
                    yield (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue

    deadline = time.monotonic() + seconds
    while (left := list(found())) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def shard_written(home: Path) -> bool:
    return any(home.glob("runs/small/artifacts/generate-*/data/part-*.parquet"))


# Where the run is hit, in the order of the story: each goes on from the one before. What to wait for (a line, and
# then so many seconds or a file), the signal, and how many artifacts are whole by then.
HITS = {
    "prune": ("prepare: done", 3.0, signal.SIGTERM, 1),
    "generate, engine coming up": ("generate: starting", 8.0, signal.SIGINT, 2),
    "generate, rows being written": ("generate: starting", shard_written, signal.SIGTERM, 2),
    "train": ("sdd: 64 rows", 6.0, signal.SIGINT, 3),
    "evaluate, engines coming up": ("evaluate: starting", 12.0, signal.SIGTERM, 4),
    "evaluate, questions being asked": ("up at http", 0.5, signal.SIGINT, 4),
}


# While engines come up Python processes start, as training's workers do; and the evaluation has three engines: these
# are left to the soak.
SOAKED = {stage for stage in HITS if "coming up" in stage or stage.startswith("evaluate")}


@pytest.mark.parametrize("stage", [pytest.param(hit, marks=[pytest.mark.soak] * (hit in SOAKED)) for hit in HITS])
def test_interrupted_anywhere_it_leaves_resumable_state_and_no_process(home: Path, stage: str) -> None:
    said, wait, signum, whole = HITS[stage]
    committed = {path: path.read_bytes() for path in home.glob("runs/small/artifacts/*/manifest.json")}
    shards = {path: path.read_bytes() for path in home.glob("runs/small/artifacts/generate-*/data/part-*.parquet")}
    run = start(home, "run", "small.toml")
    lines_until(run, said)
    deadline = time.monotonic() + 600
    while callable(wait) and not wait(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0 if callable(wait) else wait)
    os.killpg(run.pid, signum)
    rest, _ = run.communicate(timeout=240)
    assert run.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signum], rest
    # "terminated; …", or where the signal reached Ray's servers first "stopped without cleaning up; …"
    assert "the same command goes on from here" in rest and "Traceback" not in rest
    assert not survivors()
    assert len(list(home.glob("runs/small/artifacts/*/manifest.json"))) >= whole
    assert committed.items() <= {p: p.read_bytes() for p in home.glob("runs/small/artifacts/*/manifest.json")}.items()
    assert all(path.read_bytes() == content for path, content in shards.items())


def test_the_same_command_goes_on_to_the_report(home: Path) -> None:
    run = start(home, "run", "small.toml")
    said, _ = run.communicate(timeout=1200)
    assert run.returncode == 0, said
    assert all(f"{stage}: reused" in said for stage in ("prepare", "prune", "generate")), said
    assert "Traceback" not in said
    report = json.loads((home / "runs/small/report.json").read_text())
    assert report["schema"] == 1
    assert [m["name"] for m in report["models"]] == ["teacher", "pruned", "sdd"]
    assert [m["kind"] for m in report["models"]] == ["teacher", "pruned", "student"]
    assert report["models"][1]["parameters"] < report["models"][0]["parameters"]
    own = [row for row in report["scores"] if row["suite"] == "own"]
    assert len(own) == 3 * 8 and all(row["n"] == 4 for row in own)
    assert {row["task"] for row in report["scores"] if row["suite"] == "lm-eval"} == {"tiny_answers", "tiny_choices"}
    assert report["recovery"][0]["recovery"] == 100 and report["recovery"][0]["average"] > 0.5
    made = report["generation"][0]
    verdicts = ("match", "mismatch", "unparsable", "truncated", "unchecked", "error")
    assert made["rows"] == 64 == sum(made[v] for v in verdicts) and made["fallback"] == 64 - made["match"]
    assert not survivors()


def test_again_reuses_every_stage(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.glob("runs/small/artifacts/*/manifest.json")}
    began = time.monotonic()
    run = start(home, "run", "small.toml")
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0 and said.count("reused") == 5, said
    assert time.monotonic() - began < 200
    assert before == {path: path.read_bytes() for path in home.glob("runs/small/artifacts/*/manifest.json")}
    assert all(stage["reused"] for stage in json.loads((home / "runs/small/report.json").read_text())["stages"])


def test_serve_a_run_and_stop_it(home: Path) -> None:
    """With keys, and over TLS."""
    import httpx
    from openai import AuthenticationError, OpenAI

    certificate, private = tls.self_signed(home)
    key = "sk-0123456789abcdef"
    (home / "keys.txt").write_text(f"sha256:{hashlib.sha256(key.encode()).hexdigest()}\n")
    run = start(home, "serve", "runs/small", "--only", "sdd", "--port", "8124", "--keys", "keys.txt",
                "--tls-cert", str(certificate), "--tls-key", str(private))  # fmt: skip
    try:
        lines_until(run, "serving sdd")
        over = httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)))
        client = OpenAI(base_url="https://127.0.0.1:8124/v1", api_key=key, http_client=over)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get("http://127.0.0.1:8124/health")
        with pytest.raises(AuthenticationError, match="not known here"):
            client.with_options(api_key=key[:-1]).models.list()
        assert {model.id for model in client.models.list()} == {"sdd"}
        asked = [{"role": "user", "content": "What is 3 + 40 + 20?"}]
        reply = client.chat.completions.create(model="sdd", messages=asked, max_tokens=60, temperature=0)  # type: ignore[call-overload]
        assert "=" in reply.choices[0].message.content and reply.usage.completion_tokens > 4
    finally:
        os.killpg(run.pid, signal.SIGTERM)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 143, said
    assert "Traceback" not in said
    assert not survivors()
