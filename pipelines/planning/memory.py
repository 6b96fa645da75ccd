"""Memory per GPU in bytes: a vLLM engine, and one FSDP2 worker as `parallel.parallelize` shards it. Pure arithmetic.

Activations are counted as Korthikanti et al. (arXiv 2205.05198, section 4.1) count them, one by one what the
backward pass needs. Their result for a GPT block, eq. 2 at tensor parallel size t = 1, is s·b·h·(34 + 5·a·s/h)
bytes. The blocks here differ: flash attention keeps no a·s² term (as their section 5 drops it), and SwiGLU, grouped
queries and RMSNorm in fp32 keep other tensors. With every block recomputed it is 2·s·b·h a block (their Table 2),
and one block whole.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipelines.planning.architecture import LINEARS, Architecture
from pipelines.planning.assumptions import Assumptions
from pipelines.student import BUILT_IN, Student

MASTER, MOMENTS, COMPUTE = 4, 8, 2  # bytes: fp32 parameter, its two AdamW moments, bf16
LOSS = 12  # bytes a logit: bf16 logits and gradient, fp32 log-softmax and gradient (losses.nats)
LOGITS = 1 << 27  # losses.LOGITS of a GPU: at a time
FILE = 2 << 30  # saving.FILE: bytes of a checkpoint's file
RANK = 128  # serving.predictor.RANK: width between the predictor's two maps
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


def trained(a: Architecture, layers: int, s: Student) -> int:
    """Parameters that the student trains of its `layers` blocks and what is outside."""
    if s.lora_rank:
        return a.lora(s.lora_rank, layers, s.lora_targets)
    return s.last_layers * a.block + a.hidden if s.last_layers else a.parameters(layers)


def training(
    a: Architecture, layers: int, s: Student, tokens: int, workers: int, replicas: int,
    assumed: Assumptions, gpu: float | None,
) -> Memory:  # fmt: skip
    """One of `workers` FSDP2 workers, in `replicas` groups that divide the parameters, training the student of
    `layers` blocks on passes over `tokens` tokens. Parameters are fp32, frozen ones too, all-gathered in bf16: the
    group outside the blocks stays gathered, of the blocks two are at a time (the one at work and the one fetched
    ahead)."""
    learnt, shards = trained(a, layers, s), workers // replicas
    adapters = learnt if s.lora_rank else 0
    whole = a.parameters(layers) + adapters
    block, outer = a.block + adapters // layers, a.outer
    of_block, of_outer = (adapters // layers, 0) if s.lora_rank else (a.block, a.hidden if s.last_layers else a.outer)
    if whole < SMALL:
        block, outer = 0, whole
        of_block, of_outer = (of_block, of_outer) if s.lora_rank else (0, learnt)
    kept = activations(a, s.lora_rank, s.lora_targets)
    passed = s.last_layers or layers  # blocks that the backward pass goes through
    alive = passed * COMPUTE * a.hidden + kept if s.activation_checkpointing else passed * kept
    parts = {
        "parameters": MASTER * whole / shards,
        "gradients": MASTER * learnt / shards,
        "AdamW": MOMENTS * learnt / shards,
        "gathered in bf16": float(COMPUTE * (outer + 2 * block)),
        "gradients in flight": float((COMPUTE + MASTER) * max(of_block, of_outer)),
        "activations": tokens * (alive + 6 * a.intermediate),
        "logits and loss": float(min(tokens, max(1, LOGITS // a.vocab)) * a.vocab * LOSS),
        "allowance": assumed.training_overhead_gb * 1e9,
    }
    if s.ifp:
        parts |= _chosen(a, layers, s, tokens, shards)
    how = f"LoRA of rank {s.lora_rank}" if s.lora_rank else "full fine-tuning"
    how = f"the last {s.last_layers} blocks" if s.last_layers else how
    about = f"{how}, {learnt / 1e6:,.1f} M trained, {tokens:,} tokens a forward pass, activations "
    about += "recomputed" if s.activation_checkpointing else "kept"
    advice = "lower the student's micro_tokens, set activation_checkpointing = true or a lora_rank, or raise "
    return Memory("", workers, parts, gpu, about, advice + "cluster.workers")


def _chosen(a: Architecture, layers: int, s: Student, tokens: int, shards: int) -> dict[str, float]:
    """What instruction-following pruning adds to a worker: the predictor with its gradients and moments (of one whose
    size is not in its name, the two maps alone; it is all-gathered in fp32 at most), and of each block the activations
    behind the mask, and the mask of each position before them, in fp32."""
    assert s.ifp
    found = re.fullmatch(BUILT_IN, s.ifp.predictor)
    kind, number = (found[1], int(found[2])) if found else ("", 0)
    hidden, small = {"first": (a.hidden, a.block), "fresh": (128, 4 * 128**2 + 3 * 128 * 344)}.get(kind, (a.hidden, 0))
    body = number * small + a.vocab * hidden if small and s.ifp.mask == "prompt" else 0
    head = (hidden * RANK + RANK * layers * a.intermediate) if s.ifp.mask == "prompt" else layers * a.intermediate
    predictor = body + head
    masked = tokens * a.intermediate * (COMPUTE + MASTER)
    return {
        "mask predictor": (2 * MASTER + MOMENTS) * predictor / shards + MASTER * predictor,
        "masks": float(masked * (1 if s.activation_checkpointing else layers)),
    }


def activations(a: Architecture, lora_rank: int = 0, targets: Collection[str] = ()) -> int:
    """Bytes a token that one block keeps for its backward pass, in bf16 (norms in fp32, as transformers has them).

    Norms: the fp32 input, one fp32 number, and for the weight's gradient the bf16 result. Attention: q, k, v, its
    output, log-sum-exp a head. MLP: gate, its SiLU, up, their product. Linear maps keep their input, with LoRA those
    that have adapters (`targets`; none named: all), and an adapter what stands between its two matrices."""
    weights = 0 if lora_rank else 1  # frozen norms keep nothing for their weight
    given = set(targets or LINEARS)
    inputs = bool(given & set(LINEARS[:3])) + bool(given & set(LINEARS[4:6]))
    norms = 2 * (4 * a.hidden + 4 + weights * 2 * a.hidden) + inputs * 2 * a.hidden
    attention = 2 * (2 * a.queries + 2 * a.keys) + 4 * a.heads
    if a.qk_norm:
        attention += (4 + 2 * weights) * (a.queries + a.keys) + 4 * (a.heads + a.kv_heads)
    mlp = (8 if LINEARS[6] in given else 6) * a.intermediate
    return norms + attention + mlp + len(given) * 2 * lora_rank


def host(a: Architecture, layers: int, s: Student, width: int, workers: int) -> float:
    """Bytes of main memory of a node that runs all `workers`: at the start each draws the adapters whole, at the end
    one holds them, a file in the checkpoint's `width` bytes a weight, and the largest matrix in fp32, its product
    with adapters beside it. Weights are read where they are needed, a slice at a time."""
    largest = a.hidden * max(a.vocab, a.intermediate, a.queries)
    adapters = trained(a, layers, s) if s.lora_rank else 0
    file = min(FILE, width * a.parameters(layers))
    return float(MASTER * max(workers * adapters, adapters + 2 * largest) + file)
