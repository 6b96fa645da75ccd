"""A collapsed predictor: every prompt gets the same units, and instruction-following pruning is a static mask."""

from collections.abc import Sequence
from typing import Any

from pipelines.student import Student
from pipelines.training import faults

OVERLAP, STEPS = 0.999, 50  # mean share of units that two prompts have in common, and for so many steps on end


def check(student: Student, steps: Sequence[dict[str, Any]]) -> None:
    """Raise faults.Stopped where the predictor has collapsed, as the last of `steps` (lines of losses.jsonl) say. While
    width and temperature fall it is not judged: it begins with one mask for all."""
    how = student.ifp
    last = steps[-STEPS:]
    if not how or how.mask != "prompt" or len(last) < STEPS or steps[-STEPS]["progress"] <= how.anneal:
        return
    told = [step["mask_overlap"] for step in last if "mask_overlap" in step]
    if len(told) < STEPS or min(told) < OVERLAP:
        return
    raise faults.Stopped(
        f"{student.name}: the predictor has collapsed: for {STEPS} steps any two prompts shared {min(told):.2%} of "
        "their units or more, which is a static mask. What helps: ifp.guidance above 0, "
        'ifp.anneal above 0, another ifp.predictor_learning_rate, rows of more kinds; or set ifp.mask = "static"'
    )
