"""The Ray cluster of a run: a head without work of its own, and groups of workers that come and go with the work."""

from typing import Any

from cluster.k8s.rendering import pods
from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import GPU, Size, Workload

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # where Ray's autoscaler looks for it
HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    "metrics": 8080,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
DRAIN_SECONDS, GRACE_SECONDS = 90, 120  # AWS takes a spot node back after 120 s, others after 30
DRAIN = (
    "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is being stopped' "
    f"--deadline-remaining-seconds {DRAIN_SECONDS} && sleep {DRAIN_SECONDS}"
)
SERVING = Size(2, 8)  # of a head that only leads an endpoint


def document(w: Workload) -> Content:
    """A RayCluster to work on by hand."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": w.own, "namespace": w.namespace, "labels": w.labels},
        "spec": {"suspend": False} | spec(w, w.gpus, w.gpu_nodes, w.gpu_pod),
    }


def spec(w: Workload, gpus: int, gpu_nodes: int, gpu_pod: Size, serving: bool = False) -> Content:
    """The cluster of a RayJob, or, `serving`, of a RayService: without the recipe and what is shared of a run, with
    API keys."""
    groups = [_cpu_group(w, gpus, serving)]
    if gpus:
        asked = (w, gpus, gpu_nodes, gpu_pod, serving)
        groups.append(_gpu_group(*asked))
        groups += [_spot(w, _gpu_group(*asked))] if w.spot else []
    return {
        "rayVersion": w.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(w),
        "headGroupSpec": _head(w, gpus, serving),
        "workerGroupSpecs": groups,
    }


def _autoscaler(w: Workload) -> Content:
    small = {"cpu": "500m", "memory": "1Gi"}
    return {
        "version": "v2",
        "idleTimeoutSeconds": w.idle_seconds,
        "upscalingMode": "Default",
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": {"requests": small, "limits": dict(small)},
        "securityContext": pods.SECURITY,
        "volumeMounts": [{"name": "kubernetes", "mountPath": TOKEN, "readOnly": True}],
    }


def _head(w: Workload, gpus: int, serving: bool) -> Content:
    size = SERVING if serving else w.head
    ray = pods.container(w, "ray-head", size, gpus, scratch=not serving)
    ports = HEAD_PORTS | ({"serve": 8000} if serving else {})
    ray["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    pod = pods.template(w, ray, size, scratch=not serving)
    pods.with_keys(pod) if serving else pods.with_recipe(w, pod)
    pod["spec"]["volumes"].append({"name": "kubernetes", "projected": {"sources": _token()}})
    return {"rayStartParams": pods.start_params(size, cpus=0) | {"dashboard-host": "0.0.0.0"}, "template": pod}


def _token() -> list[Content]:
    """What Kubernetes mounts by itself into every container of a pod; here the autoscaler alone gets it."""
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]


def _cpu_group(w: Workload, gpus: int, serving: bool) -> Content:
    return _group(w, "cpu", w.cpu_pod, w.cpu_nodes, gpus, serving)


def _gpu_group(w: Workload, gpus: int, nodes: int, size: Size, serving: bool) -> Content:
    group = _group(w, "gpu", size, nodes, gpus, serving)
    pod = group["template"]["spec"]
    pod["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if w.gpu_selector:
        pod["nodeSelector"] = dict(w.gpu_selector)
    return group


def _spot(w: Workload, group: Content) -> Content:
    """The group `group` on nodes that may be taken back: asked for first, and drained when it happens."""
    pod: dict[str, Any] = group["template"]["spec"]
    pod["nodeSelector"] = pod.get("nodeSelector", {}) | dict(w.spot_selector)
    pod["tolerations"] += [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in w.spot_selector
    ]
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
    pod["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", DRAIN]}}}
    return group | {"groupName": "gpu-spot", "priority": 10}


def _group(w: Workload, name: str, size: Size, nodes: int, gpus: int, serving: bool) -> Content:
    ray = pods.container(w, "ray-worker", size, gpus, scratch=not serving)
    ports = {"metrics": 8080} | ({"serve": 8000} if serving else {})
    ray["ports"] = [{"name": port, "containerPort": number} for port, number in ports.items()]
    pod = pods.template(w, ray, size, scratch=not serving)
    if serving:
        pods.with_keys(pod)
        # KubeRay's own probe is a `wget`, which an image need not have.
        ray["readinessProbe"] = {
            "httpGet": {"path": "/-/healthz", "port": 8000},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 1,
        }
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": nodes,
        "rayStartParams": pods.start_params(size),
        "template": pod,
    }
