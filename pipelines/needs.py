"""What a recipe asks of a cluster: how many GPUs its stages hold at once."""

from pipelines import objectives
from pipelines.recipe import Recipe


def gpus(recipe: Recipe) -> int:
    """GPUs that a GPU cluster must have: as many as the stage that holds the most."""
    split = recipe.teacher.tensor_parallel
    writing = recipe.generate.engines * split if objectives.written(recipe.trained) else 1
    return max(split, writing, recipe.cluster.workers if recipe.trained else 1)


def wants_gpus(recipe: Recipe) -> bool:
    """Whether the recipe is meant for GPUs: it names their kind or their number."""
    return bool(recipe.cluster.gpus) or (recipe.cluster.gpus is None and recipe.cluster.gpu is not None)
