"""FSDP2: activation checkpointing, compilation, each decoder block, then what is left. Same on CPU and GPU."""

from typing import Any, cast

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pipelines.training.losses import ByToken, bare

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")  # in the names of parameters
SMALL = 50_000_000  # parameters; below, one group of all of them costs less than a collective a block


def mesh(device: str, ranks: int, replicas: int = 1) -> DeviceMesh:
    """All ranks in a row, or in `replicas` rows: parameters are divided within a row, and every row has them all."""
    if replicas == 1:
        return init_device_mesh(device, (ranks,))
    return init_device_mesh(device, (replicas, ranks // replicas), mesh_dim_names=("replicate", "shard"))


def blocks(model: Any) -> torch.nn.ModuleList:
    """The decoder blocks of a Hugging Face causal model, bare or inside a peft model."""
    return bare(model).get_decoder().layers


def parallelize(
    model: ByToken, mesh: DeviceMesh, activation_checkpointing: bool = False, compiled: bool = False
) -> ByToken:
    """Shard `model` in place over `mesh` (as `parallel.mesh` makes it) and return it.

    Parameters are kept in fp32 (fp64 stays); on a GPU computation and all-gather are bf16 and gradients
    are reduced in fp32, on a CPU the caller's autocast does the same where it pays (loop.halved). Gradients
    are summed over all ranks, not averaged: the loss is divided by the global token count beforehand, and
    a sum is what gloo and NCCL both have at any world size."""
    gpu = mesh.device_type == "cuda"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if gpu else MixedPrecisionPolicy()
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    layers = blocks(model.model)
    for i, block in enumerate(layers):
        _widen(block)
        if activation_checkpointing:
            block = checkpoint_wrapper(block)
        if compiled:
            block = cast(torch.nn.Module, torch.compile(block))  # FSDP2's hooks stay outside
        if not small:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        layers[i] = block
    _widen(model)
    for part in model.precise():
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def unwrapped(name: str) -> str:
    """The name of a parameter as it is without activation checkpointing and compilation."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _widen(module: torch.nn.Module) -> None:
    """Cast the parameters that are not sharded yet to fp32, unless they are fp64."""
    for parameter in module.parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if parameter.dtype != wide:
            parameter.data = parameter.data.to(wide)
