"""Every rule of `regrow k8s check`: a set of manifests without a fault, and each rule broken once in it."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.k8s.checking.check import KIND_OF, check, rules
from cluster.k8s.checking.finding import Content
from cluster.k8s.checking.reading import read

DATA = Path(__file__).parents[1] / "data" / "k8s"
SAMPLES = sorted((DATA / "kuberay-samples").glob("*.yaml"))
BASE = read(str(DATA / "base"))
GONE = object()  # a value that stands for: no such field
JOB, SERVICE, CLUSTER, CRON = "RayJob/gsm8k", "RayService/students", "RayCluster/dev", "RayCronJob/nightly"
NETWORK, ROLE, BINDING, PLAIN = "NetworkPolicy/ray", "Role/regrow", "RoleBinding/regrow", "Deployment/redis"
HEAD = "spec headGroupSpec"
IN_HEAD = f"{HEAD} template spec containers 0"
POD = "spec rayClusterSpec workerGroupSpecs 0 template spec"
IN_POD = f"{POD} containers 0"
OF_SERVICE = "spec rayClusterConfig"
OTHER_SERVE = (
    "applications: [{name: a, import_path: a:b, route_prefix: /a}, {name: b, import_path: c, route_prefix: /a}]"
)
RULES_OF_DELETION = [
    {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED", "ttlSeconds": 9}},
    {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}},
]
DISK, MOUNT = {"name": "disk", "emptyDir": {}}, {"name": "disk", "mountPath": "/data"}
S3_LOGS = {"image": "collector:1", "env": [{"name": "STORAGE_BACKEND", "value": "s3"}]}
KEY = "AKIA" + "Q7" * 8  # has the form of an AWS key and is none
# (rule, object, {path: value}): what breaks that rule, and no other. Two rules where one cannot be broken alone.
BROKEN: list[tuple[str, str, dict[str, Any]]] = [
    # schemas
    ("schema", JOB, {"spec backofLimit": 3}),
    ("schema", JOB, {"spec backoffLimit": "3"}),
    ("schema", JOB, {"spec activeDeadlineSeconds": 2**31}),
    ("job-submission", JOB, {"spec submissionMode": "HttpMode"}),
    ("schema", JOB, {f"{POD} containers 0 name": GONE}),
    ("schema", JOB, {f"{IN_POD} resources limits cpu": 0.5}),
    ("schema", CLUSTER, {f"{IN_HEAD} ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]}),
    ("schema", CLUSTER, {HEAD: GONE}),
    ("schema", ROLE, {"rules 0 verb": ["get"]}),
    ("schema", NETWORK, {"spec policyTypes": "Ingress"}),
    ("schema", "Service/students", {"metadata label": {}}),
    ("schema-rule", JOB, {"spec managedBy": "me"}),
    ("schema-rule", JOB, {"spec deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}),
    ("other-schema", "PodMonitor/ray", {"spec podMetricsEndpoints 0 intervall": "15s"}),
    ("other-schema", "ClusterQueue/gpus", {"spec resourceGroups 0 flavors": []}),
    ("unknown-kind", JOB, {"kind": "RayJobs"}),
    ("unknown-kind", JOB, {"apiVersion": "ray.io/v2"}),
    ("unknown-kind", ROLE, {"apiVersion": "rbac.authorization.k8s.io/v1beta1"}),
    ("unknown-kind", ROLE, {"kind": GONE}),
    ("object-name", "PodMonitor/ray", {"metadata name": GONE}),
    ("object-name", "PodDisruptionBudget/heads", {"metadata name": "Heads"}),
    ("object-name", "Service/students", {"metadata labels": {"a b": "c"}}),
    ("object-name", "Service/students", {"metadata labels": {"a": "b c"}}),
    # clusters
    ("ray-name", JOB, {"metadata name": "a" * 48}),
    ("ray-name", CLUSTER, {"metadata name": "2dev"}),
    ("ray-name", CLUSTER, {"metadata name": "a" * 54}),
    ("ray-name", CRON, {"metadata name": "a" * 37}),
    ("group-name", JOB, {"spec rayClusterSpec workerGroupSpecs 1 groupName": "gpu"}),
    ("group-name", CLUSTER, {"spec workerGroupSpecs 0 groupName": ""}),
    ("group-container", CLUSTER, {"spec workerGroupSpecs 0 template spec containers": []}),
    ("group-resources", CLUSTER, {f"{HEAD} resources": {"CPU": "0"}}),
    ("group-labels", CLUSTER, {f"{HEAD} rayStartParams labels": "a=b"}),
    ("group-labels", CLUSTER, {"spec workerGroupSpecs 0 labels": {"a": "b c"}}),
    ("group-replicas", CLUSTER, {"spec workerGroupSpecs 0 minReplicas": -1}),
    ("group-replicas", CLUSTER, {"spec workerGroupSpecs 0": lambda g: g | {"minReplicas": 3, "suspend": True}}),
    ("group-idle-timeout", CLUSTER, {"spec workerGroupSpecs 0 idleTimeoutSeconds": 60}),
    ("group-idle-timeout", SERVICE, {f"{OF_SERVICE} autoscalerOptions idleTimeoutSeconds": -1}),
    ("group-priority", CLUSTER, {"spec workerGroupSpecs 0 priority": 1}),
    ("group-suspend", SERVICE, {f"{OF_SERVICE} workerGroupSpecs 0 suspend": True}),
    ("ray-start-params", CLUSTER, {f"{HEAD} rayStartParams num_cpus": "0"}),
    ("ray-start-params", CLUSTER, {"spec workerGroupSpecs 0 rayStartParams num-gpus": "one"}),
    ("ray-start-params", CLUSTER, {f"{HEAD} rayStartParams resources": '{"a": 1}'}),
    ("autoscaler", CLUSTER, {f"{IN_HEAD} env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]}),
    ("autoscaler", SERVICE, {f"{OF_SERVICE} headGroupSpec template spec restartPolicy": "Always"}),
    ("autoscaler-token", SERVICE, {f"{OF_SERVICE} headGroupSpec template spec automountServiceAccountToken": False}),
    ("upgrade-strategy", JOB, {"spec rayClusterSpec upgradeStrategy": {"type": "Recreate"}}),
    ("head-service", SERVICE, {f"{OF_SERVICE} headGroupSpec headService": {"metadata": {"name": "head"}, "spec": {}}}),
    ("head-service", CLUSTER, {f"{HEAD} headService": {"spec": {"ports": [{"name": "client", "port": 10001}]}}}),
    # options
    ("gcs-ft", CLUSTER, {f"{IN_HEAD} env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]}),
    ("gcs-ft", SERVICE, {"metadata annotations": {"ray.io/ft-enabled": "true"}}),
    ("gcs-ft", CLUSTER, {f"{HEAD} rayStartParams redis-username": "me"}),
    ("gcs-ft-backend", SERVICE, {f"{OF_SERVICE} gcsFaultToleranceOptions backend": "rocksdb"}),
    ("gcs-ft-backend", SERVICE, {f"{OF_SERVICE} gcsFaultToleranceOptions storage": {"size": "1Gi"}}),
    ("ray-auth", CLUSTER, {"spec rayVersion": "2.51.0"}),
    ("ray-auth", CLUSTER, {"spec rayVersion": GONE}),
    ("ray-auth", JOB, {"spec rayClusterSpec authOptions enableK8sTokenAuth": True}),
    ("ray-auth", CLUSTER, {"spec authOptions": {"mode": "token", "enableK8sTokenAuth": True, "secretName": "s"}}),
    ("history-server restricted-added-container", CLUSTER, {"spec historyServerOptions": {"collectorOptions": {}}}),
    (
        "history-server restricted-added-container",
        CLUSTER,
        {"spec historyServerOptions": {"collectorOptions": S3_LOGS}},
    ),
    ("ray-network-policy", CLUSTER, {"spec networkPolicy": {"workerGroups": [{"groupName": "gpu"}]}}),
    (
        "ray-tls",
        CLUSTER,
        {"spec tlsOptions": {"enabled": True}, f"{IN_HEAD} env": [{"name": "RAY_USE_TLS", "value": "1"}]},
    ),
    # jobs
    ("job-cluster", CRON, {"spec jobTemplate rayClusterSpec": GONE}),
    ("job-cluster", CRON, {"spec jobTemplate rayClusterSpec": GONE, "spec jobTemplate clusterSelector": {"a": "b"}}),
    (
        "job-suspend",
        CRON,
        {"spec jobTemplate": lambda s: _kept(s) | {"suspend": True} | _deletes(RULES_OF_DELETION[:1])},
    ),
    (
        "job-ttl",
        CRON,
        {"spec jobTemplate": lambda s: s | {"shutdownAfterJobFinishes": False} | _deletes(RULES_OF_DELETION[:1])},
    ),
    ("job-ttl", JOB, {"spec ttlSecondsAfterFinished": -1}),
    ("job-deadline", JOB, {"spec activeDeadlineSeconds": 0}),
    ("job-backoff", JOB, {"spec submissionMode": "InteractiveMode"}),
    ("job-backoff", JOB, {"spec backoffLimit": -1}),
    ("job-deletion", JOB, {"spec deletionStrategy": {"deletionRules": RULES_OF_DELETION[:1]}}),
    ("job-deletion", CRON, {"spec jobTemplate": lambda s: _kept(s) | _deletes(RULES_OF_DELETION)}),
    ("job-deletion", CRON, {"spec jobTemplate": lambda s: _kept(s) | _deletes(RULES_OF_DELETION[:1] * 2)}),
    ("job-submission", JOB, {"spec submitterConfig": {"backoffLimit": 1}}),
    ("job-entrypoint", JOB, {"spec entrypoint": " "}),
    ("job-entrypoint", JOB, {"spec entrypointResources": "a: 1"}),
    ("job-runtime-env", JOB, {"spec runtimeEnvYAML": "- a"}),
    ("job-runtime-env", JOB, {"spec runtimeEnvYAML": "a: [1"}),
    ("job-metadata ray-auth", CRON, {"spec jobTemplate": lambda s: _old(s) | {"metadata": {"a": "b"}}}),
    ("kueue", JOB, {"spec": lambda s: _kept(s) | _deletes(RULES_OF_DELETION[:1])}),
    ("cron-schedule", CRON, {"spec schedule": "0 2 * *"}),
    ("cron-schedule", CRON, {"spec schedule": "61 2 * * 1"}),
    ("cron-schedule", CRON, {"spec timeZone": "Mars/Olympus"}),
    # services
    ("service-timeout", SERVICE, {"metadata annotations": {"ray.io/initializing-timeout": "soon"}}),
    ("service-timeout", SERVICE, {"metadata annotations": {"ray.io/initializing-timeout": "-5m"}}),
    ("service-upgrade", SERVICE, {"spec upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}),
    ("schema", SERVICE, {"spec rayClusterDeletionDelaySeconds": -1}),
    ("serve-config", SERVICE, {"spec serveConfigV2": "applications: [{name: a"}),
    ("serve-config", SERVICE, {"spec serveConfigV2": "applications: []"}),
    ("serve-config", SERVICE, {"spec serveConfigV2": "applications: [{name: a, import_path: app}]"}),
    ("serve-config", SERVICE, {"spec serveConfigV2": "applications: [{import_path: app:build}]"}),
    ("serve-config", SERVICE, {"spec serveConfigV2": OTHER_SERVE.replace("c,", "c:d,")}),
    ("serve-config", SERVICE, {"spec serveConfigV2": "applications: [{name: a, import_path: a:b, route_prefix: a}]"}),
    ("serve-port", SERVICE, {f"{OF_SERVICE} headGroupSpec template spec containers 0 ports": lambda p: p[:3]}),
    ("serve-port", SERVICE, {f"{OF_SERVICE} headGroupSpec template spec containers 0 ports 3 containerPort": 9000}),
    ("serve-port", SERVICE, {"spec serveConfigV2": lambda text: text.replace("0.0.0.0", "127.0.0.1")}),
    ("serve-proxy", SERVICE, {"spec serveConfigV2": lambda text: "proxy_location: HeadOnly\n" + text}),
    # pods
    ("container-name", SERVICE, {f"{OF_SERVICE} headGroupSpec template spec containers 0 name": "autoscaler"}),
    ("container-name", PLAIN, {"spec template spec containers": lambda c: c * 2}),
    (
        "container-image",
        CLUSTER,
        {f"{HEAD} template spec containers": lambda c: [*c, _without(c[0], "image") | {"name": "x"}]},
    ),
    ("port-name", CLUSTER, {f"{IN_HEAD} ports 1 name": "client"}),
    ("volume-mount", JOB, {f"{IN_POD} volumeMounts 0 name": "scrach"}),
    ("schema", JOB, {f"{IN_POD} volumeMounts 0 mountPath": "/recipe"}),
    (
        "volume-mount",
        PLAIN,
        {"spec template spec volumes": [DISK], "spec template spec containers 0 volumeMounts": [MOUNT] * 2},
    ),
    ("volume", JOB, {f"{POD} volumes 0 emptyDir": GONE}),
    ("node-labels", JOB, {f"{POD} nodeSelector": {"nvidia.com/gpu.product": "H100!"}}),
    ("node-labels", CLUSTER, {f"{HEAD} template spec nodeSelector": {"nvidia.com/gpu/product": "H100"}}),
    ("node-labels", PLAIN, {"spec template spec nodeSelector": {"a": "b=c"}}),
    ("node-labels", PLAIN, {"spec template spec tolerations": [{"key": "spot", "value": "a b"}]}),
    ("resource-amounts", JOB, {f"{IN_POD} resources requests cpu": "8"}),
    ("resource-amounts", JOB, {f"{IN_POD} resources requests": lambda r: r | {"nvidia.com/gpu": 2}}),
    ("resource-amounts", PLAIN, {"spec template spec containers 0 resources requests memory": "1GB"}),
    ("ray-image", JOB, {f"{IN_POD} image": "registry.example/regrow:0.2.0"}),
    ("ray-image", CLUSTER, {f"{IN_HEAD} image": "rayproject/ray:2.59.0-py312"}),
    ("workload-selector", PLAIN, {"spec selector matchLabels app": "radis"}),
    # sets
    ("duplicate-object", "ConfigMap/recipe", {"metadata name": "regrow", "kind": "ServiceAccount", "data": GONE}),
    ("missing-reference", JOB, {f"{POD} volumes 1 configMap": {"name": "recipes"}}),
    ("missing-reference", JOB, {f"{IN_POD} env 0 valueFrom secretKeyRef name": "regrow-hup"}),
    ("missing-reference", "LocalQueue/gpus", {"spec clusterQueue": "gpu"}),
    ("missing-key", JOB, {f"{POD} volumes 1 configMap items 0 key": "recipe"}),
    ("selector", "PodDisruptionBudget/heads", {"spec selector matchLabels": {"ray.io/node-type": "Head"}}),
    ("selector", "PodDisruptionBudget/heads", {"spec selector matchLabels": {"ray.io/cluster": "gsm8k"}}),
    ("selector", "PodMonitor/ray", {"spec selector matchLabels": {"app.kubernetes.io/part-of": "grow"}}),
    ("named-port", "Service/students", {"spec ports 0 targetPort": "http"}),
    ("named-port", "PodMonitor/ray", {"spec podMetricsEndpoints 0 port": "metric"}),
    ("cidr", NETWORK, {"spec egress 2 to 0 ipBlock except": ["fe80::/64"]}),
    ("binding", BINDING, {"subjects 0 name": "regrown"}),
    ("binding", BINDING, {"roleRef name": "regrown"}),
    ("kustomization", "Kustomization/(no name)", {"resources": lambda files: files[1:]}),
    ("kustomization", "Kustomization/(no name)", {"resources": lambda files: [*files, "jobs.yaml"]}),
    # policy
    ("job-deadline-missing", JOB, {"spec activeDeadlineSeconds": GONE}),
    ("job-backoff-missing", JOB, {"spec backoffLimit": GONE}),
    ("job-shutdown-missing", JOB, {"spec ttlSecondsAfterFinished": GONE}),
    ("job-shutdown-missing", CRON, {"spec jobTemplate": lambda s: _kept(s)}),
    ("ray-auth-missing", CLUSTER, {"spec authOptions": GONE}),
    ("head-work", CLUSTER, {f"{HEAD} rayStartParams num-cpus": GONE}),
    ("replicas-outside", CLUSTER, {"spec workerGroupSpecs 0 replicas": 3}),
    ("spot-drain", JOB, {"spec rayClusterSpec workerGroupSpecs 1 template spec containers 0 lifecycle": GONE}),
    ("container-resources", PLAIN, {"spec template spec containers 0 resources": GONE}),
    ("image-pinned", PLAIN, {"spec template spec containers 0 image": "redis"}),
    ("image-pinned", PLAIN, {"spec template spec containers 0 image": "host:5000/redis:latest"}),
    ("restricted-run-as-non-root", PLAIN, {"spec template spec securityContext runAsNonRoot": GONE}),
    ("restricted-run-as-non-root", PLAIN, {"spec template spec securityContext runAsUser": 0}),
    ("restricted-seccomp", PLAIN, {"spec template spec securityContext seccompProfile type": "Unconfined"}),
    ("restricted-privilege-escalation", JOB, {f"{IN_POD} securityContext allowPrivilegeEscalation": GONE}),
    ("restricted-capabilities", JOB, {f"{IN_POD} securityContext capabilities drop": ["NET_RAW"]}),
    ("restricted-capabilities", JOB, {f"{IN_POD} securityContext capabilities add": ["SYS_PTRACE"]}),
    ("restricted-privileged", JOB, {f"{IN_POD} securityContext privileged": True}),
    ("restricted-host-namespaces", PLAIN, {"spec template spec hostNetwork": True}),
    ("restricted-host-ports", PLAIN, {"spec template spec containers 0 ports 0 hostPort": 6379}),
    ("restricted-volumes", JOB, {f"{POD} volumes 0": {"name": "scratch", "hostPath": {"path": "/mnt"}}}),
    ("restricted-kernel", PLAIN, {"spec template spec containers 0 securityContext procMount": "Unmasked"}),
    ("restricted-added-container", JOB, {"spec submissionMode": GONE}),
    ("restricted-added-container", SERVICE, {f"{OF_SERVICE} autoscalerOptions securityContext": GONE}),
    ("service-account-token", PLAIN, {"spec template spec automountServiceAccountToken": GONE}),
    ("rbac-wildcard", ROLE, {"rules 0 verbs": ["*"]}),
    ("rbac-secrets", ROLE, {"rules 1 verbs": ["get", "list"]}),
    ("rbac-secrets", ROLE, {"rules 1 resourceNames": GONE}),
    ("rbac-exec", ROLE, {"rules 0 resources": ["pods/exec"]}),
    ("rbac-cluster-admin", BINDING, {"roleRef kind": "ClusterRole", "roleRef name": "cluster-admin"}),
    ("network-policy-missing", NETWORK, {"spec podSelector matchLabels": {"app": "redis"}}),
    ("network-policy-open", NETWORK, {"spec ingress 2": {}}),
    ("network-policy-open", NETWORK, {"spec ingress 1 from 0 namespaceSelector": {}}),
    ("network-policy-open", NETWORK, {"spec ingress 2": {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}}),
    ("network-policy-open", NETWORK, {"spec ingress 2 ports": [{"port": 6000, "endPort": 7000}]}),
    ("network-policy-closed", NETWORK, {"spec ingress": []}),
    ("network-policy-closed", NETWORK, {"spec egress 1 ports": [{"port": 53, "protocol": "TCP"}]}),
    ("network-policy-egress", NETWORK, {"spec egress 1 ports": GONE}),
    ("secret-env", JOB, {f"{IN_POD} env 0": {"name": "HF_TOKEN", "value": "abc"}}),
    ("secret-env", JOB, {"spec runtimeEnvYAML": "env_vars: {S3_SECRET_KEY: abc}"}),
    ("secret-env", "ConfigMap/recipe", {"data": {"recipe.toml": "", "password": "abc"}}),
    ("secret-value", JOB, {"spec entrypoint": f"regrow run --key {KEY}"}),
    ("secret-value", JOB, {f"{IN_POD} args": [f"--to=s3://a:{KEY}@host/"]}),
    ("secret-value", "ConfigMap/recipe", {"data": {"recipe.toml": f"key = '{KEY}'"}}),
    ("secret-value", SERVICE, {"metadata annotations": {"a": KEY}}),
    ("secret-object", "Secret/regrow-hub", {"stringData token": "abc"}),
]


def _without(content: Content, *names: str) -> Content:
    return {name: value for name, value in content.items() if name not in names}


def _kept(spec: Content) -> Content:
    """A job that leaves its cluster running."""
    return _without(spec, "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")


def _deletes(deletion: list[Content]) -> Content:
    return {"deletionStrategy": {"deletionRules": deletion}}


def _old(spec: Content) -> Content:
    return spec | {"rayClusterSpec": spec["rayClusterSpec"] | {"rayVersion": "2.5.0"}}


def broken(name: str, changes: dict[str, Any]) -> list[tuple[str, Content]]:
    """The set with `changes` in one of its objects."""
    objects = copy.deepcopy(BASE)
    found = [o for _, o in objects if f"{o['kind']}/{o.get('metadata', {}).get('name', '(no name)')}" == name]
    assert len(found) == 1, name
    for path, value in changes.items():
        *above, last = (int(part) if part.isdigit() else part for part in path.split())
        at: Any = found[0]
        for part in above:
            at = at[part] if isinstance(part, int) else at.setdefault(part, {})
        if value is GONE:
            del at[last]
        else:
            at[last] = value(copy.deepcopy(at[last])) if callable(value) else value
    return objects


def test_a_set_without_a_fault() -> None:
    assert check(BASE) == []


@pytest.mark.parametrize(("rule", "name", "changes"), BROKEN, ids=[f"{b[0]}-{n}" for n, b in enumerate(BROKEN)])
def test_a_broken_rule_is_named_and_no_other(rule: str, name: str, changes: dict[str, Any]) -> None:
    objects = broken(name, changes)
    found = check(objects)
    assert {finding.rule for finding in found} == set(rule.split()), "\n".join(map(str, found))
    assert all(finding.message and finding.kind == KIND_OF[finding.rule] for finding in found)
    assert check(objects, off=rule.split()) == []
    assert KEY not in str(found)


def test_every_rule_is_broken_once() -> None:
    assert {name for rule, _, _ in BROKEN for name in rule.split()} == set(rules())
    assert all(rules().values())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_no_false_alarm_on_kuberays_own_samples(sample: Path) -> None:
    assert [finding for finding in check(read(str(sample))) if finding.kind != "policy"] == []


def test_there_are_samples() -> None:
    assert len(SAMPLES) == 89


def test_an_unknown_rule_is_not_switched_off_silently() -> None:
    with pytest.raises(ValueError, match="did you mean 'ray-name'"):
        check(BASE, off=["ray-names"])


def test_objects_are_left_as_they_are_and_come_in_their_order() -> None:
    objects = copy.deepcopy(BASE)
    for _, content in objects:
        content.setdefault("metadata", {})["name"] = "A_B"
    before = json.dumps(objects)
    found = check(objects)
    assert json.dumps(objects) == before
    files = [finding.file for finding in found if finding.rule == "object-name"]
    assert files == [
        file for file, content in objects if content["kind"] not in ("Kustomization", "Role", "RoleBinding")
    ]


def test_one_manifest_takes_less_than_a_second() -> None:
    start = time.process_time()
    check([pair for pair in BASE if pair[1]["kind"] == "RayJob"])
    assert time.process_time() - start < 1
