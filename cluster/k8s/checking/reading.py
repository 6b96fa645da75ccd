"""Reads a set of manifests: YAML as `kubectl` reads it, but strictly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.k8s.checking.finding import Content

LARGEST = 16 << 20  # bytes of one file
NODES = 500_000  # of one document, aliases written out: a few lines of aliases can stand for more than memory holds
KUSTOMIZATION = ("kustomization.yaml", "kustomization.yml", "Kustomization")
# Fields of a kustomization that name files which are no objects of their own: parts of objects, values, scripts.
PARTS = (
    "patches patchesStrategicMerge patchesJson6902 configMapGenerator secretGenerator replacements configurations"
).split()


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values alone, and a timestamp stays the text that it is, as in kubectl."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)  # a plain `=` is a string


def read(place: str) -> list[tuple[str, Content]]:
    """(file, object) of every object in `place`: one file, or all `*.yaml` and `*.yml` below a directory. A `List` is
    read as its items. What a kustomization names as patches or generators' input is no object and is left out.

    Raises ValueError, with file and line, for what is missing, too large, no YAML, no mapping, or has a key twice."""
    root = Path(place)
    if not root.exists():
        raise ValueError(f"{place} does not exist; give a directory with manifests, or one file")
    files = [root] if root.is_file() else _files(root)
    kustomizations = {file: _objects(file) for file in files if file.name in KUSTOMIZATION}
    parts = {part for file, found in kustomizations.items() for part in _parts(file, found)}
    objects: list[tuple[str, Content]] = []
    for file in files:
        if file.resolve() in parts:
            continue
        for content in kustomizations.get(file) or _objects(file):
            if file in kustomizations:
                content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"} | content
            listed = content.get("kind") == "List" and isinstance(content.get("items"), list)
            objects += [(str(file), one) for one in (content["items"] if listed else [content])]
    if not objects:
        raise ValueError(f"{place}: no manifest there; give a directory with *.yaml files, or one file")
    for name, one in objects:
        if not isinstance(one, dict):
            raise ValueError(f"{name}: an item of a List is no object; write a mapping with apiVersion and kind")
    return objects


def _files(root: Path) -> list[Path]:
    named = (p for p in root.rglob("*") if p.suffix in (".yaml", ".yml") or p.name in KUSTOMIZATION)
    return sorted(
        p for p in named if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )


def _parts(file: Path, contents: list[Content]) -> Iterator[Path]:
    for content in contents:
        for field in PARTS:
            for text in _texts(content.get(field)):
                name = text.partition("=")[2] or text  # files: [key=path]
                if "\n" not in name and len(name) < 1000 and (file.parent / name).is_file():
                    yield (file.parent / name).resolve()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _objects(file: Path) -> list[Content]:
    size = file.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{file}: {size} bytes; a file of manifests may have {LARGEST}: split it")
    try:
        return list(documents(file.read_bytes().decode("utf8"), str(file)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file (byte {error.start} is not UTF-8); a manifest is YAML") from error


def documents(text: str, file: str) -> Iterator[Content]:
    """The mappings in `text`, one a document; empty documents are passed over. Raises ValueError as `read` does."""
    loader = Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            where = f"{file}, line {node.start_mark.line + 1}"
            if _size(node, file) > NODES:
                raise ValueError(f"{where}: the document's aliases stand for over {NODES} values; write fewer")
            content = loader.construct_document(node)
            if content is None:
                continue
            if not isinstance(content, dict):
                raise ValueError(f"{where}: not an object but a {type(content).__name__}; a manifest is a mapping")
            yield content
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{file}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _size(top: yaml.Node, file: str) -> int:
    """How many values `top` stands for; all its keys are made text. Raises ValueError for a key that is there twice,
    and for an alias to what it is itself in."""
    known: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in known:
            if not known[id(node)]:
                raise ValueError(f"{file}, line {node.start_mark.line + 1}: an alias to the value that it is part of")
            return known[id(node)]
        known[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        first = seen[key.value]
                        raise ValueError(f"{file}, line {line}: {key.value!r} is there already, in line {first}")
                    seen[key.value] = line
                    key.tag = "tag:yaml.org,2002:str"  # as JSON has it: `1: a` and `true: a` have keys that are text
                total += size(key) + size(value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(one) for one in node.value)
        known[id(node)] = total
        return total

    try:
        return size(top)
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply to be a manifest") from None
