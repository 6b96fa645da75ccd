"""How a vLLM engine is started, on GPUs or on CPU cores: the same settings for generation and for serving.

Where a function takes `gpu`, None asks the Ray session; True or False answers for a cluster that is not there."""

import json
import os
from pathlib import Path
from typing import Any

from cluster import gpus, storage
from serving import orphans

CPU_BUNDLE = 0.5  # logical CPUs of one engine: on a small machine engines share the cores
GIB = 1 << 30
# vLLM's executor whose model runs in the engine's process. By default it is another one on CPU, for which the engine
# waits turning in circles: on two cores that costs a quarter of the tokens (docs/benchmarks.md). The reason of the
# default, that threads could not be bound otherwise, does not hold here: `env_vars` states their number instead.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def has_gpu() -> bool:
    """Whether the Ray cluster of this session offers a GPU."""
    import ray

    return ray.is_initialized() and gpus.there() > 0


def at_once(wanted: int, tensor_parallel: int = 1) -> int:
    """How many engines may be up together: as many as `wanted`, but on a GPU cluster no more than its GPUs
    carry. Raises RuntimeError where they do not carry one."""
    if not has_gpu():
        return wanted
    there = gpus.there()
    if there < tensor_parallel:
        raise RuntimeError(f"teacher.tensor_parallel = {tensor_parallel}, but the cluster has {there} GPU(s)")
    return min(wanted, there // tensor_parallel)


def check_room(engines: int, tensor_parallel: int) -> None:
    """Raise RuntimeError where so many engines are to be up all the time, but the cluster's GPUs do not carry them."""
    there = gpus.there()
    if 0 < there < engines * tensor_parallel:
        raise RuntimeError(
            f"{engines} engines of {tensor_parallel} GPU(s) each, but the cluster has {there} GPU(s); lower "
            "--min-replicas, or serve fewer models with --only"
        )


def check_split(config: dict[str, Any], tensor_parallel: int) -> None:
    """Raise ValueError where vLLM cannot split a model with that config.json over so many GPUs: query heads are
    shared out evenly, and key heads either that, or copied evenly."""
    heads = config.get("num_attention_heads", tensor_parallel)
    keys = config.get("num_key_value_heads") or heads
    if heads % tensor_parallel or (keys % tensor_parallel and tensor_parallel % keys):
        raise ValueError(
            f"teacher.tensor_parallel = {tensor_parallel}, but the teacher's {heads} attention heads ({keys} of keys) "
            "cannot be shared out evenly; choose a divisor, mostly 1, 2, 4 or 8"
        )


def engine_kwargs(
    max_model_len: int,
    max_num_seqs: int,
    dtype: str,
    model: Path | str | None = None,
    tensor_parallel: int = 1,
    gpu: bool | None = None,
) -> dict[str, Any]:
    """Arguments of vLLM's engine. Lengths are in tokens; `dtype` "auto" is the checkpoint's own on a GPU
    and float32 on CPU. On CPU nothing is compiled (a user's machine may have no C++ compiler) and the
    KV cache gets a stated size, scaled to `model` where it is given: unstated, an engine takes a share of
    all memory and a second one may refuse to start. `tensor_parallel` GPUs share the weights; CPUs never do."""
    common: dict[str, Any] = {"max_model_len": max_model_len, "max_num_seqs": max_num_seqs}
    if has_gpu() if gpu is None else gpu:
        return common | {"dtype": dtype, "tensor_parallel_size": tensor_parallel}
    space = kv_cache_bytes(model, max_model_len, max_num_seqs) if model else 128 << 20
    precise = "float32" if dtype == "auto" else dtype
    here = {"enforce_eager": True, "kv_cache_memory_bytes": space, "distributed_executor_backend": ONE_PROCESS}
    return common | {"dtype": precise} | here


def text_config(model: str) -> dict[str, Any]:
    """What config.json in the directory or s3:// URL `model` says of the part that reads and writes text.

    Raises FileNotFoundError, ValueError where it is no JSON object."""
    file = storage.join(model, "config.json")
    try:
        config = json.loads(storage.read(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object; give a Hugging Face checkpoint directory")
    found: dict[str, Any] = config.get("text_config") or config
    return found


def kv_cache_bytes(model: Path | str, max_model_len: int, max_num_seqs: int) -> int:
    """Room in bytes (fp32) for two sequences of full length, and for a quarter of the seats at full length;
    between 128 MiB and 4 GiB, but never less than two sequences need."""
    config = text_config(str(model))
    try:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        sequence = 2 * 4 * config["num_hidden_layers"] * heads * width * max_model_len
    except (KeyError, TypeError, ZeroDivisionError):  # an architecture with other names, or other values
        return GIB
    return max(2 * sequence, min(max(sequence * max_num_seqs // 4, 128 << 20), 4 * GIB))


def placement_group_config(gpu: bool | None = None) -> dict[str, Any] | None:
    """Ray resources of one engine: None (a GPU for each part of it) on a GPU cluster, a share of a CPU without one."""
    return None if (has_gpu() if gpu is None else gpu) else {"bundles": [{"CPU": CPU_BUNDLE}]}


def env_vars(engines: int = 1, gpu: bool | None = None, threads: int = 0) -> dict[str, str]:
    """Environment of an engine's processes, `engines` of which share a machine. No prompt is logged, nothing
    is reported home, and the hub is not asked: models are local directories. `threads` of an engine on CPU; 0: one for
    each core.

    Left alone, vLLM on CPU keeps one core free and binds every engine to the others: on two cores all
    engines share one. So threads are not bound, and their number is stated."""
    quiet = {
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        orphans.ASKED: "1",
    }
    if has_gpu() if gpu is None else gpu:
        return quiet
    threads = threads or max(1, len(os.sched_getaffinity(0)) // engines)
    return quiet | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
