"""`regrow k8s check`: every rule over one set of manifests. Names of rules are in `rules`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import PurePath

from cluster import secrets
from cluster.k8s.checking import (
    operator_cluster,
    operator_job,
    operator_options,
    operator_service,
    policy_access,
    policy_jobs,
    policy_pods,
    policy_secrets,
    references,
    schema,
    wiring,
)
from cluster.k8s.checking.finding import Content, Finding, Kind, Problem, Thing
from cluster.k8s.checking.names import nearest

Rule = Callable[[Thing], Iterator[Problem]]
RULES: dict[Kind, list[dict[str, str]]] = {
    "schema": [schema.RULES],
    "operator": [
        operator_cluster.RULES,
        operator_options.RULES,
        operator_job.RULES,
        operator_service.RULES,
        wiring.RULES,
        references.RULES,
    ],
    "policy": [policy_jobs.RULES, policy_pods.RULES, policy_access.RULES, policy_secrets.RULES],
}
KIND_OF: dict[str, Kind] = {name: kind for kind, parts in RULES.items() for part in parts for name in part}
OF_RAY: list[Rule] = [operator_cluster.problems, operator_job.problems, operator_service.problems]
OF_EACH: list[Rule] = [wiring.problems, policy_jobs.problems, policy_pods.problems, policy_access.roles]


def rules() -> dict[str, str]:
    """Rule → what holds where it is kept."""
    return {name: text for parts in RULES.values() for part in parts for name, text in part.items()}


def check(objects: Sequence[tuple[str, Content]], off: Collection[str] = ()) -> list[Finding]:
    """What is wrong with `objects`, (file, object) pairs, in their order. Rules in `off` are left out.

    They are one set, or one for each folder that is kustomized by itself. An object that its schema refuses is asked
    nothing more, but whether it holds a secret; and rules across a set once no schema refuses any of it. Raises
    ValueError for a name in `off` that is no rule's."""
    for name in off:
        if name not in KIND_OF:
            raise ValueError(f"no rule is called {name!r}{nearest(name, KIND_OF)}")
    things: list[Thing] = []
    unsound: set[Thing] = set()
    found: list[tuple[Thing, Problem]] = []
    for file, content in objects:
        refused = list(schema.judged(content))
        sound = all(problem.rule == "object-name" for problem in refused)
        thing = Thing(file, schema.defaulted(content) if sound else content)
        things.append(thing)
        said = [*refused, *policy_secrets.problems(Thing(file, content))]
        if sound:
            said += [*policy_jobs.backoff(Thing(file, content)), *_each(thing)]
        else:
            unsound.add(thing)
        found += [(thing, problem) for problem in said]
    for one in _sets(things):
        if unsound.isdisjoint(one):
            found += [*references.problems(one), *policy_access.networks(one)]
            found += [(thing, problem) for thing in one for problem in policy_pods.tokens(thing, one)]
    place = {thing: number for number, thing in enumerate(things)}
    found.sort(key=lambda one: place[one[0]])
    return [
        Finding(thing.file, _shown(thing.label), _shown(path.removeprefix(".")), rule, KIND_OF[rule], _shown(message))
        for thing, (rule, path, message) in dict.fromkeys(found)
        if rule not in off
    ]


def _sets(things: list[Thing]) -> list[list[Thing]]:
    """`things` by the outermost folders that have a kustomization: each is applied by itself. What is in none of them
    is with all of them; with one such folder, or none, there is one set."""
    folders = {PurePath(thing.file).parent for thing in things if thing.kind in references.KUSTOMIZE}
    roots = sorted(folder for folder in folders if folders.isdisjoint(folder.parents))
    if len(roots) < 2:
        return [things]
    inside = [[thing for thing in things if root in PurePath(thing.file).parents] for root in roots]
    loose = set(things).difference(*inside)
    return [[thing for thing in things if thing in loose or thing in part] for part in inside]


def _shown(text: str) -> str:
    """`text`, unless a name in it, such as that of an unknown field, is a secret itself."""
    what = secrets.kind(text)
    return f"(not shown: it holds {what})" if what else text


def _each(thing: Thing) -> Iterator[Problem]:
    for rule in [*(OF_RAY if thing.is_ray else []), *OF_EACH]:
        yield from rule(thing)
