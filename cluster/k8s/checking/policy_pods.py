"""Pods by the `restricted` Pod Security Standard (kubernetes.io, "Pod Security Standards", v1.34 and later), the
containers that KubeRay adds with them: in a namespace that enforces it, others are not admitted."""

from collections.abc import Iterator
from typing import Any

from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.pods import Pod, cluster, job, pods

RULES = {
    "restricted-run-as-non-root": "runAsNonRoot: true, for the pod or every container, and no runAsUser 0",
    "restricted-seccomp": "seccompProfile.type RuntimeDefault or Localhost",
    "restricted-privilege-escalation": "allowPrivilegeEscalation: false",
    "restricted-capabilities": "capabilities drop: [ALL], and none added but NET_BIND_SERVICE",
    "restricted-privileged": "no privileged container",
    "restricted-host-namespaces": "no hostNetwork, hostPID, hostIPC",
    "restricted-host-ports": "no hostPort, and no host in probes and lifecycle hooks",
    "restricted-volumes": "volumes are of the kinds that do not reach the node: no hostPath, no nfs",
    "restricted-kernel": "no unsafe sysctls, unmasked /proc, own SELinux user or AppArmor left out",
    "restricted-added-container": "what KubeRay adds to a pod (autoscaler, submitter) has a security context",
    "service-account-token": "a pod without access to the API server has automountServiceAccountToken: false",
}
VOLUMES = "configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret image".split()
SYSCTLS = set(
    "kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_unprivileged_port_start net.ipv4.tcp_syncookies "
    "net.ipv4.ping_group_range net.ipv4.ip_local_reserved_ports net.ipv4.tcp_keepalive_time net.ipv4.tcp_fin_timeout "
    "net.ipv4.tcp_keepalive_intvl net.ipv4.tcp_keepalive_probes net.ipv4.tcp_rmem net.ipv4.tcp_wmem".split()
)
SELINUX = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def problems(thing: Thing) -> Iterator[Problem]:
    for pod in pods(thing):
        yield from _pod(pod)
        for path, container in pod.containers():
            yield from _container(pod, path, container)
    yield from _added(thing)


def _pod(pod: Pod) -> Iterator[Problem]:
    path = f"{pod.path}.spec" if pod.path else "spec"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield Problem("restricted-host-namespaces", f"{path}.{field}", "leave it out")
    for number, volume in enumerate(pod.spec.get("volumes") or []):
        for kind in volume.keys() - {"name", *VOLUMES}:
            message = f"{kind} reaches the node: use a claim, emptyDir or what else the standard allows"
            yield Problem("restricted-volumes", f"{path}.volumes[{number}]", message)
    context = pod.spec.get("securityContext") or {}
    for sysctl in context.get("sysctls") or []:
        if sysctl["name"] not in SYSCTLS:
            yield Problem("restricted-kernel", f"{path}.securityContext.sysctls", f"{sysctl['name']} is not a safe one")
    yield from _kernel(f"{path}.securityContext", context)
    if context.get("runAsUser") == 0:
        yield Problem("restricted-run-as-non-root", f"{path}.securityContext.runAsUser", "write a user other than 0")


def _container(pod: Pod, path: str, container: Content) -> Iterator[Problem]:
    context, whole = container.get("securityContext") or {}, pod.spec.get("securityContext") or {}
    path = f"{path}.securityContext"
    if not context.get("runAsNonRoot", whole.get("runAsNonRoot")):
        yield Problem("restricted-run-as-non-root", f"{path}.runAsNonRoot", "write true, here or for the pod")
    if context.get("runAsUser") == 0:
        yield Problem("restricted-run-as-non-root", f"{path}.runAsUser", "write a user other than 0")
    profile = context.get("seccompProfile") or whole.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        message = "write {type: RuntimeDefault}, here or for the pod"
        yield Problem("restricted-seccomp", f"{path}.seccompProfile", message)
    if context.get("allowPrivilegeEscalation") is not False:
        yield Problem("restricted-privilege-escalation", f"{path}.allowPrivilegeEscalation", "write false")
    if context.get("privileged"):
        yield Problem("restricted-privileged", f"{path}.privileged", "leave it out")
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []) or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield Problem("restricted-capabilities", f"{path}.capabilities", "write {drop: [ALL]}, and add none")
    yield from _kernel(path, context)
    yield from _host(path.removesuffix(".securityContext"), container)


def _kernel(path: str, context: Content) -> Iterator[Problem]:
    if context.get("procMount") not in (None, "Default"):
        yield Problem("restricted-kernel", f"{path}.procMount", "leave it out")
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield Problem("restricted-kernel", f"{path}.appArmorProfile", "write {type: RuntimeDefault}, or leave it out")
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield Problem("restricted-kernel", f"{path}.seLinuxOptions", "leave user and role out, and write container_t")


def _host(path: str, container: Content) -> Iterator[Problem]:
    for number, port in enumerate(container.get("ports") or []):
        if port.get("hostPort"):
            yield Problem("restricted-host-ports", f"{path}.ports[{number}].hostPort", "leave it out")
    hooks: dict[str, Any] = {f: container.get(f) for f in ("livenessProbe", "readinessProbe", "startupProbe")}
    hooks |= {f"lifecycle.{name}": hook for name, hook in (container.get("lifecycle") or {}).items()}
    for name, hook in hooks.items():
        for action in ("httpGet", "tcpSocket"):
            if isinstance(hook, dict) and (hook.get(action) or {}).get("host"):
                yield Problem(
                    "restricted-host-ports", f"{path}.{name}.{action}.host", "leave it out: it is the pod's own"
                )


def _added(thing: Thing) -> Iterator[Problem]:
    """Containers that KubeRay adds. That which waits for the head has the worker's own security context."""
    found = cluster(thing)
    if found and found.autoscales:
        head = next(pod for pod in pods(thing) if pod.role == "head")
        path = f"{found.path}.autoscalerOptions"
        lacks = list(_container(head, path, found.autoscaler))
        if lacks:
            fields = sorted({problem.path.rpartition(".")[2] for problem in lacks})
            message = f"the autoscaler's container lacks {', '.join(fields)}: write what the head's container has"
            yield Problem("restricted-added-container", f"{path}.securityContext", message)
    one = job(thing)
    mode = (one[1].get("submissionMode") or "K8sJobMode") if one else "HTTPMode"
    if one and (mode == "SidecarMode" or (mode == "K8sJobMode" and "submitterPodTemplate" not in one[1])):
        message = "KubeRay's own submitter has no security context: write submitterPodTemplate, or HTTPMode"
        yield Problem("restricted-added-container", f"{one[0]}.submissionMode", message)
    if found and "historyServerOptions" in found.spec:
        message = "KubeRay's collector has no security context: leave it out where the standard is enforced"
        yield Problem("restricted-added-container", f"{found.path}.historyServerOptions", message)


def tokens(thing: Thing, things: list[Thing]) -> Iterator[Problem]:
    """Pods of `thing` that are handed a token for the API server and are not known to need it."""
    bound = {
        subject.get("name")
        for other in things
        if other.kind in ("RoleBinding", "ClusterRoleBinding")
        for subject in other.content.get("subjects") or []
    }
    accounts = {t.name: t.content for t in things if t.kind == "ServiceAccount" and t.beside(thing)}
    found = cluster(thing)
    for pod in pods(thing):
        account = pod.spec.get("serviceAccountName") or "default"
        off = pod.spec.get(
            "automountServiceAccountToken", accounts.get(account, {}).get("automountServiceAccountToken")
        )
        needs = account in bound or (pod.role == "head" and found is not None and found.autoscales)
        if off is not False and not needs:
            place = f"{pod.path}.spec".removeprefix(".")
            message = "write false: no Role of the set is bound to its account"
            yield Problem("service-account-token", f"{place}.automountServiceAccountToken", message)
