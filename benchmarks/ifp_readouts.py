"""How one trained model of the sweep of instruction-following pruning is asked: with the mask of each prompt, of each
task, of a few sub-networks behind a router, and of another prompt.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.ifp_arms import Choose, Training, calibration, chosen, griffin, masks_of, scored
from benchmarks.tiny_students import teacher
from pipelines import masks, prompts, units
from pipelines.ifp import clusters
from pipelines.training import losses, masked

SUBNETWORKS = (1, 2, 4, 8, 16)
DESCRIBED = {  # what a user would write of a family who has no row of it
    "story": "Solve a word problem: somebody has some things, gets or gives away some, and has how many now?",
    "addition": "Add three or four whole numbers.",
    "modulo": "Find the remainder of a division of two whole numbers.",
    "sort": "Sort a list of numbers, the smallest first.",
    "compare": "Say which of two values, a sum and a difference, is larger.",
    "reverse": "Write a list of words in reverse order.",
    "position": "Find the word at a given place of a list of words.",
    "sequence": "Continue a sequence of numbers that rises by the same step.",
}


def readouts(model: losses.ByToken, one: Training, also: bool, widths: tuple[int, ...]) -> dict[str, Any]:
    """Name → family → items. `input` is the model as it was trained. `also`: of an ifp model all ways of using its
    masks; of the unpruned one GRIFFIN at `widths`."""
    found = {"input": scored(model.model, chosen(model, one), "test")}
    if isinstance(model, masked.Masked) and one.arm == "ifp":
        some = {family: masks_of(model, asked) for family, asked in calibration().items()}
        found["masks"] = _about(some)
        if also:
            for name, choose in _uses(model, one, some).items():
                found[name] = scored(model.model, choose, "test")
    elif one.arm == "whole" and also:
        for t in widths:
            found[f"griffin-{t}"] = scored(model.model, griffin(model.model, t), "test", after_prompt=True)
    return found


def _uses(model: masked.Masked, one: Training, some: dict[str, Tensor]) -> dict[str, Choose]:
    """`task`: the middle of the family's masks; `described`: the mask of a description of the family in words; `other`:
    that of a calibration prompt of any family, by chance; `k…`: the nearest of so many sub-networks."""
    everything = torch.cat(list(some.values()))
    tasks = {family: clusters.middle(own) for family, own in some.items()}
    wanted = [prompts.text(teacher()[1], prompts.answer(DESCRIBED[family])) for family in some]
    told = dict(zip(some, masks_of(model, wanted), strict=True))
    drawn = torch.Generator().manual_seed(one.seed)

    def one_each(of: dict[str, Tensor]) -> Choose:
        return lambda family, asked: of[family].expand(len(asked), -1, -1)

    def other(family: str, asked: list[str]) -> Tensor:
        return everything[torch.randint(len(everything), (len(asked),), generator=drawn)]

    def nearest(subnetworks: Tensor) -> Choose:
        return lambda family, asked: subnetworks[clusters.assign(masks_of(model, asked), subnetworks).which]

    made: dict[str, Choose] = {"task": one_each(tasks), "described": one_each(told), "other": other}
    different = clusters.different(everything)
    for k in (k for k in SUBNETWORKS if k <= different):
        made[f"k{k}"] = nearest(clusters.cluster(everything, k, one.seed))
    return made


def _about(some: dict[str, Tensor]) -> dict[str, Any]:
    """How masks differ: the mean share of units that two prompts have in common, by block; of all pairs, within
    families, and between each two; and the share of units that no prompt keeps."""
    everything = torch.cat(list(some.values()))
    within = torch.stack([masks.overlap(own) for own in some.values()]).mean(0)
    between = {
        a: {b: round(float(masks.overlap(x, None if a == b else y).mean()), 3) for b, y in some.items()}
        for a, x in some.items()
    }
    unused = float((everything == 0).all(0).double().mean())
    return {"all": _short(masks.overlap(everything)), "within": _short(within), "between": between, "unused": unused}


def _short(by_block: Tensor) -> list[float]:
    return [round(float(one), 3) for one in by_block]


def cut_alone(t: int) -> Choose:
    """The static mask by activation × norm, for the teacher as it is."""
    from benchmarks.ifp_arms import importance

    mask = units.top(importance(), t).float()
    return lambda family, asked: mask.expand(len(asked), -1, -1)
