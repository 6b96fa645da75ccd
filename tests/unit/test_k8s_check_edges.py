"""Where `regrow k8s check` must keep silent, and what it must say though something else is wrong too."""

from pathlib import Path
from typing import Any

import pytest

from cluster.k8s.checking.check import check
from cluster.k8s.checking.finding import Content, Thing
from cluster.k8s.checking.pods import pods, selects
from tests.unit.test_k8s_check import (  # fmt: skip
    BASE,
    CLUSTER,
    GONE,
    HEAD,
    IN_HEAD,
    IN_POD,
    JOB,
    KEY,
    NETWORK,
    OF_SERVICE,
    POD,
    SERVICE,
    broken,
)

OURS = {"app.kubernetes.io/part-of": "regrow"}
WORKERS, HEADS = ({"matchLabels": {"ray.io/node-type": role}} for role in ("worker", "head"))
SERVE = (
    "applications: [{name: a, import_path: a.b, route_prefix: null}, {name: b, import_path: b:c, route_prefix: null}]"
)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # objects outside of the set, and optional ones
        (JOB, {f"{POD} volumes 1 configMap": {"name": "elsewhere"}}),
        (JOB, {f"{POD} volumes 1 configMap": {"name": "recipes", "optional": True}}),
        (JOB, {f"{POD} serviceAccountName": "made-by-others"}),
        (JOB, {f"{POD} serviceAccountName": "regrow", f"{POD} automountServiceAccountToken": GONE}),
        (JOB, {f"{POD} nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100_80GB.HBM3", "x": ""}}),
        (JOB, {f"{POD} tolerations": [{"operator": "Exists"}, {"key": "a.b/c", "operator": "Exists"}]}),
        # a secret that is none: a reference, a placeholder, nothing
        (JOB, {f"{IN_POD} env 0": {"name": "HF_TOKEN", "value": "$(TOKEN)"}}),
        (JOB, {f"{IN_POD} env 0": {"name": "HF_TOKEN", "value": ""}}),
        (JOB, {f"{IN_POD} env 0": {"name": "RAY_TLS_SERVER_KEY", "value": "/etc/ray/tls/tls.key"}}),
        ("Secret/regrow-hub", {"stringData token": "<your token>"}),
        ("Secret/regrow-hub", {"stringData": GONE}),
        # what KubeRay and Ray take
        (CLUSTER, {f"{HEAD} rayStartParams": {}, f"{HEAD} resources": {"CPU": "0"}}),
        (CLUSTER, {f"{HEAD} rayStartParams resources": r'"{\"a\": 1}"'}),
        (CLUSTER, {f"{HEAD} rayStartParams memory": "$MEMORY"}),
        (CLUSTER, {f"{HEAD} headService": {"spec": {"ports": [{"name": "other", "port": 1}]}}}),
        (CLUSTER, {"spec workerGroupSpecs 0 template spec containers 0 image": "registry.example/regrow:0.1.0-gpu"}),
        (CLUSTER, {"metadata": {"generateName": "dev-"}}),
        (SERVICE, {"spec serveConfigV2": SERVE}),
        (SERVICE, {"metadata annotations": {"ray.io/initializing-timeout": "90"}}),
        (SERVICE, {"metadata annotations": {"ray.io/initializing-timeout": "1h30m"}}),
        # networks
        (NETWORK, {"spec ingress 2": {"ports": [{"port": 8000, "protocol": "TCP"}]}}),
        (NETWORK, {"spec ingress 0 from 0 podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}),
        (NETWORK, {"spec ingress 0 from": [{"podSelector": WORKERS}, {"podSelector": HEADS}]}),
        (NETWORK, {"spec ingress 1 from 0": {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "shop"}}}}),
        (NETWORK, {"spec policyTypes": GONE}),
        (CLUSTER, {"spec networkPolicy": {"mode": "DenyAll"}, f"{HEAD} template metadata": GONE}),
        ("PodMonitor/ray", {"spec namespaceSelector": {"any": True}, "spec selector": {"matchLabels": {"a": "b"}}}),
        ("Kustomization/(no name)", {"resources": lambda files: [*files, "../base", "https://host/a.yaml"]}),
        ("Service/students", {"spec selector": {"app": "redis"}, "spec ports 0 targetPort": 6379}),
    ],
)
def test_no_alarm(name: str, changes: dict[str, Any]) -> None:
    assert check(broken(name, changes)) == []


def test_a_secret_is_seen_in_what_the_schema_refuses_and_shown_nowhere() -> None:
    changes = {f"{IN_POD} env 0": {"name": "HF_TOKEN", "value": KEY, "valu": KEY}, "spec entrypoint": [KEY], KEY: KEY}
    found = check(broken(JOB, changes))
    assert {"schema", "secret-env", "secret-value"} <= {finding.rule for finding in found}
    assert KEY not in str(found)


def test_rules_across_objects_wait_for_the_schemas() -> None:
    found = check(broken(NETWORK, {"spec podSelectors": {}, "spec podSelector": GONE}))
    assert {(finding.object, finding.rule) for finding in found} == {(NETWORK, "schema")}


def test_folders_that_are_kustomized_by_themselves_are_sets_of_their_own() -> None:
    twice = [(f"{folder}/{Path(file).name}", content) for folder in ("a", "b") for file, content in BASE]
    assert check(twice) == []
    plain = [(file, content) for file, content in twice if content["kind"] != "Kustomization"]
    assert {finding.rule for finding in check(plain)} == {"duplicate-object"}
    shared = [("x.yaml", content) for _, content in BASE if content["kind"] == "NetworkPolicy"]
    assert {finding.rule for finding in check(twice + shared)} == {"duplicate-object"}
    # what is wrong in one does not hold up the other
    kinds = {"a": "RoleBinding", "b": "NetworkPolicy"}
    fewer = [(f, c | {"spec": 1} if c["kind"] == kinds[f[0]] and f[0] == "a" else c) for f, c in twice]
    fewer = [(f, c) for f, c in fewer if f[0] == "a" or c["kind"] != "NetworkPolicy"]
    found = {(finding.file[0], finding.rule) for finding in check(fewer)}
    assert found == {("a", "schema"), ("b", "network-policy-missing"), ("b", "kustomization")}


def test_several_faults_are_all_told_with_their_places() -> None:
    changes = {
        "spec backoffLimit": -1,
        "spec activeDeadlineSeconds": 0,
        f"{IN_POD} volumeMounts 0 name": "x",
        f"{IN_POD} securityContext": GONE,
    }
    pod = "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.containers[0]"
    assert {(finding.path, finding.rule) for finding in check(broken(JOB, changes))} == {
        ("spec.backoffLimit", "job-backoff"),
        ("spec.activeDeadlineSeconds", "job-deadline"),
        (f"{pod}.volumeMounts[0].name", "volume-mount"),
        (f"{pod}.securityContext.allowPrivilegeEscalation", "restricted-privilege-escalation"),
        (f"{pod}.securityContext.capabilities", "restricted-capabilities"),
    }


def test_a_policy_that_only_some_of_rays_pods_can_pass_is_closed() -> None:
    one_way = {"spec ingress 0 from 0 podSelector": WORKERS}
    (finding,) = {(f.object, f.rule) for f in check(broken(NETWORK, one_way)) if f.object == CLUSTER}
    assert finding == (CLUSTER, "network-policy-closed")  # the head does not reach its workers


def labels(content: Content) -> dict[str, dict[str, str | None]]:
    return {pod.role: pod.labels for pod in pods(Thing("", content))}


def test_labels_are_those_that_kuberay_puts_on_pods() -> None:
    """Against controllers/ray/common/pod.go `labelPod` and `BuildPod` of KubeRay v1.7.0."""
    objects = {content["kind"]: content for _, content in broken(CLUSTER, {f"{HEAD} labels": {"ray.io/group": "x"}})}
    head = labels(objects["RayCluster"])["head"]
    assert head == OURS | {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": "dev",
        "ray.io/node-type": "head",
        "ray.io/group": "headgroup",  # cannot be overridden
        "ray.io/identifier": "dev-head",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    served = labels(objects["RayService"])
    assert served["worker"]["ray.io/serve"] == "true"
    assert served["worker"]["ray.io/cluster"] is None  # a name with a random end


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchLabels": {"b": "1"}}, False),
        ({"matchLabels": {"free": "1"}}, False),
        ({"matchExpressions": [{"key": "free", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_selectors_as_in_kubernetes(selector: Content, chosen: bool) -> None:
    assert selects(selector, {"a": "1", "free": None}) == chosen


def test_options_of_kuberay_that_say_one_thing_twice() -> None:
    env = [{"name": "REDIS_PASSWORD", "value": "$(X)"}, {"name": "RAY_enable_autoscaler_v2", "value": "1"}]
    found = check(broken(SERVICE, {f"{OF_SERVICE} headGroupSpec template spec containers 0 env": env}))
    assert {finding.rule for finding in found} == {"gcs-ft", "autoscaler"}
    rocks = {"backend": "rocksdb", "storage": {"claimName": "a", "size": "1Gi"}}
    mount = {f"{IN_HEAD} volumeMounts": [{"name": "gcs-storage", "mountPath": "/a"}]}
    volume = {f"{HEAD} template spec volumes": [{"name": "gcs-storage", "emptyDir": {}}]}
    found = check(broken(CLUSTER, {"spec gcsFaultToleranceOptions": rocks} | mount | volume))
    assert [finding.rule for finding in found] == ["gcs-ft-backend"] * 2
