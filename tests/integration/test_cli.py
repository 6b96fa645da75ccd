"""The command as its user meets it: help, listings, and what it says to bad input."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = tiny.RECIPE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tiny.run_home(tmp_path)


def test_help_lists_what_works(regrow: Regrow) -> None:
    done = regrow("--help")
    assert done.returncode == 0
    for command in ("run", "status", "report", "recipes", "serve", "clean", "doctor"):
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
        ("no tokenizer", [], "has no tokenizer"),
        ("no model", [], "does not exist"),
        ("", ["prune.layers=3"], "choose 1 to 2"),
        ("", ["prune.layers=0"], "greater than or equal to 1"),
        ("", ["prune.lairs=1"], "did you mean 'layers'"),
        ("", ["prune.layers=many"], "valid integer"),
        ("", ["--until", "prunes"], "did you mean 'prune'"),
    ],
)
def test_bad_input_is_named_and_touches_nothing(
    regrow: Regrow, home: Path, what: str, words: list[str], said: str
) -> None:
    damage(home, what)
    done = regrow("run", "mine.toml", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(home.glob("runs/mine/artifacts/*/manifest.json"))


def test_unknown_names(regrow: Regrow) -> None:
    for words in (
        ("run", "quickstrat"),
        ("status", "nowhere"),
        ("report", "nowhere"),
        ("serve", "nowhere"),
        ("run", "a.toml"),
    ):
        done = regrow(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("regrow: "), (
            done.stderr
        )


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
