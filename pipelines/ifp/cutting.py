"""The end of an IFP training: what has been trained becomes dense models that stock vLLM serves.

Where the prompt chooses, a routed model (ifp.routed) of `ifp.subnetworks` sub-networks for prompts like the training
rows; where one mask is for all, one dense checkpoint.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import masks, subnetwork, units
from pipelines.ifp import clusters, routed
from pipelines.screen import say
from pipelines.student import Ifp
from pipelines.training import choosers
from serving import predictor

TABLE = "masks.json"


def cut(
    how: Ifp, whole: Path, chooser: Path, asked: Sequence[tuple[str, str]], seed: int, out: Path, base: str = ""
) -> dict[str, Any]:
    """Write `out`/model from the trained model `whole` and what chooses its units, and where prompts choose,
    `out`/masks.json: how their masks differ. `asked`: (task, prompt as the predictor reads it) of calibration rows;
    `base`: what cards call the model.

    Where fewer prompts than `ifp.subnetworks` differ in their units, there are fewer sub-networks. Returns what a
    report tells of it. ValueError as in routed.write and subnetwork.export."""
    if how.mask != "prompt":
        scores = choosers.scores(chooser)
        static = how.mask == "static"
        mask = masks.mask(scores, how.units, how.temperature[1]) if static else units.top(scores, how.units)
        subnetwork.export(whole, mask, out / "model", base)
        return {"units": how.units, "units_before": mask.shape[1]}
    reader = predictor.load(chooser)
    found = routed.masks_of(reader, [prompt for _, prompt in asked])
    table = described(found, [task for task, _ in asked])
    different = clusters.different(found)
    if different < how.subnetworks:
        say(
            f"[yellow]warning[/yellow]: {len(found)} calibration prompts choose {different} different sets of units, "
            f"so there are {different} sub-networks in place of ifp.subnetworks = {how.subnetworks}"
        )
    number = min(how.subnetworks, different)
    written = routed.write_masks(out / "model", whole, reader, found, number, seed, base, copy=_linked)
    table |= {"sizes": written.sizes, "shared": written.shared}
    (out / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf8")
    told = ("units", "units_before", "overlap", "variance", "unused", "shared")
    return {name: table[name] for name in told}


def _linked(source: str, target: str) -> None:
    """The file under another name, which takes no room; where a file system has no such names, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def described(found: Tensor, tasks: Sequence[str]) -> dict[str, Any]:
    """How the masks (N, L, d_ffn) of prompts differ: `overlap`, the mean share of units that two prompts have in
    common (masks.overlap), `by_block` too; `variance`, of a unit over prompts, as a share of the most there can be;
    `unused`, the share of units that no prompt keeps; `between`, the overlap of every two tasks and within each."""
    t, width = int((found[0, 0] != 0).sum()), found.shape[2]
    often = (found != 0).double().mean(0)
    by_block = masks.overlap(found)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, task in enumerate(tasks):
        groups[task].append(number)
    names = sorted(name for name, rows in groups.items() if len(rows) > 1)
    of = {name: found[torch.tensor(groups[name])] for name in names}
    between = [
        [float(masks.overlap(of[a], None if a == b else of[b]).mean()) for b in names] for a in names
    ]  # fmt: skip
    return {
        "units": t,
        "units_before": width,
        "prompts": len(found),
        "overlap": float(by_block.mean()),
        "by_block": by_block.tolist(),
        "variance": masks.variance(often, t),
        "unused": float((often == 0).double().mean()),
        "unused_by_block": (often == 0).double().mean(1).tolist(),
        "tasks": names,
        "between": between,
    }
