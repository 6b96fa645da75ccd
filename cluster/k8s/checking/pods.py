"""The pods that an object makes, with the labels that KubeRay gives them (KubeRay v1.7.0, controllers/ray/common/pod.go
`labelPod`, `BuildPod`; rayjob_controller.go `getSubmitterTemplate`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cluster.k8s.checking.finding import Content, Thing

Role = Literal["head", "worker", "submitter", "other"]
# Where a workload of Kubernetes' own has its pod template.
TEMPLATES = dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), "spec.template")
TEMPLATES["CronJob"] = "spec.jobTemplate.spec.template"


@dataclass(frozen=True)
class Cluster:
    """A RayCluster's spec, wherever it stands."""

    thing: Thing
    path: str
    spec: Content
    annotations: Content

    @property
    def head(self) -> Content:
        return self.spec.get("headGroupSpec") or {}

    @property
    def workers(self) -> list[Content]:
        return self.spec.get("workerGroupSpecs") or []

    @property
    def autoscales(self) -> bool:
        return bool(self.spec.get("enableInTreeAutoscaling"))

    @property
    def autoscales_v2(self) -> bool:
        return self.autoscaler.get("version") == "v2"

    @property
    def autoscaler(self) -> Content:
        return self.spec.get("autoscalerOptions") or {}

    def groups(self) -> Iterator[tuple[str, str, Content]]:
        """(name, path, spec) of the head's group and of the workers'."""
        yield "headgroup", f"{self.path}.headGroupSpec", self.head
        for number, worker in enumerate(self.workers):
            yield str(worker.get("groupName", "")), f"{self.path}.workerGroupSpecs[{number}]", worker


@dataclass(frozen=True)
class Pod:
    """A pod, or the template of some."""

    thing: Thing
    path: str  # of what holds `metadata` and `spec`
    role: Role
    spec: Content
    labels: dict[str, str | None]  # None: a value that is only known once it runs
    group: Content  # the group's spec of a Ray pod

    def containers(self) -> Iterator[tuple[str, Content]]:
        """(path, container), init containers too."""
        for field in ("initContainers", "containers"):
            for number, container in enumerate(self.spec.get(field) or []):
                yield f"{self.path}.spec.{field}[{number}]", container

    @property
    def first(self) -> Content:
        """The first container: Ray's, in a pod of KubeRay's."""
        return next(iter(self.spec.get("containers") or []), {})

    @property
    def is_ray(self) -> bool:
        return self.role in ("head", "worker")


def job(thing: Thing) -> tuple[str, Content] | None:
    """(path, spec) of the RayJob that `thing` is, or makes."""
    if thing.is_ray and thing.kind == "RayJob":
        return "spec", thing.spec
    if thing.is_ray and thing.kind == "RayCronJob":
        return "spec.jobTemplate", thing.spec.get("jobTemplate") or {}
    return None


def cluster(thing: Thing) -> Cluster | None:
    """The Ray cluster that `thing` is, or makes; None where it makes none."""
    annotations = thing.metadata.get("annotations") or {}
    if not thing.is_ray:
        return None
    if thing.kind == "RayCluster":
        return Cluster(thing, "spec", thing.spec, annotations)
    if thing.kind == "RayService":
        return Cluster(thing, "spec.rayClusterConfig", thing.spec.get("rayClusterConfig") or {}, annotations)
    path, spec = job(thing) or ("", {})
    if "rayClusterSpec" not in spec:
        return None
    # A RayCronJob's own annotations do not reach its jobs.
    kept = annotations if thing.kind == "RayJob" else {}
    return Cluster(thing, f"{path}.rayClusterSpec", spec["rayClusterSpec"], kept)


def env(container: Content) -> dict[str, Content]:
    """Name → entry of a container's environment; the first entry of a name, as KubeRay reads it."""
    found: dict[str, Content] = {}
    for entry in container.get("env") or []:
        found.setdefault(entry["name"], entry)
    return found


def pods(thing: Thing) -> list[Pod]:
    """The pods that `thing` makes, those of the submitter's Job with them."""
    found = cluster(thing)
    made = list(_ray_pods(found)) if found else []
    if (one := job(thing)) and (template := one[1].get("submitterPodTemplate")):
        labels = {"ray.io/originated-from-crd": "RayJob", "app.kubernetes.io/created-by": "kuberay-operator"}
        owner = thing.name if thing.kind == "RayJob" else None
        all_labels = _labels(template) | labels | {"ray.io/originated-from-cr-name": owner}
        made.append(
            Pod(thing, f"{one[0]}.submitterPodTemplate", "submitter", template.get("spec") or {}, all_labels, {})
        )
    if thing.kind == "Pod" and not thing.group:
        made.append(Pod(thing, "", "other", thing.spec, _labels(thing.content), {}))
    elif thing.kind in TEMPLATES and thing.group in ("apps", "batch"):
        template = thing.content
        for part in TEMPLATES[thing.kind].split("."):
            template = template.get(part) or {}
        made.append(Pod(thing, TEMPLATES[thing.kind], "other", template.get("spec") or {}, _labels(template), {}))
    return made


def _labels(template: Content) -> dict[str, str | None]:
    return dict((template.get("metadata") or {}).get("labels") or {})


def _ray_pods(found: Cluster) -> Iterator[Pod]:
    # A RayJob's or RayService's cluster has a name with a random end.
    name = found.thing.name if found.thing.kind == "RayCluster" else None
    for group, path, spec in found.groups():
        role: Role = "head" if path.endswith("headGroupSpec") else "worker"
        template = spec.get("template") or {}
        fixed = {"ray.io/cluster": name, "ray.io/node-type": role, "ray.io/group": group}
        free = {
            "ray.io/is-ray-node": "yes",
            "ray.io/identifier": f"{name}-{role}" if name else None,
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        if found.thing.kind == "RayService":
            fixed["ray.io/serve"] = "true" if role == "worker" else None
        labels = free | _labels(template) | (spec.get("labels") or {}) | fixed
        yield Pod(found.thing, f"{path}.template", role, template.get("spec") or {}, labels, spec)


def selects(selector: Content, labels: dict[str, str | None]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) selects a pod with `labels`."""
    pairs = [(key, "In", [value]) for key, value in (selector.get("matchLabels") or {}).items()]
    asked = [(e["key"], e["operator"], e.get("values") or []) for e in selector.get("matchExpressions") or []]
    for key, operator, values in pairs + asked:
        there = key in labels
        among = there and labels[key] in values
        if not {"In": among, "NotIn": not among, "Exists": there, "DoesNotExist": not there}.get(operator, False):
            return False
    return True
