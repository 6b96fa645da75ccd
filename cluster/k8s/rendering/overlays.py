"""Kustomize components that a cluster may want beside a run: a queue, budgets, bounds, monitoring."""

from typing import Any

from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import GPU, PART_LABEL, RUN_LABEL, Size, Workload

QUEUE = "regrow"


def kueue(w: Workload) -> dict[str, Content]:
    """Kueue's objects, and the patch that puts the RayJob into their queue. Kueue admits a cluster of a known size, so
    the patch turns the autoscaler off and asks for all workers at once (kueue.sigs.k8s.io, "Run A RayJob",
    Limitations)."""
    covered = {"cpu": _cpus(w), "memory": f"{_memory(w)}Gi", **({GPU: _gpus(w)} if w.gpus else {})}
    quotas = [{"name": name, "nominalQuota": value} for name, value in covered.items()]
    group = {"coveredResources": list(covered), "flavors": [{"name": QUEUE, "resources": quotas}]}
    queue = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": w.namespace}}}
    return {
        "resourceflavor.yaml": _kueue("ResourceFlavor", {"name": QUEUE}, {}),
        "clusterqueue.yaml": _kueue("ClusterQueue", {"name": QUEUE}, queue | {"resourceGroups": [group]}),
        "localqueue.yaml": _kueue("LocalQueue", {"name": QUEUE, "namespace": w.namespace}, {"clusterQueue": QUEUE}),
    }


def queued(w: Workload) -> list[dict[str, Any]]:
    """The JSON patch (RFC 6902) of that RayJob."""
    at = "/spec/rayClusterSpec"
    patch: list[dict[str, Any]] = [
        {"op": "add", "path": "/metadata/labels/kueue.x-k8s.io~1queue-name", "value": QUEUE},
        {"op": "replace", "path": "/spec/suspend", "value": True},
        {"op": "replace", "path": f"{at}/enableInTreeAutoscaling", "value": False},
        {"op": "remove", "path": f"{at}/autoscalerOptions"},
    ]
    for number, nodes in enumerate(_nodes(w)):
        group = f"{at}/workerGroupSpecs/{number}"
        fields = ("replicas", "minReplicas", "maxReplicas")
        patch += [{"op": "replace", "path": f"{group}/{field}", "value": nodes} for field in fields]
        patch += [{"op": "remove", "path": f"{group}/priority"}] if number == 2 else []
    return patch


def _nodes(w: Workload) -> list[int]:
    """Pods of each group of a cluster that does not grow: with GPUs one for the small work beside them, and where there
    are spot nodes, all on those."""
    if not w.gpus:
        return [w.cpu_nodes]
    return [1, 0, w.gpu_nodes] if w.spot else [1, w.gpu_nodes]


def budgets(w: Workload) -> dict[str, Content]:
    """A PodDisruptionBudget: a node that is drained waits for the run's head, which holds the driver. Pods of a
    RayCluster have no controller that Kubernetes knows the size of: only a whole minAvailable counts (kubernetes.io,
    "Specifying a Disruption Budget", Arbitrary workloads and arbitrary selectors)."""
    selector = {"matchLabels": {PART_LABEL: w.own, "ray.io/node-type": "head"}}
    about = {"name": f"{w.name}-head", "namespace": w.namespace, "labels": w.labels}
    spec = {"minAvailable": 1, "selector": selector}
    return {"pdb.yaml": {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": about, "spec": spec}}


def bounds(w: Workload) -> dict[str, Content]:
    """What the namespace may hold, and what a container gets that asks for nothing."""
    about = {"name": "regrow", "namespace": w.namespace, "labels": w.labels}
    hard = {"requests.cpu": _cpus(w), "requests.memory": f"{_memory(w)}Gi", "limits.cpu": _cpus(w)}
    hard |= {"limits.memory": f"{_memory(w)}Gi", "pods": str(_pods(w) + 8)}
    hard |= {f"requests.{GPU}": _gpus(w)} if w.gpus else {}
    small = {"cpu": "500m", "memory": "1Gi"}
    limits = {"limits": [{"type": "Container", "default": small, "defaultRequest": dict(small)}]}
    return {
        "resourcequota.yaml": _core("ResourceQuota", about, {"hard": hard}),
        "limitrange.yaml": _core("LimitRange", dict(about), limits),
    }


def monitoring(w: Workload) -> dict[str, Content]:
    """A PodMonitor of the Prometheus operator: Ray's own figures, Serve's, vLLM's and regrow's on one port of each
    pod."""
    relabel = [{"sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"], "targetLabel": "ray_io_cluster"}]
    ends = [{"port": port, "relabelings": relabel} for port in ("metrics", "as-metrics", "dash-metrics")]
    about = {"name": w.name, "namespace": w.namespace, "labels": w.labels | {"release": "prometheus"}}
    spec = {
        "jobLabel": RUN_LABEL,
        "selector": {"matchLabels": {RUN_LABEL: w.label}},
        "podMetricsEndpoints": ends,
    }
    made = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": about, "spec": spec}
    return {"podmonitor.yaml": made}


def _kueue(kind: str, about: Content, spec: Content) -> Content:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": about, "spec": spec}


def _core(kind: str, about: Content, spec: Content) -> Content:
    return {"apiVersion": "v1", "kind": kind, "metadata": about, "spec": spec}


def _sizes(w: Workload) -> list[tuple[int, Size]]:
    """How many pods of which size a run has at most; its head's autoscaler counts as a CPU and a GiB."""
    head = Size(w.head.cpus + 1, w.head.memory + 1)
    return [(1, head), (w.cpu_nodes, w.cpu_pod), *([(w.gpu_nodes, w.gpu_pod)] if w.gpus else [])]


def _cpus(w: Workload) -> str:
    return str(sum(count * size.cpus for count, size in _sizes(w)))


def _memory(w: Workload) -> int:
    return sum(count * size.memory for count, size in _sizes(w))


def _pods(w: Workload) -> int:
    return sum(count for count, _ in _sizes(w))


def _gpus(w: Workload) -> str:
    return str(w.gpu_nodes * w.gpus_per_node)
