"""What the machine is said to have: cgroup files as the kernel writes them, real commands, real processes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster import machine

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_quota_of_version_2_is_the_least_of_all_levels(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
    }
    assert machine.cores(tree(tmp_path, files))[1] == 1.5
    files["sys/fs/cgroup/pod/container/cpu.max"] = "50000 200000\n"
    assert machine.cores(tree(tmp_path, files))[1] == 0.25


def test_quota_of_version_1(tmp_path: Path) -> None:
    """The path is the host's; in the container the controller's root is all there is."""
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert machine.cores(tree(tmp_path, files))[1] == 3.0
    files["sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"] = "-1\n"
    assert machine.cores(tree(tmp_path, files))[1] is None
    assert machine.cores(tmp_path / "nowhere")[1] is None


def test_affinity_counts_and_not_the_machine() -> None:
    only = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{only}}}); from cluster import machine; print(machine.cores()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/a\n", "a", "memory.max", "memory.current"),
        ("4:memory:/a\n", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_memory_within_the_limit(tmp_path: Path, line: str, folder: str, limit: str, used: str) -> None:
    """1 GiB allowed, three quarters used, a quarter of that is file cache the kernel would give back."""
    home = f"sys/fs/cgroup/{folder}"
    stat = f"cache 1\n{'total_' if 'memory/' in folder else ''}inactive_file {GIB // 4}\n"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": line,
            f"{home}/{limit}": f"{GIB}\n",
            f"{home}/{used}": f"{3 * GIB // 4}\n",
            f"{home}/memory.stat": stat,
        },
    )
    assert machine.memory(root) == (GIB, GIB // 2)


@pytest.mark.parametrize("unlimited", ["max\n", "9223372036854771712\n"])
def test_memory_without_a_limit_is_the_machines(tmp_path: Path, unlimited: str) -> None:
    home = "sys/fs/cgroup"
    files = {"proc/self/cgroup": "0::/\n", f"{home}/memory.max": unlimited, f"{home}/memory.current": "1000\n"}
    total, available = machine.memory(tree(tmp_path, files))
    assert total == psutil.virtual_memory().total
    assert available == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_command_that_hangs_is_left_after_the_limit_with_its_children() -> None:
    began = time.monotonic()
    status, said = machine.answer(["sh", "-c", "sleep 77.125 & echo $!; wait"], 0.5)
    assert status is None and time.monotonic() - began < 60
    child = Path(f"/proc/{said.split()[0]}")
    for _ in range(50):
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def test_a_command_answers_or_is_not_there() -> None:
    assert machine.answer(["sh", "-c", "echo out; echo err >&2; exit 3"], 10) == (3, "out\nerr")
    status, said = machine.answer(["/nowhere/at/all"], 10)
    assert status is None and "No such file" in said


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program named nvidia-smi, with the given shell text, before all others."""

    def put(text: str) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_gpus(smi: Callable[[str], None]) -> None:
    smi("echo 'NVIDIA H100 80GB HBM3, 81559, 81000, 550.54.15'; echo 'NVIDIA L40S, 46068, 100, 550.54.15'")
    assert machine.gpus() == [
        machine.Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 81000 << 20, "550.54.15"),
        machine.Gpu("NVIDIA L40S", 46068 << 20, 100 << 20, "550.54.15"),
    ]
    smi("echo 'No devices were found'; exit 6")
    assert machine.gpus() == []
    smi("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9")
    assert machine.gpus() is None
    smi("sleep 60")
    began = time.monotonic()
    assert machine.gpus(seconds=0.5) is None and time.monotonic() - began < 50


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Tried, not read off the mode: root may write where the bits say no, but not in /sys or below a file."""
    assert machine.refusal(tmp_path) is None
    assert machine.refusal(tmp_path / "not" / "there" / "yet") is None
    (tmp_path / "file").write_text("")
    assert machine.refusal(tmp_path / "file" / "below") == "Not a directory"
    assert machine.refusal(Path("/sys/regrow")) is not None
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "the trial leaves something behind"


def test_free_space_of_a_directory_that_is_not_made_yet(tmp_path: Path) -> None:
    assert machine.free(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
