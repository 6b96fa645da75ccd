"""Where a model comes from: the packaged tiny teacher, a directory, or a hub id with optional revision."""

from pathlib import Path

TINY = Path(__file__).parent / "recipes" / "tiny_teacher"


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


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = model.partition("@")
    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "LICENSE*", "README.md"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"model {model!r} is no directory and could not be had from the hub: {why}") from error
