"""The manifests of a run: as objects to be submitted, or as the files of a directory to be kept and applied."""

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
    made = {} if w.service_account else {"serviceaccount.yaml": access.account(w)}
    made["networkpolicy.yaml"] = network.policy(w)
    made |= {} if w.scratch_claim else {"scratch.yaml": access.scratch(w)}
    return made | {"recipe.yaml": ray_job.recipe(w), "rayjob.yaml": ray_job.document(w)}


def files(w: Workload) -> dict[str, str]:
    """Relative file name → YAML text of everything that `regrow k8s render` writes: one object a file.

    `kubectl apply -k` on the directory starts the run, on service/ the endpoint, on interactive/ a cluster to work on;
    all three share base/. The components in overlays/ are for the first."""
    base = {f"base/{name}": one for name, one in job(w).items() if name != "rayjob.yaml"}
    base |= {"base/role.yaml": access.role(w), "base/rolebinding.yaml": access.binding(w)}
    made: dict[str, Any] = base | {"rayjob.yaml": ray_job.document(w)}
    made[KUSTOMIZATION] = _kustomization(w, ["base", "rayjob.yaml"])
    made[f"base/{KUSTOMIZATION}"] = _kustomization(w, [name.removeprefix("base/") for name in base])
    made["interactive/raycluster.yaml"] = ray_cluster.document(w)
    made[f"interactive/{KUSTOMIZATION}"] = _kustomization(w, ["../base", "raycluster.yaml"])
    if w.endpoint:
        served = ray_service.redis(w) | {"rayservice.yaml": ray_service.document(w, w.endpoint)}
        made |= {f"service/{name}": one for name, one in served.items()}
        made[f"service/{KUSTOMIZATION}"] = _kustomization(w, ["../base", *served])
    secrets = secret_templates.templates(w)
    made[f"secrets/{KUSTOMIZATION}"] = _kustomization(w, [name.removeprefix("secrets/") for name in secrets])
    made |= _components(w) | secrets
    return {name: commented(_head(w, name), one) for name, one in sorted(made.items())}


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
    if file == KUSTOMIZATION:
        return _START.format(name=w.name, mark=heads.MARK)
    if file == f"service/{KUSTOMIZATION}":
        return f"The endpoint: `kubectl apply -k` on this directory.\n{heads.MARK}"
    if file == f"interactive/{KUSTOMIZATION}":
        return f"A cluster to work on: `kubectl apply -k` on this directory.\n{heads.MARK}"
    if file == f"secrets/{KUSTOMIZATION}":
        return f"Templates, in no other kustomization. Fill in a copy that no repository sees.\n{heads.MARK}"
    return heads.head(file)


_START = """\
The run {name}: `kubectl apply -k` on this directory starts it. Secrets first (secrets/, docs/kubernetes.md).
Components to add, each as wanted:
  components: [overlays/kueue, overlays/pdb, overlays/quota, overlays/monitoring]
{mark}"""
