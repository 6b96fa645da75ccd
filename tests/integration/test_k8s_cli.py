"""`regrow k8s` as its user meets it: what it writes, says and refuses; and the manifests that are kept in k8s/."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.k8s.rendering.ray_cluster import DRAIN
from tests import ports, tiny

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "k8s"
COMMANDS = re.findall(r"^regrow (k8s render .*)$", (KEPT / "README.md").read_text(), re.M)


def regrow(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *words]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def kept(command: str) -> tuple[list[str], Path]:
    """The words of a command without -o, and the directory that it names."""
    words = shlex.split(command)
    at = words.index("-o")
    return [*words[:at], *words[at + 2 :]], ROOT / words[at + 1]


@pytest.mark.parametrize("command", COMMANDS, ids=[command.split()[2] for command in COMMANDS])
def test_what_is_kept_is_what_is_rendered(command: str, tmp_path: Path) -> None:
    words, folder = kept(command)
    done = regrow(*words, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == tree(folder), f"render again: regrow {command}"
    again = regrow(*words, "-o", str(tmp_path / "out"))
    assert again.returncode == 0 and tree(tmp_path / "out") == tree(folder)


def test_every_kept_directory_has_its_command() -> None:
    assert COMMANDS and {kept(command)[1] for command in COMMANDS} == {p for p in KEPT.iterdir() if p.is_dir()}


@pytest.mark.parametrize("folder", [kept(command)[1] for command in COMMANDS], ids=lambda p: p.name)
def test_nothing_is_wrong_with_what_is_kept(folder: Path) -> None:
    done = regrow("k8s", "check", str(folder))
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"\d+ objects, 0 findings", done.stdout.strip())


def test_nothing_heavy_is_imported_and_ray_is_not_started(tmp_path: Path) -> None:
    words = ["k8s", "render", "quickstart", "run_dir=s3://b/r", "-o", str(tmp_path / "o")]
    heavy = "{m for m in ('ray', 'torch', 'vllm', 'transformers', 'kubernetes') if m in sys.modules}"
    code = f"import sys; from pipelines.cli_k8s import app; app({words[1:]!r}, standalone_mode=False); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    code = f"import sys, pipelines.cli_k8s; print({heavy}, 'yaml' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set() False False", "`regrow --help` would pay for it"


def test_it_says_what_to_do_next(tmp_path: Path) -> None:
    done = regrow("k8s", "render", "quickstart", "run_dir=s3://b/r", "-o", str(tmp_path / "o"), "--namespace", "team")
    assert f"kubectl apply -k {tmp_path}/o" in done.stdout and "regrow-s3" in done.stdout and "-n team" in done.stdout
    done = regrow("k8s", "render", "qwen3-8b-sdd", "run_dir=s3://b/r", "-o", str(tmp_path / "p"))
    assert "--model NAME=s3://" in done.stdout and not (tmp_path / "p" / "service").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstart"], "run_dir is not set"),
        (["quickstart", "run_dir=runs/mine"], "--volume NAME=CLAIM:/path"),
        (["quickstart", "run_dir=/data/mine", "--volume", "data=claim:/other"], "run_dir is '/data/mine'"),
        (["quickstart", "run_dir=s3://b/r", "--volume", "data:/data"], "say NAME=CLAIM:/path"),
        (["quickstart", "run_dir=s3://b/r", "--volume", "data=claim:/scratch"], "no place to mount"),
        (["quickstart", "run_dir=s3://b/r", "--model", "sdd=models/sdd"], "say NAME=s3://"),
        (["quickstart", "run_dir=s3://b/r", "--model", "a:b=s3://b/m"], "a name has no colon"),
        (["quickstart", "run_dir=s3://b/r", "--env", "PLAIN"], "--env PLAIN: say NAME=VALUE"),
        (["quickstart", "run_dir=s3://b/r", "--env", "MY_API_KEY=abc"], "MY_API_KEY is a secret by its name"),
        (["quickstart", "run_dir=s3://b/r", "--env", "X=hf_" + "a" * 30], "a Hugging Face token"),
        (["quickstart", "run_dir=s3://b/r", "--name", "Mine"], "'Mine' cannot be a RayJob's"),
        (["quickstart", "run_dir=s3://b/r", "--namespace", "a_b"], "'a_b' is no Kubernetes name"),
        (["quickstart", "run_dir=s3://b/r", "--volume", "a=c:/home/regrow"], "--volume a=c:/home/regrow"),
        (["quickstart", "run_dir=s3://b/r", "--volume", "home=c:/data"], "--volume home=c:/data: pods have a volume"),
        (["quickstart", "run_dir=s3://b/r", "--gpu-selector", "x=y!z"], "--gpu-selector x=y!z"),
        (["quickstart", "run_dir=s3://b/r", "--spot-selector", "a=b=c"], "--spot-selector a=b=c"),
        (["quickstart", "run_dir=s3://b/r", "--operator-namespace", "BAD_ns!"], "--operator-namespace: 'BAD_ns!'"),
        *(
            (["quickstart", "run_dir=s3://b/r", f"--deadline-hours={hours}"], f"--deadline-hours {hours}")
            for hours in ("0", "-1", "inf", "nan", "1e+09", "1e-05")
        ),
        (["llama-3.1-70b-sdd", "run_dir=s3://b/r", "--gpus-per-node", "4"], "tensor_parallel = 8, but a node has 4"),
        (["quickstar", "run_dir=s3://b/r"], "did you mean 'quickstart'"),
    ],
)
def test_what_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    done = regrow("k8s", "render", *words, "-o", str(tmp_path / "o"))
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "hf_aaa" not in done.stderr and not (tmp_path / "o").exists()


def test_paths_of_this_machine_are_refused_all_at_once(tmp_path: Path) -> None:
    home = tiny.run_home(tmp_path)
    (home / "task.yaml").write_text("task: mine")
    recipe = str(home / "mine.toml")
    done = regrow("k8s", "render", recipe, 'evaluate.lm_eval=["/here/task.yaml:5"]', "-o", str(tmp_path / "o"))
    assert done.returncode == 2
    for field in ("teacher.model", "dataset", "evaluate.lm_eval", "run_dir"):
        assert field in done.stderr
    assert done.stderr.count("put it on s3://, hf:// or a volume") >= 3


def test_what_is_on_a_mounted_volume_may_be_read(tmp_path: Path) -> None:
    home = tiny.run_home(tmp_path)
    moved = (
        (home / "mine.toml").read_text().replace('"rows.jsonl"', '"/data/rows.jsonl"').replace('"teacher"', '"/data/t"')
    )
    (home / "mine.toml").write_text(moved)
    words = [str(home / "mine.toml"), "run_dir=/data/runs/mine", "--volume", "data=team-data:/data"]
    done = regrow("k8s", "render", *words, "-o", str(tmp_path / "o"))
    assert done.returncode == 0, done.stderr
    head = yaml.safe_load((tmp_path / "o" / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    pod = head["template"]["spec"]
    assert {"name": "data", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "team-data"}} in pod["volumes"]


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "README.md").write_text("mine")
    words = ["k8s", "render", "quickstart", "run_dir=s3://b/r", "-o", str(out)]
    assert regrow(*words).returncode == 0 and (out / "service" / "rayservice.yaml").exists()
    without = [*words, 'student=[{name = "none"}]']
    assert regrow(*without).returncode == 0 and not (out / "service").exists(), "what is no longer made goes"
    (out / "base" / "mine.yaml").write_text("kind: ConfigMap\n")
    before = tree(out)
    done = regrow(*words)
    assert done.returncode == 2 and "base/mine.yaml" in done.stderr and tree(out) == before
    assert (out / "README.md").read_text() == "mine"


def test_manifests_of_other_runs_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "k8s"
    words = ["k8s", "render", "quickstart", "run_dir=s3://b/r"]
    assert regrow(*words, "-o", str(out / "mine")).returncode == 0
    assert regrow(*words, "--name", "other", "-o", str(out / "other")).returncode == 0
    before = tree(out)
    for name, folder in (("quickstart", out), ("third", out), ("other", out / "mine"), ("quickstart", tmp_path)):
        done = regrow(*words, "--name", name, "-o", str(folder))
        assert done.returncode == 2 and "rendered for another run or to another directory" in done.stderr
        assert tree(out) == before, f"{name} into {folder}"
    out.rename(tmp_path / "moved")
    assert regrow(*words, "-o", str(tmp_path / "moved" / "mine")).returncode == 0
    assert tree(tmp_path / "moved") == before


def test_a_file_is_no_directory_to_render_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        done = regrow("k8s", "render", "quickstart", "run_dir=s3://b/r", "-o", str(tmp_path / place))
        assert done.returncode == 2 and "file is a file; give a directory" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text((KEPT / "quickstart" / "rayjob.yaml").read_text().replace("activeDeadlineSeconds: 86400", ""))
    done = regrow("k8s", "check", str(file), "--off", "network-policy-missing")
    assert done.returncode == 1
    line, counts = done.stdout.strip().splitlines()
    assert line.startswith(f"{file}: RayJob/quickstart: ") and "[job-deadline-missing] policy: " in line
    assert counts == "1 objects, 1 findings: 1 policy"
    off = ["--off", "job-deadline-missing", "--off", "network-policy-missing"]
    assert regrow("k8s", "check", str(file), *off).returncode == 0
    made = json.loads(regrow("k8s", "check", str(file), "--json").stdout)
    assert made["objects"] == 1 and "job-deadline-missing" in {one["rule"] for one in made["findings"]}
    file.write_text(file.read_text().replace("submissionMode", "submisionMode"))
    done = regrow("k8s", "check", str(file), "--off", "network-policy-missing")
    assert done.returncode == 1 and "[schema] " in done.stdout and "policy: " not in done.stdout.splitlines()[0]


def test_serve_takes_the_endpoints_config_and_regrow_its_arguments() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serving.settings import Endpoint

    for folder in (kept(command)[1] for command in COMMANDS):
        service = yaml.safe_load((folder / "service" / "rayservice.yaml").read_text())
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        ServeDeploySchema.model_validate(config)
        served = Endpoint.model_validate(config["applications"][0]["args"])
        assert served.keys and all(url.startswith("s3://") for url in served.models.values())


def test_the_pre_stop_hook_drains_the_node_that_it_runs_on(tmp_path: Path) -> None:
    """With a real node, told the cluster's address as KubeRay tells it; without the wait that follows."""
    from ray._raylet import GcsClient

    port = ports.free()
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = shlex.split(f"ray start --block --head --port={port} --num-cpus=1 --include-dashboard=false")
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen([*start, "--object-store-memory=80000000"], env=env, stdout=log, stderr=log)
    try:
        hook = re.sub(r"sleep \d+", "echo drained", DRAIN)
        for _ in range(60):
            done = subprocess.run(["/bin/sh", "-c", hook], env=env, capture_output=True, text=True)
            if done.stdout.endswith("drained\n"):
                break
            time.sleep(1)
        assert done.returncode == 0, done.stderr
        (about,) = GcsClient(address=f"127.0.0.1:{port}").get_all_node_info(timeout=30).values()
        # with nothing to do it has ended at once, and GCS knows that no fault did it
        assert "PREEMPTED" in str(about.death_info) and "the pod is being stopped" in str(about.death_info)
    finally:
        node.terminate()
        node.wait(60)


def test_check_refuses_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    for words, said in (
        (["nowhere"], "nowhere"),
        ([str(tmp_path / "a.yaml")], "a.yaml, line"),
        ([str(KEPT), "--off", "job-deadline-mising"], "did you mean 'job-deadline-missing'"),
        ([], "check what?"),
    ):
        done = regrow("k8s", "check", *words)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert "job-deadline-missing" in regrow("k8s", "check", "--rules").stdout
