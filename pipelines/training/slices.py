"""A checkpoint read a slice at a time: every rank takes the part of each weight that it keeps, and no more.

That goes where the safetensors files hold exactly the parameters of the model, under their names and in their shapes,
as transformers writes its dense decoders. `unfit` says where it does not go, and why.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Owner = tuple[torch.nn.Module, str]  # a module and the name that a parameter has in it


class Files:
    """The safetensors files of a checkpoint: headers are read, weights only when asked for. Close it after use.

    Raises OSError or SafetensorError where a file is missing or torn."""

    def __init__(self, folder: Path) -> None:
        self._open, self._where = ExitStack(), {}
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.exists():
            names = sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))
        for name in names:
            file: Any = self._open.enter_context(safe_open(folder / name, "pt"))
            self._where.update(dict.fromkeys(file.keys(), file))

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight."""
        return {name: tuple(self.slice(name).get_shape()) for name in self._where}

    def slice(self, name: str) -> Any:
        """The weight `name`, to be indexed with slices; only what they ask for is read."""
        return self._where[name].get_slice(name)


def owners(model: torch.nn.Module) -> dict[str, Owner]:
    """Name → owner of every parameter; a tied one under the first of its names. Modules stay the same objects when
    adapters, checkpointing, compilation or sharding wrap them, names do not."""
    parts = {name: name.rpartition(".") for name, _ in model.named_parameters()}
    return {name: (model.get_submodule(parent), own) for name, (parent, _, own) in parts.items()}


def unfit(folder: Path, model: Any) -> str:
    """Why the weights in `folder` cannot be read into `model` (on the meta device) one by one, or "".

    Fills the model's buffers on the CPU on the way: no file has those that are not persistent."""
    if getattr(model.config, "quantization_config", None) is not None:
        return "the weights are quantised"
    told = json.loads((folder / "config.json").read_text(encoding="utf8"))
    if not (told.get("dtype") or told.get("torch_dtype")):
        return "config.json names no dtype"
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return f"transformers keeps parts of a {type(model).__name__} in another dtype"
    if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return "the weights are not in safetensors files"
    with Files(folder) as files:
        there = files.shapes()
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if odd := sorted(there.items() ^ wanted.items()):
        return f"the files and the model differ in {odd[0][0]}"
    if left := _empty_buffers(model):
        return f"transformers does not say how the buffer {left} begins"
    return ""


def _empty_buffers(model: Any) -> str:
    """Begin the buffers as transformers does after loading; the name of one it leaves out, or "". Whether it wrote
    one is seen by the NaN that stood there."""
    for name, module in model.named_modules():
        own = {key: buffer for key, buffer in module._buffers.items() if buffer is not None}
        for key, buffer in own.items():
            if not buffer.is_floating_point():
                return f"{name}.{key}"
            module._buffers[key] = torch.full_like(buffer, torch.nan, device="cpu")
        if own:
            with torch.no_grad():
                model._init_weights(module)
        for key in own:
            if module._buffers[key].isnan().any():
                return f"{name}.{key}"
    return ""


@torch.no_grad()
def read(folder: Path, where: dict[str, Owner], stored: torch.dtype) -> None:
    """Read this rank's part of every weight in `folder` into the parameters of `where`, by way of the dtype `stored`:
    a weight that the files hold more exactly is rounded as `from_pretrained` rounds it."""
    with Files(folder) as files:
        for name, (module, own) in where.items():
            parameter = getattr(module, own)
            here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if here.numel():  # a matrix of fewer rows than ranks leaves some without
                here.copy_(files.slice(name)[part(parameter)].to(stored))


def part(parameter: torch.Tensor) -> tuple[slice, ...]:
    """Where in the whole parameter stands what this rank has of it."""
    sizes, offsets = tuple(parameter.shape), (0,) * parameter.ndim
    if isinstance(parameter, DTensor):
        how = (parameter.shape, parameter.device_mesh, parameter.placements)
        sizes, offsets = compute_local_shape_and_global_offset(*how)
    return tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
