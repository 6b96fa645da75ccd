"""Submitting to KubeRay: the official client over HTTP to a server that speaks Kubernetes' API, and an operator that
plays KubeRay 1.7. What is applied was rendered by regrow itself."""

import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.k8s.rendering import render
from cluster.k8s.rendering.workload import RUN_LABEL, Workload
from cluster.k8s.running import api, dry_run, follow, jobs, logs, show, stop, submit
from tests import kuberay_operator as operator
from tests.kube_api import TOKEN, Kube, running

ROOT = Path(__file__).parents[2]
LINES = [f"line {number}" for number in range(1, 21)]


class Done(NamedTuple):
    status: int
    said: list[str]
    log: list[str]

    @property
    def all(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    for module, name, seconds in (
        (logs, "PAUSE", 0.05),
        (api, "AGAIN", 0.05),
        (follow, "DRAIN", 0.3),
        (follow, "PATIENCE", 1.0),
    ):
        monkeypatch.setattr(module, name, seconds)
    with running(tmp_path) as (server, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield server


def objects(**options: Any) -> dict[str, dict[str, Any]]:
    mode = options.pop("mode", None)
    retries = options.pop("retries", 0)
    fields = {"recipe": "name = 'x'\n", "run_dir": "s3://b/gsm", "image": "regrow:0.1.0-cpu", "namespace": "ml"}
    made = render.job(Workload(**({"name": "gsm", "retries": retries} | fields | options)))
    if mode:
        next(one for one in made.values() if one["kind"] == "RayJob")["spec"]["submissionMode"] = mode
    return made


def submitted(kube: Kube, play: Callable[[Kube, str], None], followed: bool = True, **options: Any) -> Done:
    """Submit and follow while `play` is what the operator does; nothing that is told ever holds the token."""
    failed: list[BaseException] = []

    def guarded(server: Kube, name: str) -> None:
        try:
            play(server, name)
        except BaseException as error:
            failed.append(error)
            raise

    kube.operator = guarded
    said: list[str] = []
    log: list[str] = []
    status = submit.submit(list(objects(**options).values()), None, None, followed, said.append, log.append, tick=1)
    assert not failed
    assert TOKEN not in "\n".join(said + log)
    return Done(status, said, log)


def quick(kube: Kube, name: str) -> None:
    operator.runs_through(kube, name, LINES)


def count(kube: Kube, verb: str, resource: str) -> int:
    return sum(asked[:2] == (verb, resource) for asked in list(kube.requests))


def looks(kube: Kube, times: int) -> None:
    """Wait until who follows has looked at events that often again."""
    before = count(kube, "list", "events")
    until(lambda: count(kube, "list", "events") >= before + times)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def test_a_run_from_submission_to_its_end(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        until(lambda: count(kube, "watch", "rayjobs") > 0)
        quick(kube, name)

    done = submitted(kube, play)
    assert done.status == 0
    assert done.log == LINES
    told = [line for line in done.said if not line.startswith(("applied", "created"))]
    assert told[:-1] == [
        "New: waits for KubeRay's operator",
        "Initializing: Ray cluster gsm-c1 starts",
        "Running: Ray job gsm-c1-job on gsm-c1 (submitting)",
        "Running: Ray job gsm-c1-job on gsm-c1 (PENDING)",
        "Running: Ray job gsm-c1-job on gsm-c1 (RUNNING)",
        "Complete: SUCCEEDED",
    ]
    assert told[-1].startswith("RayJob gsm succeeded after 0:00:0")
    kinds = [resource for verb, resource, _ in kube.requests if verb in ("patch", "create")]
    assert kinds.index("serviceaccounts") < kinds.index("configmaps") < kinds.index("rayjobs")
    owner = kube.get("configmaps", "gsm-recipe")["metadata"]["ownerReferences"]
    assert owner[0]["uid"] == kube.get("rayjobs", "gsm")["metadata"]["uid"]
    assert all(query["fieldManager"] == "regrow" for verb, _, query in kube.requests if verb in ("patch", "create"))


@pytest.mark.parametrize("mode", ["K8sJobMode", "SidecarMode"])
def test_the_log_of_kuberays_own_submitters(kube: Kube, mode: str) -> None:
    """In K8sJobMode a second submitter tells the log from its beginning again."""

    def play(kube: Kube, name: str) -> None:
        cluster = operator.starts(kube, name)
        operator.runs(kube, name)
        if mode == "SidecarMode":
            pod = operator.head(kube, name, cluster, printing="ray-job-submitter")
            kube.print(pod, "ray-job-submitter", *LINES)
            operator.ends(kube, pod)
        else:
            first = operator.submitter(kube, name, 1)
            kube.print(first, "ray-job-submitter", "Waiting for Ray", *LINES[:9], "same", "same")
            time.sleep(0.3)
            operator.ends(kube, first, 1)
            second = operator.submitter(kube, name, 2)
            kube.print(second, "ray-job-submitter", *LINES[:9], "same", "same", "same", *LINES[9:])
            operator.ends(kube, second)
        operator.completes(kube, name)

    done = submitted(kube, play, mode=mode)
    first = [] if mode == "SidecarMode" else ["Waiting for Ray"]
    again = [] if mode == "SidecarMode" else ["same"] * 3
    assert done.log == [*first, *LINES[:9], *again, *LINES[9:]]


def test_a_log_that_breaks_off_is_read_on_without_a_line_twice(kube: Kube) -> None:
    kube.cut_logs = 3
    done = submitted(kube, lambda kube, name: operator.runs_through(kube, name, LINES, pause=1.2))
    assert kube.cut_logs == 0 and done.status == 0
    assert done.log == LINES


def test_the_rendered_head_has_a_container_that_prints_the_log() -> None:
    spec = objects()["rayjob.yaml"]["spec"]
    containers = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {one["name"] for one in containers} & set(logs.PRINTING) or spec["submissionMode"] == "K8sJobMode"


def test_failed_with_reason_and_the_last_lines(kube: Kube) -> None:
    message = (
        "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\na\nboom"
    )

    def play(kube: Kube, name: str) -> None:
        operator.starts(kube, name)
        operator.runs(kube, name)
        operator.fails(kube, name, message=message)

    done = submitted(kube, play)
    assert done.status == 1
    assert done.log == ["a", "boom"], "no container printed the log: KubeRay's message has its end"
    assert "the job's command failed: Job entrypoint command failed with exit code 1" in done.said[-1]


def test_attempts_are_counted_and_each_ones_log_is_shown(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        for attempt in (1, 2, 3):
            cluster = operator.starts(kube, name)
            pod = operator.head(kube, name, cluster)
            operator.runs(kube, name)
            kube.print(pod, "job-log", "start", "boom")
            until(lambda: count(kube, "get", "pods/log") == attempt)  # noqa: B023
            operator.fails(kube, name, message="exit code 1")

    done = submitted(kube, play, retries=2)
    assert done.status == 1
    assert done.log == ["start", "boom"] * 3
    assert "3 of 3 attempts used" in done.said[-1]
    assert any("Retrying: attempt 1 failed (the job's command failed: exit code 1)" in line for line in done.said)


def test_the_deadline_is_no_attempt(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        operator.starts(kube, name)
        operator.fails(kube, name, "DeadlineExceeded", "The RayJob has passed the activeDeadlineSeconds.", result="")

    done = submitted(kube, play, retries=2)
    assert done.status == 1
    assert "longer than spec.activeDeadlineSeconds allows" in done.said[-1] and "1 of 3" in done.said[-1]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("image", ["the image regrow:none cannot be pulled (ImagePullBackOff)"]),
        ("gpu", ["no node has enough nvidia.com/gpu free", "a taint is not tolerated"]),
        ("quota", ["exceeded quota: team, requested: requests.nvidia.com/gpu=8"]),
        ("memory", ["out of memory, killed at its limit of 16Gi (OOMKilled)"]),
        ("secret", ['secret "regrow-s3" not found; create']),
        ("security", ['violates PodSecurity "restricted:latest"']),
        ("evicted", ["spot capacity called back"]),
    ],
)
def test_what_holds_a_job_up_is_said_once_with_a_remedy(kube: Kube, what: str, told: list[str]) -> None:
    def play(kube: Kube, name: str) -> None:
        cluster = operator.starts(kube, name)
        for number in (1, 2):
            operator.held_up(kube, name, cluster, what, number)
        looks(kube, 3)
        operator.runs(kube, name)
        operator.completes(kube, name)

    done = submitted(kube, play)
    assert done.status == 0
    for part in told:
        assert sum(part in line for line in done.said) == 1, done.all


def test_no_operator_and_a_refusing_one(kube: Kube) -> None:
    def refuse(kube: Kube, name: str) -> None:
        looks(kube, 4)
        message = "The RayJob name is too long"
        kube.status("rayjobs", name, jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message=message)

    done = submitted(kube, refuse)
    assert done.status == 1
    assert any("KubeRay's operator does not take it up" in line for line in done.said)
    assert "KubeRay refuses the RayJob: The RayJob name is too long" in done.said[-1]


def test_a_queue_is_named(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        job = kube.get("rayjobs", name)
        job["spec"]["suspend"] = True
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team"
        kube.store("MODIFIED", "rayjobs", ("ml", "rayjobs", name), job)
        why = "insufficient quota for nvidia.com/gpu"
        operator.event(kube, "Workload", f"rayjob-{name}-0a1b2", "Pending", why, severity="Normal")
        kube.status("rayjobs", name, jobDeploymentStatus="Suspended")
        looks(kube, 3)
        quick(kube, name)

    done = submitted(kube, play)
    assert done.status == 0
    assert "waits in the queue team until Kueue admits it: insufficient quota for nvidia.com/gpu" in done.all


def test_watching_survives_expired_versions_broken_streams_and_an_outage(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        kube.cut_watches = 2
        operator.starts(kube, name)
        time.sleep(0.5)
        with kube.changed:
            operator.runs(kube, name)
            kube.kept = kube.version  # compacted: who watches from before must list again
        time.sleep(0.5)
        kube.away = True
        until(lambda: any("rayjobs" in path for path in kube.unheard))
        kube.away = False
        quick(kube, name)

    done = submitted(kube, play)
    assert done.status == 0 and kube.cut_watches == 0
    assert any("no answer from" in line and "trying again" in line for line in done.said)
    assert "the cluster answers again" in done.said
    assert done.log == LINES


def test_a_run_under_way_is_refused_and_a_finished_one_gets_a_new_name(kube: Kube) -> None:
    idle: Callable[[Kube, str], None] = lambda kube, name: None  # noqa: E731
    assert submitted(kube, idle, followed=False).status == 0
    with pytest.raises(ValueError, match=r"run gsm is under way as RayJob gsm in namespace ml; `regrow jobs logs gsm"):
        submitted(kube, idle, followed=False)
    operator.starts(kube, "gsm")
    operator.fails(kube, "gsm")
    assert submitted(kube, quick).status == 0
    assert submitted(kube, quick).status == 0
    assert kube.names("rayjobs") == ["gsm", "gsm-2", "gsm-3"]
    uid = kube.get("configmaps", "gsm-recipe")["metadata"]["ownerReferences"][0]["uid"]
    assert uid == kube.get("rayjobs", "gsm-3")["metadata"]["uid"], "it goes with the RayJob that still reads it"
    with pytest.raises(ValueError, match="the name gsm is taken: another run is under way as RayJob gsm-4"):
        submitted(kube, idle, followed=False)
        submitted(kube, idle, followed=False, run="another")


def test_a_long_name_stays_within_what_kuberay_takes(kube: Kube) -> None:
    name = "n" * 47
    for _ in range(2):
        assert submitted(kube, quick, name=name).status == 0
    assert kube.names("rayjobs") == [name, "n" * 45 + "-2"]


def test_two_submissions_at_once_make_one_rayjob(kube: Kube) -> None:
    """Both have seen that there is none; the second one finds the name taken."""
    ends: list[Any] = []

    def one() -> None:
        try:
            ends.append(submit.submit(list(objects().values()), None, None, False, lambda text: None))
        except ValueError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kube.names("rayjobs") == ["gsm"]
    assert ends.count(0) == 1 and any("gsm" in str(end) for end in ends if end)


def test_an_answer_that_got_lost_makes_no_second_job(kube: Kube) -> None:
    kube.lost_answers = 1
    assert submitted(kube, quick).status == 0
    assert kube.names("rayjobs") == ["gsm"]


def test_what_somebody_else_changed_is_left(kube: Kube) -> None:
    ours = api.connect()
    policy = next(one for one in objects().values() if one["kind"] == "NetworkPolicy")
    name = policy["metadata"]["name"]
    changed = {**policy, "spec": {**policy["spec"], "policyTypes": ["Egress"]}}
    where = api.path(ours, "networking.k8s.io/v1", "networkpolicies", name)
    query = {"fieldManager": "admin"}
    api.ask(ours, "patch", where, changed, query, content_type="application/apply-patch+yaml")
    with pytest.raises(ValueError, match=r'NetworkPolicy .* changed by somebody else.*conflict with "admin"'):
        submitted(kube, quick)
    assert kube.names("rayjobs") == []
    assert kube.get("networkpolicies", name)["spec"]["policyTypes"] == ["Egress"]


def test_stop_deletes_and_waits_and_what_the_run_owns_goes(kube: Kube) -> None:
    def play(kube: Kube, name: str) -> None:
        cluster = operator.starts(kube, name)
        operator.head(kube, name, cluster)
        operator.runs(kube, name)

    submitted(kube, play, followed=False)
    until(lambda: bool(kube.names("pods")))
    followed: list[int] = []
    said: list[str] = []
    watcher = threading.Thread(target=lambda: followed.append(follow.follow(api.connect(), "gsm", said.append, tick=1)))
    watcher.start()
    until(lambda: any("Running" in line for line in said))
    told: list[str] = []
    assert stop.stop("gsm", None, None, told.append) == 0
    assert "is stopped" in told[-1]
    watcher.join(20)
    assert followed == [1] and "was deleted" in said[-1]
    assert kube.names("rayjobs") == kube.names("pods") == kube.names("configmaps") == []
    with pytest.raises(ValueError, match="no RayJob or run 'gsm' in namespace ml; there: none"):
        stop.stop("gsm", None, None, told.append)


def test_stop_says_when_the_operator_does_not_let_go(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(kube: Kube, name: str) -> None:
        job = kube.get("rayjobs", name)
        job["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
        kube.store("MODIFIED", "rayjobs", ("ml", "rayjobs", name), job)

    submitted(kube, play, followed=False)
    until(lambda: bool(kube.get("rayjobs", "gsm")["metadata"].get("finalizers")))
    monkeypatch.setattr(stop, "PATIENCE", 1.0)
    said: list[str] = []
    assert stop.stop("gsm", None, None, said.append) == 1
    assert "operator has not let go" in said[-1]
    with pytest.raises(ValueError, match="still being deleted"):
        submitted(kube, play, followed=False)


def test_rows_and_logs_of_jobs(kube: Kube) -> None:
    submitted(kube, quick)
    rows = jobs.jobs()
    assert [(row.name, row.run, row.status, row.attempts) for row in rows] == [("gsm", "gsm", "Complete: SUCCEEDED", 0)]
    said: list[str] = []
    log: list[str] = []
    assert show.show("gsm", None, None, False, said.append, log.append) == 0
    assert log == LINES and said == ["Complete: SUCCEEDED"]
    assert show.show("gsm", None, None, True, said.append, log.append, tick=1) == 0
    assert log == LINES * 2
    kube.drop("pods", kube.names("pods")[0])
    assert show.show("gsm", None, None, False, said.append, log.append) == 0
    assert log == LINES * 2 and "no pod holds the log" in said[-2]


def dry(made: dict[str, dict[str, Any]], context: str | None = None) -> Done:
    said: list[str] = []
    out: list[str] = []
    return Done(dry_run.dry_run(made, None, context, said.append, out.append), said, out)


def test_dry_run_prints_checks_and_changes_nothing(kube: Kube) -> None:
    import yaml

    done = dry(objects())
    assert done.status == 0 and not kube.objects
    assert list(yaml.safe_load_all(done.log[0])) == list(objects().values())
    assert "would take RayJob gsm into namespace ml; nothing was changed" in done.said[-1]
    assert {query["dryRun"] for verb, _, query in kube.requests if verb in ("patch", "create")} == {"All"}
    wrong = objects()
    wrong["rayjob.yaml"]["spec"]["backofLimit"] = 1
    with pytest.raises(ValueError, match="would be refused"):
        dry(wrong)
    kube.forbidden.add(("create", "rayjobs"))
    done = dry(objects())
    assert done.status == 1 and "not allowed to create rayjobs" in done.said[-1]


def test_dry_run_without_a_cluster(kube: Kube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = dry(objects(), "away")
    assert done.status == 0 and "no cluster was asked: no answer from" in done.said[-1]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    done = dry(objects())
    assert done.status == 0 and "no cluster was asked: no kubeconfig at" in done.said[-1]


@pytest.mark.parametrize(
    ("change", "context", "error", "words"),
    [
        ({}, "stranger", PermissionError, r"does not accept these credentials \(401\).*context 'stranger'"),
        ({}, "away", ConnectionError, "no answer from .*Connection refused.*is a VPN needed"),
        ({}, "doubtful", ConnectionError, "certificate verify failed"),
        ({}, "elsewhere", ValueError, "has no context 'elsewhere'; it has: here, plugin, stranger, doubtful, away"),
        ({"crds": False}, None, RuntimeError, r"knows no rayjobs: KubeRay's CRDs .* are not installed"),
        ({"namespaces": set()}, None, ValueError, "no namespace 'ml'; `kubectl create namespace ml`"),
        ({"quota": "exceeded quota: team, requested: count=1"}, None, RuntimeError, "exceeded quota: team"),
        (
            {"forbidden": {("create", "rayjobs")}},
            None,
            PermissionError,
            r'not allowed to create rayjobs in ml \(403\): .*User "jane" cannot create.*can-i create rayjobs -n ml',
        ),
        ({"forbidden": {("list", "rayjobs")}}, None, PermissionError, "not allowed to list rayjobs in ml"),
        ({"forbidden": {("patch", "configmaps")}}, None, PermissionError, "not allowed to patch configmaps"),
    ],
)
def test_refusals_say_what_and_who(
    kube: Kube, change: dict[str, Any], context: str | None, error: type[Exception], words: str
) -> None:
    for name, value in change.items():
        setattr(kube, name, value)
    said: list[str] = []
    namespace = "ml" if context else None
    with pytest.raises(error, match=words) as raised:
        submit.submit(list(objects().values()), namespace, context, True, said.append, tick=1)
    assert TOKEN not in str(raised.value) + "".join(said) and TOKEN[::-1] not in str(raised.value)
    assert not kube.names("rayjobs")


def test_an_object_that_admission_refuses_is_named_with_its_field(kube: Kube) -> None:
    made = objects()
    made["rayjob.yaml"]["spec"]["backoffLimit"] = "many"
    with pytest.raises(ValueError, match=r"the cluster refuses rayjobs \(422\): .*spec.backoffLimit"):
        submit.submit(list(made.values()), None, None, True, lambda text: None, tick=1)


def test_who_may_not_read_pods_still_follows(kube: Kube) -> None:
    kube.forbidden = {("list", "pods"), ("list", "events")}
    done = submitted(kube, quick)
    assert done.status == 0 and done.log == []
    assert any("the log cannot be shown: not allowed to list pods" in line for line in done.said)


def test_a_token_from_a_program_that_the_kubeconfig_names(kube: Kube) -> None:
    assert jobs.jobs(None, "plugin") == []


def test_inside_a_pod(kube: Kube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Kubernetes gives it to a pod: the server in two variables; token, certificate and namespace in files."""
    from kubernetes.config import incluster_config

    for name, text in (("token", TOKEN), ("namespace", "ml")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(kube.server_address[1]))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "cert.pem"))
    monkeypatch.setattr(api, "IN_POD", tmp_path / "namespace")
    assert api.connect().namespace == "ml"
    assert submitted(kube, quick).status == 0


def test_without_a_kubeconfig_and_with_a_broken_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no kubeconfig at .*none; set KUBECONFIG"):
        api.connect()
    for text, words in (("a: [", "is not YAML"), ("{}", "kubeconfig .*: Invalid kube-config file")):
        (tmp_path / "none").write_text(text)
        with pytest.raises(ValueError, match=words):
            api.connect()


FOLLOWER = """
    from cluster import signals
    from cluster.k8s.running import api, follow
    with signals.interruptible():
        follow.follow(api.connect(), "gsm", lambda text: print(text, flush=True), tick=1)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_the_job_running(kube: Kube, sent: signal.Signals) -> None:
    def play(kube: Kube, name: str) -> None:
        operator.head(kube, name, operator.starts(kube, name))
        operator.runs(kube, name)

    submitted(kube, play, followed=False)
    command = [sys.executable, "-c", textwrap.dedent(FOLLOWER)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        first = iter(process.stdout.readline, "")
        assert any("Running" in line for line in first)
        process.send_signal(sent)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode in ((-signal.SIGINT, 130) if sent is signal.SIGINT else (143,))
    assert "RayJob gsm goes on in namespace ml; `regrow jobs logs gsm --kuberay --namespace ml` follows it" in rest
    assert kube.get("rayjobs", "gsm")["status"]["jobDeploymentStatus"] == "Running"


def test_the_command_itself(kube: Kube, regrow: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    kube.operator = quick
    words = ["submit", "quickstart", "run_dir=s3://bucket/q", "--kuberay", "--image", "regrow:0.1.0-cpu"]
    done = regrow(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == LINES
    assert "RayJob quickstart succeeded" in done.stderr and TOKEN not in done.stdout + done.stderr
    recipe = kube.get("configmaps", "quickstart-recipe")["data"]["recipe.toml"]
    assert "s3://bucket/q" in recipe and kube.get("rayjobs", "quickstart")["metadata"]["labels"][RUN_LABEL]
    shown = regrow(*words, "--dry-run")
    assert shown.returncode == 0 and "kind: RayJob" in shown.stdout
    assert "quickstart-2" in shown.stderr
    wrong = regrow("submit", "quickstart", "--kuberay", "--image", "regrow:0.1.0-cpu")
    assert wrong.returncode == 2 and "run_dir" in wrong.stderr
