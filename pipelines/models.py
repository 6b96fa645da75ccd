"""Where a model comes from: the packaged tiny teacher, a directory, or a hub id with optional revision."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import cards

RECIPES = Path(__file__).parent / "recipes"
TINY = RECIPES / "tiny_teacher"


class Described(NamedTuple):
    """A model's config.json, where it was read, and the folder that holds it (None: not on this machine)."""

    config: dict[str, Any]
    where: str
    folder: Path | None


def resolve(model: str) -> Path:
    """The local directory of `model`, fetched from the hub where it is an id (`org/name@revision`).

    Raises ValueError where a directory is missing, holds no model, or has no tokenizer."""
    if model == "tiny":
        return TINY
    path = Path(model).expanduser()
    if on_hub(model):
        return _from_hub(model)
    if not path.is_dir():
        raise ValueError(f"model directory {model!r} does not exist; give a directory, a hub id (org/name) or 'tiny'")
    if not (path / "config.json").exists():
        raise ValueError(f"model directory {model!r} has no config.json; give a Hugging Face checkpoint directory")
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ValueError(f"model directory {model!r} has no tokenizer; save one beside it (tokenizer.save_pretrained)")
    return path


def describe(model: str) -> Described:
    """The configuration of `model` without its weights: of a directory or the hub's local cache, else as
    packaged under recipes/architectures by hub id, else from the hub, its config.json alone.

    Raises ValueError where none of them has it."""
    if not on_hub(model):
        folder = resolve(model)
        return Described(configuration(folder), f"{folder.name}/config.json", folder)
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = model.partition("@")
    cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    if isinstance(cached, str):
        return Described(_json(Path(cached)), "the hub's local cache", Path(cached).parent)
    for file in sorted((RECIPES / "architectures").glob("*.json")):
        config = _json(file)
        if config["_name_or_path"].lower() == name.lower():
            return Described(config, f"packaged architectures/{file.name}", None)
    return Described(_json(_config_from_hub(model)), "the hub", None)


def on_hub(model: str) -> bool:
    """Whether `model` is an id on the hub, not a directory of this machine."""
    local = model == "tiny" or model.startswith(("/", ".", "~")) or Path(model).exists()
    return not local and model.count("/") == 1


def readable(folder: Path) -> None:
    """Give the weights in `folder` the mode of the files beside them: safetensors writes them for their
    owner alone, and on a shared volume workers and engines may run as another user."""
    for weights in folder.glob("*.safetensors"):
        beside = next(file for file in folder.glob("*.json"))
        weights.chmod(beside.stat().st_mode)


def _looks_local(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or Path(model).expanduser().exists() or model.count("/") != 1


def configuration(folder: Path) -> dict[str, Any]:
    """The content of a model directory's config.json. Raises ValueError where there is none, or no object in it."""
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"teacher.model: no config.json in {folder}; give a Hugging Face checkpoint directory")
    return _json(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"teacher.model: {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"teacher.model: {file} is not a JSON object")
    return content


def _config_from_hub(model: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = model.partition("@")
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or None))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"model {model!r} is no directory and no packaged architecture, and its config.json could not be had "
            f"from the hub: {why}"
        ) from error


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = model.partition("@")
    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md", *cards.LICENCE_FILES]
    twice = ["consolidated*", "original/*"]  # the same weights in the publisher's own layout (Mistral, Llama)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=twice))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"model {model!r} is no directory and could not be had from the hub: {why}") from error
