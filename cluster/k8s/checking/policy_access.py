"""This project's rules of access: narrow roles, closed networks round Ray, no secrets in manifests."""

from collections.abc import Iterator, Sequence

from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.pods import Pod, pods, selects

RULES = {
    "rbac-wildcard": "no `*` in a role's verbs, resources or API groups",
    "rbac-secrets": "no role lists or watches Secrets, and one that gets them names them",
    "rbac-exec": "no role runs commands in pods, acts as others or widens roles",
    "rbac-cluster-admin": "nothing is bound to cluster-admin, admin or edit",
    "network-policy-missing": "a NetworkPolicy restricts what reaches Ray's pods",
    "network-policy-open": "no NetworkPolicy opens Ray's own ports to everyone",
    "network-policy-closed": "Ray's pods may speak to one another, and to the name server",
    "network-policy-egress": "Ray's pods may not speak to every port of every address",
}
# Dashboard and jobs, GCS, Ray client, agents, metrics: whoever reaches the first three runs code. None: all ports.
RAY_PORTS = {8265, 6379, 10001, "dashboard", "gcs-server", "gcs", "client"}
Found = Iterator[tuple[Thing, Problem]]


def roles(thing: Thing) -> Iterator[Problem]:
    """The rules of RBAC, for one object."""
    if thing.kind in ("RoleBinding", "ClusterRoleBinding"):
        role = (thing.content.get("roleRef") or {}).get("name")
        if role in ("cluster-admin", "admin", "edit"):
            message = f"{role} may do nearly everything: write a Role with what is needed"
            yield Problem("rbac-cluster-admin", "roleRef.name", message)
    if thing.kind not in ("Role", "ClusterRole"):
        return
    for number, rule in enumerate(thing.content.get("rules") or []):
        path = f"rules[{number}]"
        verbs, resources = set(rule.get("verbs") or []), set(rule.get("resources") or [])
        for field in ("verbs", "resources", "apiGroups"):
            if "*" in (rule.get(field) or []):
                yield Problem("rbac-wildcard", f"{path}.{field}", "write out what is needed")
        if "secrets" in resources and ({"list", "watch"} & verbs or ("get" in verbs and not rule.get("resourceNames"))):
            message = "reads every Secret of the namespace: write get alone, with resourceNames"
            yield Problem("rbac-secrets", f"{path}.verbs", message)
        reaches = resources & {"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy"}
        widens = verbs & {"escalate", "bind", "impersonate"}
        if reaches or widens:
            message = f"{', '.join(sorted(reaches | widens))}: a role for Ray needs none of it; leave it out"
            yield Problem("rbac-exec", path, message)


def networks(things: Sequence[Thing]) -> Found:
    """The rules of NetworkPolicies, over a set."""
    policies = [t for t in things if t.kind == "NetworkPolicy" and t.group == "networking.k8s.io"]
    for thing in things:
        for pod in pods(thing) if thing.is_ray else []:
            if pod.is_ray and "networkPolicy" not in (_cluster_spec(pod) or {}):
                mine = [p for p in policies if p.beside(thing) and _covers(p, pod)]
                for problem in _around(pod, mine):
                    yield thing, problem
    ray = [pod for thing in things for pod in pods(thing) if pod.is_ray]
    for policy in policies:
        covered = [pod for pod in ray if pod.thing.beside(policy) and _covers(policy, pod)]
        for problem in _open(policy) if covered else ():
            yield policy, problem


def _cluster_spec(pod: Pod) -> Content | None:
    from cluster.k8s.checking.pods import cluster

    found = cluster(pod.thing)
    return found.spec if found else None


def _covers(policy: Thing, pod: Pod) -> bool:
    return selects(policy.spec.get("podSelector") or {}, pod.labels)


def _directions(policy: Thing) -> set[str]:
    """The directions that a policy restricts; left out, Ingress, and Egress where there are rules for it."""
    types = policy.spec.get("policyTypes")
    return set(types) if types else {"Ingress"} | ({"Egress"} if policy.spec.get("egress") else set())


def _around(pod: Pod, policies: list[Thing]) -> Iterator[Problem]:
    """Policies add up: what one of them lets through is let through."""
    path = pod.path
    others = [one for one in pods(pod.thing) if one.is_ray and one.path != path]
    mates = [one for one in others if "head" in (one.role, pod.role)] or [pod]
    incoming = [rule for p in policies if "Ingress" in _directions(p) for rule in p.spec.get("ingress") or []]
    if not any("Ingress" in _directions(policy) for policy in policies):
        message = "no NetworkPolicy of the set restricts what reaches its pods, or some; write one that selects all"
        yield Problem("network-policy-missing", "spec", message)  # said once, whatever the number of groups
    elif not _meet(incoming, "from", mates):
        message = "no NetworkPolicy lets Ray's pods reach these, on all ports: write an ingress from their own labels"
        yield Problem("network-policy-closed", path, message)
    if any("Egress" in _directions(policy) for policy in policies):
        outgoing = [rule for p in policies if "Egress" in _directions(p) for rule in p.spec.get("egress") or []]
        if not _meet(outgoing, "to", mates):
            message = "no NetworkPolicy lets these reach Ray's pods, on all ports: write an egress to their own labels"
            yield Problem("network-policy-closed", path, message)
        if not any(_names_server(rule) for rule in outgoing):
            message = "no NetworkPolicy lets these reach the name server: write an egress to port 53, UDP and TCP"
            yield Problem("network-policy-closed", path, message)


def _meet(rules: list[Content], peers: str, mates: list[Pod]) -> bool:
    """Whether rules let all of `mates` through on the ports that Ray uses."""
    wide = [rule.get(peers) for rule in rules if _all_of_ray(rule.get("ports"))]
    return all(any(_holds(one, mate) for one in wide) for mate in mates)


def _holds(peers: list[Content] | None, pod: Pod) -> bool:
    """Whether the peers of a rule hold a pod; none at all are everyone. Namespaces are taken to fit."""
    inside = [peer for peer in peers or [] if "ipBlock" not in peer]
    return not peers or any(selects(peer.get("podSelector") or {}, pod.labels) for peer in inside)


def _all_of_ray(ports: list[Content] | None) -> bool:
    """Whether a rule's ports are enough for Ray, which uses a wide range."""
    return not ports or any("port" not in port or port.get("endPort", 0) - 10000 > 1000 for port in ports)


def _names_server(rule: Content) -> bool:
    ports, peers = rule.get("ports"), rule.get("to")
    beyond = not peers or any("namespaceSelector" in peer or "ipBlock" in peer for peer in peers)
    by_udp = not ports or any(p.get("port") in (53, "dns", None) and p.get("protocol") == "UDP" for p in ports)
    return beyond and by_udp


def _open(policy: Thing) -> Iterator[Problem]:
    for number, rule in enumerate(policy.spec.get("ingress") or []):
        if _everyone(rule.get("from")) and _rays(rule.get("ports")):
            message = "everyone reaches Ray's ports, and so runs code there: name who may, or the port of Serve alone"
            yield Problem("network-policy-open", f"spec.ingress[{number}]", message)
    for number, rule in enumerate(policy.spec.get("egress") or []):
        if _everyone(rule.get("to")) and not rule.get("ports"):
            message = "reaches every address, the cloud's metadata with them: write ports, or an ipBlock with except"
            yield Problem("network-policy-egress", f"spec.egress[{number}]", message)


def _everyone(peers: list[Content] | None) -> bool:
    """Whether peers hold everyone: none given, all namespaces, or a block as wide as the internet."""
    for peer in peers or [{}]:
        block = peer.get("ipBlock") or {}
        wide = bool(block) and str(block.get("cidr")).endswith(("/0", "/1")) and not block.get("except")
        anywhere = "namespaceSelector" in peer and not any((peer["namespaceSelector"] or {}).values())
        if not peer or wide or (anywhere and not any((peer.get("podSelector") or {}).values())):
            return True
    return False


def _rays(ports: list[Content] | None) -> bool:
    for one in ports or [{}]:
        port, last = one.get("port"), one.get("endPort")
        if port is None or port in RAY_PORTS:
            return True
        if isinstance(port, int) and last and any(port <= p <= last for p in RAY_PORTS if isinstance(p, int)):
            return True
    return False
