"""One object against the schema of its kind: KubeRay's CRDs, Kubernetes' OpenAPI, or a small schema of ours."""

from collections.abc import Iterator
from typing import Any

from cluster.k8s.checking import core, others, structural
from cluster.k8s.checking.finding import RAY_KINDS, Content, Problem, dotted
from cluster.k8s.checking.names import is_dns1035, is_label_value, is_qualified, is_subdomain, nearest

RULES = {
    "schema": "fields, types and formats are those of KubeRay's CRDs or of Kubernetes' OpenAPI",
    "schema-rule": "the rules that the CRD writes in CEL hold",
    "other-schema": "PodMonitor, Kueue's kinds and Kustomization have only the fields that this project knows of them",
    "unknown-kind": "Kubernetes or KubeRay has the kind in that apiVersion",
    "object-name": "an object has a name, and name, labels and annotations have the form that the API server asks for",
}
# Names of these are parts of a URL's path and nothing else: `system:auth-delegator`.
FREE_NAMES = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def problems(content: Content) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that an API server with KubeRay's CRDs would say of a new object, and nothing of
    what KubeRay would. Empty for a kind of another CRD."""
    return [(path, message) for _, path, message in judged(content)]


def defaulted(content: Content) -> Content:
    """`content` as the API server would store it: nulls dropped, and for KubeRay's kinds, defaults put in."""
    found = _ray_schema(content)
    return structural.defaulted(content, found) if found else _without_nulls(content)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _null_items(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Problem]:
    """Nulls in lists, which no OpenAPI refuses and which stand for an object without a single field."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if part is None and isinstance(value, list):
            yield Problem("schema", dotted((*path, key)), "is null; write a value, or leave the item out")
        yield from _null_items(part, (*path, key))


def judged(content: Content) -> Iterator[Problem]:
    """`problems`, each with its rule's name."""
    kind, version = content.get("kind"), content.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str) or not kind or not version:
        yield Problem("unknown-kind", "kind", "apiVersion and kind are missing, or are no text; an object has both")
        return
    group = version.rpartition("/")[0]
    core_schema = core.schema(version, kind)
    if found := _ray_schema(content):
        yield from structural.problems(structural.defaulted(content, found), found)
        yield from core.metadata(content)
    elif group == "ray.io":
        yield Problem(
            "unknown-kind", "kind", f"KubeRay has no {kind} in {version}{nearest(kind, RAY_KINDS)}; it has v1"
        )
        return
    elif core_schema:
        yield from core.problems(content, core_schema)
        yield from _null_items(content)
    elif core.is_core(group):
        message = f"Kubernetes {core.version()} has no {kind} in {version}; `kubectl api-resources` lists what it has"
        yield Problem("unknown-kind", "kind", message)
        return
    else:
        yield from others.problems(_without_nulls(content), group)
        yield from _null_items(content)
    if kind not in ("Kustomization", "Component"):
        yield from _named(content, kind)


def _ray_schema(content: Content) -> Content | None:
    group, _, version = str(content.get("apiVersion")).rpartition("/")
    kind = str(content.get("kind"))
    return structural.schemas(kind).get(version) if group == "ray.io" and kind in RAY_KINDS else None


def _named(content: Content, kind: str) -> Iterator[Problem]:
    metadata = content.get("metadata")
    if not isinstance(metadata, dict):
        yield Problem("object-name", "metadata", "is missing; write metadata: {name: …}")
        return
    name = metadata.get("name") or metadata.get("generateName")
    if not isinstance(name, str):
        yield Problem("object-name", "metadata.name", "is missing; an object needs a name")
    elif kind in FREE_NAMES:
        if "/" in name or "%" in name or name in (".", ".."):
            yield Problem("object-name", "metadata.name", "may hold no `/` and no `%`")
    elif kind == "Service" and not is_dns1035(name):
        yield Problem(
            "object-name", "metadata.name", "a Service's name is a letter, then letters, digits and `-`, ≤ 63"
        )
    elif not is_subdomain(name if metadata.get("name") else name + "x"):
        yield Problem(
            "object-name", "metadata.name", "is no DNS name: use a-z, 0-9, `-` and `.`, at most 253 characters"
        )
    for field in ("labels", "annotations"):
        pairs = metadata.get(field)
        for key, value in (pairs if isinstance(pairs, dict) else {}).items():
            if not is_qualified(key.lower() if field == "annotations" else key):
                yield Problem(
                    "object-name", f"metadata.{field}", f"{key!r} is no key: an optional DNS name and `/`, a name"
                )
            if field == "labels" and isinstance(value, str) and not is_label_value(value):
                yield Problem("object-name", f"metadata.labels.{key}", "a value is ≤ 63 letters, digits, `-`, `_`, `.`")
