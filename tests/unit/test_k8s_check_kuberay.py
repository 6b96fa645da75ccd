"""What KubeRay v1.7.0 refuses, branch by branch of its utils/validation.go: each is found at its place."""

from typing import Any

import pytest

from cluster.k8s.checking.check import check
from tests.unit.test_k8s_check import CLUSTER, CRON, GONE, HEAD, IN_HEAD, JOB, OF_SERVICE, SERVICE, broken

WORKER = "spec workerGroupSpecs 0"
IN_WORKER = f"{WORKER} template spec containers 0"
REDIS = {"spec gcsFaultToleranceOptions": {"redisAddress": "redis:6379"}}
ROCKS = {"backend": "rocksdb"}
INCREMENTAL = {"spec upgradeStrategy type": "NewClusterWithIncrementalUpgrade"}
UPGRADE = "spec upgradeStrategy clusterUpgradeOptions"
OPTIONS = {"stepSizePercent": 5, "intervalSeconds": 10, "gatewayClassName": "g"}
FAILED = {"jobStatus": "FAILED"}
DELETION = "spec jobTemplate deletionStrategy"
SELECTS = {"spec rayClusterSpec": GONE, "spec clusterSelector": {"ray.io/cluster": "dev"}}
KEPT = {"spec jobTemplate shutdownAfterJobFinishes": GONE, "spec jobTemplate ttlSecondsAfterFinished": GONE}


def env(**variables: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def logs(**variables: str) -> dict[str, Any]:
    return {"spec historyServerOptions": {"collectorOptions": {"image": "a:1", "env": env(**variables)}}}


def network(mode: str, **parts: Any) -> dict[str, Any]:
    return {"spec networkPolicy": {"mode": mode, **parts}}


def ends(success: str, failure: str) -> dict[str, Any]:
    return {DELETION: {"onSuccess": {"policy": success}, "onFailure": {"policy": failure}}}


def rule(policy: str, **condition: Any) -> dict[str, Any]:
    return {DELETION: {"deletionRules": [{"policy": policy, "condition": FAILED | condition}]}}


BOTH = {"ingressRules": [{"ports": [{"port": 1}]}], "egressRules": [{"ports": [{"port": 1}]}]}
# (rule, where, object, changes)
REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("group-container", "headGroupSpec", CLUSTER, {f"{HEAD} template spec containers": []}),
    ("group-labels", "labels.a b", CLUSTER, {f"{HEAD} labels": {"a b": "c"}}),
    ("group-replicas", "workerGroupSpecs[0]", CLUSTER, {f"{WORKER} maxReplicas": -1}),
    (
        "group-priority",
        "priority",
        SERVICE,
        {f"{OF_SERVICE} workerGroupSpecs 0 priority": 2, f"{OF_SERVICE} rayVersion": "2.55.0"},
    ),
    ("group-idle-timeout", "workerGroupSpecs[0]", SERVICE, {f"{OF_SERVICE} workerGroupSpecs 0 idleTimeoutSeconds": -1}),
    (
        "gcs-ft",
        "metadata.annotations",
        CLUSTER,
        REDIS | {"metadata annotations": {"ray.io/external-storage-namespace": "n"}},
    ),
    ("gcs-ft", "rayStartParams.redis-password", CLUSTER, REDIS | {f"{HEAD} rayStartParams redis-password": "$P"}),
    ("gcs-ft", "env", CLUSTER, REDIS | {f"{IN_HEAD} env": env(RAY_REDIS_ADDRESS="a")}),
    ("gcs-ft", "env", CLUSTER, {f"{IN_HEAD} env": env(REDIS_USERNAME="a")}),
    (
        "gcs-ft-backend",
        "redisUsername",
        CLUSTER,
        {"spec gcsFaultToleranceOptions": ROCKS | {"redisUsername": {"value": "a"}}},
    ),
    (
        "gcs-ft-backend",
        "containers[0].env",
        CLUSTER,
        {"spec gcsFaultToleranceOptions": ROCKS, f"{IN_HEAD} env": env(RAY_gcs_storage="a")},
    ),
    (
        "autoscaler",
        "autoscalerOptions.env",
        SERVICE,
        {f"{OF_SERVICE} autoscalerOptions env": env(KUBERAY_GEN_AUTOSCALER_START_CMD="a")},
    ),
    (
        "autoscaler",
        "workerGroupSpecs[0]",
        SERVICE,
        {f"{OF_SERVICE} workerGroupSpecs 0 template spec restartPolicy": "OnFailure"},
    ),
    ("history-server", "env", CLUSTER, logs()),
    ("history-server", "env", CLUSTER, logs(STORAGE_BACKEND="GCS")),
    ("history-server", "env", CLUSTER, logs(STORAGE_BACKEND="AliyunOSS", OSS_BUCKET="a", OSS_REGION="b")),
    ("history-server", "env", CLUSTER, logs(STORAGE_BACKEND="azureblob")),
    ("history-server", "env", CLUSTER, logs(STORAGE_BACKEND="AzureBlob", AZURE_STORAGE_AUTH_MODE="workload_identity")),
    ("history-server", "env", CLUSTER, logs(STORAGE_BACKEND="S3", S3_REGION="a", POD_IP="b")),
    (
        "history-server",
        "containers",
        CLUSTER,
        logs(STORAGE_BACKEND="S3", S3_REGION="a") | {f"{IN_WORKER} name": "ray-history-collector"},
    ),
    ("ray-auth", "rayVersion", CLUSTER, {"spec rayVersion": "nightly"}),
    ("ray-auth", "rayVersion", CLUSTER, {"spec rayVersion": "2.54.1", "spec authOptions enableK8sTokenAuth": True}),
    ("ray-auth", "mode", CLUSTER, {"spec authOptions": {"mode": "disabled", "enableK8sTokenAuth": True}}),
    ("ray-auth", "enableK8sTokenAuth", SERVICE, {f"{OF_SERVICE} authOptions enableK8sTokenAuth": True}),
    ("ray-network-policy", "head.ingressRules", CLUSTER, network("DenyAllEgress", head=BOTH)),
    ("ray-network-policy", "worker.egressRules", CLUSTER, network("DenyAllIngress", worker=BOTH)),
    (
        "ray-network-policy",
        "workerGroups[0].egressRules",
        CLUSTER,
        network("DenyAllIngress", workerGroups=[BOTH | {"groupName": "cpu"}]),
    ),
    ("ray-network-policy", "groupName", CLUSTER, network("DenyAll") | {f"{WORKER} groupName": "CPU"}),
    (
        "ray-tls",
        "volumeMounts[0]",
        CLUSTER,
        {
            "spec tlsOptions": {"enabled": True},
            f"{IN_WORKER} volumeMounts": [{"name": "a", "mountPath": "/etc/ray/tls"}],
        },
    ),
    (
        "ray-tls",
        "autoscalerOptions.env",
        SERVICE,
        {
            f"{OF_SERVICE} tlsOptions": {"enabled": True},
            f"{OF_SERVICE} autoscalerOptions env": env(RAY_TLS_CA_CERT="a"),
        },
    ),
    ("job-cluster", "submissionMode", JOB, SELECTS | {"spec submissionMode": "SidecarMode"}),
    ("job-cluster", "backoffLimit", JOB, SELECTS),
    ("job-cluster", "suspend", JOB, SELECTS | {"spec suspend": True}),
    (
        "job-submission",
        "submitterPodTemplate",
        JOB,
        {"spec submissionMode": "SidecarMode", "spec submitterPodTemplate": {"spec": {"containers": [{"name": "a"}]}}},
    ),
    (
        "job-submission",
        "restartPolicy",
        JOB,
        {
            "spec submissionMode": "SidecarMode",
            "spec rayClusterSpec headGroupSpec template spec restartPolicy": "Always",
        },
    ),
    (
        "job-submission",
        "submitterPodTemplate",
        JOB,
        {"spec submissionMode": GONE, "spec submitterPodTemplate": {"spec": {"containers": []}}},
    ),
    ("job-deletion", "deletionStrategy", CRON, ends("DeleteNone", "DeleteSelf")),
    (
        "job-deletion",
        "deletionStrategy",
        CRON,
        KEPT | ends("DeleteWorkers", "DeleteSelf") | {"spec jobTemplate rayClusterSpec enableInTreeAutoscaling": True},
    ),
    (
        "job-deletion",
        "deletionStrategy",
        CRON,
        KEPT | rule("DeleteWorkers") | {"spec jobTemplate rayClusterSpec enableInTreeAutoscaling": True},
    ),
    (
        "job-deletion",
        "deletionStrategy",
        CRON,
        KEPT | rule("DeleteCluster") | {"spec jobTemplate clusterSelector": {"ray.io/cluster": "dev"}},
    ),
    ("job-deletion", "deletionRules", CRON, rule("DeleteSelf")),
    ("job-deadline", "activeDeadlineSeconds", CRON, {"spec jobTemplate activeDeadlineSeconds": -1}),
    ("job-runtime-env", "runtimeEnvYAML", CRON, {"spec jobTemplate runtimeEnvYAML": "just text"}),
    ("cron-schedule", "schedule", CRON, {"spec schedule": "CRON_TZ=UTC 0 0 * * *"}),
    ("schema", "timeZone", CRON, {"spec timeZone": ""}),
    ("service-timeout", "annotations", SERVICE, {"metadata annotations": {"ray.io/initializing-timeout": "0"}}),
    ("service-upgrade", "clusterUpgradeOptions", SERVICE, INCREMENTAL | {UPGRADE: OPTIONS | {"stepSizePercent": 101}}),
    ("service-upgrade", "clusterUpgradeOptions", SERVICE, INCREMENTAL | {UPGRADE: OPTIONS | {"maxSurgePercent": 4}}),
    ("service-upgrade", "intervalSeconds", SERVICE, INCREMENTAL | {UPGRADE: OPTIONS | {"intervalSeconds": 0}}),
    ("service-upgrade", "gatewayClassName", SERVICE, INCREMENTAL | {UPGRADE: OPTIONS | {"gatewayClassName": ""}}),
    (
        "service-upgrade",
        "enableInTreeAutoscaling",
        SERVICE,
        INCREMENTAL | {UPGRADE: OPTIONS, f"{OF_SERVICE} enableInTreeAutoscaling": False},
    ),
]


@pytest.mark.parametrize(
    ("name", "where", "thing", "changes"), REFUSED, ids=[f"{r[0]}-{n}" for n, r in enumerate(REFUSED)]
)
def test_what_kuberay_refuses_is_found_at_its_place(name: str, where: str, thing: str, changes: dict[str, Any]) -> None:
    found = [f for f in check(broken(thing, changes)) if f.object == thing and where in f.path]
    assert name in {finding.rule for finding in found}, found


def test_an_incremental_upgrade_with_all_it_needs() -> None:
    assert check(broken(SERVICE, INCREMENTAL | {UPGRADE: OPTIONS})) == []
