"""A recipe printed back as TOML, every field with its value and its one-line description."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipelines.recipe import Recipe


def render(recipe: Recipe, notes: Mapping[str, str] | None = None) -> str:
    """`recipe` as a commented TOML file that `regrow run` reads back to the same recipe. `notes`
    (`section.field` → text) are comments above the fields they speak of."""
    lines: list[str] = []
    nested: list[tuple[str, Any]] = []
    for name, value in recipe:
        if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
            nested.append((name, value))
        elif value != ():
            lines += _field(recipe, name, value, (notes or {}).get(name))
    for name, value in nested:
        for entry in value if isinstance(value, tuple) else [value]:
            lines += ["", f"[[{name}]]" if isinstance(value, tuple) else f"[{name}]"]
            inner = [(key, part) for key, part in entry if isinstance(part, BaseModel)]
            for key, field in entry:
                if not isinstance(field, BaseModel):
                    lines += _field(entry, key, field, (notes or {}).get(f"{name}.{key}"))
            for key, part in inner:  # of the entry above it
                lines += ["", f"[{name}.{key}]"]
                lines += [line for field, found in part for line in _field(part, field, found, None)]
    return "\n".join(lines)


def _field(section: BaseModel, name: str, value: Any, note: str | None) -> list[str]:
    about = type(section).model_fields[name].description
    # TOML has no null: a field without a value is shown as a comment.
    shown = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
    said = [f"# chosen: {' '.join(note.split())}"] if note else []
    return [*said, f"{shown:40} # {about}"]


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
