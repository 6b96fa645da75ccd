"""LoRA adapters beside a model (docs.vllm.ai, "LoRA Adapters"): those that its engine knows from its start on, and
those that it loads from a folder on S3 when somebody asks for them."""

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any, get_args

from cluster import copies, folders, storage
from serving.settings import Rank

AT_ONCE = 4  # adapters in one batch
LOADED = 64  # adapters from S3 that an engine counts as loaded; Serve asks it for these first
CONFIG = "adapter_config.json"
NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a directory on S3 that holds an adapter


def rank(path: str) -> int:
    """The rank of the adapter in the directory `path`, rounded up to one that vLLM knows.

    Raises ValueError where there is no adapter in peft's format."""
    try:
        config = json.loads(storage.read(storage.join(path, CONFIG)))
        stated = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no LoRA adapter as peft saves them ({CONFIG} with its rank r)") from error
    return next((known for known in get_args(Rank) if known >= stated), stated)


def engine_kwargs(paths: Iterable[str], loaded: int = 0) -> dict[str, Any]:
    """Arguments of vLLM's engine for the adapters at `paths`, and for others that are loaded later, of a rank up to
    `loaded` (0: none are); nothing where there are none at all."""
    ranks = [rank(path) for path in paths]
    seats = AT_ONCE if loaded else min(AT_ONCE, len(ranks))
    return {"enable_lora": True, "max_lora_rank": max([loaded, *ranks]), "max_loras": seats} if seats else {}


def modules(adapters: dict[str, str]) -> Any:
    """`adapters` (name → directory) as vLLM's static modules: known by name from the engine's start on."""
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath

    return [LoRAModulePath(name, str(copies.place(path))) for name, path in adapters.items()]


def there(url: str) -> list[str]:
    """The names of the adapters in the folder `url` on S3. Raises OSError where it does not answer."""
    return [one.name for one in folders.below(url, CONFIG)[0] if one.whole and NAME.fullmatch(one.name)]


def is_there(url: str, name: str) -> bool:
    """Whether the folder `url` on S3 has an adapter of that name. Raises OSError where it does not answer."""
    return bool(NAME.fullmatch(name)) and storage.exists(storage.join(url, name, CONFIG))


class Loader:
    """What Ray's server loads an adapter `model:name` with, in place of its own, which has one place for the adapters
    of one name of all models."""

    def __init__(self, download_timeout_s: float | None = None, max_tries: int = 1) -> None:
        self.seconds = download_timeout_s  # `cluster.s3` tries again on its own

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> Any:
        """Ray's DiskMultiplexConfig of the adapter, whose files are here then. Raises ValueError where it is none that
        this engine can load, OSError where S3 does not answer."""
        from ray.llm._internal.common.models import global_id_manager
        from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig

        name = lora_model_id.partition(":")[2]
        url = storage.join(llm_config.lora_config.dynamic_lora_loading_path, name)
        async with asyncio.timeout(self.seconds):
            here = await asyncio.to_thread(copies.local, url)
        most = llm_config.engine_kwargs["max_lora_rank"]
        if (found := rank(str(here))) > most:
            raise ValueError(f"the adapter {name} has the rank {found}; this endpoint takes up to {most}")
        return DiskMultiplexConfig(
            model_id=lora_model_id, max_total_tokens=None, local_path=str(here),
            lora_assigned_int_id=global_id_manager.next(),
        )  # fmt: skip
