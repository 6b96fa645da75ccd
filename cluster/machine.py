"""What this machine has: cores, memory, disks, GPUs, limits. Numbers only; `doctor` says what they mean.

In a container the machine's own figures mislead; what counts is the cgroup's (cgroup-v2.rst and
cgroup-v1/memory.rst of the Linux kernel's documentation). A limit anywhere between the process's own
cgroup and the root holds, so all of them are read.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi tells of it; memory in bytes."""

    name: str
    memory: int
    free: int
    driver: str


def cores(root: Path = ROOT) -> tuple[int, float | None]:
    """The CPUs this process may run on, and how many of them its cgroups' quota pays for (None: no quota)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _cgroups("cpu", root):
        limit = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(limit) == 2 and limit[0] not in ("max", "-1"):
            quotas.append(int(limit[0]) / int(limit[1]))
    return affinity, min(quotas, default=None)


def memory(root: Path = ROOT) -> tuple[int, int]:
    """Total and available memory in bytes, within the limits of the cgroups."""
    import psutil

    host = psutil.virtual_memory()
    total, available = host.total, host.available
    for folder in _cgroups("memory", root):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if used and limit[0] != "max" and int(limit[0]) < host.total:  # version 1 writes "no limit" as a huge number
            total = min(total, int(limit[0]))
            available = min(available, max(0, int(limit[0]) - int(used[0]) + _file_cache(folder / "memory.stat")))
    return total, available


def free(place: Path) -> int:
    """Bytes free for this user where `place` is, or would be made."""
    return shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free


def refusal(place: Path) -> str | None:
    """Why no file can be written in the directory `place` (or, where it is missing, in the nearest one
    above it); None where one can. It is tried: mode bits tell too little of root and of mounts."""
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or str(error)


def gpus(seconds: float = 10.0) -> list[Gpu] | None:
    """The NVIDIA GPUs of this machine; None where nvidia-smi does not answer, or devices are there
    without it. torch is not asked: it takes seconds to import, and hangs where the driver hangs."""
    if not shutil.which("nvidia-smi"):
        return None if list(Path("/dev").glob("nvidia[0-9]*")) else []
    fields = "name,memory.total,memory.free,driver_version"
    status, said = answer(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"], seconds)
    if status is None:
        return None
    if status != 0:
        return [] if "No devices were found" in said else None
    rows = [[word.strip() for word in line.split(",")] for line in said.splitlines() if line.count(",") == 3]
    return [Gpu(name, int(total) << 20, int(left) << 20, driver) for name, total, left, driver in rows]


def answer(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit status and output of `command`, both streams together; status None where it takes longer than
    `seconds` or cannot be started. Its whole process group is killed then, and not waited for: a
    process that hangs inside a driver does not even die of kill -9."""
    null, pipe, both = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    try:
        process = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=both, start_new_session=True)
    except OSError as error:
        return None, str(error)
    try:
        said, status = process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired as late:
        said, status = late.output or b"", None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return status, said.decode(errors="replace").strip()


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of this process's cgroups under `controller`, from its own up to the root. In a
    container the path may be the host's, and only its upper end is mounted."""
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        mounts = ["", "unified"] if not names else [names] if controller in names.split(",") else []
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            own = top / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir())


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _file_cache(file: Path) -> int:
    """Bytes of file cache that the kernel would give back: they count as used, and are not."""
    found = dict(line.split() for line in _lines(file))
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
