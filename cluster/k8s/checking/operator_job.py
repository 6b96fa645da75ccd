"""What KubeRay v1.7.0 refuses in a RayJob or RayCronJob though the CRD takes it (validation.go: `ValidateRayJobSpec`,
`validateDeletionConfiguration`, `ValidateRayCronJobSpec`; controllers/ray/common/job.go)."""

import json
import zoneinfo
from collections.abc import Iterator

from cluster.k8s.checking import cron
from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.names import nearest, version
from cluster.k8s.checking.pods import job

RULES = {
    "job-cluster": "a RayJob has a rayClusterSpec, or a clusterSelector with ray.io/cluster and what goes with it",
    "job-suspend": "a suspended RayJob has shutdownAfterJobFinishes",
    "job-ttl": "ttlSecondsAfterFinished ≥ 0, and with shutdownAfterJobFinishes alone",
    "job-deadline": "deadlines are positive",
    "job-backoff": "backoffLimit ≥ 0, and 0 in InteractiveMode",
    "job-deletion": "deletionStrategy has rules or both of onSuccess and onFailure, none twice, workers before cluster",
    "job-submission": "the submitter's fields fit the submission mode",
    "job-entrypoint": "there is an entrypoint, and entrypointResources is JSON",
    "job-runtime-env": "runtimeEnvYAML is a mapping in YAML",
    "job-metadata": "metadata needs Ray 2.6",
    "kueue": "a RayJob in a queue of Kueue deletes its cluster, and has at most 7 worker groups and no autoscaler",
    "cron-schedule": "a RayCronJob's schedule has five fields, and its time zone is known",
}
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")  # the CRD takes any text
ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")  # the earlier may not come later


def problems(thing: Thing) -> Iterator[Problem]:
    found = job(thing)
    if found is None:
        return
    path, spec = found
    if thing.kind == "RayCronJob":
        yield from _cron(thing.spec)
    elif (thing.metadata.get("labels") or {}).get("kueue.x-k8s.io/queue-name"):
        yield from _kueue(path, spec)
    yield from _cluster(path, spec)
    yield from _end(path, spec)
    yield from _deletion(path, spec)
    yield from _submission(path, spec)
    yield from _entry(path, spec)


def _cron(spec: Content) -> Iterator[Problem]:
    if fault := cron.fault(spec.get("schedule", "")):
        yield Problem("cron-schedule", "spec.schedule", fault)
    zone = spec.get("timeZone")
    if zone is not None and not (zone and _is_zone(zone)):
        yield Problem("cron-schedule", "spec.timeZone", "is no IANA time zone; write one, or leave the field out")


def _is_zone(name: str) -> bool:
    known = zoneinfo.available_timezones()  # none on a machine without tzdata
    return not known or name in known or name in ("UTC", "Local")


def _kueue(path: str, spec: Content) -> Iterator[Problem]:
    """Kueue's own limits (kueue.sigs.k8s.io, "Run a RayJob", "Limitations")."""
    cluster = spec.get("rayClusterSpec") or {}
    if not spec.get("shutdownAfterJobFinishes"):
        yield Problem("kueue", f"{path}.shutdownAfterJobFinishes", "must be true for a job in a queue of Kueue")
    if spec.get("clusterSelector"):
        yield Problem("kueue", f"{path}.clusterSelector", "does not go with Kueue: write rayClusterSpec")
    if cluster.get("enableInTreeAutoscaling"):
        yield Problem("kueue", f"{path}.rayClusterSpec.enableInTreeAutoscaling", "must be false in a queue of Kueue")
    if len(cluster.get("workerGroupSpecs") or []) > 7:
        yield Problem("kueue", f"{path}.rayClusterSpec.workerGroupSpecs", "Kueue takes at most 7 worker groups")


def _cluster(path: str, spec: Content) -> Iterator[Problem]:
    selector = spec.get("clusterSelector") or {}
    if not selector:
        if "rayClusterSpec" not in spec:
            yield Problem("job-cluster", path, "write rayClusterSpec, or a clusterSelector")
        return
    if not selector.get("ray.io/cluster"):
        yield Problem("job-cluster", f"{path}.clusterSelector", "name the cluster: {ray.io/cluster: …}")
    if spec.get("submissionMode") == "SidecarMode":
        yield Problem(
            "job-cluster", f"{path}.submissionMode", "SidecarMode goes with rayClusterSpec, not clusterSelector"
        )
    if spec.get("backoffLimit", 0) > 0:
        yield Problem("job-cluster", f"{path}.backoffLimit", "must be 0 with clusterSelector: a retry is a new cluster")
    if spec.get("suspend"):
        yield Problem("job-cluster", f"{path}.suspend", "does not go with clusterSelector")


def _end(path: str, spec: Content) -> Iterator[Problem]:
    shuts = spec.get("shutdownAfterJobFinishes")
    ttl, backoff = spec.get("ttlSecondsAfterFinished", 0), spec.get("backoffLimit", 0)
    if spec.get("suspend") and not shuts:
        yield Problem("job-suspend", f"{path}.suspend", "needs shutdownAfterJobFinishes: true")
    if ttl < 0:
        yield Problem("job-ttl", f"{path}.ttlSecondsAfterFinished", "write 0 or more seconds")
    elif ttl and not shuts:
        yield Problem("job-ttl", f"{path}.ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes: true")
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield Problem("job-deadline", f"{path}.{name}", "write a positive number of seconds")
    if backoff < 0:
        yield Problem("job-backoff", f"{path}.backoffLimit", "write 0 or more retries")
    elif backoff and spec.get("submissionMode") == "InteractiveMode":
        yield Problem("job-backoff", f"{path}.backoffLimit", "must be 0 in InteractiveMode")


def _deletion(path: str, spec: Content) -> Iterator[Problem]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    path = f"{path}.deletionStrategy"
    ends = [strategy[name] for name in ("onSuccess", "onFailure") if name in strategy]
    rules = strategy.get("deletionRules") or []
    shuts, selects = spec.get("shutdownAfterJobFinishes"), spec.get("clusterSelector")
    scales = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling")
    if rules and shuts:
        yield Problem("job-deletion", f"{path}.deletionRules", "does not go with shutdownAfterJobFinishes: keep one")
    if rules and ends:
        yield Problem("job-deletion", path, "write deletionRules, or onSuccess and onFailure; not both")
    elif not rules and len(ends) < 2:
        yield Problem("job-deletion", path, "write deletionRules, or both of onSuccess and onFailure")
    policies = [rule.get("policy") for rule in (*rules, *ends)]
    if None in policies:
        yield Problem("job-deletion", path, "each of onSuccess and onFailure needs a policy")
    if selects and {"DeleteCluster", "DeleteWorkers"} & set(policies):
        yield Problem(
            "job-deletion", path, "with clusterSelector, the cluster and its workers are not the job's to delete"
        )
    if scales and "DeleteWorkers" in policies:
        yield Problem("job-deletion", path, "DeleteWorkers does not go with enableInTreeAutoscaling")
    if shuts and any(end.get("policy") == "DeleteNone" for end in ends):
        yield Problem("job-deletion", path, "DeleteNone contradicts shutdownAfterJobFinishes")
    yield from _deletion_rules(path, rules)


def _deletion_rules(path: str, rules: list[Content]) -> Iterator[Problem]:
    waits: dict[tuple[str, str], dict[str, int]] = {}
    for number, rule in enumerate(rules):
        place = f"{path}.deletionRules[{number}]"
        condition = rule.get("condition") or {}
        given = [(name, condition[name]) for name in ("jobStatus", "jobDeploymentStatus") if name in condition]
        if len(given) != 1:
            yield Problem("job-deletion", f"{place}.condition", "write one of jobStatus and jobDeploymentStatus")
            continue
        if condition.get("ttlSeconds", 0) < 0:
            yield Problem("job-deletion", f"{place}.condition.ttlSeconds", "write 0 or more seconds")
        policies = waits.setdefault(given[0], {})
        if rule.get("policy") in policies:
            yield Problem("job-deletion", place, "the same policy for the same status is there already")
        policies[rule.get("policy", "")] = condition.get("ttlSeconds", 0)
    for (_, status), policies in waits.items():
        times = [policies[policy] for policy in ORDER if policy in policies]
        if times != sorted(times):
            message = f"for {status}: ttlSeconds may not fall from DeleteWorkers to DeleteCluster to DeleteSelf"
            yield Problem("job-deletion", f"{path}.deletionRules", message)


def _submission(path: str, spec: Content) -> Iterator[Problem]:
    mode = spec.get("submissionMode") or "K8sJobMode"
    if mode not in MODES:
        yield Problem(
            "job-submission", f"{path}.submissionMode", f"is none of {', '.join(MODES)}{nearest(mode, MODES)}"
        )
    for field in ("submitterPodTemplate", "submitterConfig"):
        if mode != "K8sJobMode" and field in spec:
            said = "KubeRay refuses it in" if mode == "SidecarMode" else "is for K8sJobMode and has no effect in"
            yield Problem("job-submission", f"{path}.{field}", f"{said} {mode}: leave it out")
    template = spec.get("submitterPodTemplate")
    if template is not None and not (template.get("spec") or {}).get("containers"):
        yield Problem("job-submission", f"{path}.submitterPodTemplate", "needs a container: the first one submits")
    cluster = spec.get("rayClusterSpec")
    if mode == "SidecarMode" and cluster is not None:
        policy = cluster["headGroupSpec"].get("template", {}).get("spec", {}).get("restartPolicy")
        if policy not in (None, "", "Never"):
            place = f"{path}.rayClusterSpec.headGroupSpec.template.spec.restartPolicy"
            yield Problem("job-submission", place, "must be Never, or left out, in SidecarMode")


def _entry(path: str, spec: Content) -> Iterator[Problem]:
    containers = ((spec.get("submitterPodTemplate") or {}).get("spec") or {}).get("containers") or [{}]
    asked = spec.get("submissionMode") != "InteractiveMode" and not containers[0].get("command")
    if asked and not (spec.get("entrypoint") or "").strip():
        yield Problem("job-entrypoint", f"{path}.entrypoint", "is missing; write the command that the job is")
    if text := spec.get("entrypointResources"):
        try:
            whole = isinstance(json.loads(text), dict)
        except ValueError:
            whole = False
        if not whole:
            message = """is no JSON mapping; write '{"name": 1}'"""
            yield Problem("job-entrypoint", f"{path}.entrypointResources", message)
    if fault := _runtime_env(spec.get("runtimeEnvYAML") or ""):
        yield Problem("job-runtime-env", f"{path}.runtimeEnvYAML", fault)
    given = (spec.get("rayClusterSpec") or {}).get("rayVersion")
    if spec.get("metadata") and given and (version(given) or (0,)) < (2, 6):
        yield Problem("job-metadata", f"{path}.metadata", "needs a rayVersion of 2.6.0 or later")


def _runtime_env(text: str) -> str | None:
    from cluster.k8s.checking.reading import documents

    try:
        found = list(documents(text, "runtimeEnvYAML"))
    except ValueError as error:
        return f"{error}; write a mapping of runtime_env's fields"
    return "has several documents; write one mapping" if len(found) > 1 else None
