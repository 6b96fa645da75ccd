"""What `regrow serve` is asked for, a run's models or any directories, as the settings of one endpoint."""

from pathlib import Path
from typing import Any

from cluster import storage
from pipelines import models
from pipelines.recipe import Recipe
from serving import engine, routed
from serving.settings import Adapter, Bounds, Endpoint

LONGEST = 8192  # tokens, where nobody says how long prompt and answer may be: the room for them is taken at the start


def of_run(recipe: Recipe, paths: dict[str, Path], **given: Any) -> Endpoint:
    """The endpoint for models of a run ({name: checkpoint, or routed model}) as its recipe says, but for what is
    `given`. Raises ValueError for a routed model whose parts do not fit."""
    lengths = {name: getattr(recipe.teacher, name) for name in ("max_model_len", "dtype", "tensor_parallel")}
    bounds = recipe.serve.model_dump(include=set(Bounds.model_fields))
    named = {name: str(path.resolve()) for name, path in paths.items()}
    return routed.expanded(Endpoint.model_validate({"models": named, **lengths, **bounds, **given}))


def of_models(words: list[str], **given: Any) -> Endpoint:
    """The endpoint for models that are named `NAME=WHERE` or `WHERE`: a Hugging Face checkpoint directory or that of a
    routed model, an id on the hub, `tiny`, or an s3:// URL. Raises ValueError."""
    named: dict[str, str] = {}
    for word in words:
        name, where = _named(word)
        if name in named:
            raise ValueError(f"two models are called {name!r}; say NAME=DIRECTORY for one of them")
        named[name] = where if storage.on_s3(where) else str(_resolved(where).resolve())
    every, chosen = routed.spread(named)
    given = {"max_model_len": min([LONGEST, *map(_length, every.values())])} | given
    return Endpoint.model_validate({"models": every, "routed": chosen, **given})


def _resolved(where: str) -> Path:
    """The local directory of a model. Raises ValueError as `models.resolve`."""
    path = Path(where).expanduser()
    return path if routed.is_routed(str(path)) else models.resolve(where)


def _named(word: str) -> tuple[str, str]:
    """The name and place of `NAME=WHERE` or `WHERE`, which may have a `=` of its own (`s3://b/step=100`)."""
    name, sign, where = word.partition("=")
    if sign and "://" not in name and not Path(word).exists():
        return name, where
    return word.rstrip("/").rpartition("/")[2].partition("@")[0], word


def adapters(words: list[str], served: list[str]) -> dict[str, Adapter]:
    """Adapters that are named `NAME=DIRECTORY` or, where several models are `served`, `NAME=DIRECTORY@MODEL`.

    Raises ValueError."""
    found = {}
    for word in words:
        name, sign, rest = word.partition("=")
        path, _, model = rest.rpartition("@") if rest.rpartition("@")[2] in served else (rest, "", served[0])
        if not (sign and name and path):
            raise ValueError(f"--adapter {word!r}: say NAME=DIRECTORY, or NAME=DIRECTORY@MODEL")
        if len(served) > 1 and path == rest:
            raise ValueError(f"--adapter {word!r}: for which model? say {word}@MODEL, one of {', '.join(served)}")
        if name in found:
            raise ValueError(f"--adapter: two are called {name!r}")
        found[name] = Adapter(model=model, path=path if storage.on_s3(path) else str(Path(path).expanduser().resolve()))
    return found


def growing(words: list[str], served: list[str]) -> dict[str, str]:
    """Folders of adapters on S3, `s3://…` for the only model or `MODEL=s3://…`. Raises ValueError."""
    found = {}
    for word in words:
        model, sign, url = word.partition("=") if not storage.on_s3(word) else (served[0], "=", word)
        if not sign or not storage.on_s3(url) or (len(served) > 1 and url == word):
            raise ValueError(f"--adapters-at {word!r}: say MODEL=s3://bucket/folder, MODEL one of {', '.join(served)}")
        if model in found:
            raise ValueError(f"--adapters-at: model {model!r} has two folders; put their adapters into one")
        found[model] = url.rstrip("/")
    return found


def _length(where: str) -> int:
    """The longest text a model can read, in tokens, as its config.json says."""
    try:
        config = engine.text_config(where)
    except FileNotFoundError:
        raise ValueError(f"{where}: no config.json there; give a Hugging Face checkpoint directory") from None
    stated = config.get("max_position_embeddings")
    return stated if isinstance(stated, int) and stated > 0 else LONGEST
