"""No secret stands in a manifest: they go to a Secret that is made elsewhere. No message here shows a value."""

import re
from collections.abc import Iterator
from typing import Any

from cluster import secrets
from cluster.k8s.checking.finding import Content, Problem, Thing

RULES = {
    "secret-env": "a variable that is called a key, token or password takes its value from a Secret",
    "secret-value": "nothing in a manifest looks like a key, a token, a private key or a URL with a password",
    "secret-object": "a Secret in the manifests is a template: its values are empty or placeholders",
}
INSTEAD = "write valueFrom.secretKeyRef"
# What stands for a value that somebody fills in later: <token>, ${TOKEN}, CHANGEME, xxx.
PLACEHOLDER = re.compile(
    r"\s*|<[^<>]*>|\$\{[^{}]*\}|\$\([^()]*\)|\{\{.*\}\}|(change|replace)[-_ ]?(me|this).*|x+|\.\.\.|…", re.I
)
PATH = re.compile(r"(?:/[\w.-]+){2,}")  # RAY_TLS_SERVER_KEY names a file
EMBEDDED = ("serveConfigV2", "runtimeEnvYAML")  # fields that hold YAML


def problems(thing: Thing) -> Iterator[Problem]:
    if thing.kind == "Secret" and not thing.group:
        yield from _secret(thing.content)
        return
    seen: set[str] = set()
    for path, why in (*_named(thing.content, ""), *_embedded(thing.content, "")):
        seen.add(path)
        yield Problem("secret-env", path, f"{why}; {INSTEAD}")
    for path, what in _values(thing.content, ""):
        if path not in seen:
            yield Problem("secret-value", path, f"looks like {what}; put it into a Secret and refer to that")


def _secret(content: Content) -> Iterator[Problem]:
    for field in ("data", "stringData"):
        values = content.get(field)
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and not PLACEHOLDER.fullmatch(value):
                message = "is a value, and this file goes where many read it; leave it empty and fill it in elsewhere"
                yield Problem("secret-object", f"{field}.{key}", message)


def _named(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Variables with a name that says secret and a value that is written out; data of ConfigMaps likewise."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            if isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("value"), str):
                literal = _is_literal(one["value"])
                if path.endswith("env") and literal and secrets.named(one["name"]):
                    yield f"{path}[{number}].value", f"{one['name']} is a secret by its name"
            yield from _named(one, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            below = f"{path}.{key}" if path else key
            literal = isinstance(one, str) and _is_literal(one)
            if path == "data" and literal and secrets.named(key):
                yield below, "is a secret by its name"
            yield from _named(one, below)


def _is_literal(value: str) -> bool:
    return not PLACEHOLDER.fullmatch(value) and not PATH.fullmatch(value)


def _embedded(value: Any, path: str) -> Iterator[tuple[str, str]]:
    from cluster.k8s.checking.reading import documents

    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _embedded(one, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            below = f"{path}.{key}" if path else key
            if key not in EMBEDDED or not isinstance(one, str):
                yield from _embedded(one, below)
                continue
            try:
                found = list(documents(one, key))
            except ValueError:
                continue  # another rule says so
            for place, what in secrets.found(found[0] if found else {}):
                if what == "a secret by its name":
                    yield f"{below}.{place}", "is a secret by its name"


def _values(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            if what := secrets.kind(key):  # the key itself may be one; the path must not show it
                yield path or "(top)", what
            else:
                yield from _values(one, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _values(one, f"{path}[{number}]")
    elif isinstance(value, str) and (what := secrets.kind(value)):
        yield path, what
