"""A checkpoint's weights, whole or not at all: what transformers would quietly make up is an error here."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.screen import say


def load(folder: Path, dtype: Any, **where: Any) -> Any:
    """The causal language model in `folder`, every parameter of it read from its safetensors files.

    transformers gives parameters that the files lack random values, and a model with such a block runs.
    Raises ValueError for torn or missing files, parameters that are missing or of another shape, and a
    config.json that describes no causal language model."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, config=check(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False,
        local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True, **where,
    )  # fmt: skip
    model, found = loaded
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"teacher.model: {name} in {folder} is {_shape(there)}, but config.json there makes it {_shape(wanted)}; "
            "weights and config.json are of different models"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"teacher.model: the weights in {folder} lack {_some(missing)}; weights and config.json are of different "
            "models, or the copy is not complete"
        )
    if spare := sorted(found["unexpected_keys"]):
        _warn(f"warning: {folder}: config.json there describes a model without {_some(spare)}; these are not used")
    return model


def check(folder: Path) -> Any:
    """The configuration of the causal language model in `folder`, once its files are seen to be whole.

    Raises ValueError as `load` does, for all that can be told without reading the weights."""
    _check_files(folder)
    return _config(folder)


def _check_files(folder: Path) -> None:
    """Raise ValueError where a safetensors file of the checkpoint in `folder` is missing or torn. Reads headers."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"teacher.model: {index} is no index of weights: {error}") from error
    else:
        names = ["model.safetensors"]
    for name in names:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"teacher.model: {file} is missing; give a directory with all weights as safetensors")
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"teacher.model: {file} is torn or no safetensors file ({error}); copy it anew") from error


def _config(folder: Path) -> Any:
    """The configuration in `folder`, of a causal language model that transformers knows."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, StrictDataclassError) as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"teacher.model: {folder / 'config.json'}: {said}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"teacher.model: {folder / 'config.json'} describes a {config.model_type!r} model, which is no causal "
            "(decoder-only) language model; give a Llama, Qwen, Mistral or the like"
        )
    return config


@cache
def _warn(said: str) -> None:
    """Once, however often a checkpoint is loaded."""
    say(said)


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
