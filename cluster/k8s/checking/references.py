"""What objects of one set of manifests say of one another: names, keys, selectors, ports, bindings, Kustomize's list.

A reference to an object outside the set is fine; one that misses an object of the set by a letter is not."""

import difflib
import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.pods import Pod, pods, selects

RULES = {
    "duplicate-object": "no object is there twice",
    "missing-reference": "the name of a ConfigMap, Secret, volume claim or account is not a letter off one of the set",
    "missing-key": "a key asked of a ConfigMap or Secret of the set is in it",
    "selector": "a selector of Ray's labels, or of labels that the set has, matches a pod of the set",
    "named-port": "a port that a Service or PodMonitor names is one of the pods that it selects",
    "cidr": "an ipBlock is a network, and what it excepts is within it",
    "binding": "a RoleBinding names a Role and ServiceAccounts of the set, each with its namespace",
    "kustomization": "the kustomization lists the files beside it, and no file that is not there",
}
KUBERAYS = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}  # KubeRay puts them on its pods; others have them
KUSTOMIZE = ("Kustomization", "Component")
Found = Iterator[tuple[Thing, Problem]]


def problems(things: Sequence[Thing]) -> Found:
    all_pods = [pod for thing in things for pod in pods(thing)]
    seen: dict[tuple[str, str, str | None, str], str] = {}
    for thing in things:
        key = (thing.group, thing.kind, thing.namespace, thing.name)
        if key in seen and thing.metadata.get("name"):
            where = f"is in {seen[key]} too: keep one"
            yield thing, Problem("duplicate-object", "metadata.name", where)
        seen.setdefault(key, thing.file)
    for pod in all_pods:
        for kind, path, name, keys in _asked(pod):
            for problem in _found(things, pod, kind, path, name, keys):
                yield pod.thing, problem
    for thing in things:
        for problem in (
            *_selecting(thing, all_pods),
            *_binding(thing, things),
            *_blocks(thing),
            *_queues(thing, things),
            *_kustomized(thing, things),
        ):
            yield thing, problem


def _asked(pod: Pod) -> Iterator[tuple[str, str, str, list[str]]]:
    """(kind, path, name, keys) of every object that a pod needs. What is optional is not needed."""
    if name := pod.spec.get("serviceAccountName"):
        yield "ServiceAccount", f"{pod.path}.spec.serviceAccountName", name, []
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        path = f"{pod.path}.spec.volumes[{number}]"
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", f"{path}.persistentVolumeClaim.claimName", claim["claimName"], []
        for source in (volume, *((volume.get("projected") or {}).get("sources") or [])):
            for kind, field, key in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
                part = source.get(field)
                name = (part or {}).get(key) or (part or {}).get("name")
                if part and name and not part.get("optional"):
                    yield kind, f"{path}.{field}", name, [item["key"] for item in part.get("items") or []]
    for path, container in pod.containers():
        for number, entry in enumerate(container.get("env") or []):
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                part = (entry.get("valueFrom") or {}).get(field)
                if part and part.get("name") and not part.get("optional"):
                    yield kind, f"{path}.env[{number}].valueFrom.{field}", part["name"], [part["key"]]
        for number, entry in enumerate(container.get("envFrom") or []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                part = entry.get(field)
                if part and part.get("name") and not part.get("optional"):
                    yield kind, f"{path}.envFrom[{number}].{field}", part["name"], []


def _found(things: Sequence[Thing], pod: Pod, kind: str, path: str, name: str, keys: list[str]) -> Iterator[Problem]:
    there = {t.name: t for t in things if t.kind == kind and not t.group and t.beside(pod.thing)}
    if name not in there:
        if near := difflib.get_close_matches(name, there, n=1, cutoff=0.8):
            yield Problem("missing-reference", path, f"there is no {kind} {name!r}, but {near[0]!r}: write that")
        return
    has = [key for field in ("data", "stringData", "binaryData") for key in there[name].content.get(field) or {}]
    for key in keys:
        if key not in has and (has or kind == "ConfigMap"):
            known = f"; it has: {', '.join(has)}" if has else ""
            yield Problem("missing-key", path, f"{kind} {name!r} has no key {key!r}{known}")


def _selecting(thing: Thing, all_pods: list[Pod]) -> Iterator[Problem]:
    near = [pod for pod in all_pods if pod.thing.beside(thing)]
    for path, selector in selectors(thing):
        chosen = [pod for pod in near if selects(selector, pod.labels)]
        main = path in ("spec.selector", "spec.podSelector")  # whom a rule lets through may be outside of the set
        keys = {*(selector.get("matchLabels") or {}), *(e["key"] for e in selector.get("matchExpressions") or [])}
        ours = {key for pod in near for key in pod.labels} - KUBERAYS
        rays = any(key.startswith("ray.io/") for key in keys)
        if keys and not chosen and near and (rays or (main and keys <= ours)):
            yield Problem("selector", path, _none_chosen(keys, near))
        if chosen and main:
            yield from _ports(thing, chosen)


def _none_chosen(keys: set[str], near: list[Pod]) -> str:
    if {"ray.io/cluster", "ray.io/identifier"} & keys and any(pod.thing.kind != "RayCluster" for pod in near):
        return (
            "matches no pod of the set: a RayJob's or RayService's cluster has a name of its own, with a random end; "
            "give the pod templates a label and select that"
        )
    return "matches no pod of the set; compare it with the labels of the pod templates"


def selectors(thing: Thing) -> Iterator[tuple[str, Content]]:
    """(path, label selector) of what selects pods of its own namespace."""
    spec = thing.spec
    if thing.kind == "Service" and not thing.group and spec.get("selector"):
        yield "spec.selector", {"matchLabels": spec["selector"]}
    elif thing.kind == "PodDisruptionBudget" and spec.get("selector"):
        yield "spec.selector", spec["selector"]
    elif thing.kind == "PodMonitor" and not spec.get("namespaceSelector"):
        yield "spec.selector", spec.get("selector") or {}
    elif thing.kind == "NetworkPolicy" and thing.group == "networking.k8s.io":
        yield "spec.podSelector", spec.get("podSelector") or {}
        for field, peers in (("ingress", "from"), ("egress", "to")):
            for number, rule in enumerate(spec.get(field) or []):
                for place, peer in enumerate(rule.get(peers) or []):
                    if "namespaceSelector" not in peer and peer.get("podSelector"):
                        yield f"spec.{field}[{number}].{peers}[{place}].podSelector", peer["podSelector"]


def _ports(thing: Thing, chosen: list[Pod]) -> Iterator[Problem]:
    known = {
        port["name"] for pod in chosen for _, c in pod.containers() for port in c.get("ports") or [] if "name" in port
    }
    known |= {"metrics"} if any(pod.is_ray for pod in chosen) else set()  # KubeRay adds it where it is not
    asked = [
        (f"spec.ports[{number}].targetPort", port.get("targetPort"))
        for number, port in enumerate(thing.spec.get("ports") or [])
    ]
    asked += [
        (f"spec.podMetricsEndpoints[{number}].port", end.get("port"))
        for number, end in enumerate(thing.spec.get("podMetricsEndpoints") or [])
    ]
    for path, name in asked:
        if isinstance(name, str) and not name.isdigit() and name not in known:
            message = f"no selected pod has a port {name!r}; there are: {', '.join(sorted(known)) or 'none'}"
            yield Problem("named-port", path, message)


def _blocks(thing: Thing) -> Iterator[Problem]:
    for field, peers in (("ingress", "from"), ("egress", "to")) if thing.kind == "NetworkPolicy" else ():
        for number, rule in enumerate(thing.spec.get(field) or []):
            for place, peer in enumerate(rule.get(peers) or []):
                path, block = f"spec.{field}[{number}].{peers}[{place}].ipBlock", peer.get("ipBlock")
                if block and not _is_within(block):
                    yield Problem("cidr", path, "write a network such as 10.0.0.0/8, and exceptions within it")


def _is_within(block: Content) -> bool:
    try:
        whole = ipaddress.ip_network(block["cidr"])
        parts = [ipaddress.ip_network(part) for part in block.get("except") or []]
        return all(part != whole and part.subnet_of(whole) for part in parts)  # type: ignore[arg-type]
    except (ValueError, TypeError):  # no network; one of the other IP version
        return False


def _queues(thing: Thing, things: Sequence[Thing]) -> Iterator[Problem]:
    """What Kueue's objects, and jobs in its queues, ask for by name."""
    labels = thing.metadata.get("labels") or {}
    asked = [("LocalQueue", "metadata.labels.kueue.x-k8s.io/queue-name", labels.get("kueue.x-k8s.io/queue-name"))]
    priority = labels.get("kueue.x-k8s.io/priority-class")
    asked.append(("WorkloadPriorityClass", "metadata.labels.kueue.x-k8s.io/priority-class", priority))
    if thing.kind == "LocalQueue":
        asked.append(("ClusterQueue", "spec.clusterQueue", thing.spec.get("clusterQueue")))
    if thing.kind == "ClusterQueue":
        for number, group in enumerate(thing.spec.get("resourceGroups") or []):
            path = f"spec.resourceGroups[{number}].flavors"
            asked += [("ResourceFlavor", path, flavor["name"]) for flavor in group["flavors"]]
    for kind, path, name in asked:
        there = [one.name for one in things if one.kind == kind and one.group == "kueue.x-k8s.io"]
        if name and there and name not in there:
            yield Problem("missing-reference", path, f"no {kind} of the set is {name!r}; there are: {', '.join(there)}")


def _binding(thing: Thing, things: Sequence[Thing]) -> Iterator[Problem]:
    if thing.kind not in ("RoleBinding", "ClusterRoleBinding"):
        return
    role = thing.content.get("roleRef") or {}
    roles = [t.name for t in things if t.kind == role.get("kind") and t.kind in ("Role", "ClusterRole")]
    near = difflib.get_close_matches(role.get("name", ""), roles, n=1, cutoff=0.8)
    if roles and role.get("name") not in roles and (role.get("kind") == "Role" or near):
        yield Problem("binding", "roleRef.name", f"no {role.get('kind')} of the set is {role.get('name')!r}: {roles}")
    accounts = [t.name for t in things if t.kind == "ServiceAccount"]
    made = [
        t.name for t in things if t.is_ray
    ]  # KubeRay makes an account for an autoscaling head, called as its cluster
    for number, subject in enumerate(thing.content.get("subjects") or []):
        if subject.get("kind") != "ServiceAccount":
            continue
        path = f"subjects[{number}]"
        if not subject.get("namespace") and not (thing.kind == "RoleBinding" and not thing.namespace):
            yield Problem("binding", f"{path}.namespace", "is missing; a ServiceAccount is one of a namespace")
        here = subject.get("namespace") in (None, thing.namespace)
        if accounts and here and subject.get("name") not in (*accounts, *made, "default"):
            yield Problem(
                "binding", f"{path}.name", f"no ServiceAccount of the set is {subject.get('name')!r}: {accounts}"
            )


def _kustomized(thing: Thing, things: Sequence[Thing]) -> Iterator[Problem]:
    if thing.kind not in KUSTOMIZE or thing.group != "kustomize.config.k8s.io":
        return
    folder = PurePath(thing.file).parent
    files = {PurePath(other.file) for other in things if other.kind not in KUSTOMIZE}
    owned = {PurePath(other.file).parent for other in things if other.kind in KUSTOMIZE}
    listed: set[PurePath] = set()
    for number, name in enumerate(thing.content.get("resources") or []):
        path = PurePath(folder, name)
        if "://" in name or ".." in path.parts or "?" in name:
            continue  # outside of what was read
        inside = {file for file in files if path == file or path in file.parents}
        if not inside:
            yield Problem("kustomization", f"resources[{number}]", f"{name!r} is no file or folder with manifests here")
        listed |= inside
    for file in sorted(files - listed):
        nearest_owner = next((parent for parent in file.parents if parent in owned), None)
        if nearest_owner == folder:
            message = f"leaves {file.relative_to(folder)} out: add it"
            yield Problem("kustomization", "resources", message)
