"""What a workload refuses, and what it calls its objects: nothing is rendered that Kubernetes would not take."""

from typing import Any

import pytest
import yaml

from cluster.k8s.checking.check import check
from cluster.k8s.rendering import refusals, render
from cluster.k8s.rendering.workload import Volume, Workload
from pipelines import recipe_file, workloads

GIVEN: dict[str, Any] = {"name": "mine", "recipe": "", "run_dir": "s3://b/r", "image": "regrow:1"}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("quickstart", "quickstart"),
        ("a" * 47, "a" * 47),
        ("llama-3.1-8b", "llama-3-1-8b-7b6335"),
        ("3b", "r-3b-"),
        ("a" * 48, "a" * 40 + "-"),
        ("x" * 39 + ".y", "x" * 39 + "-"),
        ("chest-x-ray", "chest-x-ray-"),
    ],
)
def test_names(name: str, made: str) -> None:
    called = workloads.called(name)
    assert called == made or (made.endswith("-") and called.startswith(made) and len(called) == len(made) + 6)
    workload = Workload(**GIVEN | {"name": called})
    assert len(workload.service) <= 47 and workload.service.endswith("-api") and "--" not in workload.service


@pytest.mark.parametrize(
    ("one", "other"), [("a.b", "a-b"), ("a_b", "a.b"), ("a" * 47 + "b", "a" * 47 + "c"), ("3b", "r-3b"), ("x-ray", "x")]
)
def test_recipes_with_like_names_have_no_object_in_common(one: str, other: str) -> None:
    first, second = (Workload(**GIVEN | {"name": workloads.called(name)}) for name in (one, other))
    assert not owned(first) & owned(second)


def test_what_is_cut_for_an_endpoint_stays_apart() -> None:
    first, second = (Workload(**GIVEN | {"name": "a" * 46 + last}) for last in "xy")
    assert first.service != second.service and len(first.service) <= 47


def owned(w: Workload) -> set[tuple[str, str]]:
    """Kind and name of all objects that are a run's own."""
    files = [
        yaml.safe_load(text) for name, text in render.files(w).items() if not name.startswith(("overlays", "secrets"))
    ]
    return {(one["kind"], one["metadata"]["name"]) for one in files if "metadata" in one}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "a" * 48, "up to 47"),
        ("name", "-a", "a letter first"),
        ("run", "a b", "a label's value"),
        ("image", "r/x@sha256:" + "AKIA" + "A" * 16, "an AWS access key id"),
        ("recipe", "x = 'hf_" + "a" * 30 + "'", "a Hugging Face token"),
        ("env", (("HF_TOKEN", "x"),), "HF_TOKEN is a secret by its name"),
        ("arguments", ("--url=https://me:word@host/x",), "a password in a URL"),
        ("gpus", 2, "no GPU pods"),
        ("deadline_seconds", 0, "too little"),
        ("deadline_seconds", 2**31, "too much"),
        ("scratch_claim", "Not Good", "--scratch-claim: .* no Kubernetes name"),
        ("service_account", "a..b", "--service-account: .* no Kubernetes name"),
        ("operator_namespace", "BAD_ns!", "--operator-namespace: 'BAD_ns!' is no Kubernetes name"),
        ("namespace", "a.b", "--namespace: 'a.b' is no Kubernetes name"),
        ("volumes", (Volume("home", "c", "/data"),), "pods have a volume 'home' already"),
        ("volumes", (Volume("a", "c", "/a"), Volume("a", "c", "/b")), "the name a is there 2 times"),
        ("volumes", (Volume("a", "c", "/a"), Volume("b", "c", "/a")), "the path /a is there 2 times"),
        ("volumes", (Volume("a", "c", "/data/../etc/regrow"),), "give a plain path"),
        ("volumes", (Volume("a", "c", "/data//x"),), "give a plain path"),
        ("volumes", (Volume("a", "c", "//etc"),), "give a plain path"),
        ("volumes", (Volume("a", "c", "/"),), "give a plain path"),
        ("volumes", (Volume("a.b", "c", "/data"),), "no volume's name"),
        ("volumes", (Volume("a", "c_d", "/data"),), "'c_d' is no Kubernetes name"),
        ("gpu_selector", (("x", "y!z"),), "--gpu-selector x=y!z: 'y!z' cannot be a label's value"),
        ("gpu_selector", (("a b", "y"),), "--gpu-selector a b=y: 'a b' is no label"),
        ("gpu_selector", (("x", "y"), ("x", "z")), "--gpu-selector x: is there 2 times"),
        ("spot_selector", (("a", "b=c"),), "--spot-selector a=b=c: 'b=c' cannot be a label's value"),
        ("env", (("AWS_ENDPOINT_URL", "minio:9000"),), "--env AWS_ENDPOINT_URL=minio:9000: write http://HOST:PORT"),
        ("env", (("AWS_ENDPOINT_URL", "http://minio:port"),), "write http://HOST:PORT"),
    ],
)
def test_what_a_workload_refuses(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        Workload(**GIVEN | {field: value})
    assert "hf_aaa" not in str(refused.value) and "AKIAA" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_account", "team.a"),
        ("scratch_claim", "claim.v2"),
        ("volumes", (Volume("data", "claim.v2", "/data"), Volume("more", "claim.v2", "/data/more"))),
        ("volumes", (Volume("data", "c", "/homes"), Volume("b", "c", "/scratch2"), Volume("d", "c", "/opt/data"))),
        ("gpu_selector", (("nvidia.com/gpu.product", "NVIDIA-H100_80GB.HBM3"), ("x", ""))),
        ("run", "A_b.c"),
    ],
)
def test_what_kubernetes_takes_is_rendered(field: str, value: Any) -> None:
    w = Workload(**GIVEN | {field: value})
    assert check(list(render.job(w).items())) == []


def test_no_volume_of_the_pods_can_be_given_again() -> None:
    """Whatever is rendered, the list of names that are taken has it."""
    recipe = recipe_file.load("llama-3.1-8b-sdd", ["run_dir=s3://b/r"])
    w = workloads.workload(recipe, "regrow:1", spot=True, models={"sdd": "s3://b/m"})
    files = {name: yaml.safe_load(text) for name, text in render.files(w).items()}
    specs = [
        files["rayjob.yaml"]["spec"]["rayClusterSpec"],
        files["service/rayservice.yaml"]["spec"]["rayClusterConfig"],
    ]
    pods = [g["template"]["spec"] for s in specs for g in (s["headGroupSpec"], *s["workerGroupSpecs"])]
    assert {v["name"] for pod in pods for v in pod["volumes"]} <= set(refusals.VOLUMES)
    places = {m["mountPath"] for pod in pods for c in pod["containers"] for m in c["volumeMounts"]}
    for place in (*places, "/usr/bin", "/home", "/opt", "/var/run/secrets"):
        with pytest.raises(ValueError, match="no place to mount"):
            Workload(**GIVEN | {"volumes": (Volume("data", "c", place),)})
