"""The RayService of a run's endpoint, and a Redis that lets it outlive its head."""

from typing import Any

from cluster.k8s.rendering import pods, ray_cluster
from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import PART_LABEL, Endpoint, Size, Workload
from cluster.k8s.rendering.yaml_text import plain

REDIS_IMAGE, REDIS_USER = "redis:8.2-alpine", 999
PASSWORD = {"secretKeyRef": {"name": "regrow-redis", "key": "password"}}
# Through a file, so that the password is in no process list; `exec`, so that Redis hears when it is to end.
REDIS = (
    "printf 'requirepass %s\\nappendonly yes\\ndir /data\\n' \"$REDIS_PASSWORD\" > /run/redis/redis.conf && "
    "exec redis-server /run/redis/redis.conf"
)


def document(w: Workload, endpoint: Endpoint) -> Content:
    """A RayService (KubeRay 1.7). With GCS fault tolerance the workers go on answering while a lost head is replaced
    (docs.ray.io, "GCS fault tolerance in KubeRay"). A changed cluster is built beside the old one, which answers until
    the new one does; a changed serveConfigV2 alone is applied in place. Pods have the GPUs of one engine: they come and
    go one by one."""
    each, of = endpoint.gpus_per_engine, max(1, w.gpus_per_node)
    size = Size(-(-w.gpu_pod.cpus * each // of), -(-w.gpu_pod.memory * each // of), each)
    cluster = ray_cluster.spec(w, each * endpoint.engines, endpoint.engines, size, serving=True)
    cluster["gcsFaultToleranceOptions"] = {
        "backend": "redis",
        "redisAddress": f"{w.service}-redis:6379",
        "redisPassword": {"valueFrom": PASSWORD},
    }
    labels = {"name": f"{w.service}-serve-svc", "namespace": w.namespace, "labels": w.labels}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": w.service, "namespace": w.namespace, "labels": w.labels},
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": 60,
            "excludeHeadPodFromServeSvc": True,
            "serveService": {
                "metadata": labels,
                "spec": {"type": "ClusterIP", "ports": [{"name": "serve", "port": 8000, "targetPort": 8000}]},
            },
            "serveConfigV2": plain(_everywhere(endpoint.config)),
            "rayClusterConfig": cluster,
        },
    }


def _everywhere(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with a proxy on every node that has a part of the application: the head has none, and may be away."""
    http = config.get("http_options", {}) | {"host": "0.0.0.0", "port": 8000}
    return config | {"proxy_location": "EveryNode", "http_options": http}


def redis(w: Workload) -> dict[str, Content]:
    """File name → object of one Redis with a disk, for a head's memory."""
    name = f"{w.service}-redis"
    labels = w.labels | {"app.kubernetes.io/name": name}
    chosen = {PART_LABEL: w.own, "app.kubernetes.io/name": name}  # cannot be changed later, as the run's label can
    about = {"name": name, "namespace": w.namespace, "labels": labels}
    ports = [{"name": "redis", "port": 6379, "targetPort": "redis"}]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    stateful = {
        "serviceName": name,
        "replicas": 1,
        "selector": {"matchLabels": chosen},
        "template": {"metadata": {"labels": labels}, "spec": _redis_pod()},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
    }
    service = {"clusterIP": "None", "selector": chosen, "ports": ports}
    return {
        "redis.yaml": {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": about, "spec": stateful},
        "redis-service.yaml": {"apiVersion": "v1", "kind": "Service", "metadata": dict(about), "spec": service},
    }


def _redis_pod() -> Content:
    small = {"cpu": "500m", "memory": "1Gi"}
    probe = {"tcpSocket": {"port": "redis"}, "periodSeconds": 10}
    container = {
        "name": "redis",
        "image": REDIS_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", REDIS],
        "env": [{"name": "REDIS_PASSWORD", "valueFrom": PASSWORD}],
        "ports": [{"name": "redis", "containerPort": 6379}],
        "readinessProbe": probe,
        "livenessProbe": probe | {"initialDelaySeconds": 30},
        "resources": {"requests": small, "limits": dict(small)},
        "securityContext": pods.SECURITY | {"runAsUser": REDIS_USER, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "run", "mountPath": "/run/redis"}],
    }
    ids = {"runAsUser": REDIS_USER, "runAsGroup": REDIS_USER, "fsGroup": REDIS_USER}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pods.POD_SECURITY | ids,
        "containers": [container],
        "volumes": [{"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
    }
