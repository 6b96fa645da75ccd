"""`regrow clean` on real run directories, on a local disk and on a real S3 server (moto's)."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import lease, storage
from cluster.artifacts import MANIFEST, artifact
from pipelines import clean, recipe_file
from pipelines import run as story
from pipelines.recipe import Recipe
from tests import tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]
Shell = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `mine.toml` to the end of prune, first with two layers cut, last with one."""
    home = tiny.run_home(tmp_path_factory.mktemp("made"))
    for layers in (2, 1):
        run(recipe(home, f"prune.layers={layers}", f"run_dir={home}/runs/mine"))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of it, in the directory the command is called in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    remembered = tmp_path / "runs/mine/recipe.json"
    remembered.write_text(remembered.read_text().replace(str(made), str(tmp_path)))
    return tmp_path


def recipe(home: Path, *overrides: str) -> Recipe:
    return recipe_file.load(str(home / "mine.toml"), overrides)


def run(asked: Recipe) -> None:
    story.run(asked, "prune")


def names(home: Path) -> set[str]:
    return {path.name for path in (home / "runs/mine/artifacts").iterdir()}


def named(home: Path) -> set[str]:
    """Those that the recipe run last names, as far as they are there."""
    asked = recipe(home, f"run_dir={home}/runs/mine")
    return names(home) & {f"{out.name}-{out.id}" for step in story.steps(asked) for out in step.outs.values()}


def tree(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_dry_run_removes_nothing_and_yes_what_it_listed(regrow: Regrow, home: Path) -> None:
    before = tree(home)
    older = names(home) - named(home)
    assert len(older) == 2 and len(names(home)) == 5  # prepare, and the cut and the tail drop of each run
    listed = regrow("clean", "runs/mine")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in older) and listed.stdout.count("older") == 2
    assert "nothing was removed; with --yes" in listed.stdout and tree(home) == before
    size = sum(len(data) for name, data in before.items() if any(old in name for old in older))
    assert f"free {size / 1e3:.1f} kB" in listed.stdout
    done = regrow("clean", "mine", "--yes")
    assert done.returncode == 0 and "removed 2" in done.stdout, done.stderr
    assert tree(home) == {name: data for name, data in before.items() if not any(old in name for old in older)}
    assert "nothing to remove" in regrow("clean", "--yes").stdout, "without a run: all under runs/"
    again = regrow("run", "mine.toml", "--until", "prune")
    assert again.returncode == 0 and again.stderr.count("reused") == 2, again.stderr


def test_half_written_ones_go_unless_the_run_would_go_on_with_them(home: Path) -> None:
    kept = named(home)
    mine = home / "runs/mine/artifacts" / next(name for name in kept if name.startswith("prune-tail"))
    (mine / MANIFEST).unlink()
    other = artifact(str(home / "runs/mine"), "train-sdd.v2", {"epochs": 3})
    with other.writing() as folder:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "weights").write_bytes(b"w" * 1234)
    said = list(clean.clean(recipe(home, f"run_dir={home}/runs/mine"), yes=True))
    assert any(f"unfinished: {mine.name}" in line for line in said)
    assert any("half-written" in line and other.name in line and "1.2 kB" in line for line in said)
    assert names(home) == kept


def test_links_and_strange_names_are_left_alone(home: Path) -> None:
    root, outside, older = home / "runs/mine/artifacts", home / "outside", names(home) - named(home)
    (outside / "prune-tail-0123456789abcdef").mkdir(parents=True)
    (outside / "precious").write_text("p")
    strange = {
        "notes",
        "prune",
        "prune-0123",
        "PRUNE-0123456789abcdef",
        "bake-0123456789abcdef",
        "prune-012345678_abcdeg",
    }
    for name in strange:
        (root / name).mkdir()
        (root / name / MANIFEST).write_text("{}")
    (root / "prepare-0123456789abcdef").write_text("a file, not a directory")
    (root / "prune-linked-0123456789abcdef").symlink_to(outside)
    (root / sorted(older)[0] / "elsewhere").symlink_to(outside)
    said = "\n".join(clean.clean(recipe(home, f"run_dir={home}/runs/mine"), yes=True))
    assert "removed 2" in said and "notes (no artifact's name" in said
    assert (outside / "precious").read_text() == "p" and (outside / "prune-tail-0123456789abcdef").is_dir()
    assert names(home) - named(home) == strange | {"prepare-0123456789abcdef", "prune-linked-0123456789abcdef"}


def test_what_is_no_run_is_refused(regrow: Regrow, home: Path) -> None:
    other = home / "other"
    (other / "artifacts" / "prune-0123456789abcdef").mkdir(parents=True)
    for words in (("clean", "other", "--yes"), ("clean", "nowhere", "--yes"), ("clean", ".", "--yes")):
        done = regrow(*words)
        assert done.returncode == 2 and "is no run" in done.stderr, done.stderr
    assert (other / "artifacts" / "prune-0123456789abcdef").is_dir()
    (home / "runs/mine/artifacts").rename(home / "moved")
    (home / "runs/mine/artifacts").symlink_to(home / "moved")
    done = regrow("clean", "runs/mine", "--yes")
    assert done.returncode == 2 and "is a link" in done.stderr and len(list((home / "moved").iterdir())) == 5
    shutil.rmtree(home / "runs")
    assert "no run under" in regrow("clean").stderr


def test_where_everything_would_go_it_is_refused(regrow: Regrow, home: Path) -> None:
    """Other data under the same name: no id is what it was, and what is there may be all there is."""
    before = names(home)
    with (home / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"question": "9?", "answer": "The answer is 9."}) + "\n")
    done = regrow("clean", "runs/mine", "--yes")
    assert done.returncode == 2 and "all 5 artifacts would go" in done.stderr, done.stderr
    assert names(home) == before


def test_one_that_is_half_removed_is_not_whole(small_disk: Shell, home: Path) -> None:
    """A mount inside an artifact cannot be removed: the manifest must be gone before that is met."""
    kept, older = named(home), sorted(names(home) - named(home))[0]
    at = f"runs/mine/artifacts/{older}"
    assert (home / at / MANIFEST).exists()
    done = small_disk(f"disk 1m {at}/model/held; regrow clean runs/mine --yes")
    assert done.returncode == 1 and "busy" in done.stderr and "Traceback" not in done.stderr, done
    assert (home / at / "model").exists() and not (home / at / MANIFEST).exists()
    assert "half-written" in "\n".join(clean.clean(recipe(home, f"run_dir={home}/runs/mine"), yes=True))
    assert names(home) == kept


def test_it_makes_room_on_a_full_disk(small_disk: Shell, home: Path) -> None:
    """Which is when it is called: there is no room then to write its own name into the lock."""
    done = small_disk(
        "mv runs/mine there && disk 20m runs && mv there runs/mine && rm -f runs/mine/.lock;"
        "cat /dev/zero > runs/filled 2>/dev/null; df --output=avail runs | tail -1;"
        "regrow clean runs/mine --yes && df --output=avail runs | tail -1"
    )
    before, *_, after = done.stdout.split("\n")[0], *done.stdout.split()
    assert done.returncode == 0 and int(before) == 0 and int(after) > 100 and "removed 2" in done.stdout, done


def there(place: str) -> dict[str, int]:
    """Name → size of what is there, without the lease."""
    return {name: size for name, size in storage.files(place).items() if not name.startswith(lease.FOLDER)}


def test_on_s3(home: Path, bucket: str, regrow: Regrow) -> None:
    """Alike, under a lease in place of the lock."""
    place = storage.join(bucket, "cleaned")
    asked = recipe(home, f"run_dir={place}")
    fs, path = storage.filesystem(place)
    fs.put(str(home / "runs/mine/artifacts"), f"{path}/", recursive=True)
    fs.put(str(home / "runs/mine/recipe.json"), f"{path}/recipe.json")
    storage.create(storage.join(place, "artifacts", "notes", "mine.txt"), b"n")
    before = there(place)
    with lease.held(place):
        busy = regrow("clean", place, "--yes")
    assert busy.returncode == 2 and "is in use by process" in busy.stderr, busy
    said = "\n".join(clean.clean(asked, yes=False))
    assert said.count("older") == 2 and "nothing was removed" in said and there(place) == before
    assert "removed 2" in "\n".join(clean.clean(asked, yes=True))
    left = {name.split("/")[1] for name in there(place) if name.startswith("artifacts/")}
    assert left == named(home) | {"notes"}
    assert there(place) == {
        name: size for name, size in before.items() if name == "recipe.json" or name.split("/")[1] in left
    }
