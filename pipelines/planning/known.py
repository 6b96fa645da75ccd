"""What a plan is worked out from: the recipe, the teacher's shape, the GPU, the assumptions, the rows."""

from dataclasses import replace
from typing import NamedTuple

from cluster import gpus
from pipelines import models, needs, objectives, prune
from pipelines.planning import amounts, architecture
from pipelines.planning.amounts import Amount
from pipelines.planning.architecture import BYTES, Architecture
from pipelines.planning.assumptions import Assumptions
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.student import Student


class Known(NamedTuple):
    """The facts behind a plan, and what follows from them at once."""

    recipe: Recipe
    teacher: Architecture
    source: models.Described
    gpu: gpus.Gpu | None
    assumed: Assumptions
    rows: list[Amount]

    @property
    def kept(self) -> int:
        """Blocks of a student."""
        return self.teacher.layers - self.recipe.prune.layers

    @property
    def width(self) -> int:
        """Bytes of a weight in an engine: fp32 on CPUs, the checkpoint's own on GPUs, unless the recipe says."""
        dtype = self.recipe.teacher.dtype
        return BYTES[(self.teacher.dtype if self.gpu else "float32") if dtype == "auto" else dtype]

    @property
    def students(self) -> list[Student]:
        """Those that are trained."""
        return self.recipe.trained

    @property
    def writes(self) -> list[str]:
        """What the teacher writes for them: `self_distill`, `rationale`."""
        return objectives.written(self.students)

    def blocks(self, s: Student) -> int:
        """Blocks that the student has: those that pruning left, or where FFN units are chosen all of the teacher's."""
        return self.teacher.layers if s.ifp else self.kept

    @property
    def scored(self) -> dict[str, tuple[Architecture, int]]:
        """Name → architecture and blocks of every model that is evaluated, the teacher first. Where the prompt chooses
        FFN units, an engine has one sub-network."""
        cuts = dict.fromkeys(["pruned", *self.recipe.prune.methods[1:]], (self.teacher, self.kept))
        narrow = {
            s.name: replace(self.teacher, intermediate=s.ifp.units) if s.ifp else self.teacher for s in self.students
        }
        made = {s.name: (narrow[s.name], self.blocks(s)) for s in self.students}
        return {"teacher": (self.teacher, self.teacher.layers), **cuts, **made}

    @property
    def gpus(self) -> int:
        """GPUs that the cluster must have: as many as the stage that holds the most."""
        return needs.gpus(self.recipe)

    @property
    def head_prunes(self) -> bool:
        """Whether the driver, which prunes, is on a cluster's head instead of this machine. The head is taken to have
        no GPU: the one that `regrow k8s render` makes has none."""
        return self.recipe.cluster.address != "local"

    @property
    def at_once(self) -> int:
        """Models that are up at once during evaluation."""
        wanted = min(self.recipe.serve.models_at_a_time, len(self.scored))
        return max(1, min(wanted, self.gpus // self.recipe.teacher.tensor_parallel))


def know(recipe: Recipe, assumed: Assumptions) -> Known:
    """Gather what the plan of `recipe` rests on. Raises BadInput where the teacher or local data cannot be read."""
    from serving import engine

    try:
        source = models.describe(recipe.teacher.model)
        prune.check_config(recipe, source.config, source.where)
        engine.check_split(source.config, recipe.teacher.tensor_parallel)
        teacher = architecture.read(source.config, source.where)
        _check_targets(recipe)
        for student in recipe.student:
            student.check_units(teacher.intermediate, recipe.teacher.tensor_parallel)
        rows = amounts.amounts(recipe, assumed)
    except ValueError as error:
        raise BadInput(str(error)) from error
    gpu = gpus.GPUS[recipe.cluster.gpu] if recipe.cluster.gpu else None
    return Known(recipe, teacher, source, gpu, assumed, rows)


def _check_targets(recipe: Recipe) -> None:
    for student in recipe.student:
        if odd := [name for name in student.lora_targets if name not in architecture.LINEARS]:
            raise ValueError(
                f"student {student.name}: lora_targets names {odd[0]!r}, which is no linear map in the blocks of this "
                f"model; there are {', '.join(sorted(architecture.LINEARS))}"
            )
