"""The manifests of a run: as objects to be submitted, or as the files of a directory to be kept and applied."""

from dataclasses import replace
from typing import Any

from cluster.k8s.rendering import (  # fmt: skip
    access,
    heads,
    network,
    overlays,
    ray_cluster,
    ray_job,
    ray_service,
    secret_templates,
)
from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import Workload
from cluster.k8s.rendering.yaml_text import commented

KUSTOMIZATION = "kustomization.yaml"
KUSTOMIZE = "kustomize.config.k8s.io"


def job(w: Workload) -> dict[str, Content]:
    """File name → object of what one submission needs, in the order to create it; the RayJob last. No Secrets: pods
    take those of the namespace where they are there, and no Role: the operator makes the autoscaler's."""
    return _around(w) | {"recipe.yaml": ray_job.recipe(w), "rayjob.yaml": ray_job.document(w)}


def _around(w: Workload, disk: bool = True) -> dict[str, Content]:
    """What the pods of a part need beside them, under names of its own; nothing that is there already."""
    made = {} if w.service_account else {"serviceaccount.yaml": access.account(w)}
    made["networkpolicy.yaml"] = network.policy(w)
    return made | ({"scratch.yaml": access.scratch(w)} if disk and not w.scratch_claim else {})


def files(w: Workload) -> dict[str, str]:
    """Relative file name → YAML text of everything that `regrow k8s render` writes: one object a file.

    `kubectl apply -k` on the directory starts the run, on service/ the endpoint, on interactive/ a cluster to work on,
    and `kubectl delete -k` ends that one alone: no object is in two of them. access/ lets people do so. The components
    in overlays/ are for the run."""
    made: dict[str, Any] = {"rayjob.yaml": ray_job.document(w)}
    made |= _folder(w, "base", {name: one for name, one in job(w).items() if name != "rayjob.yaml"})
    made[KUSTOMIZATION] = _kustomization(w, ["base", "rayjob.yaml"])
    made |= _folder(w, "access", {"role.yaml": access.role(w), "rolebinding.yaml": access.binding(w)})
    by_hand = replace(w, part="ray")
    cluster = {"recipe.yaml": ray_job.recipe(by_hand), "raycluster.yaml": ray_cluster.document(by_hand)}
    made |= _folder(w, "interactive", _around(by_hand) | cluster)
    if w.endpoint:
        served = replace(w, part="api")
        service = ray_service.redis(served) | {"rayservice.yaml": ray_service.document(served, w.endpoint)}
        made |= _folder(w, "service", _around(served, disk=False) | service)
    made |= _folder(w, "secrets", secret_templates.templates(w)) | _components(w)
    return {name: commented(_head(w, name), one) for name, one in sorted(made.items())}


def _folder(w: Workload, name: str, objects: dict[str, Content]) -> dict[str, Any]:
    made: dict[str, Any] = {f"{name}/{file}": one for file, one in objects.items()}
    return made | {f"{name}/{KUSTOMIZATION}": _kustomization(w, list(objects))}


def _components(w: Workload) -> dict[str, Any]:
    made: dict[str, Any] = {}
    components = {
        "kueue": overlays.kueue(w),
        "pdb": overlays.budgets(w),
        "quota": overlays.bounds(w),
        "monitoring": overlays.monitoring(w),
    }
    for name, objects in components.items():
        made |= {f"overlays/{name}/{file}": one for file, one in objects.items()}
        about: Content = {"apiVersion": f"{KUSTOMIZE}/v1alpha1", "kind": "Component", "resources": list(objects)}
        if name == "kueue":
            patch = "rayjob-queued.yaml"
            about["patches"] = [{"path": patch, "target": {"group": "ray.io", "kind": "RayJob", "name": w.name}}]
            made[f"overlays/{name}/{patch}"] = overlays.queued(w)
        made[f"overlays/{name}/{KUSTOMIZATION}"] = about
    return made


def _kustomization(w: Workload, resources: list[str]) -> Content:
    about = {"apiVersion": f"{KUSTOMIZE}/v1beta1", "kind": "Kustomization", "namespace": w.namespace}
    return about | {"resources": resources}


def _head(w: Workload, file: str) -> str:
    said = _START.format(name=w.name) if file == KUSTOMIZATION else heads.head(file)
    return f"{said}\n{heads.mark(w.name, file)}\n{heads.LOST}"


_START = """\
The run {name}: `kubectl apply -k` on this directory starts it. Secrets first (secrets/, docs/kubernetes.md).
`kubectl delete -k` ends it, and takes its shared disk; service/ and interactive/ stay.
Components to add, each as wanted:
  components: [overlays/kueue, overlays/pdb, overlays/quota, overlays/monitoring]"""
