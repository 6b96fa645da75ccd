"""Shipped recipes as they would be sharded over their GPUs: the real model on the meta device, a fake process group.

No memory, no GPU and no other process is needed: the group answers every collective with nothing.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModel, LlamaConfig

from pipelines import models, recipe_file
from pipelines.planning import architecture, memory
from pipelines.planning.assumptions import Assumptions
from pipelines.recipe import Recipe
from pipelines.student import Student
from pipelines.training import loading, losses, parallel
from pipelines.training.masked import Masked
from serving.predictor import RANK, About, Predictor
from tests.parity.test_plan_numbers import built, count

LOADED = {name: recipe_file.load(name) for name in recipe_file.names()}
REAL = [name for name, one in LOADED.items() if one.cluster.gpu and not any(s.ifp for s in one.student)]


@pytest.fixture(params=REAL)
def recipe(request: pytest.FixtureRequest) -> Iterator[Recipe]:
    """A recipe for real GPUs, inside a process group of its workers, as rank 0."""
    made = recipe_file.load(request.param)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=made.cluster.workers)
    yield made
    dist.destroy_process_group()


def sharded(recipe: Recipe, student: Student) -> torch.nn.Module:
    config = models.describe(recipe.teacher.model).config
    model = built(config, config["num_hidden_layers"] - recipe.prune.layers)
    mesh = init_device_mesh("cpu", (recipe.cluster.workers,))
    shell = losses.ByToken(loading.adapted(model, student, 0))
    return parallel.parallelize(shell, mesh, student.activation_checkpointing)


def test_what_is_sharded_is_what_the_plan_counts(recipe: Recipe) -> None:
    a = architecture.read(models.describe(recipe.teacher.model).config, "")
    kept = a.layers - recipe.prune.layers
    for student in recipe.student[:1]:  # the recipes' students differ in their data alone
        model = sharded(recipe, student)
        groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
        assert len(groups) == kept + 1 and groups[0] is model, "one group a block, one for what is left"
        assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in model.parameters())
        whole = a.parameters(kept) + memory.trained(a, kept, student)
        assert count(model.parameters()) == whole
        here = [p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)]
        trained = [p for p in model.parameters() if p.requires_grad]
        planned = memory.training(
            a, kept, student, 1, recipe.cluster.workers, recipe.cluster.replicas, Assumptions(), None
        ).parts
        assert memory.MASTER * sum(here) == planned["parameters"], "all are divided evenly"
        assert memory.MASTER * sum(p.to_local().numel() for p in trained) == planned["gradients"]  # type: ignore[attr-defined]


def test_students_differ_in_nothing_that_sharding_sees(recipe: Recipe) -> None:
    seen = {(s.lora_rank, s.activation_checkpointing, s.micro_tokens, s.max_length) for s in recipe.student}
    assert len(seen) == 1 and all(s.lora_rank for s in recipe.student)


@pytest.mark.parametrize("recipe", ["ifp-9b-3b"], indirect=True)
def test_a_predictor_is_sharded_beside_the_model(recipe: Recipe) -> None:
    """Its two maps in groups of their own, which compute in fp32; the whole teacher is trained."""
    student = recipe.student[0]
    assert student.ifp
    config = models.describe(recipe.teacher.model).config
    a = architecture.read(config, "")
    with torch.device("meta"):
        lm = AutoModel.from_config(
            LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, vocab_size=99)
        )
        predictor = Predictor(lm, About(a.layers, a.intermediate, student.ifp.units, 0.1))
    mesh = init_device_mesh("cpu", (recipe.cluster.workers,))
    made = parallel.parallelize(Masked(built(config, a.layers), predictor, student.ifp), mesh, True)
    groups = [module for module in made.modules() if isinstance(module, FSDPModule)]
    assert len(groups) == a.layers + 3 and {id(predictor.down), id(predictor.up)} < {id(group) for group in groups}
    head = 64 * RANK + RANK + (RANK + 1) * a.layers * a.intermediate
    assert count(made.parameters()) == a.parameters() + count(lm.parameters()) + head
    planned = memory.training(a, a.layers, student, 1, 8, 1, Assumptions(), None).parts
    assert memory.MASTER * a.parameters() / 8 == planned["parameters"] and planned["mask predictor"] > 16 * head / 8
