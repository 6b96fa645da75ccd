"""A decoder's shape from its config.json, and what follows from it: parameters, LoRA's, KV cache. Pure arithmetic.

Four families are known, which differ in biases and norms alone: Llama and Mistral (transformers'
`LlamaForCausalLM`, `MistralForCausalLM`), Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Architecture:
    """One decoder. Widths in units, `vocab` in tokens; `tied`: the head is the embedding matrix."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together (the value heads' is the same)."""
        return self.kv_heads * self.head_dim

    def linears(self) -> list[tuple[int, int, bool]]:
        """(in, out, bias) of the seven linear maps of one block, in the order of LINEARS."""
        h, f = self.hidden, self.intermediate
        attention = [(h, out, self.qkv_bias) for out in (self.queries, self.keys, self.keys)]
        attention.append((self.queries, h, self.output_bias))
        return [*attention, *[(a, b, self.mlp_bias) for a, b in ((h, f), (h, f), (f, h))]]

    @property
    def block(self) -> int:
        """Parameters of one decoder block: linear maps, their biases, norms."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return sum(a * b + (b if bias else 0) for a, b, bias in self.linears()) + norms

    @property
    def outer(self) -> int:
        """Parameters outside the blocks: embedding, final norm, and the head where it is not tied."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    def parameters(self, layers: int | None = None) -> int:
        """Parameters of the model with `layers` blocks (None: its own number); a tied matrix counts once."""
        return (self.layers if layers is None else layers) * self.block + self.outer

    def multiplied(self, layers: int) -> int:
        """Parameters that every token is multiplied with: all but the embedding, which is looked up.

        This is N of the "2·N FLOPs a token" rule (Kaplan et al., arXiv 2001.08361, section 2.1)."""
        return self.parameters(layers) - (0 if self.tied else self.vocab * self.hidden)

    def lora(self, rank: int, layers: int, targets: Collection[str] = ()) -> int:
        """Parameters of LoRA adapters of that rank on the linear maps `targets` (none named: all) of `layers` blocks:
        rank · (in + out) each (Hu et al., arXiv 2106.09685, section 4.1)."""
        named = zip(LINEARS, self.linears(), strict=True)
        return layers * sum(rank * (a + b) for name, (a, b, _) in named if not targets or name in targets)

    def kv_bytes(self, layers: int, width: int, tensor_parallel: int = 1) -> int:
        """Bytes of KV cache a token takes on each of `tensor_parallel` GPUs, `width` bytes a number.

        Heads are shared out; where there are fewer than GPUs each GPU keeps a copy of one (vLLM does so)."""
        heads = max(1, -(-self.kv_heads // tensor_parallel))
        return 2 * layers * heads * self.head_dim * width


def read(config: dict[str, Any], where: str) -> Architecture:
    """The architecture that a config.json's content describes; `where` names it in errors.

    Raises ValueError for a family whose parameters cannot be counted here, or a value that is missing."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{where}: a plan counts {', '.join(FAMILIES)} models, this one is {family!r}; "
            "`regrow run` without --plan may still prune and train it"
        )
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    for name in needed:
        if not isinstance(config.get(name), int):
            raise ValueError(f"{where}: {name} is missing or no number; give the model's own config.json")
    heads = config["num_attention_heads"]
    dtype = config.get("dtype") or config.get("torch_dtype")
    return Architecture(
        family=family,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", _KV_HEADS.get(family)) or heads,
        head_dim=config.get("head_dim") or (128 if family == "qwen3" else config["hidden_size"] // heads),
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bool(family in ("llama", "qwen3") and config.get("attention_bias")),
        output_bias=bool(family in ("llama", "qwen3") and config.get("attention_bias")),
        mlp_bias=bool(family == "llama" and config.get("mlp_bias")),
        qk_norm=family == "qwen3",
        dtype=dtype if dtype in BYTES else "bfloat16",
    )


_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # what transformers takes where a config does not say
