"""This project's rules of how Ray runs on a cluster that others use too: jobs end, heads manage, spot nodes drain."""

from collections.abc import Iterator

from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.names import amount, tag
from cluster.k8s.checking.pods import Cluster, cluster, job, pods

RULES = {
    "job-deadline-missing": "a RayJob has activeDeadlineSeconds",
    "job-backoff-missing": "a RayJob says its backoffLimit",
    "job-shutdown-missing": "a RayJob frees its cluster: shutdownAfterJobFinishes with a ttl, or deletionRules",
    "ray-auth-missing": "a Ray cluster asks for a token: authOptions.mode: token",
    "head-work": 'the head takes no work where there are workers: rayStartParams num-cpus "0"',
    "replicas-outside": "replicas is within minReplicas and maxReplicas; KubeRay would move it silently",
    "spot-drain": "workers on spot nodes have a preStop that drains them",
    "container-resources": "every container says its requests and limits of CPU and memory",
    "image-pinned": "images have a tag other than latest, or a digest",
}
SPOT = ("spot", "preemptible", "interruptible")


def problems(thing: Thing) -> Iterator[Problem]:
    if one := job(thing):
        yield from _job(*one)
    if found := cluster(thing):
        yield from _cluster(found)
    for pod in pods(thing):
        for path, container in pod.containers():
            resources = container.get("resources") or {}
            parts = [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")]
            missing = [f"{part}.{name}" for part, name in parts if not _says(resources, part, name)]
            if missing:
                message = f"does not say {', '.join(missing)}"
                yield Problem("container-resources", f"{path}.resources", message)
            _, name, digest = tag(container.get("image") or "")
            if container.get("image") and not digest and name in ("", "latest"):
                message = "names no build: write a tag other than latest, or a digest"
                yield Problem("image-pinned", f"{path}.image", message)


def _says(resources: Content, part: str, name: str) -> bool:
    """Whether a request or limit is stated; a request that is not is that of the limit."""
    return name in (resources.get(part) or {}) or (part == "requests" and name in (resources.get("limits") or {}))


def _job(path: str, spec: Content) -> Iterator[Problem]:
    if "activeDeadlineSeconds" not in spec:
        message = "is missing; a job that hangs would hold its GPUs for ever"
        yield Problem("job-deadline-missing", f"{path}.activeDeadlineSeconds", message)
    if spec.get("clusterSelector"):
        return  # KubeRay takes no retries there, and the cluster is not the job's
    if not spec.get("shutdownAfterJobFinishes") and not (spec.get("deletionStrategy") or {}).get("deletionRules"):
        message = "is missing; the cluster, with its GPUs, would stay after the job"
        yield Problem("job-shutdown-missing", f"{path}.shutdownAfterJobFinishes", message)
    elif spec.get("shutdownAfterJobFinishes") and not spec.get("ttlSecondsAfterFinished"):
        message = "is missing; some seconds are needed in which the logs can be read"
        yield Problem("job-shutdown-missing", f"{path}.ttlSecondsAfterFinished", message)


def backoff(thing: Thing) -> Iterator[Problem]:
    """A RayJob as it is written, its defaults not put in, without a backoffLimit."""
    one = job(thing)
    if one and "backoffLimit" not in one[1] and not one[1].get("clusterSelector"):
        message = "is missing; say how often a new cluster is tried (0 for never)"
        yield Problem("job-backoff-missing", f"{one[0]}.backoffLimit", message)


def _cluster(found: Cluster) -> Iterator[Problem]:
    if (found.spec.get("authOptions") or {}).get("mode") != "token":
        message = "write mode: token; whoever reaches the head's port runs code there"
        yield Problem("ray-auth-missing", f"{found.path}.authOptions", message)
    params, offered = found.head.get("rayStartParams") or {}, found.head.get("resources") or {}
    given = params.get("num-cpus", next((v for k, v in offered.items() if k.lower() == "cpu"), None))
    if found.workers and amount(given) != 0:
        message = 'write "0": work on the head takes memory from the GCS, and the cluster dies with it'
        yield Problem("head-work", f"{found.path}.headGroupSpec.rayStartParams.num-cpus", message)
    for number, worker in enumerate(found.workers):
        path = f"{found.path}.workerGroupSpecs[{number}]"
        replicas, least, most = (worker.get(name, 0) for name in ("replicas", "minReplicas", "maxReplicas"))
        if "replicas" in worker and not least <= replicas <= most and not worker.get("suspend"):
            message = f"is {replicas}; write {least} to {most}, or change minReplicas and maxReplicas"
            yield Problem("replicas-outside", f"{path}.replicas", message)
        spec = (worker.get("template") or {}).get("spec") or {}
        containers = spec.get("containers") or [{}]
        if _is_spot(worker) and not (containers[0].get("lifecycle") or {}).get("preStop"):
            message = "is missing; the node goes away with little notice: drain it (`ray drain-node`)"
            yield Problem("spot-drain", f"{path}.template.spec.containers[0].lifecycle.preStop", message)


def _is_spot(worker: Content) -> bool:
    """Whether node selector, tolerations or labels say so: karpenter.sh/capacity-type: spot, cloud.google.com/gke-spot:
    "true", kubernetes.azure.com/scalesetpriority: spot."""
    template = worker.get("template") or {}
    spec = template.get("spec") or {}
    pairs = [*(spec.get("nodeSelector") or {}).items(), *(worker.get("labels") or {}).items()]
    pairs += ((template.get("metadata") or {}).get("labels") or {}).items()
    pairs += [(t.get("key", ""), t.get("value", "true")) for t in spec.get("tolerations") or []]
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or []:
        for one in term.get("matchExpressions") or []:
            pairs += [(one["key"], value) for value in one.get("values") or []] if one["operator"] == "In" else []
    return any(
        str(value).lower() in SPOT or (str(value).lower() == "true" and any(word in key.lower() for word in SPOT))
        for key, value in pairs
    )
