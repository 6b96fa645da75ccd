"""What holds a pod together, and no schema says: names that are each once, mounts with volumes, amounts that fit
(kubernetes, pkg/apis/core/validation/validation.go: the API server refuses such a pod, and so KubeRay, which makes pods
only later, waits for ever)."""

from collections import Counter
from collections.abc import Iterator

from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.names import amount, is_label, is_label_value, is_qualified, tag, version
from cluster.k8s.checking.pods import Cluster, Pod, cluster, pods, selects

RULES = {
    "container-name": "a pod's containers have names of their own, and none that KubeRay adds",
    "container-image": "every container names its image",
    "port-name": "a container's ports have names of their own",
    "volume-mount": "a mount names a volume of its pod, and a path of its own",
    "volume": "a volume has a name of its own and one source",
    "node-labels": "what nodeSelector and tolerations name has the form of a label or taint, and of its value",
    "resource-amounts": "requests are within limits, and equal to them for GPUs and other extended resources",
    "ray-image": "head and workers have one Ray version, and it is that of rayVersion",
    "workload-selector": "a workload's selector matches its own pods' labels",
}
EXTENDED = ("cpu", "memory", "ephemeral-storage")  # and hugepages-*: what is no extended resource


def problems(thing: Thing) -> Iterator[Problem]:
    found = cluster(thing)
    for pod in pods(thing):
        yield from _names(pod, found)
        yield from _volumes(pod)
        yield from _nodes(pod)
        for path, container in pod.containers():
            yield from _mounts(pod, path, container)
            yield from _amounts(path, container)
    if found:
        yield from _images(found)
    selector = thing.spec.get("selector")
    if thing.group == "apps" and selector and not all(selects(selector, pod.labels) for pod in pods(thing)):
        yield Problem(
            "workload-selector", "spec.selector", "does not match the labels of spec.template: write the same"
        )


def _names(pod: Pod, found: Cluster | None) -> Iterator[Problem]:
    added = {"wait-gcs-ready"} if pod.role == "worker" else set()
    if pod.role == "head" and found:
        added |= {"autoscaler"} if found.autoscales else set()
        added |= {"ray-job-submitter"} if _mode(found) == "SidecarMode" else set()
    seen: set[str] = set()
    for path, container in pod.containers():
        name = container.get("name") or ""
        if name in seen or name in added:
            by = "KubeRay" if name in added else "another container"
            yield Problem("container-name", f"{path}.name", f"{name!r} is {by}'s: write another")
        elif not is_label(name):
            yield Problem("container-name", f"{path}.name", "write lower-case letters, digits and `-`, at most 63")
        seen.add(name)
        if not container.get("image"):
            yield Problem("container-image", f"{path}.image", "is missing: write the image, with its tag")
        ports = Counter(port["name"] for port in container.get("ports") or [] if port.get("name"))
        for port, count in ports.items():
            if count > 1:
                yield Problem("port-name", f"{path}.ports", f"{port!r} is there {count} times: give each port its own")
            elif len(port) > 15:
                yield Problem("port-name", f"{path}.ports", f"{port!r} is longer than 15 characters")


def _mode(found: Cluster) -> str | None:
    spec = found.thing.spec
    return (spec.get("jobTemplate") or spec).get("submissionMode")


def _volumes(pod: Pod) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        path = f"{pod.path}.spec.volumes[{number}]"
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if volume["name"] in seen:
            yield Problem("volume", f"{path}.name", f"{volume['name']!r} is another volume's: write another")
        elif len(sources) != 1:
            yield Problem("volume", path, f"has {len(sources)} sources; write one, such as emptyDir: {{}}")
        seen.add(volume["name"])


def _nodes(pod: Pod) -> Iterator[Problem]:
    asked = [("nodeSelector", label, value) for label, value in (pod.spec.get("nodeSelector") or {}).items()]
    for number, toleration in enumerate(pod.spec.get("tolerations") or []):
        value = toleration.get("value") if toleration.get("operator", "Equal") == "Equal" else ""
        asked.append((f"tolerations[{number}]", toleration.get("key") or "", value or ""))
    for place, key, value in asked:
        path = f"{pod.path}.spec.{place}"
        if not is_qualified(key) and (key or place == "nodeSelector"):  # a toleration without a key is for all taints
            yield Problem("node-labels", path, f"{key!r} is no key: an optional DNS name and `/`, a name")
        if not is_label_value(value):
            message = f"{value!r} is no value of {key}: write at most 63 letters, digits, `-`, `_` and `.`"
            yield Problem("node-labels", path, message)


def _mounts(pod: Pod, path: str, container: Content) -> Iterator[Problem]:
    there = [volume["name"] for volume in pod.spec.get("volumes") or []]
    there += [claim["metadata"]["name"] for claim in pod.thing.spec.get("volumeClaimTemplates") or []]
    taken: set[str] = set()
    for number, mount in enumerate(container.get("volumeMounts") or []):
        place = f"{path}.volumeMounts[{number}]"
        if mount["name"] not in there:
            known = f"; there are: {', '.join(there)}" if there else "; the pod has none"
            yield Problem("volume-mount", f"{place}.name", f"{mount['name']!r} is no volume of the pod{known}")
        if mount["mountPath"] in taken:
            yield Problem("volume-mount", f"{place}.mountPath", f"{mount['mountPath']} is mounted twice")
        taken.add(mount["mountPath"])


def _amounts(path: str, container: Content) -> Iterator[Problem]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in {**limits, **requests}:
        place = f"{path}.resources"
        least, most = (amount(part[name]) if name in part else None for part in (requests, limits))
        if (name in requests and least is None) or (name in limits and most is None):
            yield Problem("resource-amounts", f"{place}.{name}", "is no amount; write 500m, 2 or 4Gi")
        elif name not in EXTENDED and not name.startswith("hugepages-"):
            if most is None or (least is not None and least != most):
                message = "has no overcommitment: write the same under limits and requests, or under limits alone"
                yield Problem("resource-amounts", f"{place}.{name}", message)
        elif least is not None and most is not None and least > most:
            yield Problem("resource-amounts", f"{place}.{name}", "more is requested than the limit allows")


def _images(found: Cluster) -> Iterator[Problem]:
    """KubeRay wants the same Ray and Python on all pods. Ray's own images carry the version in their tag; of others,
    one repository's tags must be one."""
    stated = version(found.spec.get("rayVersion") or "")
    head = _image(found.head)
    for _, path, group in found.groups():
        repository, name, digest = _image(group)
        place = f"{path}.template.spec.containers[0].image"
        ray = _ray(repository, name)
        if ray and stated and ray != stated[:3]:
            message = f"is Ray {_text(ray)}, and rayVersion says {_text(stated)}: write the same"
            yield Problem("ray-image", place, message)
        elif ray and (other := _ray(*head[:2])) and ray != other:
            yield Problem("ray-image", place, f"is Ray {_text(ray)}, and the head's is {_text(other)}: write the same")
        elif (
            not _own(repository)
            and repository == head[0]
            and (version(name) or (name, digest)) != (version(head[1]) or head[1:])
        ):
            yield Problem("ray-image", place, "is another build than the head's: write the same tag or digest")


def _image(group: Content) -> tuple[str, str, str]:
    containers = (group.get("template") or {}).get("spec", {}).get("containers") or [{}]
    return tag(containers[0].get("image") or "")


def _ray(repository: str, name: str) -> tuple[int, ...] | None:
    found = version(name) if _own(repository) else None
    return found[:3] if found and len(found) >= 3 else None


def _own(repository: str) -> bool:
    return repository.rpartition("/")[2] in ("ray", "ray-ml", "ray-llm")


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
