"""The rules that a CRD writes in CEL (`x-kubernetes-validations`), as a jsonschema keyword.

Evaluated by cel-python. Kubernetes' own additions to CEL (its `quantity`, `url`, … libraries) are not there; no rule of
KubeRay's CRDs uses one, and a rule that cannot be evaluated counts as broken."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema.exceptions import ValidationError


def keyword(validator: Any, rules: list[dict[str, Any]], value: Any, schema: Any) -> Iterator[ValidationError]:
    """The rules that do not hold for `value`. Rules over `oldSelf` are for updates and do not apply."""
    for rule in rules:
        if "oldSelf" not in rule["rule"] and value is not None and not _holds(rule["rule"], value):
            yield ValidationError(rule.get("message") or f"failed rule: {rule['rule']}", validator_value=rule)


def _holds(rule: str, value: Any) -> bool:
    import celpy

    try:
        return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        return False


@cache
def _program(rule: str) -> Any:
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
