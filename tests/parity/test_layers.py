"""Importance and removal of blocks against the plainest way to compute the same.

Models are random and made in float64, so that what is compared differs only by the order of sums:
tolerances of 1e-9 are a million roundings of 1e-16 with room to spare. Where fp32 is used it is said why.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from pipelines import cuts, layers

LAYERS, WINDOW = 6, 4
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": [90, 91, 92, 93, 94, 95],
    "pad_token_id": 0,
}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [FULL, SLIDING, FULL, FULL, SLIDING, FULL]
FAMILIES = {
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-windows": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=4),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW, head_dim=8),
}
TEXTS = [[(7 * i + 3 * j * j + 1) % 89 + 1 for j in range(n)] for i, n in enumerate((9, 1, 5, 13, 5, 2, 21))]
REMOVED = [[1], [1, 2], [0], [5], [0, 2, 5], [1, 2, 3, 4], [0, 1, 2, 3, 4]]


def make(family: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(3)
    return (
        AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).to(dtype).eval()
    )  # the same weights in any dtype


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with more, and very slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def states_one_by_one(model: Any, text: list[int]) -> list[Tensor]:
    """L+1 raw states (T, H) of one unpadded text: `hidden_states` for all but the last entry, which is
    past the final norm, and a hook for the state before that norm."""
    caught: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: caught.append(args[0][0]))
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    assert len(hidden) == len(model.model.layers) + 1
    return [*(state[0] for state in hidden[:-1]), caught[0]]


def brute_force(model: Any, texts: list[list[int]]) -> cuts.Importance:
    """The two formulas, written out, a text at a time."""
    total = len(model.model.layers)
    angular: dict[int, list[float]] = {n: [0.0] * (total + 1 - n) for n in range(1, total)}
    influence, tokens = [0.0] * total, 0
    for text in texts:
        states = states_one_by_one(model, text)
        tokens += len(text)
        for n, row in angular.items():
            for start in range(len(row)):
                a, b = states[start][-1].double(), states[start + n][-1].double()
                row[start] += math.acos(float(a @ b / (a.norm() * b.norm()))) / math.pi / len(texts)
        for i in range(total):
            a, b = states[i].double(), states[i + 1].double()
            influence[i] += float((1 - torch.cosine_similarity(a, b, dim=-1)).sum())
    return cuts.Importance(angular, [lost / tokens for lost in influence])


def by_hand(model: Any, kept: list[int], ids: Tensor) -> Tensor:
    """Logits of embedding → kept blocks → norm → head, with masks made here; `model` is not changed."""
    base, config = model.model, model.config
    state = base.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    ago = places.T - places
    turned = base.rotary_emb(state, places)
    for block in kept:
        sliding = config.model_type == "mistral" or (
            getattr(config, "layer_types", None) is not None and config.layer_types[block] == SLIDING
        )
        seen = (ago >= 0) & (ago < WINDOW) if sliding else ago >= 0
        mask = torch.zeros(seen.shape, dtype=state.dtype).masked_fill(~seen, -torch.inf)[None, None]
        state = base.layers[block](state, attention_mask=mask, position_ids=places, position_embeddings=turned)
    return model.lm_head(base.norm(state))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_importance_equals_brute_force(family: str, batch_tokens: int) -> None:
    model = make(family)
    ours, theirs = layers.measure(model, TEXTS, batch_tokens), brute_force(model, TEXTS)
    assert list(ours.angular) == list(range(1, LAYERS))
    for n, row in theirs.angular.items():
        assert len(ours.angular[n]) == LAYERS + 1 - n
        assert ours.angular[n] == pytest.approx(row, abs=1e-9)
    assert ours.influence == pytest.approx(theirs.influence, abs=1e-9)
    assert min(ours.influence) > 1e-3, "blocks that do something, or the comparison says nothing"


def test_importance_in_fp32_is_close_to_float64(family: str) -> None:
    """fp32 states carry some 1e-6 relative error through six blocks; angles of tenths keep that size."""
    ours, theirs = layers.measure(make(family, torch.float32), TEXTS), brute_force(make(family), TEXTS)
    for n, row in theirs.angular.items():
        assert ours.angular[n] == pytest.approx(row, abs=2e-5)
    assert ours.influence == pytest.approx(theirs.influence, abs=2e-5)


def test_last_state_is_before_the_final_norm() -> None:
    """The entry that a reading of `hidden_states[-1]` would give is another one, by far."""
    model = make("llama-tied")
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.1, 3, 32))
    text = TEXTS[3]
    wrong = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
    cosine = torch.cosine_similarity(wrong[-2][0, -1], wrong[-1][0, -1], dim=0)
    ours = layers.measure(model, [text]).angular[1][-1]
    assert ours == pytest.approx(brute_force(model, [text]).angular[1][-1], abs=1e-9)
    assert abs(ours - math.acos(cosine.item()) / math.pi) > 0.01


def test_importance_does_not_depend_on_the_order_of_texts() -> None:
    model = make("qwen3", torch.float32)
    assert layers.measure(model, TEXTS, 24) == layers.measure(model, TEXTS[::-1], 24)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = make("llama-tied", torch.float32).train()
    layers.measure(model, TEXTS)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.layers)


def test_identity_block_is_found() -> None:
    model = make("llama-tied", torch.float32)
    for zeroed in (model.model.layers[3].self_attn.o_proj, model.model.layers[3].mlp.down_proj):
        torch.nn.init.zeros_(zeroed.weight)
    importance = layers.measure(model, TEXTS)
    assert importance.angular[1][3] == 0.0 and importance.influence[3] == 0.0
    assert cuts.choose("angular", 1, importance) == [3] == cuts.choose("influence", 1, importance)
    before = logits(model, torch.tensor([TEXTS[3]]))
    assert torch.equal(logits(layers.remove(model, [3]), torch.tensor([TEXTS[3]])), before)


def test_choice() -> None:
    importance = cuts.Importance(
        {1: [0.3, 0.1, 0.1, 0.4], 2: [0.3, 0.2, 0.2], 3: [0.5, 0.4]}, influence=[0.2, 0.1, 0.3, 0.1]
    )
    assert cuts.choose("angular", 1, importance) == [1]  # of equals the lowest
    assert cuts.choose("angular", 2, importance) == [1, 2]
    assert cuts.choose("angular", 3, importance) == [1, 2, 3]
    assert cuts.choose("influence", 1, importance) == [1]
    assert cuts.choose("influence", 2, importance) == [1, 3]
    assert cuts.choose("influence", 3, importance) == [0, 1, 3]
    assert cuts.choose("tail", 2, importance) == [2, 3]
    assert cuts.distance(importance, [1, 2]) == 0.2
    assert cuts.distance(importance, [0, 1, 3]) == pytest.approx(0.3 + 0.4)
    assert cuts.distance(importance, []) == 0.0
    with pytest.raises(ValueError, match=r"prune\.method = 'middle'.*angular"):
        cuts.choose("middle", 1, importance)


@pytest.mark.parametrize("n", [-1, 0, 4, 9])
def test_counts_out_of_range_are_named(n: int) -> None:
    importance = cuts.Importance({}, [0.1] * 4)
    for method in cuts.METHODS:
        with pytest.raises(ValueError, match=rf"prune\.layers = {n}, but the teacher has 4 layers; choose 1 to 3"):
            cuts.choose(method, n, importance)
    with pytest.raises(ValueError, match="has 1 layer;"):
        cuts.check_count(1, 1)


def test_removing_nothing_changes_no_bit(family: str) -> None:
    ids, model = torch.tensor([TEXTS[6]]), make(family, torch.float32)
    config, before = model.config.to_dict(), logits(model, ids)
    assert torch.equal(logits(layers.remove(model, []), ids), before)
    after = model.config.to_dict()
    assert after.pop("max_window_layers", 0) <= LAYERS and config.pop("max_window_layers", 0) is not None
    assert after == config


@pytest.mark.parametrize("removed", REMOVED, ids=str)
def test_pruned_logits_equal_the_kept_blocks_by_hand(family: str, removed: list[int], tmp_path: Path) -> None:
    ids, whole = torch.tensor([TEXTS[6]]), make(family)
    kept = [block for block in range(LAYERS) if block not in removed]
    with torch.no_grad():
        theirs = by_hand(whole, kept, ids)
    pruned = layers.remove(make(family), removed)
    ours = logits(pruned, ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert layers.mismatches(pruned) == []
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.float64 and len(again.model.layers) == len(kept)
    for name, weight in pruned.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    # equal weights at other addresses: matrix products may sum in another order, some units of 1e-16
    torch.testing.assert_close(logits(again, ids), ours, rtol=0, atol=1e-12)
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == bool(FAMILIES[family].tie_word_embeddings)


@pytest.mark.parametrize("removed", REMOVED[1:5], ids=str)
def test_generating_with_cache_equals_without(family: str, removed: list[int]) -> None:
    """Greedy, past the sliding window; float64, so that no tie is broken by rounding."""
    model = layers.remove(make(family), removed)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([TEXTS[0]])
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "do_sample": False}
    cached = model.generate(ids, use_cache=True, **options)
    assert cached.shape[1] == ids.shape[1] + 16
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    assert [block.self_attn.layer_idx for block in model.model.layers] == list(range(LAYERS - len(removed)))


def test_config_follows(tmp_path: Path) -> None:
    qwen = layers.remove(make("qwen2-windows"), [0, 4])
    qwen.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and config["max_window_layers"] == 3
    assert config["layer_types"] == [FULL, FULL, FULL, SLIDING]
    assert config["eos_token_id"] == SHAPE["eos_token_id"], "six end tokens are not six layers"
    assert layers.remove(make("qwen3"), [0, 1]).config.layer_types == MIXED[2:]
    assert layers.remove(make("qwen2"), [1]).config.max_window_layers == LAYERS - 1  # no window then, none now


def test_a_config_that_cannot_describe_the_cut_is_told() -> None:
    model = layers.remove(make("qwen3"), [0])
    model.config.layer_types = MIXED[:-1]  # as if the list had lost its end and not its start
    assert any(name.endswith("self_attn:sliding_window") for name in layers.mismatches(model))


@pytest.mark.parametrize("removed", [[6], [-1], [0, 1, 2, 3, 4, 5]], ids=str)
def test_blocks_that_cannot_be_removed(removed: list[int]) -> None:
    with pytest.raises(ValueError, match="blocks 0 to 5; one must stay"):
        layers.remove(make("llama-tied", torch.float32), removed)


def test_other_decoders_are_found_or_refused() -> None:
    small = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=32))
    assert layers.blocks(small) is small.transformer.h
    importance = layers.measure(small, [[1, 2, 3]])
    assert len(importance.influence) == 3
    assert layers.remove(small, [1]).config.n_layer == 2
    assert logits(small, torch.tensor([[1, 2]])).isfinite().all() and layers.mismatches(small) == []
    small.config.n_layer = 7
    with pytest.raises(ValueError, match="0 module lists of 7 blocks"):
        layers.blocks(small)


def test_texts_without_tokens_and_broken_weights_are_refused() -> None:
    model = make("llama-tied", torch.float32)
    with pytest.raises(ValueError, match="no calibration text has a token"):
        layers.measure(model, [[], []])
    torch.nn.init.constant_(model.model.layers[2].mlp.down_proj.weight, torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        layers.measure(model, TEXTS)
