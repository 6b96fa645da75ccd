"""A student as a training ends: an ordinary checkpoint, gathered a weight and written a file at a time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from pipelines.student import Student
from pipelines.training import loading, parallel, slices
from pipelines.training.losses import ByToken

FILE = 2 << 30  # bytes of a file: what rank 0 holds at once, besides a weight in fp32
Weights = dict[str, torch.Tensor]


def save(folder: Path, pruned: str, student: Student, model: ByToken) -> None:
    """Write `folder`/model, an ordinary checkpoint in the dtype of `pruned`, and for LoRA `folder`/adapter.

    Every rank calls it, the first writes. What was not trained is read from `pruned` again."""
    first = is_first()
    trained: Weights = {parallel.unwrapped(name): p for name, p in model.model.named_parameters() if p.requires_grad}
    blank = loading.blank(pruned)
    whole = bool(slices.unfit(Path(pruned), blank))
    if student.lora_rank or whole:
        trained = dict(gathered(trained, first))
    if student.lora_rank and first:
        shell = loading.adapted(loading.blank(pruned), student, 0)  # peft looks its adapters up by name, past wrappers
        shell.save_pretrained(folder / "adapter", state_dict=trained)
    if not whole:
        _write(folder / "model", Path(pruned), student, blank, trained, first)
    elif first:
        _write_whole(folder / "model", pruned, student, trained)


def is_first() -> bool:
    """Whether this rank writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def gathered(parameters: Weights, first: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole of each of `parameters`, one after the other, on the CPU of the first rank; none on the others."""
    for name, parameter in parameters.items():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if first:
            yield name, whole.detach().cpu()


def _write(folder: Path, pruned: Path, student: Student, blank: Any, trained: Weights, first: bool) -> None:
    """Write the weights that `blank` names, in its dtype, and the configuration they were trained from."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    plan = split_torch_state_dict_into_shards(
        dict(blank.named_parameters()), filename_pattern="model{suffix}.safetensors", max_shard_size=FILE
    )
    with slices.Files(pruned) as files:
        for file, names in plan.filename_to_tensors.items():
            held: Weights = {}
            for name in names:
                if name in trained:
                    held |= {key: w.to(blank.dtype) for key, w in gathered({name: trained[name]}, first)}
                elif first:
                    held[name] = _merged(name, files.slice(name)[...].to(blank.dtype), student, trained)
            if first:
                save_file({name: held[name].contiguous() for name in names}, folder / file, {"format": "pt"})
    if first:
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf8")
        shutil.copyfile(pruned / "config.json", folder / "config.json")


def _merged(name: str, weight: torch.Tensor, student: Student, adapters: Weights) -> torch.Tensor:
    """W + alpha/rank · B·A (Hu et al., arXiv 2106.09685, section 4), summed in fp32 and rounded once; a weight without
    adapters as it is."""
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    if not (name.endswith(".weight") and f"{stem}.lora_A.default.weight" in adapters):
        return weight
    down, up = (adapters[f"{stem}.lora_{part}.default.weight"].float() for part in "AB")
    return (weight.float() + up @ down * (student.lora_alpha / student.lora_rank)).to(weight.dtype)


def _write_whole(folder: Path, pruned: str, student: Student, trained: Weights) -> None:
    """The same where transformers has to convert between files and model: all of it at once, in fp32."""
    from transformers import GenerationConfig

    model = loading.load(pruned, student, 0)
    stored = model.dtype
    model.float()
    left = model.load_state_dict(trained, strict=False).unexpected_keys
    if left:
        raise RuntimeError(f"trained weights that the model does not know: {left[:3]}")
    if student.lora_rank:
        model = model.merge_and_unload()
    model.generation_config = GenerationConfig()  # the driver copies the original; some would not pass the check here
    model.to(stored).save_pretrained(folder)
