"""What the checker says, and the object that it says it of."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["schema", "operator", "policy"]
Content = dict[str, Any]
RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `kind` says who would complain: the API server's "schema", KubeRay's (or the kubelet's)
    "operator", or nobody but this project's "policy"."""

    file: str
    object: str  # "RayJob/gsm8k"
    path: str  # "spec.rayClusterSpec.headGroupSpec"
    rule: str
    kind: Kind
    message: str  # what is wrong and what to write instead


class Problem(NamedTuple):
    """What a rule says of one object."""

    rule: str
    path: str
    message: str


@dataclass(frozen=True, eq=False)
class Thing:
    """One object of a set of manifests; equal to itself alone."""

    file: str
    content: Content

    @property
    def kind(self) -> str:
        return str(self.content.get("kind", ""))

    @property
    def group(self) -> str:
        """The API group: "" for the core's own."""
        return str(self.content.get("apiVersion", "")).rpartition("/")[0]

    @property
    def metadata(self) -> Content:
        found = self.content.get("metadata")
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or self.metadata.get("generateName") or "")

    @property
    def namespace(self) -> str | None:
        return self.metadata.get("namespace")

    def beside(self, other: "Thing") -> bool:
        """Whether both are in one namespace; an object that names none goes where it is applied to."""
        return self.namespace is None or other.namespace is None or self.namespace == other.namespace

    @property
    def spec(self) -> Content:
        return self.content.get("spec") or {}

    @property
    def label(self) -> str:
        return f"{self.kind or 'object'}/{self.name or '(no name)'}"

    @property
    def is_ray(self) -> bool:
        return self.group == "ray.io" and self.kind in RAY_KINDS


def dotted(parts: Any) -> str:
    """`spec.workerGroupSpecs[0].template` of a jsonschema path."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
