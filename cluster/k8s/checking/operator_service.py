"""What KubeRay v1.7.0 or Ray Serve refuses in a RayService though the CRD takes it (validation.go:
`ValidateRayServiceMetadata`, `ValidateRayServiceSpec`, `ValidateClusterUpgradeOptions`; common/service.go
`BuildServeService`; common/pod.go `initLivenessAndReadinessProbe`; Ray's `ServeDeploySchema`, docs.ray.io "Serve Config
Files")."""

import re
from collections.abc import Iterator
from typing import Any

from cluster.k8s.checking.cron import DURATION
from cluster.k8s.checking.finding import Content, Problem, Thing
from cluster.k8s.checking.pods import Cluster, cluster

RULES = {
    "service-timeout": "ray.io/initializing-timeout is a positive duration",
    "service-upgrade": "an incremental upgrade has the autoscaler, its percentages, an interval and a gateway class",
    "serve-config": "serveConfigV2 is YAML; its applications have import paths, and names and routes of their own",
    "serve-port": "the head's container has a port `serve`, which is that of serveConfigV2's http_options",
    "serve-proxy": "Serve's proxies run on the pods that KubeRay sends requests to",
}
SERVE = re.compile(r"serve(-.*)?")


def problems(thing: Thing) -> Iterator[Problem]:
    found = cluster(thing)
    if thing.kind == "RayCluster" and found and found.annotations.get("ray.io/enable-serve-service") == "true":
        yield from _port(found, {}, custom=False)
    if thing.kind != "RayService" or found is None:
        return
    timeout = found.annotations.get("ray.io/initializing-timeout")
    if timeout and not _is_positive(timeout):
        message = "write a positive duration (30m, 1h) or a number of seconds"
        yield Problem("service-timeout", "metadata.annotations.ray.io/initializing-timeout", message)
    strategy = thing.spec.get("upgradeStrategy") or {}
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _upgrade(found, strategy.get("clusterUpgradeOptions"))
    config = yield from _config(thing.spec.get("serveConfigV2") or "")
    if config is not None:
        yield from _port(found, config.get("http_options") or {}, custom="serveService" in thing.spec)
        yield from _proxy(found, config)


def _is_positive(duration: str) -> bool:
    if re.fullmatch(r"[+-]?\d+", duration):
        return int(duration) > 0
    return bool(DURATION.fullmatch(duration)) and not duration.startswith("-") and bool(re.search("[1-9]", duration))


def _upgrade(found: Cluster, options: Content | None) -> Iterator[Problem]:
    path = "spec.upgradeStrategy.clusterUpgradeOptions"
    if not found.autoscales:
        message = "must be true for NewClusterWithIncrementalUpgrade"
        yield Problem("service-upgrade", f"{found.path}.enableInTreeAutoscaling", message)
    if options is None:
        yield Problem("service-upgrade", path, "is missing; NewClusterWithIncrementalUpgrade needs it")
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= surge <= 100 or not 0 <= step <= 100 or step > surge:
        yield Problem("service-upgrade", path, "write 0 ≤ stepSizePercent ≤ maxSurgePercent ≤ 100")
    if options.get("intervalSeconds", 0) <= 0:
        yield Problem("service-upgrade", f"{path}.intervalSeconds", "write a positive number of seconds")
    if not options.get("gatewayClassName"):
        yield Problem("service-upgrade", f"{path}.gatewayClassName", "is missing")


def parsed(text: str) -> Content | str:
    """serveConfigV2 as a mapping, or what is wrong with it."""
    from cluster.k8s.checking.reading import documents

    try:
        found = list(documents(text, "serveConfigV2"))
    except ValueError as error:
        return str(error)
    return found[0] if len(found) == 1 else "write one mapping with `applications`"


def _config(text: str) -> Any:
    """Yields what is wrong; returns the config where it can be read."""
    path = "spec.serveConfigV2"
    config = parsed(text)
    if isinstance(config, str):
        yield Problem("serve-config", path, config)
        return None
    applications = config.get("applications")
    if not isinstance(applications, list) or not applications or not all(isinstance(a, dict) for a in applications):
        yield Problem("serve-config", f"{path}.applications", "write a list of applications, each a mapping")
        return None
    for field, what in (("http_options", dict), ("proxy_location", str)):
        if not isinstance(config.get(field, what()), what):
            yield Problem("serve-config", f"{path}.{field}", "is no mapping" if what is dict else "is no text")
            return None
    names: list[Any] = []
    routes: list[Any] = []
    for number, one in enumerate(applications):
        place = f"{path}.applications[{number}]"
        name, route = one.get("name"), one.get("route_prefix", "/")
        if not isinstance(name, str) or not name or name in names:
            said = "is that of another application" if name in names else "is missing"
            yield Problem("serve-config", f"{place}.name", f"{said}; give each its own")
        if not _is_import_path(one.get("import_path")):
            yield Problem("serve-config", f"{place}.import_path", "write module.path:attribute")
        if route is not None and not _is_route(route):
            message = "starts with `/`, does not end with it, and has no `{`"
            yield Problem("serve-config", f"{place}.route_prefix", message)
        elif route is not None and route in routes:
            yield Problem("serve-config", f"{place}.route_prefix", f"{route!r} is another application's; write another")
        names, routes = [*names, name], [*routes, route]
    return config


def _is_import_path(text: Any) -> bool:
    """Ray's rule: one colon and something on both sides of it, or a dot likewise."""
    if not isinstance(text, str):
        return False
    module, mark, name = text.rpartition(":" if ":" in text else ".")
    return bool(mark and module and name) and text.count(":") <= 1


def _is_route(text: Any) -> bool:
    return isinstance(text, str) and bool(re.fullmatch(r"/([^{}]*[^{}/])?", text))


def _port(found: Cluster, http: Content, custom: bool) -> Iterator[Problem]:
    """KubeRay makes the serving Service of the head container's ports, or of its defaults where it has none."""
    containers = (found.head.get("template") or {}).get("spec", {}).get("containers") or []
    path = f"{found.path}.headGroupSpec.template.spec.containers[0].ports"
    ports = {p.get("name", ""): p["containerPort"] for p in (containers[0].get("ports") or [] if containers else [])}
    served = {name: port for name, port in ports.items() if SERVE.fullmatch(name)} if ports else {"serve": 8000}
    if not served and not custom:
        yield Problem("serve-port", path, "has no port named serve: write {name: serve, containerPort: 8000}")
    wanted = http.get("port", 8000)
    if "serve" in served and served["serve"] != wanted:
        message = f"serve is {served['serve']}, and serveConfigV2 has http_options.port {wanted}: write the same"
        yield Problem("serve-port", path, message)
    if str(http.get("host", "0.0.0.0")) in ("127.0.0.1", "localhost", "::1"):
        message = "reaches the pod alone: write 0.0.0.0, or leave it out"
        yield Problem("serve-port", "spec.serveConfigV2.http_options.host", message)


def _proxy(found: Cluster, config: Content) -> Iterator[Problem]:
    location = config.get("proxy_location", "EveryNode")
    path = "spec.serveConfigV2.proxy_location"
    if location not in ("EveryNode", "HeadOnly"):
        message = "write EveryNode or HeadOnly: without a proxy nothing is served"
        yield Problem("serve-proxy", path, message)
    elif location == "HeadOnly":
        if found.thing.spec.get("excludeHeadPodFromServeSvc"):
            message = "HeadOnly, but excludeHeadPodFromServeSvc is true: no pod is left to serve; write EveryNode"
            yield Problem("serve-proxy", path, message)
        for number, worker in enumerate(found.workers):
            containers = worker.get("template", {}).get("spec", {}).get("containers") or [{}]
            if "readinessProbe" not in containers[0]:
                message = "KubeRay's probe asks every worker's proxy, and HeadOnly has none there: write EveryNode"
                yield Problem("serve-proxy", path, f"{message}, or a readinessProbe for workerGroupSpecs[{number}]")
