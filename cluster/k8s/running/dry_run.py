"""`regrow submit --kuberay --dry-run`: the objects as YAML, checked here, and by the cluster where one answers."""

from collections.abc import Callable
from typing import Any

from cluster.k8s.running.api import connect
from cluster.k8s.running.submit import place

Say = Callable[[str], None]


def dry_run(
    objects: dict[str, dict[str, Any]], namespace: str | None, context: str | None, say: Say, write: Say
) -> int:
    """`write` the `objects` (file name → object) as one YAML stream, `say` what the checks find. The server is asked
    with `dryRun=All`: it validates, admits, and stores nothing (kubernetes.io, "Dry-run").

    Exit status 0 where nothing is wrong, 1 where the cluster could not or would not take them. Raises ValueError where
    an object is wrong, where the run is under way, and where `context` is not in the kubeconfig. Without a cluster the
    checks made here are all."""
    import yaml

    from cluster.k8s.checking.check import check

    found = check(list(objects.items()))
    write(yaml.safe_dump_all(objects.values(), sort_keys=False, allow_unicode=True).rstrip("\n"))
    for one in found:
        say(f"{one.file}: {one.object} {one.path}: {one.message} ({one.rule})")
    if wrong := [one for one in found if one.kind != "policy"]:
        raise ValueError(f"{len(wrong)} thing(s) above would be refused by the cluster or by KubeRay")
    try:
        api = connect(namespace, context)
    except ValueError as error:
        if context is not None:
            raise
        say(f"no cluster was asked: {error}")
        return 0
    try:
        name = place(api, list(objects.values()), say, dry=True)
    except ConnectionError as error:
        say(f"no cluster was asked: {error}")
        return 0
    except (PermissionError, RuntimeError) as error:
        say(f"the cluster would not take it: {error}")
        return 1
    say(f"{api.server} would take RayJob {name} into namespace {api.namespace}; nothing was changed")
    return 0
