"""Templates of the Secrets that pods read: no values, and in no kustomization. Fill in a copy outside of any
repository, or make them with `kubectl create secret`."""

from typing import Any

from cluster.k8s.rendering.pods import HUB, S3, Content
from cluster.k8s.rendering.workload import Workload

FILL = "<FILL IN>"


def templates(w: Workload) -> dict[str, Content]:
    """File name → Secret."""
    named: dict[str, dict[str, Any]] = {
        "regrow-s3": dict.fromkeys(S3[:2], FILL),
        "regrow-hub": dict.fromkeys(HUB, FILL),
        "regrow-api-keys": {"keys.txt": FILL},
        "regrow-redis": {"password": FILL},
    }
    return {
        f"{name.removeprefix('regrow-')}.yaml": {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": w.namespace},
            "type": "Opaque",
            "stringData": values,
        }
        for name, values in named.items()
    }
