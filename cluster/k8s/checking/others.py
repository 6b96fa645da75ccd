"""Small schemas of custom resources that are neither KubeRay's nor Kubernetes' own: of PodMonitor (Prometheus
Operator, monitoring.coreos.com/v1), of Kueue (kueue.x-k8s.io/v1beta1 and v1beta2) and of Kustomize's file.

They are not those projects' CRDs. Each holds the fields that this project writes, by those projects' API reference
pages; what they do not know is refused, which those projects may well take: switch the rule `other-schema` off then."""

from collections.abc import Iterator
from typing import Any

from cluster.k8s.checking.finding import Content, Problem, dotted

TEXT = {"type": "string", "minLength": 1}
AMOUNT = {"anyOf": [{"type": "integer"}, TEXT]}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LIST = {"type": "array", "items": TEXT}


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def _list(item: Any, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


SELECTOR = _object(
    matchLabels=TEXTS,
    matchExpressions=_list(
        _object(
            "key operator", key=TEXT, operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, values=_list(TEXT)
        )
    ),
)
RELABELING = _object(
    sourceLabels=LIST,
    separator={"type": "string"},
    regex={"type": "string"},
    modulus={"type": "integer"},
    targetLabel=TEXT,
    replacement={"type": "string"},
    action={"type": "string"},
)
ENDPOINT = _object(
    port=TEXT,
    portNumber={"type": "integer"},
    path=TEXT,
    scheme={"type": "string"},
    interval={"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"},
    scrapeTimeout={"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"},
    honorLabels={"type": "boolean"},
    relabelings=_list(RELABELING),
    metricRelabelings=_list(RELABELING),
    bearerTokenSecret=_object("key", name=TEXT, key=TEXT, optional={"type": "boolean"}),
)
QUOTA = _object("name nominalQuota", name=TEXT, nominalQuota=AMOUNT, borrowingLimit=AMOUNT, lendingLimit=AMOUNT)
RESOURCE_GROUP = _object(
    "coveredResources flavors",
    coveredResources=_list(TEXT, 1),
    flavors=_list(_object("name resources", name=TEXT, resources=_list(QUOTA, 1)), 1),
)
PREEMPTION = _object(
    withinClusterQueue={"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]},
    reclaimWithinCohort={"enum": ["Never", "LowerPriority", "Any"]},
    borrowWithinCohort=_object(policy={"enum": ["Never", "LowerPriority"]}, maxPriorityThreshold={"type": "integer"}),
)
CLUSTER_QUEUE = _object(
    cohort=TEXT,
    cohortName=TEXT,
    namespaceSelector=SELECTOR,
    queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
    resourceGroups=_list(RESOURCE_GROUP),
    preemption=PREEMPTION,
    stopPolicy={"enum": ["None", "Hold", "HoldAndDrain"]},
)
FLAVOR = _object(nodeLabels=TEXTS, nodeTaints=_list({"type": "object"}), tolerations=_list({"type": "object"}))
SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com", "PodMonitor"): _object(
        "selector podMetricsEndpoints",
        selector=SELECTOR,
        podMetricsEndpoints=_list(ENDPOINT, 1),
        namespaceSelector=_object(any={"type": "boolean"}, matchNames=LIST),
        jobLabel=TEXT,
        podTargetLabels=LIST,
    ),
    ("kueue.x-k8s.io", "ClusterQueue"): CLUSTER_QUEUE,
    ("kueue.x-k8s.io", "LocalQueue"): _object("clusterQueue", clusterQueue=TEXT, stopPolicy={"type": "string"}),
    ("kueue.x-k8s.io", "ResourceFlavor"): FLAVOR,
}
WHOLE: dict[tuple[str, str], dict[str, Any]] = {
    ("kueue.x-k8s.io", "WorkloadPriorityClass"): _object(
        "value", value={"type": "integer"}, description={"type": "string"}
    ),
    ("kustomize.config.k8s.io", "Kustomization"): {
        "type": "object",
        "properties": {
            "resources": LIST,
            "components": LIST,
            "namespace": TEXT,
            "namePrefix": {"type": "string"},
            "nameSuffix": {"type": "string"},
            "labels": _list({"type": "object"}),
            "commonLabels": TEXTS,
            "commonAnnotations": TEXTS,
            "images": _list(_object("name", name=TEXT, newName=TEXT, newTag=TEXT, digest=TEXT)),
            "patches": _list({"type": "object"}),
        },
    },
}


def problems(content: Content, group: str) -> Iterator[Problem]:
    """What is wrong with an object of a kind that is known here; nothing for any other."""
    import jsonschema

    from cluster.k8s.checking.explaining import explain

    key = (group, str(content.get("kind")))
    rest = {k: v for k, v in content.items() if k not in ("apiVersion", "kind", "metadata", "status")}
    found = WHOLE.get(key)
    if key in SPECS:
        optional = [] if key[1] == "ResourceFlavor" else ["spec"]
        found = {**_object(spec=SPECS[key]), "required": optional}
    for error in jsonschema.Draft202012Validator(found or {}).iter_errors(rest):
        yield Problem("other-schema", dotted(error.absolute_path), explain(error))
