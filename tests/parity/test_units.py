"""Masks on FFN units against a forward pass written out by hand, and the scores of units against plain loops."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import CheckpointError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from pipelines import masks, units
from pipelines.student import Student
from pipelines.training import attention, batches, loading, losses, parallel

BLOCKS, WIDTH, WINDOW = 3, 20, 5
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE),
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "MixtralForCausalLM: block 0 is a mixture": MixtralConfig(**SHAPE, num_local_experts=2),
    "Qwen2MoeForCausalLM: block 0 is a mixture": Qwen2MoeConfig(**SHAPE, **EXPERTS),
    "Qwen3MoeForCausalLM: block 1 is a mixture": Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[0]),
    "Phi3ForCausalLM: block 0 holds gate and up in one": Phi3Config(**SHAPE),
    "GPT2LMHeadModel: block 0 has no mlp.gate_proj": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50),
    "GPTNeoXForCausalLM: block 0 has no mlp.gate_proj": GPTNeoXConfig(**SHAPE),
}


def build(family: str, dtype: torch.dtype = torch.float64, how: str = "sdpa") -> Any:
    """A random model, its biases too; the same for the same arguments."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(FAMILIES[family]), dtype=dtype, attn_implementation=how
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def soft(*rows: int, t: int = 8, seed: int = 0) -> Tensor:
    """Masks of units with λ below and at 1."""
    generator = torch.Generator().manual_seed(seed)
    return masks.mask(torch.randn(BLOCKS, *rows, WIDTH, generator=generator, dtype=torch.float64), t, 0.5)


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def weight(module: Any) -> Tensor:
    """W, or W + scale · B·A where there are adapters."""
    if not hasattr(module, "base_layer"):
        return module.weight
    return module.weight + module.lora_B.default.weight @ module.lora_A.default.weight * module.scaling["default"]


def by_hand(model: Any, tokens: Tensor, mask: Any) -> tuple[Tensor, list[Tensor]]:
    """Logits of `tokens` (B, T), and act(gate) ⊙ up of each block before the mask: block by block, `mask[l]` multiplied
    in where it shall act. Attention, norms and embeddings are the model's own."""
    causal = losses.bare(model)
    decoder, length = causal.get_decoder(), tokens.shape[1]
    hidden, seen = decoder.embed_tokens(tokens), []
    back = torch.arange(length)[:, None] - torch.arange(length)
    window = getattr(causal.config, "sliding_window", None) or length
    bias = torch.where((back >= 0) & (back < window), 0.0, -math.inf)[None, None].to(hidden.dtype)
    rotary = decoder.rotary_emb(hidden, torch.arange(length)[None])
    for block, own in zip(decoder.layers, mask, strict=True):
        normed = block.input_layernorm(hidden)
        hidden = hidden + block.self_attn(normed, position_embeddings=rotary, attention_mask=bias)[0]
        normed, mlp = block.post_attention_layernorm(hidden), block.mlp
        gate = F.linear(normed, weight(mlp.gate_proj), mlp.gate_proj.bias)
        seen.append(F.silu(gate) * F.linear(normed, weight(mlp.up_proj), mlp.up_proj.bias))
        hidden = hidden + F.linear(seen[-1] * own, weight(mlp.down_proj), mlp.down_proj.bias)
    return causal.lm_head(decoder.norm(hidden)), seen


def hooks(model: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def close(one: Tensor, other: Tensor, least: float = 1e-9) -> None:
    """Equal to `least` of the largest."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= least * other.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_act_before_the_down_projection(family: str) -> None:
    model, tokens = build(family), ids(2, 9)
    plain = model(tokens).logits
    close(plain, by_hand(model, tokens, torch.ones(BLOCKS))[0], 1e-12)
    for mask in (soft(), units.top(soft(), 5)):
        with units.masked(model, mask):
            made = model(tokens).logits
        close(made, by_hand(model, tokens, mask)[0], 1e-12)
        assert (made - plain).abs().max() > 1e-2
    by_row = soft(2)
    with units.masked(model, by_row):
        close(model(tokens).logits, by_hand(model, tokens, by_row[:, :, None])[0], 1e-12)
    assert torch.equal(model(tokens).logits, plain) and not hooks(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["whole", "lora", "checkpointed", "lora, checkpointed"])
def test_gradients_of_weights_and_masks(family: str, how: str) -> None:
    model, tokens, mask = build(family), ids(2, 9), soft(2).requires_grad_()
    if "lora" in how:
        model = loading.adapted(model, Student(name="sft", lora_rank=2), 0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at first: nothing would reach A
                torch.nn.init.normal_(parameter, std=0.3)
    if "checkpointed" in how:
        model.train()
        losses.bare(model).gradient_checkpointing_enable({"use_reentrant": False})
    wanted = [mask, *(p for p in model.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 1, 50, dtype=torch.float64)
    theirs = torch.autograd.grad((by_hand(model, tokens, mask[:, :, None])[0] * weights).square().sum(), wanted)
    with units.masked(model, mask):
        ours = torch.autograd.grad((model(tokens, use_cache=False).logits * weights).square().sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other)
    assert ours[0].abs().min() > 0, "units outside a mask have a gradient too: the one that could bring them in"


def test_a_row_is_masked_as_it_is_alone() -> None:
    model, tokens, mask = build("qwen3"), ids(3, 9), soft(3)
    with units.masked(model, mask):
        together = model(tokens).logits
    for row in range(3):
        with units.masked(model, mask[:, row]):
            close(together[row : row + 1], model(tokens[row : row + 1]).logits, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_of_a_pack_are_masked_as_their_rows_alone(family: str) -> None:
    sizes = [7, 1, 12, 4]
    rows = [batches.Encoded(ids(size, seed=size).tolist(), 0) for size in sizes]
    model, mask = build(family, how=attention.PACKED), soft(len(sizes)).requires_grad_()
    inputs = batches.collate(rows, np.ones((1, len(rows))), 0).inputs
    numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    alone = []
    for number, row in enumerate(rows):
        one = batches.collate([row], np.ones((1, 1)), 0).inputs
        with units.masked(model, mask[:, number]):
            alone.append(losses.ByToken(model)(**one))
    wanted = torch.autograd.grad(torch.cat(alone).square().sum(), mask)[0]
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for given in ((mask[:, numbers],), (mask, numbers)):
        with units.masked(model, *given):
            packed = losses.ByToken(model)(**inputs)
            close(packed, torch.cat(alone), 1e-12)
            close(torch.autograd.grad(packed.square().sum(), mask)[0], wanted)


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_and_checkpointed_blocks(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SMALL", 0)  # each block a group of its own
    rows = [batches.Encoded(ids(size, seed=size).tolist(), 2) for size in (7, 12)]
    inputs = batches.collate(rows, np.ones((1, 2)), 0).inputs
    student = Student(name="sft", lora_rank=2)

    def gradients(sharded: bool) -> list[Tensor]:
        mask = soft().requires_grad_()
        model = losses.ByToken(loading.adapted(build("llama", how=attention.PACKED), student, 0))
        if sharded:
            parallel.parallelize(model, parallel.mesh("cpu", 1), activation_checkpointing=True)
        with units.masked(model.model, mask):
            model(**inputs).sum().backward()
        assert mask.grad is not None
        found = [p.grad for p in model.parameters() if p.requires_grad]
        return [mask.grad, *(g.full_tensor() if sharded else g for g in found)]  # type: ignore[union-attr]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        close(one, other)


def test_a_backward_pass_outside_is_an_error_where_it_would_be_wrong() -> None:
    model, tokens = build("llama").train(), ids(1, 9)
    with units.masked(model, soft()):
        made = model(tokens).logits.sum()
    made.backward()  # nothing runs again
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with units.masked(model, soft()):
        made = model(tokens, use_cache=False).logits.sum()
    with pytest.raises(CheckpointError):
        made.backward()


def test_half_precision_is_rounded_once() -> None:
    """λ in fp32 times activations in bf16: as the product in fp32, rounded, not as λ rounded first."""
    model, tokens, mask = build("llama", torch.bfloat16), ids(1, 9), soft().float()
    entered: list[Tensor] = []
    down = model.model.layers[0].mlp.down_proj
    with units.masked(model, mask):
        down.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
        model(tokens)
    down._forward_pre_hooks.clear()
    down.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    model(tokens)
    assert entered[0].dtype == torch.bfloat16
    assert torch.equal(entered[0], (entered[1].float() * mask[0]).bfloat16())
    assert not torch.equal(entered[0], entered[1] * mask[0].bfloat16())


def test_the_model_is_left_as_it_was() -> None:
    model, tokens = build("llama"), ids(2, 9)
    with pytest.raises(ZeroDivisionError), units.masked(model, soft()):
        raise ZeroDivisionError
    assert not hooks(model)
    for some in (3, 9):  # one a position goes for a single row alone
        said = f"{some} masks a block for a batch of 2 rows of 9 tokens"
        with pytest.raises(ValueError, match=said), units.masked(model, soft(some)):
            model(tokens)
    for tokens in (ids(2, 9), ids(1, 9)):
        with pytest.raises(ValueError, match="8 masks a block"), units.masked(model, soft(2), ids(8) % 2):
            model(tokens)
    assert not hooks(model)


def test_masks_that_would_not_act_are_refused() -> None:
    model = build("llama")
    for wrong in (soft()[:2], soft()[:, :10], soft()[0], soft(1, 1)):
        with pytest.raises(ValueError, match=r"the model has 3 blocks of 20 FFN units"), units.masked(model, wrong):
            pass
    with pytest.raises(ValueError, match="give masks"), units.masked(model, soft(), ids(9)):
        pass
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    with pytest.raises(ValueError, match="compile = false"), units.masked(model, soft()):
        pass
    model = build("llama")
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="compile = false"), units.masked(model, soft()):
        pass


@pytest.mark.parametrize("said", OTHERS)
def test_other_layouts_are_refused(said: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(OTHERS[said])
    with pytest.raises(ValueError, match=said):
        units.check(model)


def test_blocks_of_unequal_width_are_refused() -> None:
    model = build("llama")
    assert units.check(model) == (BLOCKS, WIDTH)
    wider = AutoConfig.for_model("llama", **SHAPE | {"intermediate_size": 24})
    model.model.layers[2] = AutoModelForCausalLM.from_config(wider).model.layers[2]
    with pytest.raises(ValueError, match="LlamaForCausalLM: blocks have 20 to 24 FFN units"):
        units.check(model)


def padded(rows: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    size = max(map(len, rows))
    made, kept = torch.zeros(len(rows), size, dtype=torch.long), torch.zeros(len(rows), size, dtype=torch.long)
    for number, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(size - len(row), size)
        made[number, at], kept[number, at] = row, 1
    return {"input_ids": made, "attention_mask": kept}


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_the_mean_norm_of_what_a_unit_adds(family: str) -> None:
    """For any split of the texts into batches, to 1e-12 of the largest: other sizes of a product round differently."""
    model, rows = build(family).train(), [ids(size, seed=size) for size in (3, 11, 6, 8)]
    model.model.layers[1].eval()
    wanted, tokens = np.zeros((BLOCKS, WIDTH)), 0
    for row in rows:
        activations = by_hand(model, row[None], torch.ones(BLOCKS))[1]
        for position in range(len(row)):
            for layer in range(BLOCKS):
                columns = model.model.layers[layer].mlp.down_proj.weight.detach().numpy()
                for unit in range(WIDTH):
                    added = activations[layer][0, position, unit].item() * columns[:, unit]
                    wanted[layer, unit] += np.sqrt((added**2).sum())
            tokens += 1
    for split in ([[0, 1, 2, 3]], [[3], [1, 0], [2]], [[2, 1], [], [0, 3]]):
        some = [padded([rows[i] for i in batch]) for batch in split if batch]
        close(units.activation_importance(model, some), torch.from_numpy(wanted / tokens), 1e-12)
    assert model.training and not model.model.layers[1].training and not hooks(model)


def test_importance_on_packs_is_that_of_their_rows() -> None:
    rows = [ids(size, seed=size) for size in (3, 11, 6)]
    packed = batches.collate([batches.Encoded(row.tolist(), 0) for row in rows], np.ones((1, 3)), 0).inputs
    made = units.activation_importance(build("llama", how=attention.PACKED), [packed])
    close(made, units.activation_importance(build("llama"), [{"input_ids": row[None]} for row in rows]), 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_griffin_is_that_of_each_prompt_alone(family: str) -> None:
    model, rows = build(family), [ids(size, seed=size) for size in (3, 11, 6)]
    wanted = np.zeros((BLOCKS, len(rows), WIDTH))
    for number, row in enumerate(rows):
        for layer, activations in enumerate(by_hand(model, row[None], torch.ones(BLOCKS))[1]):
            for token in activations[0].detach().numpy():
                wanted[layer, number] += (token / np.sqrt((token**2).sum())) ** 2
    wanted = np.sqrt(wanted)
    for number, row in enumerate(rows):
        close(units.griffin(model, row), torch.from_numpy(wanted[:, number]), 1e-12)
    for side, least in (("right", 1e-12), ("left", 1e-6)):  # the angles of shifted positions are rounded to fp32
        made = padded(rows, side)
        close(units.griffin(model, made["input_ids"], made["attention_mask"]), torch.from_numpy(wanted), least)


def test_scores_that_cannot_be_had() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="no calibration batch has a token"):
        units.activation_importance(model, [])
    with pytest.raises(ValueError, match="the prompt has no token"):
        units.griffin(model, ids(0))
    adapted = loading.adapted(build("llama"), Student(name="sft", lora_rank=2), 0)
    with pytest.raises(ValueError, match="merge the adapters first"):
        units.activation_importance(adapted, [{"input_ids": ids(1, 4)}])
    assert torch.equal(units.griffin(adapted, ids(4)), units.griffin(model, ids(4))), "fresh adapters change nothing"
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    for score in (
        lambda: units.griffin(model, ids(4)),
        lambda: units.activation_importance(model, [{"input_ids": ids(1, 4)}]),
    ):
        with pytest.raises(ValueError, match="not finite"):
            score()
    assert not hooks(model)


def test_top_keeps_the_best_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([[3.0, 1, 3, 3, 0], [1e30, -1e30, 5, 5, 4]])
    assert units.top(scores, 2).tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0]]
    assert units.top(scores, 5).sum() == 10 and units.top(scores.double(), 1).dtype == torch.float64
    with pytest.raises(ValueError, match="choose k from 1 to 5"):
        units.top(scores, 6)
