"""`regrow run RECIPE --plan`: what a run would do, need and take. Reads a configuration, no weights; starts nothing.

What is exact, computed and assumed stays apart: parameters are exact, memory follows from formulas (`memory`),
hours from the assumptions (`assumptions`) that the plan prints with their values.
"""

from math import isfinite
from typing import Any

from cluster.gpus import GPUS
from pipelines import needs
from pipelines.lm_tasks import named
from pipelines.planning import capacity, costs, known, stages
from pipelines.planning.assumptions import CAPACITY, Assumptions
from pipelines.planning.known import Known
from pipelines.planning.lm_sizes import SIZES
from pipelines.planning.memory import Memory
from pipelines.planning.work import Work
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.run import STAGES


def plan(recipe: Recipe, assumed: Assumptions, price: float | None = None, until: str = STAGES[-1]) -> dict[str, Any]:
    """The plan of all stages up to `until`, as `--json` prints it. Memory in bytes, `price` in any currency for
    one GPU's hour.

    Raises BadInput where the teacher's configuration or local data cannot be had, or `price` is no price."""
    if price is not None and not (isfinite(price) and price >= 0):
        raise BadInput(
            f"--gpu-hour-price {price}: not a price; give what one GPU costs an hour as a number of 0 or more, for "
            "example --gpu-hour-price 3"
        )
    k = known.know(recipe, assumed)
    asked = STAGES[: STAGES.index(until) + 1]
    memories = [one for one in costs.memories(k) if one.what.partition(":")[0] in asked]
    works = [one for one in costs.workloads(k) if one.stage in asked]
    rows, why = stages.stages(k)
    t = k.teacher
    able = capacity.capacity(k, price) if "generate" in asked else None
    return {
        "recipe": recipe.name,
        "teacher": {"model": recipe.teacher.model, "from": k.source.where, "family": t.family, "layers": t.layers}
        | {"parameters": t.parameters()},
        "pruned": {"removed": recipe.prune.layers, "layers": k.kept, "parameters": t.parameters(k.kept)},
        "gpu": None if k.gpu is None else k.gpu._asdict(),
        "data": [amount._asdict() for amount in k.rows],
        "stages": [row for row in rows if row["stage"] in asked],
        "memory": [one.plain() for one in memories],
        "host_memory": round(costs.host(k)),
        "head_memory": round(costs.on_cpus(k)) if k.head_prunes and "prune" in asked else None,
        "work": [one.plain() for one in works],
        "total": total(k, works, price),
        "capacity": able,
        "assumptions": [
            {"name": name, "value": getattr(assumed, name), "about": field.description}
            for name, field in Assumptions.model_fields.items()
            if able or name not in CAPACITY
        ],
        "notes": [*([why] if why else []), *notes(k, memories), *(_head(k) if "prune" in asked else [])],
    }


def total(k: Known, works: list[Work], price: float | None) -> dict[str, Any]:
    """Hours and cost: of the GPUs while they work, and of a cluster that is held from the first stage to the last."""
    made: dict[str, Any] = {"cluster_gpus": k.gpus, "hours": None, "gpu_hours": None, "gpu_hours_held": None}
    made |= {"gpu_hour_price": price, "cost": None, "cost_held": None}
    if k.gpu is None:
        return made
    hours, used = sum((w.seconds or 0) / 3600 for w in works), sum(w.gpu_hours or 0 for w in works)
    made |= {"hours": round(hours, 2), "gpu_hours": round(used, 2), "gpu_hours_held": round(hours * k.gpus, 2)}
    if price is not None:
        made |= {"cost": round(used * price, 2), "cost_held": round(hours * k.gpus * price, 2)}
    return made


def notes(k: Known, memories: list[Memory]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [f"{m.what} does not fit on {k.gpu.name}: {m.advice}" for m in memories if k.gpu and m.fits is False]
    if k.gpu is None:
        found.append(
            "no GPU is named (cluster.gpu), so memory has no limit and hours are left out; "
            "training memory is that of a GPU in bf16"
        )
        if k.recipe.cluster.gpus:
            found.append(
                f"what {k.recipe.cluster.gpus} GPUs can write is left out: say which they are, for example "
                f"cluster.gpu={next(iter(GPUS))} (there are {', '.join(GPUS)})"
            )
    elif k.source.folder is None:
        found.append(f"the teacher's shape is that of {k.source.where}; the hub was not asked whether it changed")
    if 0 < (k.recipe.cluster.gpus or 0) < k.gpus:
        found.append(
            f"cluster.gpus = {k.recipe.cluster.gpus}, but the stages want {k.gpus} at once; raise it, or lower "
            "generate.engines and cluster.workers: engines that find no GPU are left out, training waits for its GPUs"
        )
    guessed = [amount.name for amount in k.rows if amount.known != "counted"]
    if guessed:
        found.append(f"lengths of {', '.join(guessed)} are assumed, and where `rows` is not given their number too")
    tasks = [named(task)[0] for task in k.recipe.evaluate.lm_eval]
    if unknown := [task.rsplit("/", 1)[-1] for task in tasks if task not in SIZES]:
        found.append(f"sizes of the lm-eval tasks {', '.join(unknown)} are assumed")
    longest = max((a.question + a.reference for a in k.rows), default=0) + k.recipe.generate.max_tokens
    if longest > k.recipe.teacher.max_model_len:
        found.append(
            f"teacher.max_model_len is less than a mean prompt and generate.max_tokens ({longest:,.0f} tokens)"
        )
    return found


def _head(k: Known) -> list[str]:
    """What there is to say where the driver, which prunes, is or may come to be on a head without a GPU."""
    if k.head_prunes:
        return [
            f"the driver prunes; with cluster.address = {k.recipe.cluster.address!r} it is on the head, which "
            "`regrow k8s render` gives no GPU: in fp32 on its CPUs. How long is not known: no sum of hours holds it"
        ]
    if not needs.wants_gpus(k.recipe):
        return []
    return [
        "pruning is that of one machine (cluster.address = 'local'); on Kubernetes the head does it, without a GPU, "
        f"in fp32 on its CPUs, {costs.on_cpus(k) / 1e9:,.1f} GB of main memory for the weights; plan that with "
        "cluster.address=auto"
    ]
