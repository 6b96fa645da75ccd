"""The command as its user meets it: help, listings, and what it says to bad input."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import commands, tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = tiny.RECIPE


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called, in this process as in one of its own."""
    monkeypatch.chdir(tmp_path)
    return tiny.run_home(tmp_path)


def test_help_lists_what_works(regrow: Regrow) -> None:
    done = regrow("--help")
    assert done.returncode == 0
    for command in ("run", "generate", "status", "report", "recipes", "serve", "loadtest", "clean", "doctor"):
        assert command in done.stdout
    assert "Examples" in regrow("run", "--help").stdout
    assert "quickstart" in regrow("recipes").stdout and "gsm8k" in regrow("recipes").stdout


def damage(home: Path, what: str) -> None:
    match what:
        case "binary recipe":
            (home / "mine.toml").write_bytes(b"\x89PNG\xff\xfe\x00")
        case "empty recipe":
            (home / "mine.toml").write_text("")
        case "broken toml":
            (home / "mine.toml").write_text(RECIPE + "layers = [")
        case "empty data":
            (home / "rows.jsonl").write_text("")
        case "broken data":
            with (home / "rows.jsonl").open("a") as file:
                file.write('{"question": "1 + 1?"\n')
        case "no reference":
            (home / "mine.toml").write_text(RECIPE + '[[student]]\nname = "sft"\n')
            with (home / "rows.jsonl").open("a") as file:
                file.write('{"question": "What do you think?", "answer": ""}\n')
        case "no data":
            (home / "rows.jsonl").unlink()
        case "no tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (home / "teacher" / name).unlink()
        case "no model":
            (home / "teacher").rename(home / "elsewhere")


@pytest.mark.parametrize(
    ("what", "words", "said"),
    [
        ("binary recipe", [], "mine.toml: not a text file"),
        ("empty recipe", [], "the recipe is empty"),
        ("broken toml", [], "mine.toml: not valid TOML"),
        ("empty data", [], "rows.jsonl is empty"),
        ("no data", [], "rows.jsonl' cannot be read"),
        ("broken data", [], "rows.jsonl line 6: not JSON"),
        (
            "no reference",
            ["dataset.0.kind=none"],
            "rows.jsonl line 6: column 'answer' is empty; students learn from it",
        ),
        ("no tokenizer", [], "has no tokenizer"),
        ("no model", [], "does not exist"),
        ("", ["prune.layers=3"], "choose 1 to 2"),
        ("", ["prune.layers=0"], "greater than or equal to 1"),
        ("", ["prune.lairs=1"], "did you mean 'layers'"),
        ("", ["prune.layers=many"], "valid integer"),
        ("", ["--until", "prunes"], "did you mean 'prune'"),
    ],
)
def test_bad_input_is_named_and_touches_nothing(home: Path, what: str, words: list[str], said: str) -> None:
    damage(home, what)
    status, told = commands.command("run", "mine.toml", *words)
    assert status == 2, told
    assert said in told and "Traceback" not in told
    assert not list(home.glob("runs/mine/artifacts/*/manifest.json"))


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ("run", "quickstrat"),
        ("status", "nowhere"),
        ("report", "nowhere"),
        ("serve", "nowhere"),
        ("serve", "small=nowhere"),
        ("serve", "teacher", "--adapter", "sql"),
        ("serve", "teacher", "--dtype", "int3"),
        ("loadtest", "localhost:8000"),
        ("run", "a.toml"),
    ):
        status, said = commands.command(*words)
        assert status == 2 and "Traceback" not in said and said.startswith("regrow: "), said


def test_until_prune_then_again_reuses_and_status_tells(regrow: Regrow, home: Path) -> None:
    first = regrow("run", "mine.toml", "--until", "prune")
    assert first.returncode == 0, first.stderr
    made = {path: path.read_bytes() for path in home.glob("runs/mine/artifacts/*/manifest.json")}
    assert len(made) == 3  # prepare, the cut, and the tail drop beside it
    again = regrow("run", "mine.toml", "--until", "prune")
    assert again.returncode == 0 and again.stderr.count("reused") == 2
    assert made == {path: path.read_bytes() for path in home.glob("runs/mine/artifacts/*/manifest.json")}
    shown = regrow("status", "runs/mine")
    assert shown.returncode == 0 and shown.stderr.count("done") == 3 and "to do" in shown.stderr
    other = regrow("run", "mine.toml", "prune.layers=2", "--until", "prune")
    assert other.returncode == 0
    assert len(list(home.glob("runs/mine/artifacts/prune-*/manifest.json"))) == 4, "changed work goes beside, not over"
    assert regrow("report", "runs/mine").returncode == 2
    (home / "short.txt").write_text("sk-ann\n")
    for words, said in (
        (("--host", "0.0.0.0"), "other machines reach 0.0.0.0, and there are no API keys"),
        (("--keys", "short.txt"), "short.txt, line 1: a key has at least 16 characters"),
        (("--keys", "gone.txt"), "gone.txt"),
    ):
        refused = regrow("serve", "runs/mine", *words)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr and "sk-ann" not in refused.stderr


def test_init_writes_a_recipe_that_runs_and_is_never_written_over(regrow: Regrow, home: Path) -> None:
    help = regrow("recipes", "init", "--help").stdout
    assert "Examples" in help and "--data" in help and "--model" in help
    words = ("recipes", "init", "own.toml", "--data", "rows.jsonl", "--model", "./teacher")
    made = regrow(*words)
    assert made.returncode == 0, made.stderr
    assert "column 'question' is in the first 5 rows" in made.stdout and "wrote own.toml" in made.stdout
    again = regrow(*words)
    assert again.returncode == 2 and "--force writes over it" in again.stderr and "Traceback" not in again.stderr
    assert regrow(*words, "--force").returncode == 0
    run = regrow("run", "own.toml", "--until", "prune")
    assert run.returncode == 0, run.stderr
    assert len(list(home.glob("runs/own/artifacts/*/manifest.json"))) == 3


def test_bad_rows_within_the_limit_are_set_aside_and_told(regrow: Regrow, home: Path) -> None:
    """Two equal rows stay two rows; a broken one ends in bad_rows.jsonl with its line."""
    rows = home / "rows.jsonl"
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + '\n{"question": "1 + 1?"\n')
    done = regrow("run", "mine.toml", "dataset.0.max_bad_rows=1", "--until", "prepare")
    assert done.returncode == 0, done.stderr
    assert "bad rows of sums set aside: 1" in done.stderr and "line 7: not JSON" in done.stderr
    (folder,) = home.glob("runs/mine/artifacts/prepare-*")
    assert json.loads((folder / "manifest.json").read_text())["summary"]["rows"] == 6
    assert json.loads((folder / "bad_rows.jsonl").read_text())["line"] == 7


def test_rows_too_long_for_the_engine_end_in_quarantine_and_status_3(home: Path, ray_session: None) -> None:
    """No row fits, so no engine is started."""
    (home / "mine.toml").write_text(RECIPE + '[[student]]\nname = "sdd"\n')
    (home / "rows.jsonl").write_text(json.dumps({"question": "1 + " * 200 + "1?", "answer": "It is 201."}) + "\n")
    words = ("run", "mine.toml", "teacher.max_model_len=64", "generate.max_tokens=32", "--until", "generate")
    for _ in range(2):  # the second time everything is reused, and the rows are still there
        status, said = commands.command(*words)
        assert status == 3, said
        assert "done, but rows are in quarantine: 1 of 1 rows of generate" in said
        (file,) = home.glob("runs/mine/artifacts/generate-*/quarantine/*.jsonl")
        assert str(file.parent) in said
        (row,) = map(json.loads, file.read_text().splitlines())
        assert "max_model_len = 64" in row["reason"]


def prepared(home: Path) -> set[str]:
    return {path.parent.name for path in home.glob("runs/mine/artifacts/*/manifest.json")}


def test_edited_data_and_a_replaced_teacher_are_never_silently_the_old(home: Path, ray_session: None) -> None:
    """Under the same path stands something else: new artifacts; what stood there before is found again."""
    words, rows = ("run", "mine.toml", "--until", "prune", "prune.baselines=[]"), home / "rows.jsonl"
    assert commands.command(*words)[0] == 0
    first, before = prepared(home), rows.read_text()
    rows.write_text(before.replace("2 + 1?", "2 + 2?").replace("is 3.", "is 4."))
    assert commands.command(*words)[0] == 0
    second = prepared(home)
    assert len(second - first) == 2, "other rows are another data set, and another calibration"
    rows.write_text(before)
    status, said = commands.command(*words)
    assert status == 0 and said.count("reused") == 2 and prepared(home) == second
    (home / "teacher").rename(home / "old")
    tiny.model_dir(home / "teacher", layers=3, seed=1)
    assert commands.command(*words)[0] == 0
    (third,) = prepared(home) - second
    assert third.startswith("prune-")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_rows_are_read(home: Path, signum: int) -> None:
    row = json.dumps({"question": "1 + 1?" + " really?" * 20, "answer": "The answer is 2."}) + "\n"
    (home / "rows.jsonl").write_text(row * 300_000)
    command = [str(Path(sys.executable).parent / "regrow"), "run", "mine.toml", "--until", "prepare"]
    run = subprocess.Popen(command, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (home / "runs/mine").exists() and run.poll() is None:
        time.sleep(0.02)
    time.sleep(1)
    run.send_signal(signum)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signum], said
    assert "the same command goes on from here" in said and "Traceback" not in said
    assert not prepared(home)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["evaluate.lm_eval=['gsm9k:5']"], 2, "no task 'gsm9k'; did you mean 'gsm8k'"),
        (["evaluate.lm_eval=['mine.yaml']"], 2, "mine.yaml' does not exist"),
        (["serve.port={port}"], 1, "port {port} on 127.0.0.1 is in use; stop what listens there, or choose another"),
    ],
)
def test_what_the_last_stage_lacks_is_told_before_the_first(
    home: Path, words: list[str], status: int, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        ended, told = commands.command("run", "mine.toml", *(word.replace("{port}", port) for word in words))
    assert ended == status and said.replace("{port}", port) in told, told
    assert "Traceback" not in told and not prepared(home)
