"""Memory per GPU in bytes: a vLLM engine, and one FSDP2 worker as `parallel.parallelize` shards it. Pure arithmetic.

Activations are counted as Korthikanti et al. (arXiv 2205.05198, section 4.1) count them, one by one what the
backward pass needs. Their result for a GPT block, eq. 2 at tensor parallel size t = 1, is s·b·h·(34 + 5·a·s/h)
bytes. The blocks here differ: flash attention keeps no a·s² term (as their section 5 drops it), and SwiGLU, grouped
queries and RMSNorm in fp32 keep other tensors. With every block recomputed it is 2·s·b·h a block (their Table 2),
and one block whole.
"""

from dataclasses import dataclass
from typing import Any

from pipelines.planning.architecture import Architecture
from pipelines.planning.assumptions import Assumptions

MASTER, MOMENTS, COMPUTE = 4, 8, 2  # bytes: fp32 parameter, its two AdamW moments, bf16
LOSS = 14  # bytes a logit: bf16 logits, then fp32 log-softmax and two gradients (losses.next_token_loss)
SMALL = 50_000_000  # parallel.SMALL: below, FSDP2 has one group


@dataclass(frozen=True)
class Memory:
    """What one GPU holds: bytes by part, the limit they must stay under (None: no GPU is named), and advice."""

    what: str
    gpus: int
    parts: dict[str, float]
    limit: float | None
    about: str
    advice: str

    @property
    def total(self) -> float:
        """All parts at once; in training an upper bound, since not all are alive at the same moment."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether the total stays within the limit; None without a GPU."""
        return None if self.limit is None else self.total <= self.limit

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        said = {"what": self.what, "gpus": self.gpus, "bytes": {k: round(v) for k, v in self.parts.items()}}
        return said | {"total": round(self.total), "limit": self.limit, "fits": self.fits, "about": self.about}


def engine(
    a: Architecture, layers: int, width: int, tensor_parallel: int, max_len: int, seats: int,
    assumed: Assumptions, gpu: float | None,
) -> Memory:  # fmt: skip
    """One GPU of an engine: weights, `seats` sequences of `max_len` tokens in the KV cache, or as many as there
    is room for (vLLM gives the cache what is left and makes sequences wait), and the allowance. `width`: bytes a
    weight. It fits if one sequence of full length does: that is what vLLM asks for at start."""
    sequence = a.kv_bytes(layers, width, tensor_parallel) * max_len
    limit = None if gpu is None else gpu * assumed.gpu_memory_utilization
    fixed = a.parameters(layers) * width / tensor_parallel + assumed.engine_overhead_gb * 1e9
    room = seats if limit is None else max(1, min(seats, int((limit - fixed) // sequence)))
    parts = {
        "weights": a.parameters(layers) * width / tensor_parallel,
        "KV cache": float(room * sequence),
        "allowance": assumed.engine_overhead_gb * 1e9,
    }
    about = f"KV cache for {room} of {seats} sequences of {max_len:,} tokens"
    advice = "raise teacher.tensor_parallel, or lower teacher.max_model_len"
    return Memory("", tensor_parallel, parts, limit, about, advice)


def measuring(a: Architecture, width: int, gpus: int, assumed: Assumptions, gpu: float | None) -> Memory:
    """One GPU of the prune stage, which runs the whole teacher forward: on one GPU, or spread over `gpus`."""
    whole = float(a.parameters() * width)
    spread = 1 if gpu is None or whole + assumed.engine_overhead_gb * 1e9 <= gpu else gpus
    parts = {"weights": whole / spread, "allowance": assumed.engine_overhead_gb * 1e9}
    advice = "give the command's machine more GPUs"
    return Memory("", spread, parts, gpu, "the whole teacher, forward only", advice)


def training(
    a: Architecture, layers: int, rank: int, recomputed: bool, tokens: int, workers: int,
    assumed: Assumptions, gpu: float | None,
) -> Memory:  # fmt: skip
    """One of `workers` FSDP2 workers training `layers` blocks on micro-batches of `tokens` padded tokens; LoRA of
    `rank` (0: full). Parameters are fp32, frozen ones too, all-gathered in bf16: the group outside the blocks stays
    gathered, of the blocks two are at a time (the one at work and the one fetched ahead)."""
    adapters = a.lora(rank, layers) if rank else 0
    whole = a.parameters(layers) + adapters
    trained = adapters or whole
    block, outer = a.block + adapters // layers, a.outer
    if whole < SMALL:
        block, outer = 0, whole
    of_block, of_outer = (adapters // layers, 0) if rank else (block, outer)
    kept = activations(a, lora_rank=rank)
    alive = layers * COMPUTE * a.hidden + kept if recomputed else layers * kept
    parts = {
        "parameters": MASTER * whole / workers,
        "gradients": MASTER * trained / workers,
        "AdamW": MOMENTS * trained / workers,
        "gathered in bf16": float(COMPUTE * (outer + 2 * block)),
        "gradients in flight": float((COMPUTE + MASTER) * max(of_block, of_outer)),
        "activations": tokens * (alive + 6 * a.intermediate),
        "logits and loss": float(tokens * a.vocab * LOSS),
        "allowance": assumed.training_overhead_gb * 1e9,
    }
    about = f"{'LoRA of rank ' + str(rank) if rank else 'full fine-tuning'}, {trained / 1e6:,.1f} M trained, "
    about += f"{tokens:,} tokens a forward pass, activations {'recomputed' if recomputed else 'kept'}"
    advice = "lower the student's micro_tokens, set activation_checkpointing = true or a lora_rank, or raise "
    return Memory("", workers, parts, gpu, about, advice + "cluster.workers")


def activations(a: Architecture, lora_rank: int = 0) -> int:
    """Bytes a token that one block keeps for its backward pass, in bf16 (norms in fp32, as transformers has them).

    Norms: the fp32 input, one fp32 number, and for the weight's gradient the bf16 result. Attention: q, k, v, its
    output, log-sum-exp a head. MLP: gate, its SiLU, up, their product. Linear maps keep their input."""
    weights = 0 if lora_rank else 1  # frozen norms keep nothing for their weight
    norms = 2 * (4 * a.hidden + 4 + weights * 2 * a.hidden) + 2 * 2 * a.hidden
    attention = 2 * (2 * a.queries + 2 * a.keys) + 4 * a.heads
    if a.qk_norm:
        attention += (4 + 2 * weights) * (a.queries + a.keys) + 4 * (a.heads + a.kv_heads)
    return norms + attention + 8 * a.intermediate + 7 * 2 * lora_rank


def host(a: Architecture, layers: int, rank: int, width: int, workers: int) -> float:
    """Bytes of main memory of a node that runs all `workers`: each reads the whole checkpoint (`width` bytes a
    weight) before it is sharded, and at the end one holds it in fp32 together with what was trained."""
    whole = a.parameters(layers)
    trained = a.lora(rank, layers) if rank else whole
    return float(max(workers * whole * width, MASTER * (whole + trained)))
