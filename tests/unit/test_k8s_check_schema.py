"""The API server's part of `regrow k8s check`: nulls, defaults, strictness, formats, CEL, and the schemas we carry."""

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.k8s.checking import core, cron, names, schema, structural, vendor
from cluster.k8s.checking.finding import RAY_KINDS
from cluster.k8s.checking.reading import read

DATA = Path(__file__).parents[1] / "data" / "k8s"
PEERS = ["ray-job.deletion-rules", "ray-service.incremental-upgrade", "ray-cluster.complete", "ray-cronjob.sample"]


def first(name: str) -> dict[str, Any]:
    return read(str(DATA / "kuberay-samples" / f"{name}.yaml"))[0][1]


def job(**spec: Any) -> dict[str, Any]:
    made = first("ray-job.sample")
    made["spec"] |= spec
    return made


def test_nulls_are_dropped_and_defaults_put_in() -> None:
    written = job(submissionMode=None, entrypointNumCpus=None, ttlSecondsAfterFinished=None, runtimeEnvYAML=None)
    group = written["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group |= {"maxReplicas": None, "replicas": None}
    before = copy.deepcopy(written)
    stored = schema.defaulted(written)
    assert written == before
    assert schema.problems(written) == []
    assert stored["spec"]["submissionMode"] == "K8sJobMode"
    assert stored["spec"]["ttlSecondsAfterFinished"] == 0
    assert not {"entrypointNumCpus", "runtimeEnvYAML"} & stored["spec"].keys()
    group = stored["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (1, 2147483647, 0)
    ports = stored["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert [port["protocol"] for port in ports] == ["TCP"] * 3


def test_a_null_stays_where_a_list_has_it() -> None:
    written = job()
    written["spec"]["rayClusterSpec"]["workerGroupSpecs"].append(None)
    assert ("spec.rayClusterSpec.workerGroupSpecs[1]", "is null; write an object (a mapping)") in schema.problems(
        written
    )


def test_other_objects_lose_their_nulls() -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}
    assert schema.defaulted(account | {"secrets": None}) == account
    assert schema.problems(account | {"secrets": None}) == []
    said = "is null; write a value, or leave the item out"
    assert schema.problems(account | {"secrets": [None]}) == [("secrets[0]", said)]


@pytest.mark.parametrize(
    ("spec", "path", "said"),
    [
        ({"backofLimit": 1}, "spec.backofLimit", "unknown field 'backofLimit', did you mean 'backoffLimit'?"),
        ({"backoffLimit": True}, "spec.backoffLimit", "is a boolean; write an integer"),
        ({"backoffLimit": 2**31}, "spec.backoffLimit", "is no int32"),
        ({"preRunningDeadlineSeconds": 0}, "spec.preRunningDeadlineSeconds", "is 0, below 1"),
        ({"metadata": {"a": 1}}, "spec.metadata.a", "is an integer; write a string"),
        ({"clusterSelector": ["a"]}, "spec.clusterSelector", "is a list; write an object (a mapping)"),
    ],
)
def test_what_is_said(spec: dict[str, Any], path: str, said: str) -> None:
    assert schema.problems(job(**spec)) == [(path, said)]


def test_whole_floats_are_integers_as_in_json() -> None:
    assert schema.problems(job(backoffLimit=2.0)) == []


STATUS, DEPLOYED = {"jobStatus": "FAILED"}, {"jobDeploymentStatus": "Failed"}
END = {"policy": "DeleteSelf"}


@pytest.mark.parametrize(
    ("strategy", "good"),
    [
        ({"deletionRules": [{**END, "condition": STATUS}]}, True),
        ({"deletionRules": [{**END, "condition": DEPLOYED}]}, True),
        ({"deletionRules": [{**END, "condition": STATUS | DEPLOYED}]}, False),
        ({"deletionRules": [{**END, "condition": {"ttlSeconds": 1}}]}, False),
        ({"onSuccess": END, "onFailure": END}, True),
        ({"onSuccess": END}, False),
        ({"onFailure": END}, False),
        ({}, False),
        ({"onSuccess": END, "onFailure": END, "deletionRules": [{**END, "condition": STATUS}]}, False),
    ],
)
def test_cel_rules(strategy: dict[str, Any], good: bool) -> None:
    found = [problem.rule for problem in schema.judged(job(deletionStrategy=strategy))]
    assert (found == []) == good
    assert set(found) <= {"schema-rule"}


def test_rules_over_the_old_object_do_not_hold_a_new_one_up() -> None:
    assert schema.problems(job(managedBy="kueue.x-k8s.io/multikueue")) == []
    assert schema.problems(job(managedBy="me"))[0][0] == "spec.managedBy"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("sample", PEERS)
def test_the_same_objects_fall_by_the_plain_schema(sample: str) -> None:
    """Every field of a sample left out, and every one replaced by a number: refused exactly where the CRD's schema
    refuses it, read by jsonschema without any keyword of ours."""
    content = first(sample)
    raw = structural.schemas(content["kind"])["v1"]
    plain = jsonschema.Draft7Validator(raw)
    fallen = 0
    for path in places(content["spec"], ("spec",)):
        for value in (None, 7):  # a null is dropped: the field is left out
            changed = copy.deepcopy(content)
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            stored = structural.defaulted(changed, raw)
            found = [p for p in structural.problems(stored, raw) if p.rule == "schema"]
            assert bool(found) != plain.is_valid(stored), (path, value, found)
            fallen += bool(found)
    assert fallen > 20


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_every_kind_has_its_schemas(kind: str) -> None:
    found = structural.schemas(kind)
    assert set(found) == ({"v1"} if kind == "RayCronJob" else {"v1", "v1alpha1"})
    jsonschema.Draft202012Validator.check_schema(found["v1"])


def test_crds_are_made_of_their_files(tmp_path: Path) -> None:
    spec = {"type": "object", "description": "x", "properties": {"description": {"type": "string", "description": "y"}}}
    served = [{"name": name, "served": name != "v0", "schema": {"openAPIV3Schema": spec}} for name in ("v0", "v1")]
    (tmp_path / "a.yaml").write_text(json.dumps({"spec": {"names": {"kind": "RayThing"}, "versions": served}}))
    (made,) = vendor.write(tmp_path, tmp_path)
    assert made.name == "raything.json.gz"
    whole = json.loads(gzip.decompress(made.read_bytes()))
    assert whole == {"v1": {"type": "object", "properties": {"description": {"type": "string"}}}}
    before = made.read_bytes()
    vendor.write(tmp_path, tmp_path)
    assert made.read_bytes() == before


def test_kinds_of_other_crds_are_passed_over() -> None:
    for version in ("cert-manager.io/v1", "gateway.networking.k8s.io/v1"):
        assert schema.problems({"apiVersion": version, "kind": "Anything", "metadata": {"name": "a"}}) == []
    assert core.schema("v1", "Affinity") is None  # a part of an object, no object
    assert core.schema("apps/v1", "Deployment") is not None


@pytest.mark.parametrize(
    ("schedule", "good"),
    [
        ("* * * * *", True),
        ("*/15 0-6 1,15 jan-MAR ?", True),
        ("0 0 1-31/2 12 sun", True),
        ("@daily", True),
        ("@every 1h30m", True),
        ("@every soon", False),
        ("@reboot", False),
        ("60 * * * *", False),
        ("* * 0 * *", False),
        ("* * * * 7", False),
        ("* * * * * *", False),
        ("5-1 * * * *", False),
        ("*/0 * * * *", False),
        ("", False),
        ("TZ=UTC 0 0 * * *", False),
    ],
)
def test_schedules(schedule: str, good: bool) -> None:
    assert (cron.fault(schedule) is None) == good


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2), (2, 2), ("1.5Gi", 1.5 * 2**30), ("2Ki", 2048), ("1k", 1000), ("1e3", 1000), ("1E", 1e18)],
)
def test_amounts(text: Any, value: float) -> None:
    assert names.amount(text) == value


@pytest.mark.parametrize("text", ["", "1GB", "a", "1 Gi", True, None, "1Ei5"])
def test_no_amounts(text: Any) -> None:
    assert names.amount(text) is None


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("rayproject/ray:2.60.0-gpu", ("rayproject/ray", "2.60.0-gpu", "")),
        ("host:5000/a/b", ("host:5000/a/b", "", "")),
        ("host:5000/a:1@sha256:ab", ("host:5000/a", "1", "sha256:ab")),
        ("a@sha256:ab", ("a", "", "sha256:ab")),
    ],
)
def test_images(image: str, parts: tuple[str, str, str]) -> None:
    assert names.tag(image) == parts
