"""A submission's objects in the cluster: server-side apply (field manager `regrow`), the RayJob last and only once.

A RayJob is created, never changed: KubeRay disregards later changes of the cluster in it (`rayjob_controller.go`,
"Disregard changes in RayClusterSpec"). The ConfigMaps are made its dependents, so that they go when it goes.
"""

import uuid
from collections.abc import Callable
from typing import Any

from cluster.k8s.running.api import Api, Taken, ask, path, plural

MANAGER = "regrow"
SUBMISSION = "regrow/submission"  # annotation: which submission made the RayJob
ORDER = ("ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "Service", "ConfigMap")
OWNED = "ConfigMap"


def apply(api: Api, objects: list[dict[str, Any]], say: Callable[[str], None], dry: bool = False) -> dict[str, Any]:
    """The RayJob as the cluster stores it, once everything in `objects` is there. `dry`: the server checks, admits and
    answers, and stores nothing.

    What a RayJob refers to comes before it. What somebody else has set otherwise is left, with an error that names who;
    only the ConfigMaps, a run's own, are taken over. Raises like `api.ask`; Taken where the RayJob's name is."""
    job = rayjob(objects)
    others = sorted((one for one in objects if one is not job), key=_rank)
    for one in others:
        applied(api, one, dry)
        say(f"{'would apply' if dry else 'applied'} {named(one)}")
    made = _created(api, job, dry)
    say(f"{'would create' if dry else 'created'} {named(job)}")
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": job["metadata"]["name"]}
    for one in () if dry else others:
        if one["kind"] == OWNED:
            references = [{**owner, "uid": made["metadata"]["uid"]}]
            applied(api, {**one, "metadata": {**one["metadata"], "ownerReferences": references}})
    return made


def applied(api: Api, one: dict[str, Any], dry: bool = False) -> dict[str, Any]:
    """One object, applied: fields of ours that `one` no longer has are taken out, fields of others stay.

    Unknown fields are errors, so that an older cluster says so rather than drop what it does not know (docs:
    kubernetes.io, "Server-Side Apply" and "Field validation"). Raises like `api.ask`."""
    where = path(api, one["apiVersion"], plural(one["kind"]), one["metadata"]["name"])
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict", "force": str(one["kind"] == OWNED).lower()}
    try:
        made: dict[str, Any] = ask(
            api, "patch", where, _placed(api, one), query | _dry(dry), content_type="application/apply-patch+yaml"
        )
    except Taken as error:
        raise ValueError(
            f"{named(one)} has been changed by somebody else, and is left so: {error}; take it over with "
            "`kubectl apply --server-side --force-conflicts` or leave those fields out"
        ) from None
    return made


def _created(api: Api, job: dict[str, Any], dry: bool) -> dict[str, Any]:
    """The RayJob, created. Where the answer got lost on the way, the mark tells whether what stands there is ours."""
    mark = uuid.uuid4().hex
    notes = {**(job["metadata"].get("annotations") or {}), SUBMISSION: mark}
    marked = _placed(api, {**job, "metadata": {**job["metadata"], "annotations": notes}})
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"} | _dry(dry)
    where = path(api, job["apiVersion"], plural(job["kind"]))
    for left in (1, 0):
        try:
            made: dict[str, Any] = ask(api, "post", where, marked, query)
            return made
        except ConnectionError:
            if not left:
                raise
        except Taken:
            there: dict[str, Any] = ask(api, "get", f"{where}/{job['metadata']['name']}")
            if (there["metadata"].get("annotations") or {}).get(SUBMISSION) != mark:
                raise
            return there
    raise AssertionError


def rayjob(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The one RayJob of a submission. Raises ValueError where there is none or several."""
    jobs = [one for one in objects if one.get("kind") == "RayJob"]
    if len(jobs) != 1:
        raise ValueError(f"a submission has one RayJob; here are {len(jobs)}")
    return jobs[0]


def named(one: dict[str, Any]) -> str:
    """`ConfigMap quickstart-recipe`."""
    return f"{one['kind']} {one['metadata']['name']}"


def _placed(api: Api, one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "metadata": {**one["metadata"], "namespace": api.namespace}}


def _rank(one: dict[str, Any]) -> int:
    return ORDER.index(one["kind"]) if one["kind"] in ORDER else len(ORDER)


def _dry(dry: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry else {}
