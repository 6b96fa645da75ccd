"""LoRA adapters beside a model: what its engine is told of them (docs.vllm.ai, "LoRA Adapters")."""

import json
from collections.abc import Iterable
from typing import Any

from cluster import copies, storage

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's kernels know
AT_ONCE = 4  # adapters in one batch


def rank(path: str) -> int:
    """The rank of the adapter in the directory `path`, rounded up to one that vLLM knows.

    Raises ValueError where there is no adapter in peft's format."""
    try:
        config = json.loads(storage.read(storage.join(path, "adapter_config.json")))
        stated = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no LoRA adapter as peft saves them (adapter_config.json with its rank r)") from error
    return next((known for known in RANKS if known >= stated), stated)


def engine_kwargs(paths: Iterable[str], seats: int = AT_ONCE) -> dict[str, Any]:
    """Arguments of vLLM's engine for adapters, of which `seats` may be in one batch; none for none."""
    ranks = [rank(path) for path in paths]
    return {"enable_lora": True, "max_lora_rank": max(ranks), "max_loras": min(seats, len(ranks))} if ranks else {}


def modules(adapters: dict[str, str]) -> Any:
    """`adapters` (name → directory) as vLLM's static modules: known by name from the engine's start on."""
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath

    return [LoRAModulePath(name, str(copies.place(path))) for name, path in adapters.items()]
