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
from pipelines.student import Student


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

    def cached(self, prompt: float, written: float) -> float:
        """Bytes of KV cache that a sequence takes at its mean length, on all GPUs of the engine together."""
        context = prompt + written / 2
        return self.model.kv_bytes(self.layers, self.width, self.tensor_parallel) * self.tensor_parallel * context

    def held(self, sequences: float, cached: float) -> float:
        """Sequences that are written at once: as many as there are, and seats, and room for; one at the least."""
        return max(1.0, min(self.seats, sequences, self.room * self.tensor_parallel / cached))

    def step(self, held: float, cached: float) -> dict[str, float]:
        """Seconds of a decoding step for `held` sequences, by what takes them: fetching all weights once, fetching the
        cache of every sequence, and the FLOPs. It takes the first two together or the third, whichever is longer."""
        speed = self.gpu.bandwidth * self.share * self.assumed.decode_bandwidth
        fetched = {"weights": self.model.parameters(self.layers) * self.width, "KV cache": held * cached}
        by_bytes = {name: size / speed for name, size in fetched.items()}
        return by_bytes | {"FLOPs": self.read(held, self.assumed.prefill_mfu)}

    def decode(self, sequences: float, prompt: float, written: float) -> float:
        """Seconds to write `sequences` texts of `written` tokens each behind prompts that are read already."""
        cached = self.cached(prompt, written)
        held = self.held(sequences, cached)
        return sequences / held * written * slowest(self.step(held, cached))

    def answer(self, requests: float, prompt: float, written: float, samples: int = 1) -> float:
        """Seconds to answer `requests` prompts of `prompt` tokens with `samples` texts of `written` tokens each.
        A prompt is read once for all its samples: vLLM caches prefixes."""
        reading = self.read(requests * prompt, self.assumed.prefill_mfu)
        return reading + self.decode(requests * samples, prompt, written) if requests and written else reading


def slowest(step: dict[str, float]) -> float:
    """Seconds of a decoding step whose parts `Engine.step` gives: its bytes or its FLOPs, whichever take longer."""
    return max(step["weights"] + step["KV cache"], step["FLOPs"])


def bound(step: dict[str, float]) -> str:
    """What such a step waits for: "FLOPs" where they take longer than all its bytes together, else what has the more
    bytes, "weights" or "KV cache"."""
    if step["FLOPs"] > step["weights"] + step["KV cache"]:
        return "FLOPs"
    return "weights" if step["weights"] >= step["KV cache"] else "KV cache"


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
