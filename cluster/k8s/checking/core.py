"""Kubernetes' own objects against its OpenAPI, strictly: unknown fields are errors. The schemas are those that
kubernetes-validate carries."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate import utils

from cluster.k8s.checking.explaining import explain
from cluster.k8s.checking.finding import Content, Problem, dotted

# The groups that an API server has of its own. Any other group comes with a CRD or an aggregated API.
GROUPS = set(
    "admissionregistration.k8s.io apiextensions.k8s.io apiregistration.k8s.io apps authentication.k8s.io "
    "authorization.k8s.io autoscaling batch certificates.k8s.io coordination.k8s.io discovery.k8s.io events.k8s.io "
    "flowcontrol.apiserver.k8s.io internal.apiserver.k8s.io networking.k8s.io node.k8s.io policy "
    "rbac.authorization.k8s.io resource.k8s.io scheduling.k8s.io storage.k8s.io storagemigration.k8s.io".split()
) | {""}


def is_core(group: str) -> bool:
    """Whether an API group is one that Kubernetes itself must know."""
    return group in GROUPS or "." not in group


@cache
def version() -> str:
    """The Kubernetes version whose OpenAPI is used: the newest there is."""
    return utils.latest_version()


def schema(api_version: str, kind: str) -> Any | None:
    """The schema of a kind; None where Kubernetes has no such kind in that version."""
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    if not is_core(group) or not re.fullmatch(r"[a-z0-9-]+", name):
        return None
    try:
        found = _file(name)
    except FileNotFoundError:
        return None
    return found if "kind" in found.get("properties", {}) else None  # the folder holds the parts of objects too


def problems(content: Content, found: Any) -> Iterator[Problem]:
    """What is wrong with `content`, whose schema is `found`."""
    yield from _errors(content, found, "")


def metadata(content: Content) -> Iterator[Problem]:
    """What is wrong with an object's metadata, whatever the object is."""
    if "metadata" in content:
        yield from _errors(content["metadata"], _file("objectmeta-meta-v1"), "metadata")


def _errors(value: Any, found: Any, path: str) -> Iterator[Problem]:
    for error in jsonschema.Draft202012Validator(found, registry=_registry()).iter_errors(value):
        yield Problem("schema", ".".join(filter(None, (path, dotted(error.absolute_path)))), explain(error))


@cache
def _file(name: str) -> Any:
    return utils.schema_contents(f"kubernetes-json-schema/v{version()}-local-strict/{name}.json", version())


@cache
def _registry() -> Any:
    import referencing

    return referencing.Resource.from_contents(_file("_definitions")) @ referencing.Registry()
