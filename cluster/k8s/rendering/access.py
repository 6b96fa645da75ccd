"""Who may do what: the ServiceAccount of a run's pods, and the Role of the people who submit runs.

The autoscaler's rights are not here: KubeRay makes a Role and a RoleBinding for each cluster, for the ServiceAccount
that its head names (common/rbac.go), and for its lifetime. It does not make that ServiceAccount.
"""

from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import Workload

USERS = "regrow-users"  # a group that the cluster's sign-on knows
ALL = ["create", "delete", "get", "list", "patch", "update", "watch"]
RULES = [
    {"apiGroups": ["ray.io"], "resources": ["rayjobs", "rayclusters", "rayservices"], "verbs": ALL},
    {"apiGroups": [""], "resources": ["configmaps", "serviceaccounts", "persistentvolumeclaims"], "verbs": ALL},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ALL},
    {"apiGroups": [""], "resources": ["pods", "pods/log", "services", "events"], "verbs": ["get", "list", "watch"]},
]


def account(w: Workload) -> Content:
    """The ServiceAccount of the part's pods. Their API token is not mounted, but into the autoscaler."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": w.account, "namespace": w.namespace, "labels": w.labels},
        "automountServiceAccountToken": False,
    }


def role(w: Workload) -> Content:
    """What somebody needs who submits, watches and ends runs: no Secrets, no commands in pods,
    and no port-forward, which reaches every pod of the namespace."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": f"{w.name}-user", "namespace": w.namespace, "labels": w.labels},
        "rules": RULES,
    }


def binding(w: Workload) -> Content:
    """That Role for a group of people."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{w.name}-user", "namespace": w.namespace, "labels": w.labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": f"{w.name}-user"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": USERS}],
    }


def scratch(w: Workload) -> Content:
    """The claim of the disk that all pods of the part share: model cache, and what stages hand to one another's workers
    while they run."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": w.scratch, "namespace": w.namespace, "labels": w.labels},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{w.scratch_gib}Gi"}},
        },
    }
