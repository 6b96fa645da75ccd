"""FSDP2 over a 1-D mesh: activation checkpointing, then each decoder block, then what is left. Same on CPU and GPU."""

from typing import Any

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

SMALL = 50_000_000  # parameters; below, one group of all of them costs less than a collective a block


def blocks(model: Any) -> torch.nn.ModuleList:
    """The decoder blocks of a Hugging Face causal model, bare or inside a peft model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder().layers


def parallelize(model: Any, mesh: DeviceMesh, activation_checkpointing: bool = False) -> Any:
    """Shard `model` in place over `mesh` and return it.

    Parameters are kept in fp32 (fp64 stays); on a GPU computation and all-gather are bf16 and gradients
    are reduced in fp32, on a CPU the caller's autocast does the same. Gradients are summed over the
    ranks, not averaged: the loss is divided by the global token count beforehand, and a sum is what
    gloo and NCCL both have at any world size."""
    gpu = mesh.device_type == "cuda"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if gpu else MixedPrecisionPolicy()
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    layers = blocks(model)
    for i, block in enumerate(layers):
        _widen(block)
        if activation_checkpointing:
            layers[i] = block = checkpoint_wrapper(block)
        if not small:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    _widen(model)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def _widen(module: torch.nn.Module) -> None:
    """Cast the parameters that are not sharded yet to fp32, unless they are fp64."""
    for parameter in module.parameters():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if parameter.dtype != wide:
            parameter.data = parameter.data.to(wide)
