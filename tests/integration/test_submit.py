"""`regrow submit`, `regrow jobs` and `regrow doctor --address` against a real cluster of `ray start` nodes with token
authentication, from processes that are no part of it."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from tests.conftest import moto, s3_at
from tests.cut import Cut
from tests.drivers import until
from tests.ray_start import Started, started

pytestmark = pytest.mark.timeout(1200)
REGROW = str(Path(sys.executable).parent / "regrow")
RECIPE = """
name = "small"
[teacher]
model = "tiny"
max_model_len = 512
[[dataset]]
name = "mine"
source = "rows.jsonl"
test_rows = 4
[prune]
layers = 2
baselines = []
[generate]
max_tokens = 96
shard_rows = 8
max_num_seqs = 8
[[student]]
name = "sdd"
lora_rank = 4
[evaluate]
max_tokens = 64
"""
PLANTED = "planted/Secret+0123456789abcdefghij"
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """S3 that the cluster is told of in its own environment, and the one who submits is not."""
    with moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Started]:
    folder = Path(tempfile.mkdtemp(prefix="rg", dir="/tmp"))
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": PLANTED, "HF_TOKEN": f"hf_{PLANTED[8:].lower()}"}
    try:
        with started(folder, AWS_ENDPOINT_URL=bucket, AWS_DEFAULT_REGION="us-east-1", **keys) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"question": f"Sort the numbers: {n}, {97 - n}, {n * 7 % 50}.", "answer": f"#### {n}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "small.toml").write_text(RECIPE)
    return folder / "small.toml"


@pytest.fixture
def call(cluster: Started, tmp_path: Path) -> Call:
    """`regrow` with the cluster's address and token, elsewhere."""
    (tmp_path / "token").write_text(f"{cluster.token}\n")

    def run(*words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [REGROW, *words, "--address", cluster.address, "--token-file", str(tmp_path / "token")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


def listed(call: Call, word: str) -> list[list[str]]:
    """Columns of the jobs whose line has `word` in it."""
    return [line.split() for line in call("jobs").stdout.splitlines() if word in line]


def test_a_recipe_runs_on_the_cluster_and_a_second_submission_reuses_its_work(
    call: Call, recipe: Path, bucket: str
) -> None:
    """Its own rows go along; engines and training workers run on the worker nodes; artifacts go to S3."""
    asked = ("submit", str(recipe), "run_dir=s3://regrow/whole", "--until", "train")
    first = call(*asked)
    assert re.search(r"train-sdd: done in \d+ s", first.stdout)
    assert "succeeded" in first.stderr
    second = call(*asked)
    assert "generate: reused" in second.stdout and "train: reused" in second.stdout
    with s3_at(bucket):
        found = s3fs.S3FileSystem().find("s3://regrow/whole/artifacts")
    assert sum(name.endswith("/manifest.json") for name in found) == 4  # prepare, prune, generate, train
    jobs = listed(call, "small-")
    assert [job[0].rpartition("-")[2] for job in jobs] == ["2", "1"]
    assert len({job[0].rpartition("-")[0] for job in jobs}) == 1  # one run
    assert call("jobs", "logs", jobs[1][0], "--no-follow").stdout == first.stdout


def test_the_exit_status_is_the_jobs(call: Call, recipe: Path, tmp_path: Path) -> None:
    done = call("submit", str(recipe), f"run_dir={tmp_path}/r", "dataset.mine.source=/not/there/rows.jsonl", status=2)
    assert "regrow: " in done.stdout and "/not/there/rows.jsonl" in done.stdout
    assert "taken for a path of the cluster's nodes" in done.stderr
    assert "failed" in done.stderr and "with exit status 2" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_job_that_is_stopped_goes_on_where_it_was(call: Call, recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "stopped"
    asked = ("submit", str(recipe), f"run_dir={home}", "name=stopped", "--until", "generate")
    detached = call(*asked, "generate.max_num_seqs=1", "--detach")  # slowly: it is stopped in the middle
    assert detached.stdout == ""
    job = listed(call, "stopped-")[0][0]
    again = call(*asked, status=2)
    assert f"this run is under way as job {job}" in again.stderr
    until(lambda: list(home.glob("artifacts/generate-*/data/part-*.parquet")), timeout=600)
    call("jobs", "stop", job)
    assert listed(call, job)[0][1] == "stopped"
    assert "is over already" in call("jobs", "stop", job).stderr
    whole = call(*asked)
    there = re.search(r"generate: (\d+) of 56 rows there already", whole.stdout)
    assert there and int(there[1]) > 0


def test_ctrl_c_leaves_the_job_running(cluster: Started, call: Call, recipe: Path, tmp_path: Path) -> None:
    asked = [REGROW, "submit", str(recipe), f"run_dir={tmp_path}/c", "name=left", "--until", "generate"]
    environ = {**os.environ, "RAY_AUTH_TOKEN": cluster.token, "RAY_API_SERVER_ADDRESS": cluster.address}
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(asked, stdout=log, stderr=subprocess.STDOUT, env=environ, cwd=tmp_path)
        until(lambda: "prepare: done" in (tmp_path / "log").read_text(), timeout=600)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    said = (tmp_path / "log").read_text()
    assert "the job goes on" in said and "Traceback" not in said
    assert "the same command goes on" not in said  # it would be refused while the job runs
    job = listed(call, "left-")[0]
    assert job[1] == "running"
    call("jobs", "stop", job[0])
    assert "terminated" in call("jobs", "logs", job[0], status=143).stdout


def test_a_connection_that_breaks_doubles_and_loses_no_line(cluster: Started, tmp_path: Path) -> None:
    """A job that writes a line every 50 ms, followed through a proxy that is cut three times."""
    from cluster.jobs import connect, follow

    (tmp_path / "token").write_text(cluster.token)
    direct = connect.connect(cluster.address, tmp_path / "token")
    program = "import time\nfor n in range(200): print('line', n, flush=True); time.sleep(0.05)"
    job = direct.submit_job(entrypoint=f'python -c "{program}"')
    proxy, seen = Cut(cluster.dashboard), list[str]()
    through = connect.connect(f"http://127.0.0.1:{proxy.port}", tmp_path / "token")

    def write(text: str) -> None:
        seen.append(text)
        if proxy.cuts < 3 and f"line {40 * (proxy.cuts + 1)}\n" in "".join(seen):
            proxy.cut()

    ended = follow.follow(through, job, write, lambda _: None)
    proxy.close()
    assert proxy.cuts == 3
    assert ended.status == "SUCCEEDED"
    assert "".join(seen) == direct.get_job_logs(job)
    assert [int(n) for n in re.findall(r"^line (\d+)$", "".join(seen), re.M)] == list(range(200))


def test_the_images_own_code(call: Call, recipe: Path, tmp_path: Path) -> None:
    done = call("submit", str(recipe), f"run_dir={tmp_path}/i", "name=image", "--code", "image", "--until", "prepare")
    assert "regrow run recipe.toml" in done.stdout and "prepare: done" in done.stdout


REFUSED = {
    "no run_dir": (["quickstart"], "give run_dir=s3://BUCKET/quickstart"),
    "too few GPUs": (
        ["quickstart", "run_dir=s3://b/x", "cluster.gpus=4", "cluster.workers=4"],
        "wants 4 GPUs, 1 of them on one node; the cluster has 0 (no node has one)",
    ),
    "GPUs later, how many": (
        ["quickstart", "run_dir=s3://b/x", "cluster.gpu=L40S-48GB", "--autoscaled"],
        "--autoscaled needs cluster.gpus=N",
    ),
    "secret in the recipe": (
        ["quickstart", "run_dir=s3://b/x", f"teacher.model=https://me:{PLANTED}@hub/m"],
        "teacher.model looks like a password in a URL",
    ),
    "secret as a field": (
        ["quickstart", "run_dir=s3://b/x", f"teacher.hf_token={PLANTED}"],
        "teacher.hf_token looks like a secret by its name",
    ),
    "secret in --env": (
        ["quickstart", "run_dir=s3://b/x", "--env", f"AWS_SECRET_ACCESS_KEY={PLANTED}"],
        "put them in the Secrets regrow-s3",
    ),
    "no environment": (["quickstart", "run_dir=s3://b/x", "--env", "WORD"], "--env 'WORD' is not NAME=VALUE"),
    "code": (["quickstart", "run_dir=s3://b/x", "--code", "imag"], "did you mean 'image'?"),
    "stage": (["quickstart", "run_dir=s3://b/x", "--until", "trian"], "no stage 'trian'"),
    "a run_dir of this machine's": (["quickstart", "run_dir=runs/x"], "give run_dir=s3://BUCKET/quickstart"),
    "kuberay's option": (["quickstart", "run_dir=s3://b/x", "--dry-run"], "give it with them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_once(name: str, call: Call) -> None:
    words, said = REFUSED[name]
    done = call("submit", *words, status=2)
    assert said in done.stderr, done.stderr
    assert PLANTED not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_a_large_file_does_not_go_along(call: Call, tmp_path: Path) -> None:
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.truncate(300 << 20)
    words = ("submit", "quickstart", "run_dir=s3://b/x", f"dataset.tasks.source={tmp_path}/large.jsonl")
    done = call(*words, status=2)
    assert "300 MiB, more than what travels with a job" in done.stderr and "--cluster-path" in done.stderr


@pytest.mark.parametrize(
    ("address", "token", "said"),
    [
        ("http://127.0.0.1:9", "", "no Ray dashboard at http://127.0.0.1:9: Connection refused"),
        ("head:8265", "", "is no URL of a Ray dashboard"),
        ("http://me:planted@127.0.0.1:9", "", "--address holds a password for 127.0.0.1"),
        ("CLUSTER", "", "wants a token"),
        ("CLUSTER", "wrong-planted", "refuses the token"),
        ("", "", "which cluster? give --address"),
    ],
)
def test_who_is_not_let_in(address: str, token: str, said: str, cluster: Started, tmp_path: Path) -> None:
    given = ["--address", address.replace("CLUSTER", cluster.address)] if address else []
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environ = others | {"HOME": str(tmp_path)} | ({"RAY_AUTH_TOKEN": token} if token else {})
    command = [REGROW, "submit", "quickstart", "run_dir=s3://b/x", *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "planted" not in done.stderr and "Traceback" not in done.stderr


def test_a_cluster_of_another_ray_is_refused(call: Call, tmp_path: Path) -> None:
    class Old(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": "2.40.0"}).encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        REGROW,
        "submit",
        "quickstart",
        "run_dir=s3://b/x",
        "--address",
        f"http://127.0.0.1:{server.server_port}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    server.shutdown()
    assert done.returncode == 2
    assert "runs Ray 2.40.0, this regrow works with ray==2.60.*" in done.stderr


def test_doctor_looks_at_every_node(call: Call, cluster: Started, tmp_path: Path) -> None:
    """Also at one that came with other packages than the rest."""
    well = json.loads(call("doctor", "quickstart", "--storage", "s3://regrow/doctor", "--json").stdout)
    found = {check["name"]: check for check in well["checks"]}
    assert well["ok"] and found["nodes"]["found"].startswith("3: 8 CPUs")
    assert "conditional create" in found["storage"]["found"]
    old = tmp_path / "old" / "transformers-4.1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.1.0\n")
    odd = cluster.node("--address", f"127.0.0.1:{cluster.gcs}", "--num-gpus", "1", cpus=1, PYTHONPATH=str(old.parent))
    cluster.up(4)
    ill = json.loads(call("doctor", "--storage", "s3://no-such-bucket/x", "--json", status=1).stdout)
    odd.send_signal(signal.SIGTERM)
    said = {(check["name"], check["mark"]): check["found"] for check in ill["checks"]}
    assert "differs: 4.1.0 on" in said["transformers", "fail"]
    assert "transformers 4.1.0, not" in said["packages", "fail"]
    assert "which has GPUs" in said["vllm", "fail"]
    assert "Ray offers 1, nvidia-smi" in said["gpu", "fail"] or "nvidia-smi gives no answer" in said["gpu", "fail"]
    assert "no-such-bucket" in said["storage", "fail"]
    odd.wait(60)


def test_no_secret_is_written_anywhere(cluster: Started, bucket: str) -> None:
    """The cluster's S3 keys, hub token and Ray token: in no log of any node, no artifact, no job's details. Last in
    this file: all that the tests above have done is looked through."""
    from cluster.jobs import connect

    token = Path(tempfile.mkdtemp()) / "token"
    token.write_text(cluster.token)
    client = connect.connect(cluster.address, token)
    texts = {"jobs": repr(client.list_jobs()).encode()}
    for file in cluster.folder.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink():
                texts[str(file)] = file.read_bytes()
    with s3_at(bucket):
        fs = s3fs.S3FileSystem()
        texts |= {name: fs.cat_file(name) for name in fs.find("s3://regrow")}
    assert sum("/logs/" in name for name in texts) > 20 and any("manifest.json" in name for name in texts)
    for secret in (PLANTED, PLANTED[8:].lower(), cluster.token):
        assert [name for name, text in texts.items() if secret.encode() in text] == []
