"""How long GPUs work on a stage: FLOPs over what a GPU reaches, bytes over what its memory delivers. Pure arithmetic.

A token read costs 2·N FLOPs, a token trained on 6·N (Kaplan et al., arXiv 2001.08361, section 2.1), N the
parameters it is multiplied with; attention's own FLOPs (1 to 2 % at these lengths) are left out. Recomputed
activations add a forward pass, 2·N; frozen weights spare their own gradient, 2·N, and LoRA's is next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.gpus import Gpu, flops_per_token
from pipelines.planning.architecture import Architecture
from pipelines.planning.assumptions import Assumptions
from pipelines.planning.lm_sizes import SIZES, Size
from pipelines.recipe import Student


@dataclass(frozen=True)
class Work:
    """One piece of work. `tokens` by what is done with them; `gpus` held while it lasts; `seconds` None where
    no GPU is named."""

    stage: str
    what: str
    tokens: dict[str, float]
    gpus: int
    seconds: float | None

    @property
    def gpu_hours(self) -> float | None:
        """GPUs times hours."""
        return None if self.seconds is None else self.gpus * self.seconds / 3600

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        hours = None if self.seconds is None else round(self.seconds / 3600, 4)
        used = None if self.gpu_hours is None else round(self.gpu_hours, 4)
        said = {"stage": self.stage, "what": self.what, "tokens": {k: round(v) for k, v in self.tokens.items()}}
        return said | {"gpus": self.gpus, "hours": hours, "gpu_hours": used}


@dataclass(frozen=True)
class Engine:
    """A vLLM engine as a plan sees it: the model, the GPUs it is split over, the seats, and the bytes that its
    KV cache may take on each GPU. `width`: bytes a weight and a cached number."""

    model: Architecture
    layers: int
    width: int
    gpu: Gpu
    tensor_parallel: int
    seats: int
    room: float
    assumed: Assumptions

    @property
    def share(self) -> float:
        """How many GPUs' speed the engine has."""
        efficiency = self.assumed.tensor_parallel_efficiency if self.tensor_parallel > 1 else 1.0
        return self.tensor_parallel * efficiency

    def read(self, tokens: float, mfu: float) -> float:
        """Seconds to read that many tokens."""
        return tokens * 2 * self.model.multiplied(self.layers) / (self.gpu.flops * self.share * mfu)

    def answer(self, requests: float, prompt: float, written: float, samples: int = 1) -> float:
        """Seconds to answer `requests` prompts of `prompt` tokens with `samples` texts of `written` tokens each.

        A decoding step fetches all weights once and the cache of every sequence; its time is that of the bytes
        or of the FLOPs, whichever is longer. A prompt is read once for all its samples: vLLM caches prefixes."""
        if not requests or not written:
            return self.read(requests * prompt, self.assumed.prefill_mfu)
        context = prompt + written / 2
        cached = self.model.kv_bytes(self.layers, self.width, self.tensor_parallel) * self.tensor_parallel * context
        sequences = requests * samples
        held = max(1.0, min(self.seats, sequences, self.room * self.tensor_parallel / cached))
        fetched = self.model.parameters(self.layers) * self.width + held * cached
        by_bytes = fetched / (self.gpu.bandwidth * self.share * self.assumed.decode_bandwidth)
        step = max(by_bytes, self.read(held, self.assumed.prefill_mfu))
        return self.read(requests * prompt, self.assumed.prefill_mfu) + sequences / held * written * step


def engine(
    model: Architecture, layers: int, width: int, gpu: Gpu, tensor_parallel: int, seats: int, assumed: Assumptions
) -> Engine:
    """The engine that takes vLLM's share of each GPU; its KV cache has what weights and the allowance leave."""
    weights = model.parameters(layers) * width / tensor_parallel
    room = gpu.memory * assumed.gpu_memory_utilization - weights - assumed.engine_overhead_gb * 1e9
    return Engine(model, layers, width, gpu, tensor_parallel, seats, max(0.0, room), assumed)


def training_seconds(
    model: Architecture, layers: int, s: Student, tokens: float, workers: int, gpu: Gpu, assumed: Assumptions
) -> float:
    """Seconds of FSDP2 training on `workers` GPUs, the start left out. Blocks below the last that are trained are
    read through forward alone."""
    below = (layers - s.last_layers) * model.block if s.last_layers else 0
    cost = 2.0 * below
    cost += flops_per_token(model.multiplied(layers) - below, s.lora_rank > 0, s.activation_checkpointing)
    return tokens * cost / (workers * gpu.flops * assumed.train_mfu)


def scored(tasks: Sequence[tuple[str, int | None]], limit: int | None, assumed: Assumptions) -> list[Size]:
    """The size of each lm-eval task, (name, examples asked for), with `tokens` those of one whole request."""
    unknown = Size(assumed.lm_eval_items, assumed.lm_eval_requests, assumed.lm_eval_example_tokens)
    found = []
    for task, shots in tasks:
        size = SIZES.get(task, unknown)
        examples = size.shots if shots is None else shots
        items = size.items if limit is None else min(size.items, limit * size.parts)
        found.append(size._replace(items=items, tokens=size.fixed + (examples + 1) * size.tokens))
    return found


def scoring_seconds(engine: Engine, sizes: Sequence[Size]) -> float:
    """Seconds to answer or score every request of those tasks. Scored prompts are read whole each time: vLLM does
    not reuse cached prefixes where a prompt's logprobs are asked for."""
    total = 0.0
    for size in sizes:
        requests = size.items * size.requests
        if size.written:
            total += engine.answer(requests, size.tokens, size.written)
        else:
            total += engine.read(requests * size.tokens, engine.assumed.scoring_mfu)
    return total
