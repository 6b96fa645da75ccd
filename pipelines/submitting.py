"""A recipe as a Ray job on a running cluster: refused at once where it could not work, else packed and sent."""

import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cluster.jobs import connect
from cluster.jobs import submit as sending
from pipelines import needs, shipping
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput


class How(NamedTuple):
    """`until` which stage; whether this project's `code` goes along; which paths are the cluster's own; the job's
    `environment`; whether the cluster adds nodes as work asks for them."""

    until: str
    code: bool
    there: tuple[str, ...]
    environment: dict[str, str]
    autoscaled: bool


def submit(client: Any, recipe: Recipe, how: How, say: Callable[[str], Any]) -> str:
    """Submit the recipe; returns the job's id. Raises BadInput where the cluster has too few GPUs, the run is under way
    already, or files cannot go along."""
    shipping.check_run_dir(recipe)
    there = connect.nodes(client)
    check_gpus(recipe, there, how.autoscaled)
    say(f"cluster: {len(there)} node(s), {sum(n.cpus for n in there):g} CPUs, {sum(n.gpus for n in there):g} GPUs")
    run = sending.run_id(recipe.name, recipe.run_dir)
    with tempfile.TemporaryDirectory(prefix="regrow-job-") as folder:
        for sentence in shipping.pack(recipe, Path(folder), how.code, how.there):
            say(sentence)
        try:
            return sending.submit(client, Path(folder), _entrypoint(how), run, recipe.name, how.environment)
        except ValueError as error:
            follows = f"`regrow jobs logs ID --address {client.get_address()}` follows it, `regrow jobs stop` stops it"
            raise BadInput(f"{error}; {follows}") from None


def check_gpus(recipe: Recipe, there: list[connect.Node], autoscaled: bool = False) -> None:
    """Raise BadInput where a recipe meant for GPUs finds too few of them, all together or on one node."""
    if not needs.wants_gpus(recipe):
        return
    wanted, split = needs.gpus(recipe), recipe.teacher.tensor_parallel
    have, most = sum(node.gpus for node in there), max((node.gpus for node in there), default=0)
    if autoscaled and recipe.cluster.gpus is None:
        raise BadInput("--autoscaled needs cluster.gpus=N in the recipe: how many GPUs the cluster will have")
    if autoscaled and recipe.cluster.gpus is not None and recipe.cluster.gpus < wanted:
        raise BadInput(f"{recipe.name} wants {wanted} GPUs, but cluster.gpus = {recipe.cluster.gpus}; raise it")
    if not autoscaled and (have < wanted or most < split):
        where = ", ".join(f"{node.ip}: {node.gpus:g}" for node in there if node.gpus) or "no node has one"
        raise BadInput(
            f"{recipe.name} wants {wanted} GPUs, {split} of them on one node; the cluster has {have:g} ({where}). Use "
            "a larger cluster, lower generate.engines, cluster.workers or teacher.tensor_parallel, or say --autoscaled "
            "where it adds GPU nodes as work asks for them"
        )


def _entrypoint(how: How) -> str:
    command = ["python", "-m", "pipelines.cli"] if how.code else ["regrow"]
    return shlex.join([*command, "run", shipping.RECIPE, "cluster.address=auto", "--until", how.until])
