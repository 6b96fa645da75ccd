"""The NetworkPolicy of the pods of a run, an endpoint or a cluster to work on: among themselves everything, with others
what is listed here."""

from typing import Any

from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.refusals import STORES, port
from cluster.k8s.rendering.workload import PART_LABEL, Workload

CLIENT = {"regrow/client": "true"}  # pods of the namespace that may use the dashboard and drive the cluster
INGRESS = {"regrow/ingress": "true"}  # namespaces from which endpoints are asked
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}  # as KubeRay's Helm chart labels it
NODE_DNS = "169.254.20.10/32"  # NodeLocal DNSCache (kubernetes.io, "Using NodeLocal DNSCache")


def policy(w: Workload) -> Content:
    """Ray has no borders of its own: who reaches its ports runs code in the pods. The token of authOptions is a second
    lock, not the first. A standard policy cannot name Kubernetes' API, which the autoscaler asks: like S3 and the hub
    it is reached by port."""
    own: list[Any] = [{"podSelector": {"matchLabels": {PART_LABEL: w.own}}}]
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": w.operator_namespace}},
        "podSelector": {"matchLabels": OPERATOR},
    }
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    anywhere = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": w.own, "namespace": w.namespace, "labels": w.labels},
        "spec": {
            "podSelector": {"matchLabels": {PART_LABEL: w.own}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": own},
                {"from": [operator], "ports": _ports(8265, 8000)},
                {"from": [{"podSelector": {"matchLabels": CLIENT}}], "ports": _ports(8265, 6379, 10001)},
                {"from": [{"namespaceSelector": {"matchLabels": INGRESS}}], "ports": _ports(8000)},
                {"from": [{"namespaceSelector": {"matchLabels": MONITORING}}], "ports": _ports(8080, 44217, 44227)},
            ],
            "egress": [
                {"to": own},
                {"to": [dns, {"ipBlock": {"cidr": NODE_DNS}}], "ports": [*_ports(53, protocol="UDP"), *_ports(53)]},
                {"to": anywhere, "ports": _ports(*sorted({443, 6443, *_stores(w)}))},
            ],
        },
    }


def _stores(w: Workload) -> list[int]:
    """Ports of an S3 store or a hub of one's own, where the workload's environment names them."""
    named = [port(value) for name, value in w.env if name in STORES]
    return [number for number in named if number]


def _ports(*ports: int, protocol: str = "TCP") -> list[Content]:
    return [{"protocol": protocol, "port": number} for number in ports]
