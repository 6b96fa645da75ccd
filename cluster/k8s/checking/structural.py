"""A custom resource against its CRD's schema, as the API server does it on create: nulls dropped, defaults put in, then
every rule, strictly (kubernetes.io, "Extend the Kubernetes API with CustomResourceDefinitions").

Rules that compare with an old object do not apply to a new one."""

import gzip
import json
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from functools import cache
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

from cluster.k8s.checking import cel
from cluster.k8s.checking.explaining import explain, unknown
from cluster.k8s.checking.finding import Content, Problem, dotted
from cluster.k8s.checking.vendor import CRDS

RULE_OF = {"x-kubernetes-validations": "schema-rule"}  # any other keyword's rule is "schema"


@cache
def schemas(kind: str) -> dict[str, Any]:
    """Version → schema, of one of KubeRay's kinds. Raises FileNotFoundError for another kind."""
    return json.loads(gzip.decompress((CRDS / f"{kind.lower()}.json.gz").read_bytes()))


def known() -> list[str]:
    """The kinds that `schemas` has, in lower case."""
    return sorted(path.name.removesuffix(".json.gz") for path in CRDS.glob("*.json.gz"))


def defaulted(content: Content, schema: Any) -> Content:
    """A copy of `content` with nulls dropped where none may be, and the schema's defaults put in."""
    return _default(_pruned(deepcopy(content), schema), schema)


def _pruned(value: Any, schema: Any) -> Any:
    if isinstance(value, dict):
        for name in list(value):
            part = _part(schema, name)
            if value[name] is None and part is not None and not part.get("nullable") and "default" not in part:
                del value[name]
            elif part is not None:
                _pruned(value[name], part)
    elif isinstance(value, list):
        for one in value:
            _pruned(one, schema.get("items") or {})
    return value


def _default(value: Any, schema: Any) -> Any:
    if isinstance(value, dict):
        for name, part in (schema.get("properties") or {}).items():
            if "default" in part and (name not in value or (value[name] is None and not part.get("nullable"))):
                value[name] = deepcopy(part["default"])
        for name in value:
            _default(value[name], _part(schema, name) or {})
    elif isinstance(value, list):
        for one in value:
            _default(one, schema.get("items") or {})
    return value


def _part(schema: Any, name: str) -> Any:
    """The schema of field `name`; None where the schema does not know it."""
    found = (schema.get("properties") or {}).get(name)
    other = schema.get("additionalProperties")
    return found if found is not None else other if isinstance(other, dict) else None


def problems(content: Content, schema: Any) -> Iterator[Problem]:
    """What is wrong with `content`, defaults put in already. Metadata is not looked at."""
    parts = {name: part for name, part in schema["properties"].items() if name != "metadata"}
    rest = {name: value for name, value in content.items() if name != "metadata"}
    for error in _validator()(schema | {"properties": parts}, format_checker=_formats()).iter_errors(rest):
        yield Problem(RULE_OF.get(str(error.validator), "schema"), dotted(error.absolute_path), explain(error))


@cache
def _validator() -> Any:
    keywords = {
        "type": _type,
        "x-kubernetes-list-map-keys": _map_keys,
        "x-kubernetes-list-type": _set,
        "x-kubernetes-validations": cel.keyword,
    }
    return jsonschema.validators.extend(jsonschema.Draft202012Validator, keywords)


def _type(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if value is None and schema.get("nullable"):
        return
    if not validator.is_type(value, wanted):
        yield ValidationError("", validator="type", validator_value=wanted, instance=value, schema=schema)
    elif wanted == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        parts = schema.get("properties") or {}
        if schema.get("additionalProperties") in (None, False):
            for name in value:
                if name not in parts:
                    yield ValidationError(unknown(name, list(parts)), validator="x-strict", path=[name])


def _map_keys(validator: Any, keys: list[str], value: Any, schema: Any) -> Iterator[ValidationError]:
    seen = set()
    for number, one in enumerate(value if isinstance(value, list) else []):
        if isinstance(one, dict):
            key = json.dumps([one.get(name) for name in keys], default=str)
            if key in seen:
                yield ValidationError(f"has the same {' and '.join(keys)} as an item before it", path=[number])
            seen.add(key)


def _set(validator: Any, kind: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if kind == "set" and isinstance(value, list):
        texts = [json.dumps(one, sort_keys=True, default=str) for one in value]
        for number, text in enumerate(texts):
            if text in texts[:number]:
                yield ValidationError("is there twice", path=[number])


@cache
def _formats() -> Any:
    checker = jsonschema.FormatChecker(formats=())
    for bits in (32, 64):
        check = lambda value, most=2 ** (bits - 1): not isinstance(value, int) or -most <= value < most  # noqa: E731
        checker.checks(f"int{bits}")(check)
    checker.checks("date-time", raises=ValueError)(lambda value: value is None or bool(datetime.fromisoformat(value)))
    return checker
