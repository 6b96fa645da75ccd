"""Shapes, memory and GPUs of a plan, against numbers worked out by hand."""

import json
from typing import Any, get_args

import pytest

from cluster import gpus
from pipelines import models, plan, recipe_file, workloads
from pipelines.planning import architecture, costs, known, memory, screen
from pipelines.planning.architecture import Architecture
from pipelines.planning.assumptions import Assumptions
from pipelines.recipe import Cluster
from pipelines.student import Student

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
}
FULL, LORA = Student(name="sft"), Student(name="sft", lora_rank=2)
NOTHING = Assumptions(engine_overhead_gb=0, training_overhead_gb=0, gpu_memory_utilization=0.5)


def small(**changed: Any) -> Architecture:
    return architecture.read(SMALL | changed, "here")


def test_a_block_by_hand() -> None:
    a = small()
    # q and o: 8 × 8; k and v: 8 × 4 (two heads of two); gate, up, down: 8 × 16; two norms of 8
    assert a.block == 2 * 64 + 2 * 32 + 3 * 128 + 16 == 592
    assert a.outer == 2 * 80 + 8
    assert a.parameters() == 4 * 592 + 168 and a.parameters(3) == 3 * 592 + 168
    assert a.multiplied(4) == a.parameters() - 80, "the embedding is looked up"
    assert small(tie_word_embeddings=True).parameters() == a.parameters() - 80
    assert small(tie_word_embeddings=True).multiplied(4) == a.parameters() - 80, "a tied head is multiplied with"
    assert a.lora(2, 3) == 3 * 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    assert a.lora(2, 3, ("k_proj", "down_proj")) == 3 * 2 * (12 + 24)
    assert a.kv_bytes(4, 2) == 2 * 4 * 2 * 2 * 2
    assert a.kv_bytes(4, 2, 2) == a.kv_bytes(4, 2) / 2 == a.kv_bytes(4, 2, 4), "a head is never split"


def test_families_differ_in_biases_and_norms() -> None:
    plain = small().block
    assert small(model_type="mistral").block == plain
    assert small(attention_bias=True).block == plain + 8 + 4 + 4 + 8
    assert small(mlp_bias=True).block == plain + 16 + 16 + 8
    assert small(model_type="qwen2").block == plain + 8 + 4 + 4
    assert small(model_type="qwen3", head_dim=2).block == plain + 2 * 2


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the safetensors headers on the hub add up
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ],
)
def test_published_sizes(name: str, parameters: int) -> None:
    described = models.describe(f"{name}@main")
    assert described.folder is None and "packaged" in described.where
    assert architecture.read(described.config, "").parameters() == parameters


def test_the_papers_cut() -> None:
    a = architecture.read(models.describe("meta-llama/Llama-3.1-8B-Instruct").config, "")
    assert a.block == 218_112_000 and a.parameters(26) == 6_721_589_248
    assert round(100 * (1 - a.parameters(26) / a.parameters()), 2) == 16.30  # arXiv 2410.09982, abstract


@pytest.mark.parametrize(
    ("config", "said"),
    [({"model_type": "mixtral"}, "'mixtral'"), ({**SMALL, "hidden_size": None}, "hidden_size"), ({}, "None")],
)
def test_what_cannot_be_counted_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        architecture.read(config, "here")


def test_an_engine_by_hand() -> None:
    a = small()
    whole = memory.engine(a, 4, 2, 1, 100, 7, NOTHING, None)
    assert whole.parts == {"weights": 2 * 2536, "KV cache": 7 * 100 * 64, "allowance": 0}
    assert whole.fits is None and whole.total == 5072 + 44800
    tight = memory.engine(a, 4, 2, 1, 100, 7, NOTHING, 2 * (5072 + 2 * 6400 + 10))  # half of it is the engine's
    assert tight.parts["KV cache"] == 2 * 6400 and "2 of 7" in tight.about and tight.fits
    none = memory.engine(a, 4, 2, 1, 100, 7, NOTHING, 2 * (5072 + 6400 - 1))
    assert none.fits is False, "not one sequence of full length: vLLM would refuse to start"
    split = memory.engine(a, 4, 2, 2, 100, 7, NOTHING, None)
    assert split.total * 2 == whole.total and split.gpus == 2


def test_training_by_hand() -> None:
    a = small()
    memory_of = memory.training(a, 3, FULL.model_copy(update={"activation_checkpointing": True}), 5, 2, 1, NOTHING, 1e9)
    p = 3 * 592 + 168  # below 50 M: one group, gathered whole
    assert memory_of.parts == {
        "parameters": 2 * p,
        "gradients": 2 * p,
        "AdamW": 4 * p,
        "gathered in bf16": 2 * p,
        "gradients in flight": 6 * p,
        "activations": 5 * (3 * 16 + memory.activations(a) + 6 * 16),
        "logits and loss": 5 * 10 * 12,
        "allowance": 0,
    }
    kept = memory.training(a, 3, FULL, 5, 2, 1, NOTHING, 1e9)
    assert kept.parts["activations"] == 5 * (3 * memory.activations(a) + 6 * 16)
    copies = memory.training(a, 3, FULL, 5, 8, 4, NOTHING, 1e9)
    assert copies.parts == kept.parts and copies.gpus == 8, "four copies, each over two workers"
    lora = memory.training(a, 3, LORA, 5, 1, 1, NOTHING, 1e9)
    assert lora.parts["gradients"] == 4 * a.lora(2, 3) and lora.parts["AdamW"] == 8 * a.lora(2, 3)
    assert lora.parts["parameters"] == 4 * (p + a.lora(2, 3)), "the frozen base is kept in fp32 too"


def test_large_models_gather_two_blocks_and_what_is_outside() -> None:
    a = architecture.read(models.describe("meta-llama/Llama-3.1-8B-Instruct").config, "")
    recomputing = FULL.model_copy(update={"activation_checkpointing": True})
    parts = memory.training(a, 26, recomputing, 4096, 8, 1, NOTHING, 80e9).parts
    assert parts["parameters"] == 6_721_589_248 / 2
    assert parts["gathered in bf16"] == 2 * (1_050_677_248 + 2 * 218_112_000)
    assert parts["gradients in flight"] == 6 * 1_050_677_248, "the embeddings' gradient is the largest"
    assert parts["logits and loss"] == 1046 * 128_256 * 12, "some 134 million logits at a time"
    last = recomputing.model_copy(update={"last_layers": 2})
    parts = memory.training(a, 26, last, 4096, 8, 1, NOTHING, 80e9).parts
    assert parts["parameters"] == 6_721_589_248 / 2, "the frozen blocks are kept in fp32 too"
    assert parts["AdamW"] == 2 * parts["gradients"] == 2 * 218_112_000 + 4096
    assert parts["gradients in flight"] == 6 * 218_112_000, "the embeddings have none"
    assert parts["activations"] == 4096 * (2 * 2 * 4096 + memory.activations(a) + 6 * 14_336)


def test_measuring_is_spread_where_one_gpu_is_too_small() -> None:
    a = architecture.read(models.describe("meta-llama/Llama-3.1-70B-Instruct").config, "")
    assert memory.measuring(a, 2, 8, NOTHING, 80e9).gpus == 8
    assert memory.measuring(a, 2, 1, NOTHING, 80e9).fits is False
    assert memory.measuring(a, 2, 8, NOTHING, 150e9).gpus == 1


def test_host_memory() -> None:
    a = small()
    p = a.parameters(3)
    largest = 8 * 16
    assert memory.host(a, 3, FULL, 2, 8) == 2 * p + 8 * largest, "one file in bf16, one matrix in fp32 and its sum"
    assert memory.host(a, 3, LORA, 2, 8) == 2 * p + 8 * 4 * a.lora(2, 3), "eight ranks draw the adapters"
    assert memory.host(a, 3, LORA, 2, 1) == 2 * p + 4 * a.lora(2, 3) + 8 * largest
    large = architecture.read(models.describe("meta-llama/Llama-3.1-70B-Instruct").config, "")
    assert memory.host(large, 64, FULL, 2, 8) == memory.FILE + 8 * 128_256 * 8192


@pytest.mark.parametrize(
    ("address", "gpu", "pruning"),
    [
        ("local", "H100-80GB", 2 * 70_553_706_496),  # the checkpoint as it is stored; GPUs have it in bf16
        ("local", None, 4 * 70_553_706_496),  # in fp32
        ("auto", "H100-80GB", 0),  # the head's
        ("auto", None, 0),
    ],
)
def test_who_prunes_has_the_whole_teacher_in_main_memory(address: str, gpu: str | None, pruning: float) -> None:
    k = known.know(recipe_file.load("llama-3.1-70b-sdd", [f"cluster.address={address}"]), Assumptions())
    k = k._replace(gpu=gpus.GPUS[gpu] if gpu else None)
    training = max(memory.host(k.teacher, k.kept, s, 2, 8) for s in k.students)
    assert costs.host(k) == max(pruning, training) and training < 2 * 70_553_706_496
    assert costs.on_cpus(k) == 4 * 70_553_706_496
    assert ("prune: measuring" in [row.what for row in costs.memories(k)]) == (address == "local")


def test_the_head_prunes_where_the_cluster_is_not_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """As `pipelines.prune` does where no GPU is seen, and as a rendered head is made for."""
    recipes = [recipe_file.load("llama-3.1-70b-sdd", [f"cluster.address={place}"]) for place in ("local", "auto")]
    here, there = (plan.plan(recipe, Assumptions(), price=3) for recipe in recipes)
    assert here["memory"][0]["what"] == "prune: measuring" and here["memory"][0]["gpus"] == 8
    assert here["work"][0]["hours"] > 0 and here["head_memory"] is None
    assert there["memory"] == here["memory"][1:], "no GPU holds anything of it"
    assert there["work"][0] | {"gpus": 0, "hours": None, "gpu_hours": None} == there["work"][0]
    assert there["work"][1:] == here["work"][1:]
    lost = here["work"][0]["hours"]
    assert there["total"]["hours"] == pytest.approx(here["total"]["hours"] - lost, abs=0.02)
    assert there["head_memory"] == 4 * 70_553_706_496 == 2 * here["host_memory"] > there["host_memory"]
    assert any("'auto' it is on the head" in note and "no sum of hours" in note for note in there["notes"])
    assert any("282.2 GB" in note and "cluster.address=auto" in note for note in here["notes"])
    pod = workloads.workload(recipes[1].model_copy(update={"run_dir": "s3://bucket/run"}), "image:1").head
    assert pod.gpus == 0 and 1.1 < pod.memory * 2**30 / there["head_memory"] < 1.25
    screen.show(there)
    assert "of the head, which prunes in fp32: 282.2 GB" in capsys.readouterr().out
    early = plan.plan(recipes[1], Assumptions(), until="prepare")
    assert early["head_memory"] is None and not any("the head" in note for note in early["notes"])


def test_every_gpu_can_be_named_in_a_recipe() -> None:
    named = get_args(get_args(Cluster.model_fields["gpu"].annotation)[0])
    assert set(named) == set(gpus.GPUS)
    for name, gpu in gpus.GPUS.items():
        assert name == gpu.name and name.endswith(f"-{gpu.memory / 1e9:.0f}GB")


def test_packaged_architectures_hold_numbers_alone() -> None:
    for file in (models.RECIPES / "architectures").glob("*.json"):
        assert file.stem in json.loads(file.read_text())["_name_or_path"].lower().replace("-instruct", "")
