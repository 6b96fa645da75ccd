"""Model cards: what a checkpoint is made of, by what, and under whose licence."""

import importlib.metadata
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LICENCE_FIELDS = ("license", "license_name", "license_link")
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def card(title: str, base: str, facts: Mapping[str, Any], licence_text: str, library: str = "transformers") -> str:
    """The README.md of a checkpoint. `base`: the model it comes from; `facts`: what was done, one row
    each; `licence_text`: the base's licence fields as `licence` reads them, or "" where it names none;
    `library`: what loads it, peft for an adapter."""
    about = [f"base_model: {json.dumps(base)}", f"library_name: {library}", "tags:", "- regrow"]
    terms = (
        f"This model is derived from {base} and stays under its terms:\n\n```yaml\n{licence_text}\n```"
        if licence_text
        else f"{base} names no licence in its card; its terms, whatever they are, hold for this model too."
    )
    return _page(title, f"Made from {base} by regrow {_version()}.", about, facts, licence_text, terms)


def dataset_card(title: str, model: str, facts: Mapping[str, Any], licence_text: str, folder: str) -> str:
    """The README.md of generated rows in `folder`/*.parquet; arguments as `card` has them, `model` wrote the rows."""
    about = [
        "configs:",
        "- config_name: default",
        f"  data_files: {folder}/*.parquet",
        "tags:",
        "- regrow",
        "- synthetic",
    ]
    terms = (
        f"The texts were written by {model}, whose card names these terms:\n\n```yaml\n{licence_text}\n```"
        if licence_text
        else f"The texts were written by {model}, whose card names no licence; its terms, whatever they are, hold."
    )
    return _page(title, f"Written by {model}, through regrow {_version()}.", about, facts, licence_text, terms)


def licence(model: Path) -> str:
    """The licence fields of the card of `model`, as lines of YAML; "" where it has no card or names none."""
    readme = model / "README.md"
    if not readme.exists():
        return ""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    lines = front[1].splitlines() if front else []
    wanted = re.compile(rf"({'|'.join(LICENCE_FIELDS)}):\s*\S")
    return "\n".join(line.strip() for line in lines if wanted.match(line))


def copy_licences(source: Path, target: Path) -> None:
    """Copy the licence and notice files of one model directory into another: most licences ask for it."""
    for pattern in LICENCE_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def _page(title: str, made: str, about: list[str], facts: Mapping[str, Any], licence_text: str, terms: str) -> str:
    """A card: front matter of the licence's fields and `about`, how it was `made`, a table of `facts`, the `terms`."""
    front = "\n".join(["---", *licence_text.splitlines(), *about, "---"])
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())
    return f"{front}\n\n# {title}\n\n{made}\n\n| what | value |\n|---|---|\n{rows}\n\n## Licence\n\n{terms}\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    elif isinstance(value, list | tuple):
        value = ", ".join(str(part) for part in value) or "none"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _version() -> str:
    try:
        return importlib.metadata.version("regrow")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(version unknown)"
