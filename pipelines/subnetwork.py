"""The sub-network that a mask cuts out of a model: an ordinary dense model of the kept FFN units, on disk or in memory.

Where every block keeps t units, the masked model is the model with rows of `gate_proj` and `up_proj` and columns of
`down_proj` gathered, the λ of soft masks multiplied into these columns (arXiv 2501.02086 does not say what becomes of
them; so folded, the small model computes what was trained). Stock transformers and vLLM load it.
"""

import copy
import json
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster import artifacts, storage
from pipelines import cards, layers, masks, models, units, weights
from pipelines.training import slices
from pipelines.training.losses import bare
from pipelines.training.saving import FILE

UNITS = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.(gate|up|down)_proj\.(weight|bias)")
BESIDE = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")  # tokenizer, chat template, generation settings
REMADE = ("config.json", "model.safetensors.index.json")
TEMPLATES = "additional_chat_templates"


def export(model_dir: Path, mask: Tensor, out: Path, base: str = "") -> None:
    """Write to `out` the checkpoint that `mask` (L, d_ffn) cuts out of the one in `model_dir`.

    Every weight keeps its dtype; λ is multiplied in fp32 at least and rounded once. A weight is read at a time and a
    file of 2 GiB is held. What else belongs to the model is copied; its card is written anew and names `base` (by
    default the directory's name). `out` is there whole or not at all.

    Raises ValueError for a mask that does not fit or keeps different numbers of units, models that `units.check`
    refuses, quantised or incomplete checkpoints, and where `out` holds something."""
    kept, soft = _kept(mask, shape(model_dir))
    free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        _write_weights(model_dir, kept, soft, mask.shape[1], partial)
        _write_rest(model_dir, mask, kept, partial, base or model_dir.resolve().name)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def gathered(model: Any, mask: Tensor) -> Any:
    """The same in memory, for decoding under the mask of one input: a model of t units a block, in eval mode.

    Only the kept FFN weights are new; all others are those of `model`, the same tensors. ValueError as in `export`, and
    for a peft model."""
    if bare(model) is not model:
        raise ValueError("units are gathered from whole weights; merge the adapters first (merge_and_unload)")
    kept, soft = _kept(mask, units.check(model))
    same = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    small = copy.deepcopy(model, same).eval()  # modules alone: tensors count as copied already
    for block, own, values in zip(layers.blocks(small), kept, soft, strict=True):
        mlp: Any = block.mlp
        for part in ("gate", "up", "down"):
            setattr(mlp, f"{part}_proj", _linear(getattr(mlp, f"{part}_proj"), part, own, values))
        mlp.intermediate_size = kept.shape[1]
    small.config.get_text_config().intermediate_size = kept.shape[1]
    return small


def free(folder: Path) -> None:
    """Raise ValueError where `folder` is there and not an empty directory."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give a new directory")


def shape(model_dir: Path) -> tuple[int, int]:
    """(L, d_ffn) of the checkpoint in `model_dir`, from its configuration. ValueError as in `export`."""
    from transformers import AutoModelForCausalLM

    config = weights.check(model_dir)
    told = models.configuration(model_dir)
    if "quantization_config" in told:
        raise ValueError(f"{model_dir} is a quantised checkpoint; give the unquantised one, units are cut out of it")
    with torch.device("meta"):
        found = units.check(AutoModelForCausalLM.from_config(config))
    if told.get("intermediate_size") != found[1]:
        raise ValueError(f"{model_dir / 'config.json'} does not state intermediate_size = {found[1]}; {units.FIT}")
    return found


def fingerprint(model_dir: Path) -> str:
    """What a mask is tied to: sha256 over the names and content of the safetensors files, all of which it reads. A
    model's units are its weights'; another tokenizer or chat template beside them changes no unit."""
    return artifacts.digest_of(model_dir, (".safetensors",))


def save_mask(path: Path, mask: Tensor, model_dir: Path) -> None:
    """Write `mask` (L, d_ffn) for the model in `model_dir` as safetensors, whole or not at all.

    Its metadata: `fingerprint`, `mask_hash` (masks.mask_hash) and `t`. ValueError as in `export`."""
    from safetensors.torch import save

    kept, _ = _kept(mask, shape(model_dir))
    told = {"fingerprint": fingerprint(model_dir), "mask_hash": masks.mask_hash(mask), "t": str(kept.shape[1])}
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.replace(str(path), save({"mask": mask.detach().cpu().contiguous()}, told))


def load_mask(path: Path, model_dir: Path) -> Tensor:
    """The mask (L, d_ffn) in `path`. Raises ValueError where it is no mask, damaged, or of another model than the one
    in `model_dir`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no mask {path}; give a file that save_mask wrote")
    try:
        with safe_open(path, "pt") as file:
            told, names = file.metadata() or {}, list(file.keys())
            mask = file.get_tensor("mask") if names == ["mask"] else None
    except SafetensorError as error:
        raise ValueError(f"{path} is torn or no safetensors file ({error}); write the mask anew") from error
    if mask is None or not {"fingerprint", "mask_hash", "t"} <= told.keys():
        raise ValueError(f"{path} is no mask of FFN units; give a file that save_mask wrote")
    if told["fingerprint"] != fingerprint(model_dir):
        raise ValueError(
            f"the mask {path} was made for another model than the one in {model_dir} (their weights differ); "
            "give the model it was made for, or make a mask for this one"
        )
    kept, _ = _kept(mask, shape(model_dir))
    if (masks.mask_hash(mask), str(kept.shape[1])) != (told["mask_hash"], told["t"]):
        raise ValueError(f"the mask in {path} is not the one its metadata describes; write it anew")
    return mask


def _kept(mask: Tensor, wanted: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The kept units, ascending, and their λ, (L, t) each, on the CPU."""
    here = mask.detach().cpu()
    if tuple(here.shape) != wanted:
        raise ValueError(
            f"the mask is {tuple(here.shape)}, but the model has {wanted[0]} blocks of {wanted[1]} FFN units; "
            f"give a mask of ({wanted[0]}, {wanted[1]})"
        )
    here = here if here.is_floating_point() else here.float()
    if not ((here >= 0) & (here <= 1)).all():
        raise ValueError("the mask has values outside 0 … 1; make it with masks.mask or units.top")
    kept = masks.indices(here)
    if not kept.shape[1]:
        raise ValueError("the mask keeps no unit; keep one in each block at least")
    return kept, here.gather(1, kept)


def _cut(weight: Tensor, part: str, kept: Tensor, soft: Tensor) -> Tensor:
    """The weight of a block's map `part` (gate, up or down), or its bias, for the units `kept` (t)."""
    kept = kept.to(weight.device)
    if part != "down":
        return weight[kept]
    if weight.dim() == 1:
        return weight
    wide = torch.promote_types(torch.promote_types(weight.dtype, soft.dtype), torch.float32)
    return (weight[:, kept].to(wide) * soft.to(weight.device, wide)).to(weight.dtype)


@torch.no_grad()
def _linear(whole: Any, part: str, kept: Tensor, soft: Tensor) -> nn.Linear:
    weight = _cut(whole.weight, part, kept, soft)
    made = nn.Linear(weight.shape[1], weight.shape[0], whole.bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if whole.bias is not None:
        made.bias = nn.Parameter(_cut(whole.bias, part, kept, soft), requires_grad=False)
    return made.eval()


def _write_weights(model_dir: Path, kept: Tensor, soft: Tensor, width: int, to: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    def small(name: str, weight: Tensor) -> Tensor:
        match = UNITS.fullmatch(name)
        if not match or int(match[1]) >= len(kept):  # blocks past the last are no part of the model
            return weight
        return _cut(weight, match[2], kept[int(match[1])], soft[int(match[1])]).contiguous()

    with slices.Files(model_dir) as files:
        shapes = files.shapes()
        _check(model_dir, shapes, len(kept), width)
        dtypes = {name: files.slice(name)[:1].dtype for name in shapes}
        blank = {name: torch.empty(size, dtype=dtypes[name], device="meta") for name, size in shapes.items()}
        plan = split_torch_state_dict_into_shards(
            {name: small(name, weight) for name, weight in blank.items()},
            filename_pattern="model{suffix}.safetensors", max_shard_size=FILE,
        )  # fmt: skip
        for file, names in plan.filename_to_tensors.items():
            save_file({name: small(name, files.slice(name)[...]) for name in names}, to / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (to / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf8")


def _check(model_dir: Path, shapes: dict[str, tuple[int, ...]], blocks: int, width: int) -> None:
    """Raise ValueError where a block's FFN weights are not all there, of `width` units."""
    found = {match.group(1, 2, 3): shapes[name] for name in shapes if (match := UNITS.fullmatch(name))}
    for number in range(blocks):
        for part in ("gate", "up", "down"):
            size = found.get((str(number), part, "weight"))
            if size is None or size[part == "down"] != width:
                raise ValueError(
                    f"the weights in {model_dir} have no {part}_proj of {width} units for block {number}; weights and "
                    "config.json are of different models, or the weights have other names than transformers'"
                )


def _write_rest(model_dir: Path, mask: Tensor, kept: Tensor, to: Path, base: str) -> None:
    config = models.configuration(model_dir) | {"intermediate_size": kept.shape[1]}
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
    for file in sorted(file for pattern in BESIDE for file in model_dir.glob(pattern)):
        if file.name not in REMADE and file.is_file():
            shutil.copyfile(file, to / file.name)
    if (model_dir / TEMPLATES).is_dir():
        shutil.copytree(model_dir / TEMPLATES, to / TEMPLATES)
    cards.copy_licences(model_dir, to)
    models.readable(to)
    facts = {
        "FFN units a block": kept.shape[1],
        "FFN units before": mask.shape[1],
        "blocks": len(kept),
        "mask": masks.mask_hash(mask),
    }
    title = f"{base}, {kept.shape[1]:,} of {mask.shape[1]:,} FFN units"
    (to / "README.md").write_text(cards.card(title, base, facts, cards.licence(model_dir)), encoding="utf8")
