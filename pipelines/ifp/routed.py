"""A routed model on disk: K sub-networks of one trained model, and the predictor that chooses between them.

    router.json            {"format": 1, "predictor": "predictor", "subnetworks": ["subnetworks/0", …], "units": t}
    centroids.safetensors  "masks" (K, L, d_ffn) fp32, the mask of each sub-network
    predictor/             what serving.predictor.save writes
    subnetworks/N/         dense checkpoints (subnetwork.export), which stock vLLM serves
    whole/                 the model that they are cut out of; nothing that serves reads it

A prompt goes to the sub-network that keeps the most of its own units (clusters.assign).
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines import cards, cuts, masks, models, subnetwork
from pipelines.ifp import clusters
from serving import predictor
from serving.predictor import Reader
from serving.routed import ABOUT, CENTROIDS, About

PREDICTOR, SUBNETWORKS, WHOLE = "predictor", "subnetworks", "whole"
BATCH = 16  # prompts that are read at once


class Written(NamedTuple):
    """`sizes`: calibration prompts of each sub-network; `shared`: the mean share of a prompt's own units that its
    sub-network keeps, in [0, 1]."""

    sizes: list[int]
    shared: float


def write(
    folder: Path, whole: Path, reader: Reader, prompts: Sequence[str], k: int, seed: int, base: str = "",
    copy: Callable[[str, str], object] = shutil.copy2,
) -> Written:  # fmt: skip
    """Write to `folder` the routed model of the checkpoint `whole` with k sub-networks, for traffic like `prompts`
    (texts as the predictor reads them). `base` names the model in the cards; by default the directory's name. `copy`:
    how the files of `whole` come to `folder`.

    `folder` is there whole or not at all. ValueError where the predictor is for another shape of model, for k and
    prompts as in `clusters.cluster` and `Reader.scores`, for checkpoints as in `subnetwork.export`, and where `folder`
    holds something."""
    check_model(reader, whole)
    subnetwork.free(folder)
    return write_masks(folder, whole, reader, masks_of(reader, prompts), k, seed, base, copy)


def write_masks(
    folder: Path, whole: Path, reader: Reader, some: Tensor, k: int, seed: int, base: str = "",
    copy: Callable[[str, str], object] = shutil.copy2,
) -> Written:  # fmt: skip
    """The same for prompts whose masks `some` (N, L, d_ffn) are known: `reader` made them for the model in `whole`."""
    base = base or whole.resolve().name
    centroids = clusters.cluster(some, k, seed)
    found = clusters.assign(some, centroids)
    made = Written(found.sizes, float(found.shared.mean()))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        for number, mask in enumerate(centroids):
            subnetwork.export(whole, mask, partial / SUBNETWORKS / str(number), base)
        predictor.save(partial / PREDICTOR, reader.predictor, reader.tokenizer)
        shutil.copytree(whole, partial / WHOLE, copy_function=copy)
        _describe(partial, whole, centroids, made, base)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def per_task(reader: Reader, prompts: str | Sequence[str], units: int = 0) -> Tensor:
    """The mask (L, d_ffn), fp32, of a task: of its description, or of any number of its prompts (clusters.middle).
    `units`: how many stay on in each block; 0: as the predictor was trained. ValueError as in `masks_of`."""
    return clusters.middle(_pieces(reader, [prompts] if isinstance(prompts, str) else prompts, units))


def masks_of(reader: Reader, prompts: Sequence[str], units: int = 0) -> Tensor:
    """The masks (N, L, d_ffn) of `prompts`, fp32, as the predictor was trained to make them; `units` as in `per_task`.

    ValueError for no prompt, for prompts that `Reader.scores` refuses, and where there are not so many units."""
    return torch.cat(list(_pieces(reader, prompts, units)))


def check_model(reader: Reader, model_dir: Path) -> None:
    """Raise ValueError where the predictor scores the units of a model of another shape than the one in `model_dir`,
    and as in `subnetwork.shape`."""
    check_shape(reader, subnetwork.shape(model_dir), f"the one in {model_dir}")


def check_shape(reader: Reader, shape: tuple[int, int], model: str) -> None:
    """Raise ValueError where the predictor is not for models of `shape` (L, d_ffn); `model` names the one at hand."""
    about = reader.about
    if (about.blocks, about.width) != shape:
        raise ValueError(
            f"the mask predictor is for models with {about.blocks} blocks of {about.width} FFN units, and {model} has "
            f"{shape[0]} of {shape[1]}; give the model that was trained with it"
        )


def _pieces(reader: Reader, prompts: Sequence[str], units: int) -> Iterator[Tensor]:
    about, keep = reader.about, units or reader.about.units
    if not prompts:
        raise ValueError("a mask needs a prompt; give one at least")
    cuts.check_units(keep, about.width)
    for start in range(0, len(prompts), BATCH):
        yield masks.mask(reader.scores(prompts[start : start + BATCH]), keep, about.temperature)


def _describe(to: Path, whole: Path, centroids: Tensor, made: Written, base: str) -> None:
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    names = [f"{SUBNETWORKS}/{number}" for number in range(len(centroids))]
    t, blocks, width = clusters.check(centroids), *centroids.shape[1:]
    AutoTokenizer.from_pretrained(whole, local_files_only=True).save_pretrained(to)  # clients and lm-eval look here
    models.readable(to)
    save_file({"masks": centroids.contiguous()}, to / CENTROIDS)
    about = About(format=1, predictor=PREDICTOR, subnetworks=tuple(names), units=t)
    (to / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf8")
    (to / CENTROIDS).chmod((to / ABOUT).stat().st_mode)  # safetensors writes for the owner alone
    cards.copy_licences(whole, to)
    facts = {
        "FFN units a block": t,
        "FFN units before": width,
        "blocks": blocks,
        "sub-networks": len(names),
        "calibration prompts": sum(made.sizes),
        "prompts of each sub-network": ", ".join(map(str, made.sizes)),
        "share of its own units that a prompt gets": round(made.shared, 4),
    }
    title = f"{base}, {len(names)} sub-networks of {t:,} of {width:,} FFN units"
    (to / "README.md").write_text(cards.card(title, base, facts, cards.licence(whole)), encoding="utf8")
