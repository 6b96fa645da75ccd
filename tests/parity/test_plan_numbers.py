"""A plan's counts against what they describe: transformers and peft on the meta device, and torch's MemTracker."""

import json
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines import models, recipe_file
from pipelines.planning import architecture, memory
from pipelines.student import Student
from pipelines.training import loading, losses, parallel, saving

TEACHERS = sorted({recipe_file.load(name).teacher.model for name in recipe_file.names()})
PACKAGED = [file.stem for file in sorted((models.RECIPES / "architectures").glob("*.json"))]
COMMON: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 160, "vocab_size": 100}
SMALL: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_attention_heads": 4},
    "llama, grouped queries, tied": {
        "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "llama, biases everywhere": {
        "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, wide heads": {"model_type": "llama", "num_attention_heads": 4, "head_dim": 32},
    "mistral": {"model_type": "mistral", "num_attention_heads": 8},
    "mistral, wide heads": {"model_type": "mistral", "num_attention_heads": 8, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2, tied": {
        "model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": None, "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3, biases": {
        "model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "attention_bias": True,
    },
}  # fmt: skip


def built(config: dict[str, Any], layers: int, device: str = "meta") -> Any:
    """The bf16 model that a config.json's content describes, `layers` blocks deep."""
    content = {key: value for key, value in config.items() if key not in ("model_type", "_name_or_path")}
    made = AutoConfig.for_model(config["model_type"], **{**content, "num_hidden_layers": layers})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)


def kept(model: Any, tokens: int) -> int:
    """Bytes alive after a forward pass in training, parameters left out."""
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker, torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=False).logits
        sizes = next(iter(tracker.get_tracker_snapshot("current").values()))
    assert logits.requires_grad
    return unparametered(sizes)


def saved(model: Any, tokens: int) -> int:
    """Bytes of the distinct tensors that autograd saves in a forward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=False).logits
    assert logits.requires_grad
    return sum(storage.nbytes() for storage in found.values())


def unparametered(sizes: dict[Any, int]) -> int:
    return sum(size for kind, size in sizes.items() if "PARAM" not in str(kind) and "Total" not in str(kind))


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("name", SMALL)
def test_parameters_of_small_models(name: str) -> None:
    config = SMALL[name] | COMMON
    a = architecture.read(config, name)
    for layers in (1, 3):
        assert a.parameters(layers) == count(built(config, layers).parameters())


@pytest.mark.parametrize("name", PACKAGED)
def test_parameters_of_packaged_architectures(name: str) -> None:
    config = json.loads((models.RECIPES / "architectures" / f"{name}.json").read_text())
    a = architecture.read(config, name)
    # two depths fix block and rest; all blocks are alike, and building 80 of them takes its time
    two, one = (count(built(config, layers).parameters()) for layers in (2, 1))
    assert (a.block, a.outer) == (two - one, 2 * one - two)


@pytest.mark.parametrize("model", TEACHERS)
def test_parameters_of_every_recipes_teacher(model: str) -> None:
    config = models.describe(model).config
    a = architecture.read(config, model)
    assert a.parameters(2) == count(built(config, 2).parameters())


@pytest.mark.parametrize("name", ["llama, grouped queries, tied", "mistral", "qwen2", "qwen3", "qwen3, biases"])
@pytest.mark.parametrize("rank", [1, 8])
def test_lora_parameters(name: str, rank: int) -> None:
    config = SMALL[name] | COMMON
    a = architecture.read(config, name)
    for targets in ((), ("q_proj", "down_proj")):
        student = Student(name="sft", lora_rank=rank, lora_targets=targets)
        adapted = loading.adapted(built(config, 2), student, 0)
        assert memory.trained(a, 2, student) == count(p for p in adapted.parameters() if p.requires_grad)
        assert a.parameters(2) + a.lora(rank, 2, targets) == count(adapted.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_parameters_of_the_last_blocks(name: str) -> None:
    config, student = SMALL[name] | COMMON, Student(name="sft", last_layers=2)
    adapted = loading.adapted(built(config, 3), student, 0)
    trained = memory.trained(architecture.read(config, name), 3, student)
    assert trained == count(p for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["llama, grouped queries, tied", "qwen2", "qwen3"])
def test_activations_of_a_block(name: str) -> None:
    """What one more block adds to the memory of a forward pass, in bf16 as FSDP2 computes on a GPU."""
    config, tokens = SMALL[name] | COMMON, 256
    two, three = (kept(built(config, layers, "cpu").train(), tokens) for layers in (2, 3))
    assert three - two == tokens * memory.activations(architecture.read(config, name))


@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("o_proj", "up_proj", "down_proj")])
@pytest.mark.parametrize("name", ["llama, grouped queries, tied", "qwen2", "qwen3"])
def test_activations_of_a_block_with_adapters(name: str, targets: tuple[str, ...]) -> None:
    """The same with LoRA, by what autograd saves (the tracker cannot watch frozen parameters); one block more
    than the first, whose input needs no gradient."""
    config, tokens, student = SMALL[name] | COMMON, 256, Student(name="sft", lora_rank=4, lora_targets=targets)
    two, three = (
        saved(loading.adapted(built(config, layers, "cpu"), student, 0).to(torch.bfloat16).train(), tokens)
        for layers in (2, 3)
    )
    assert three - two == tokens * memory.activations(architecture.read(config, name), 4, targets)


def test_small_models_are_one_group() -> None:
    assert memory.SMALL == parallel.SMALL


def test_files_of_a_checkpoint() -> None:
    assert memory.FILE == saving.FILE


def test_a_recomputed_block_keeps_its_input() -> None:
    config, tokens, sizes = SMALL["llama"] | COMMON, 256, []
    for layers in (2, 3):
        model = built(config, layers, "cpu").train()
        stack = parallel.blocks(model)
        for i, block in enumerate(stack):
            stack[i] = parallel.checkpoint_wrapper(block)
        sizes.append(kept(model, tokens))
    assert sizes[1] - sizes[0] == tokens * 2 * 64


def test_logits_and_loss() -> None:
    """The peak of the loss, every token a target, while all logits are made at once."""
    tokens, vocab = 256, 2000
    hidden = torch.randn(tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    head = torch.nn.Linear(8, vocab, bias=False, dtype=torch.bfloat16)
    targets = torch.zeros(tokens, dtype=torch.long)
    tracker = MemTracker()
    tracker.track_external(head, hidden, targets)
    with tracker:
        losses.nats(hidden, head, targets).sum().backward()
    peak = next(iter(tracker.get_tracker_snapshot("peak").values()))
    assert losses.LOGITS["cuda"] == memory.LOGITS and losses.LOGITS["cpu"] > tokens * vocab
    assert 0.97 < unparametered(peak) / (tokens * vocab * memory.LOSS) < 1.01
