"""How a vLLM engine is started, on a GPU or on CPU cores: the same settings for generation and for serving."""

import json
import os
from pathlib import Path
from typing import Any

CPU_BUNDLE = 0.5  # logical CPUs of one engine: on a small machine engines share the cores
GIB = 1 << 30


def has_gpu() -> bool:
    """Whether the Ray cluster of this session offers a GPU."""
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1


def at_once(wanted: int) -> int:
    """How many engines may be up together: as many as `wanted`, but on a GPU cluster one a GPU."""
    import ray

    return min(wanted, int(ray.cluster_resources()["GPU"])) if has_gpu() else wanted


def engine_kwargs(max_model_len: int, max_num_seqs: int, dtype: str, model: Path | None = None) -> dict[str, Any]:
    """Arguments of vLLM's engine. Lengths are in tokens; `dtype` "auto" is the checkpoint's own on a GPU
    and float32 on CPU. On CPU nothing is compiled (a user's machine may have no C++ compiler) and the
    KV cache gets a stated size, scaled to `model` where it is given: unstated, an engine takes a share of
    all memory and a second one may refuse to start."""
    common: dict[str, Any] = {"max_model_len": max_model_len, "max_num_seqs": max_num_seqs}
    if has_gpu():
        return common | {"dtype": dtype}
    space = kv_cache_bytes(model, max_model_len, max_num_seqs) if model else 128 << 20
    precise = "float32" if dtype == "auto" else dtype
    return common | {"dtype": precise, "enforce_eager": True, "kv_cache_memory_bytes": space}


def kv_cache_bytes(model: Path, max_model_len: int, max_num_seqs: int) -> int:
    """Room in bytes (fp32) for two sequences of full length, and for a quarter of the seats at full length;
    between 128 MiB and 4 GiB, but never less than two sequences need."""
    config = json.loads((model / "config.json").read_text())
    config = config.get("text_config", config)
    try:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        sequence = 2 * 4 * config["num_hidden_layers"] * heads * width * max_model_len
    except KeyError:  # an architecture with other names
        return GIB
    return max(2 * sequence, min(max(sequence * max_num_seqs // 4, 128 << 20), 4 * GIB))


def placement_group_config() -> dict[str, Any] | None:
    """Ray resources of one engine: None (a GPU each) on a GPU cluster, a share of a CPU without one."""
    return None if has_gpu() else {"bundles": [{"CPU": CPU_BUNDLE}]}


def env_vars(engines: int = 1) -> dict[str, str]:
    """Environment of an engine's processes, `engines` of which share a machine. No prompt is logged, nothing
    is reported home, and the hub is not asked: models are local directories.

    Left alone, vLLM on CPU keeps one core free and binds every engine to the others: on two cores all
    engines share one. So threads are not bound, and their number is stated."""
    quiet = {
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if has_gpu():
        return quiet
    threads = max(1, len(os.sched_getaffinity(0)) // engines)
    return quiet | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
