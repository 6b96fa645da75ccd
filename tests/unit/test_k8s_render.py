"""Manifests of a run: KubeRay and Kubernetes would take them, and the run gets what it needs."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from cluster.gpus import PROMISED
from cluster.jobs import submit
from cluster.k8s.checking.check import check
from cluster.k8s.checking.reading import read
from cluster.k8s.rendering import ray_job, render, writing
from cluster.k8s.rendering.workload import RUN_LABEL, Volume, Workload
from pipelines import needs, recipe_file, workloads
from pipelines.recipe_file import BadInput

BUCKET = "run_dir=s3://my-bucket/mine"
DATA = Volume("data", "team-data", "/data")
MODELS = {"sdd": "s3://my-bucket/sdd/model", "sft": "s3://my-bucket/sft/model"}


def workload(name: str = "quickstart", *overrides: str, **options: Any) -> Workload:
    return workloads.workload(recipe_file.load(name, [BUCKET, *overrides]), "regrow:0.1.0-gpu", **options)


def objects(w: Workload) -> dict[str, Any]:
    return {name: yaml.safe_load(text) for name, text in render.files(w).items()}


def groups(cluster: dict[str, Any]) -> dict[str, Any]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


VARIANTS: dict[str, Workload] = {
    "cpu": workload(),
    "gpu": workload("llama-3.1-8b-sdd", models=MODELS),
    "spot": workload("llama-3.1-8b-sdd", spot=True, gpu_selector=(("nvidia.com/gpu.product", "H100"),)),
    "nodes": workload("llama-3.1-8b-sdd", "cluster.workers=16", models=MODELS, namespace="team-a", run="mine-1a2b"),
    "volume": workload("gsm8k", "run_dir=/data/mine", volumes=(DATA,), scratch_claim="shared", service_account="ours"),
    "store": workload("gsm8k", env=(("AWS_ENDPOINT_URL", "http://minio.minio:9000"),), retries=0),
}
every = pytest.mark.parametrize("w", VARIANTS.values(), ids=VARIANTS)


@every
def test_nothing_is_wrong_with_any_variant(w: Workload, tmp_path: Path) -> None:
    writing.write(render.files(w), tmp_path, w.name)
    assert check(read(str(tmp_path))) == []


@every
def test_nothing_is_wrong_with_what_is_submitted(w: Workload) -> None:
    made = render.job(w)
    assert list(made)[-1] == "rayjob.yaml" and "recipe.yaml" in made
    assert ("serviceaccount.yaml" in made, "scratch.yaml" in made) == (not w.service_account, not w.scratch_claim)
    assert not {"Secret", "Role", "RoleBinding"} & {one["kind"] for one in made.values()}
    for one in made.values():
        assert one["metadata"]["labels"][RUN_LABEL] == w.label and one["metadata"]["namespace"] == w.namespace
    assert check(list(json.loads(json.dumps(made)).items())) == []


@every
def test_every_file_is_in_one_kustomization_and_none_is_missing(w: Workload) -> None:
    files = objects(w)
    listed = []
    for name, one in files.items():
        if one and isinstance(one, dict) and one.get("kind") in ("Kustomization", "Component"):
            folder = PurePosixPath(name).parent
            parts = [*one["resources"], *(patch["path"] for patch in one.get("patches", []))]
            for part in parts:
                path = os.path.normpath(folder / part)
                assert path in files or f"{path}/kustomization.yaml" in files, f"{name}: {part}"
                listed += [path] if path in files else []
    assert sorted(listed) == sorted(name for name in files if not name.endswith("kustomization.yaml"))


PARTS = {"run": "", "endpoint": "service/", "cluster": "interactive/"}
Object = tuple[str, str]  # kind and name


def applied(files: dict[str, Any], folder: str) -> dict[Object, dict[str, Any]]:
    """What `kubectl apply -k` on a rendered folder applies, and `kubectl delete -k` deletes."""
    found: dict[Object, dict[str, Any]] = {}
    for part in files[f"{folder}kustomization.yaml"]["resources"]:
        path = os.path.normpath(f"{folder}{part}")
        if path in files:
            found[files[path]["kind"], files[path]["metadata"]["name"]] = files[path]
        else:
            found |= applied(files, f"{path}/")
    return found


@every
def test_deleting_one_of_run_endpoint_and_cluster_leaves_the_others_whole(w: Workload) -> None:
    """None has an object of another, and each has all that its pods need, and its own network."""
    files = objects(w)
    parts = {name: applied(files, at) for name, at in PARTS.items() if f"{at}kustomization.yaml" in files}
    assert ("endpoint" in parts) == (w.endpoint is not None)
    assert len({one for part in parts.values() for one in part}) == sum(len(part) for part in parts.values())
    for name, part in parts.items():
        (policy,) = [one for (kind, _), one in part.items() if kind == "NetworkPolicy"]
        chosen = policy["spec"]["podSelector"]["matchLabels"].items()
        for other, theirs in parts.items():
            for pod in made_by(theirs):
                assert (chosen <= pod["metadata"]["labels"].items()) == (other == name)
        needed: set[Object] = set()
        for pod in (one["spec"] for one in made_by(part)):
            needed |= {("ServiceAccount", pod["serviceAccountName"])} if "serviceAccountName" in pod else set()
            for volume in pod["volumes"]:
                claim, text = volume.get("persistentVolumeClaim"), volume.get("configMap")
                needed |= {("PersistentVolumeClaim", claim["claimName"])} if claim else set()
                needed |= {("ConfigMap", text["name"])} if text else set()
        theirs = {("ServiceAccount", w.service_account), ("PersistentVolumeClaim", w.scratch_claim)}
        theirs |= {("PersistentVolumeClaim", volume.claim) for volume in w.volumes}
        assert needed - theirs <= set(part) and not theirs & set(part)
        assert check([(f"{kind}-{called}.yaml", one) for (kind, called), one in part.items()]) == []


def made_by(part: dict[Object, dict[str, Any]]) -> list[dict[str, Any]]:
    """The pod templates of a part's objects."""
    specs = [one["spec"] for (kind, _), one in part.items() if kind.startswith("Ray")]
    clusters = [spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec for spec in specs]
    found = [g["template"] for c in clusters for g in (c["headGroupSpec"], *c["workerGroupSpecs"])]
    return found + [one["spec"]["template"] for (kind, _), one in part.items() if kind == "StatefulSet"]


def test_people_keep_their_access_when_a_run_is_deleted() -> None:
    files = objects(VARIANTS["gpu"])
    assert {kind for kind, _ in applied(files, "access/")} == {"Role", "RoleBinding"}
    assert not {"Role", "RoleBinding"} & {kind for at in PARTS.values() for kind, _ in applied(files, at)}


def test_a_drained_run_does_not_count_the_heads_of_others() -> None:
    files = objects(VARIANTS["gpu"])
    wanted = files["overlays/pdb/pdb.yaml"]["spec"]["selector"]["matchLabels"].items() - {("ray.io/node-type", "head")}
    chosen = [
        name
        for name, at in PARTS.items()
        for pod in made_by(applied(files, at))[:1]
        if wanted <= pod["metadata"]["labels"].items()
    ]
    assert chosen == ["run"]


def test_what_cannot_be_changed_does_not_follow_the_run() -> None:
    """A StatefulSet's selector is immutable, and the same manifests may be rendered for another run_dir."""
    redis = [objects(workload("quickstart", f"run_dir=s3://b/{name}"))["service/redis.yaml"] for name in "xy"]
    assert redis[0]["metadata"]["labels"] != redis[1]["metadata"]["labels"]
    assert redis[0]["spec"]["selector"] == redis[1]["spec"]["selector"]


def test_a_run_is_its_recipe_and_its_directory() -> None:
    """As on a Ray cluster, whatever the objects are called."""
    first = workload("gsm8k", "run_dir=s3://b/one")
    renamed = workloads.workload(recipe_file.load("gsm8k", ["run_dir=s3://b/one/"]), "regrow:1", name="other")
    assert first.label == submit.run_id("gsm8k", "s3://b/one") == renamed.label
    assert first.label != workload("gsm8k", "run_dir=s3://b/two").label
    for pod in made_by(applied(objects(first), "")):
        assert pod["metadata"]["labels"][RUN_LABEL] == first.label


@every
def test_rendering_twice_gives_the_same_and_each_file_says_what_it_is(w: Workload) -> None:
    assert render.files(w) == render.files(w)
    for text in render.files(w).values():
        assert text.startswith("# ") and "Rendered by `regrow k8s render`" in text


@pytest.mark.parametrize("name", recipe_file.names())
def test_the_recipe_in_the_config_map_is_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = recipe_file.load(name, [BUCKET])
    w = workloads.workload(recipe, "regrow:1")
    file = tmp_path / "recipe.toml"
    file.write_text(ray_job.recipe(w)["data"]["recipe.toml"])
    tasks = [
        task.replace("~/recipes", str(recipe_file.PACKAGED)) for task in recipe_file.load(str(file)).evaluate.lm_eval
    ]
    tasks = [re.sub(r"^.*/recipes/", f"{recipe_file.PACKAGED}/", task) for task in tasks]
    again = recipe_file.load(str(file), [f"evaluate.lm_eval={json.dumps(tasks)}"])
    assert again == recipe
    assert w.packaged_tasks == any("/" in task for task in recipe.evaluate.lm_eval)


@pytest.mark.parametrize(("status", "left"), [(0, 0), (1, 1), (2, 2), (3, 0), (143, 143)])
def test_the_entrypoint_ends_as_the_run_does_but_for_quarantine(tmp_path: Path, status: int, left: int) -> None:
    """By the shell that Ray uses. The packaged tasks are found where regrow is installed."""
    regrow = tmp_path / "regrow"
    regrow.write_text(f'#!/bin/sh\necho "$TMPDIR" "$@"; ls ~/recipes/lm_tasks/tiny_answers.yaml; exit {status}\n')
    regrow.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    w = workload(arguments=("--until", "prune"))
    for _ in range(2):  # a second job on the same head finds the link there
        done = subprocess.run(w.entrypoint, shell=True, env=env, capture_output=True, text=True)
        assert done.returncode == left, done.stderr
    said, found = done.stdout.splitlines()
    assert said == "/scratch run /etc/regrow/recipe.toml cluster.address=auto --until prune"
    assert found.endswith("tiny_answers.yaml")


def test_the_shell_waits_for_a_run_that_is_stopped(tmp_path: Path) -> None:
    """As Ray stops a job: SIGTERM to its process group; what is left once the shell is gone is killed."""
    regrow = tmp_path / "regrow"
    regrow.write_text("#!/bin/sh\ntrap 'sleep 0.3; echo tidied; exit 143' TERM\nsleep 30 &\necho up\nwait\n")
    regrow.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    command = workload("llama-3.1-8b-sdd").entrypoint
    with subprocess.Popen(
        command, shell=True, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:
        assert shell.stdout and shell.stdout.readline() == "up\n"
        os.killpg(shell.pid, signal.SIGTERM)
        assert shell.stdout.read() == "tidied\n" and shell.wait(60) == 143


def test_the_logs_container_prints_what_the_driver_writes(tmp_path: Path) -> None:
    command = ray_job.TAIL.replace("/tmp/ray/session_latest/logs", str(tmp_path))
    with subprocess.Popen(["/bin/sh", "-c", command], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout
        try:
            file = tmp_path / "job-driver-x.log"
            with file.open("w", buffering=1) as log:
                log.write("first\n")
                assert tail.stdout.readline() == "first\n"
                log.write("second\n")
                assert tail.stdout.readline() == "second\n"
        finally:
            tail.kill()


@pytest.mark.parametrize(
    ("overrides", "per_node", "total", "each", "nodes"),
    [
        ([], None, 2, 2, 1),
        (["cluster.workers=8"], None, 8, 8, 1),
        (["cluster.workers=16"], None, 16, 8, 2),
        (["cluster.workers=9"], 4, 9, 4, 3),
        (["cluster.gpus=12"], None, 12, 8, 2),
        (["teacher.tensor_parallel=4", "generate.engines=2"], 6, 8, 6, 2),
        (["teacher.tensor_parallel=4", "generate.engines=3"], 6, 12, 6, 3),  # an engine a node: two GPUs of it are left
    ],
)
def test_gpus_are_those_that_the_recipe_needs(
    overrides: list[str], per_node: int | None, total: int, each: int, nodes: int
) -> None:
    w = workload("llama-3.1-8b-sdd", *overrides, gpus_per_node=per_node)
    assert (w.gpus, w.gpus_per_node, w.gpu_nodes) == (total, each, nodes)
    cluster = render.job(w)["rayjob.yaml"]["spec"]["rayClusterSpec"]
    gpu = groups(cluster)["gpu"]
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (0, 0, nodes)
    container = gpu["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(each)
    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        env = {e["name"]: e.get("value") for e in pod["template"]["spec"]["containers"][0]["env"]}
        assert env[PROMISED] == str(total)
    assert f"cluster.gpus={total}" in w.entrypoint


def test_the_clusters_ray_is_the_one_that_is_installed() -> None:
    assert workload().ray_version == version("ray")


def test_a_recipe_without_gpus_gets_none() -> None:
    w = workload()
    assert not needs.wants_gpus(recipe_file.load("quickstart"))
    text = "".join(render.files(w).values())
    assert "nvidia.com/gpu" not in text.replace("\n# nvidia.com/gpu and", "").replace("`nvidia.com/gpu.product`", "")
    assert (
        list(groups(render.job(w)["rayjob.yaml"]["spec"]["rayClusterSpec"])) == ["cpu"] and "gpus=" not in w.entrypoint
    )


def test_spot_pods_are_asked_for_first_and_drained() -> None:
    cluster = render.job(VARIANTS["spot"])["rayjob.yaml"]["spec"]["rayClusterSpec"]
    spot, plain = groups(cluster)["gpu-spot"], groups(cluster)["gpu"]
    assert spot["priority"] > plain.get("priority", 0) and cluster["autoscalerOptions"]["version"] == "v2"
    pod = spot["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100", "karpenter.sh/capacity-type": "spot"}
    assert plain["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "ray drain-node" in command and pod["terminationGracePeriodSeconds"] > int(command.rpartition(" ")[2])
    assert "lifecycle" not in plain["template"]["spec"]["containers"][0]


def test_the_head_has_room_for_the_teacher_in_fp32() -> None:
    """It prunes without a GPU."""
    for name, billions in (("llama-3.1-8b-sdd", 8.03), ("llama-3.1-70b-sdd", 70.55)):
        w = workload(name)
        assert 4 * billions * 1e9 < w.head.memory * 2**30 < 5 * billions * 1e9 + 2**34
        assert w.gpu_pod.memory * 2**30 > 2 * billions * 1e9


def patched(document: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """RFC 6902, as far as it is used."""
    made = copy.deepcopy(document)
    for one in patch:
        *path, last = (key.replace("~1", "/") for key in one["path"].split("/")[1:])
        at: Any = made
        for key in path:
            at = at[int(key)] if isinstance(at, list) else at[key]
        assert one["op"] == "add" or last in at, one
        if one["op"] == "remove":
            del at[last]
        else:
            at[last] = one["value"]
    return made


@every
def test_kueue_gets_a_job_of_fixed_size_that_fits_its_quota(w: Workload) -> None:
    made = objects(w)
    queued = patched(made["rayjob.yaml"], made["overlays/kueue/rayjob-queued.yaml"])
    others = [(name, one) for name, one in made.items() if name.startswith("base/") and "kustom" not in name]
    assert check([("rayjob.yaml", queued), *others]) == []
    assert queued["spec"]["suspend"] and not queued["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert (
        queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        == made["overlays/kueue/localqueue.yaml"]["metadata"]["name"]
    )
    cluster = queued["spec"]["rayClusterSpec"]
    asked = {"cpu": 0.0, "memory": 0.0, "nvidia.com/gpu": 0.0}
    for group in ({"replicas": 1} | cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            for resource, amount in container["resources"]["requests"].items():
                asked[resource] += group["replicas"] * number(amount)
    queue = made["overlays/kueue/clusterqueue.yaml"]["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    quota = {one["name"]: number(one["nominalQuota"]) for one in queue}
    assert all(amount <= quota.get(resource, 0) for resource, amount in asked.items()), (asked, quota)
    assert asked["nvidia.com/gpu"] == w.gpu_nodes * w.gpus_per_node >= w.gpus
    hard = made["overlays/quota/resourcequota.yaml"]["spec"]["hard"]
    assert all(amount <= number(hard.get(f"requests.{resource}", "0")) for resource, amount in asked.items())


def number(quantity: str) -> float:
    for unit, factor in (("Gi", 2.0**30), ("Mi", 2.0**20), ("m", 1e-3)):
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)


def test_the_endpoint_serves_the_students_where_the_run_puts_them() -> None:
    from pipelines import run

    trained = next(s for s in run.steps(recipe_file.load("quickstart", [BUCKET])) if s.stage == "train").outs
    service = objects(VARIANTS["cpu"])["service/rayservice.yaml"]["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    arguments = config["applications"][0]["args"]
    assert arguments["models"] == {name: f"{out.url}/model" for name, out in trained.items()}
    assert all(url.startswith("s3://my-bucket/mine/artifacts/train-") for url in arguments["models"].values())
    assert config["proxy_location"] == "EveryNode" and config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    mounted = [m for p in pods(service["rayClusterConfig"]) for m in p["containers"][0]["volumeMounts"]]
    assert all(arguments["keys"].startswith(m["mountPath"]) for m in mounted if m["name"] == "api-keys")
    assert sum(m["name"] == "api-keys" for m in mounted) == len(pods(service["rayClusterConfig"]))


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_endpoint_has_gpus_for_every_engine() -> None:
    w = workload("llama-3.1-8b-sdd", "serve.max_replicas=3", "teacher.tensor_parallel=2", models=MODELS)
    assert w.endpoint and (w.endpoint.engines, w.endpoint.gpus_per_engine) == (6, 2)
    gpu = groups(objects(w)["service/rayservice.yaml"]["spec"]["rayClusterConfig"])["gpu"]
    assert gpu["maxReplicas"] == 6
    container = gpu["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": PROMISED, "value": "12"} in container["env"]


def test_where_a_student_will_be_is_not_guessed() -> None:
    assert workload("llama-3.1-8b-sdd").endpoint is None
    assert not [name for name in render.files(workload("llama-3.1-8b-sdd")) if name.startswith("service/")]


def test_only_the_autoscaler_may_speak_to_kubernetes() -> None:
    cluster = render.job(VARIANTS["gpu"])["rayjob.yaml"]["spec"]["rayClusterSpec"]
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert [m["mountPath"] for m in cluster["autoscalerOptions"]["volumeMounts"]] == [place]
    for pod in pods(cluster):
        assert pod["automountServiceAccountToken"] is False
        assert not [m for c in pod["containers"] for m in c["volumeMounts"] if m["mountPath"] == place]


def test_a_store_of_ones_own_is_reached() -> None:
    ports = [p["port"] for p in render.job(VARIANTS["store"])["networkpolicy.yaml"]["spec"]["egress"][-1]["ports"]]
    assert ports == [443, 6443, 9000]
    env = render.job(VARIANTS["store"])["rayjob.yaml"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    named = [e["name"] for e in env["containers"][0]["env"]]
    assert named.count("AWS_ENDPOINT_URL") == 1


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("http://minio.minio", [80, 443, 6443]),
        ("http://minio.minio/", [80, 443, 6443]),
        ("https://minio.minio", [443, 6443]),
        ("https://minio.minio:9443", [443, 6443, 9443]),
        ("http://[fd00::1]:9000", [443, 6443, 9000]),
    ],
)
def test_a_store_without_a_port_is_reached_by_its_schemes(url: str, ports: list[int]) -> None:
    policy = render.job(workload(env=(("AWS_ENDPOINT_URL", url),)))["networkpolicy.yaml"]
    assert [p["port"] for p in policy["spec"]["egress"][-1]["ports"]] == ports


def test_packaged_data_needs_no_volume_and_names_of_the_hub_are_no_paths() -> None:
    assert workload("quickstart") and workload("gsm8k") and workload("llama-3.1-70b-sdd")
    with pytest.raises(BadInput, match=r"teacher\.model"):
        workload("quickstart", "teacher.model=/models/mine")
    assert workload("quickstart", "teacher.model=/data/m", volumes=(DATA,))
    with pytest.raises(BadInput, match="run_dir"):
        workload("quickstart", "run_dir=/database/r", volumes=(DATA,))
