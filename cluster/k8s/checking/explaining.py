"""jsonschema's errors in words that name the fault and the remedy, and never the value: it may be a secret."""

from typing import Any

from cluster.k8s.checking.names import nearest

NAMES = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", dict: "an object", list: "a list"}


def explain(error: Any) -> str:
    """What one jsonschema.ValidationError says."""
    value, rule, schema = error.instance, error.validator_value, error.schema
    given = NAMES.get(type(value), "null")
    keyword = error.validator
    if keyword in ("anyOf", "oneOf"):  # in these schemas: an amount or a port
        return f"is {given}; write an integer, or a string in quotes"
    texts = {
        "type": lambda: f"is {given}; write {_wanted(rule)}",
        "enum": lambda: f"is none of the allowed values; write one of: {', '.join(map(str, rule))}",
        "const": lambda: f"must be {rule}",
        "required": lambda: _missing(value, rule),
        "additionalProperties": lambda: _unknown(value, schema),
        "minimum": lambda: f"is {value}, below {rule}",
        "maximum": lambda: f"is {value}, above {rule}",
        "minItems": lambda: f"has {len(value)} items; at least {rule} are needed",
        "minLength": lambda: "is too short" if rule > 1 else "is empty",
        "maxLength": lambda: f"is longer than {rule} characters",
        "pattern": lambda: f"does not have the form {rule}",
        "format": lambda: f"is no {rule}",
    }
    if keyword in texts:
        return texts[keyword]()
    return error.message if str(keyword).startswith("x-") else f"does not fit the schema ({keyword})"


def _wanted(types: Any) -> str:
    named = {"integer": "an integer", "object": "an object (a mapping)", "array": "a list"}
    wanted = [one for one in (types if isinstance(types, list) else [types]) if one != "null"]
    return " or ".join(named.get(one, f"a {one}") for one in wanted)


def _missing(value: Any, required: Any) -> str:
    return "lacks " + ", ".join(repr(name) for name in required if name not in value)


def _unknown(value: Any, schema: Any) -> str:
    known = list(schema.get("properties", {}))
    extra = [name for name in value if name not in known]
    return "; ".join(unknown(name, known) for name in extra)


def unknown(name: str, known: list[str]) -> str:
    """What is said of a field that a schema does not know; the API server drops it, or refuses it when asked to."""
    few = f"; known here: {', '.join(sorted(known))}" if len(known) <= 12 else ""
    return f"unknown field {name!r}{nearest(name, known)}{few}"
