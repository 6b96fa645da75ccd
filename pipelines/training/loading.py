"""A student as a training begins: the pruned model, with fresh adapters or with its last blocks alone to be trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from pipelines.screen import say
from pipelines.student import Student
from pipelines.training import attention, parallel, slices
from pipelines.training.losses import ByToken


def sharded(
    pruned: str, student: Student, seed: int, mesh: DeviceMesh, tell: Callable[[str], None] = say,
    shell: Callable[[Any], ByToken] = ByToken,
) -> ByToken:  # fmt: skip
    """The student, in its `shell`, over the ranks of `mesh`; no rank ever holds the whole of it.

    Where the files do not hold the model's parameters one by one (slices.unfit), every rank reads the whole model on
    the CPU first, and the first calls `tell` with the reason."""
    compiled = student.compile and mesh.device_type == "cuda"
    how = (mesh, student.activation_checkpointing, compiled)
    if student.compile and not compiled and mesh.get_rank() == 0:
        tell(f"{student.name}: compile = true has no effect without a GPU")
    model = blank(pruned)
    stored = model.dtype
    if why := slices.unfit(Path(pruned), model):
        if mesh.get_rank() == 0:
            tell(f"{student.name}: every worker reads the whole model, since {why}")
        return parallel.parallelize(shell(load(pruned, student, seed)), *how)
    where = slices.owners(model)
    made = parallel.parallelize(shell(adapted(model, student, seed)), *how)
    made._apply(lambda t: torch.empty_like(t, device=mesh.device_type) if t.is_meta else t)  # to_empty, buffers kept
    slices.read(Path(pruned), where, stored)
    return made


def blank(pruned: str | Path) -> Any:
    """The pruned model on the meta device: all but the numbers, in the dtype it is stored in (without one in its
    config.json: fp32)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(pruned, local_files_only=True)
    with torch.device("meta"):
        dtype = config.dtype or torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.PACKED)
    attention.check(model)
    return model


def load(pruned: str, student: Student, seed: int) -> Any:
    """The student whole, on the CPU, in the dtype it is stored in."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    how = {"dtype": "auto", "local_files_only": True, "attn_implementation": attention.PACKED}
    model = AutoModelForCausalLM.from_pretrained(pruned, **how)
    attention.check(model)
    return adapted(model, student, seed)


def trainable(pruned: str | Path, student: Student) -> int:
    """How many parameters of the student are trained. Raises ValueError as `targets` does."""
    return sum(p.numel() for p in adapted(blank(pruned), student, 0).parameters() if p.requires_grad)


def adapted(model: Any, student: Student, seed: int) -> Any:
    """`model` as the student trains it: with fresh adapters where it asks for LoRA, or frozen up to its last blocks.

    Adapters are drawn in fp32 on the CPU, one after the other in the order of the modules: a seed gives the same ones
    on any number of ranks. Raises ValueError as `targets` does."""
    if student.last_layers:
        return _last(model, student)
    if not student.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=student.lora_rank, lora_alpha=student.lora_alpha, target_modules=targets(model, student),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    made = get_peft_model(model, config, low_cpu_mem_usage=True)  # adapters on the meta device
    torch.manual_seed(seed)
    for layer in made.modules():
        if isinstance(layer, LoraLayer):
            for maps in (layer.lora_A, layer.lora_B):
                maps.to_empty(device="cpu").to(torch.promote_types(model.dtype, torch.float32))
            layer.reset_lora_parameters("default", True)
    return made


def targets(model: Any, student: Student) -> list[str]:
    """The names of the linear maps that get adapters: all that are in the blocks, or those the student asks for.
    Raises ValueError where one is not there."""
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in parallel.blocks(model).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for name in student.lora_targets:
        if name not in linear:
            raise ValueError(
                f"student {student.name}: lora_targets names {name!r}, which is no linear map in the blocks of this "
                f"model; there are {', '.join(sorted(linear))}"
            )
    return sorted(student.lora_targets or linear)


def _last(model: Any, student: Student) -> Any:
    """`model` with its last blocks and what else its decoder holds, the final norm, to be trained; the rest frozen."""
    layers, decoder = parallel.blocks(model), model.get_decoder()
    model.requires_grad_(False)
    norms = [part for part in decoder.children() if part not in (layers, model.get_input_embeddings())]
    for part in (*layers[-student.last_layers :], *norms):
        part.requires_grad_(True)
    return model
