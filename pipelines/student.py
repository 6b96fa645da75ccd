"""A recipe's [[student]]: what is trained, from what, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.sections import Name, Section

# Distilling step-by-step (dsbs, arXiv 2305.02301) comes with its baselines: the label alone, and both in one output.
DISTILLED = ("dsbs", "label", "rationale_then_label", "label_then_rationale")
LEARNED = ("sft", "sdd", *DISTILLED)
OBJECTIVES = ("none", *LEARNED, "ifp")
_ONLY = {  # fields that other objectives do not read
    "labels": DISTILLED, "teacher_correct_only": DISTILLED, "alpha": ("dsbs",), "rationale_weight": ("dsbs",),
}  # fmt: skip


def _objective_first(name: str) -> str:
    if objective_of(name) not in OBJECTIVES:
        raise ValueError(f"a student's name starts with its objective, one of {', '.join(OBJECTIVES)}: got {name!r}")
    return name


def objective_of(name: str) -> str:
    """The objective that a student's name starts with: `sdd-r8` → `sdd`; the longest, where one begins another."""
    found = [o for o in OBJECTIVES if name == o or name.startswith((f"{o}-", f"{o}_", f"{o}."))]
    return max(found, key=len, default="")


class Student(Section):
    name: Annotated[Name, AfterValidator(_objective_first)] = Field(
        description=f"Starts with the objective: {', '.join(OBJECTIVES)}"
    )
    labels: Literal["gold", "teacher"] = Field(
        "gold", description="dsbs and its baselines: whose labels; teacher: as if the rows had none (task distillation)"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="dsbs: alpha * label loss + (1 - alpha) * rationale loss")
    rationale_weight: float | None = Field(
        None, ge=0, description="dsbs: lambda of label loss + lambda * rationale loss, in place of alpha"
    )
    teacher_correct_only: bool = Field(
        False, description="dsbs and its baselines: no rationale where the teacher's label is not the gold one"
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows")
    learning_rate: float = Field(1e-4, gt=0, description="Peak rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="Of matrices; norms and biases have none")
    schedule: Literal["cosine", "flat-linear"] = Field("cosine", description="Shape of the rate after warm-up")
    batch_tokens: int = Field(4096, ge=64, description="Tokens a step, over all workers")
    micro_tokens: int = Field(
        4096, ge=64, description="Tokens a forward pass of one worker (a pack of rows); more is accumulated"
    )
    lora_rank: int = Field(0, ge=0, description="0: full fine-tuning")
    lora_alpha: int = Field(16, ge=1, description="LoRA scale is alpha / rank")
    lora_targets: tuple[str, ...] = Field(
        (), description="LoRA: names of the linear maps that get adapters (q_proj, down_proj, …); empty: all of a block"
    )
    last_layers: int = Field(
        0, ge=0, description="Train the last blocks and the final norm alone, embeddings and head frozen; 0: all"
    )
    max_length: int = Field(1024, ge=16, description="Longest row in tokens; what becomes of longer ones: long_rows")
    long_rows: Literal["drop", "truncate"] = Field(
        "drop", description="drop: set aside and counted; truncate: the target is cut off, where the prompt leaves room"
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass")
    compile: bool = Field(False, description="torch.compile every block; without GPUs: no effect")
    checkpoint_steps: int = Field(100, ge=1, description="Steps between resumable checkpoints")
    validation_steps: int = Field(
        100, ge=1, description="Steps between two looks at the validation rows, where a data set holds some out"
    )
    seed: int | None = Field(
        None, ge=0, lt=1 << 32, description="Order of rows and LoRA's start; None: the recipe's seed"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Student":
        objective = objective_of(self.name)
        for name, objectives in _ONLY.items():
            if getattr(self, name) != Student.model_fields[name].default and objective not in objectives:
                raise ValueError(f"student {self.name!r}: {name} is for {', '.join(objectives)}; leave it out")
        if self.rationale_weight is not None and self.alpha != Student.model_fields["alpha"].default:
            raise ValueError(f"student {self.name!r}: alpha and rationale_weight say the same twice; leave one out")
        if self.teacher_correct_only and self.labels == "teacher":
            raise ValueError(
                f'student {self.name!r}: teacher_correct_only compares with gold labels, which labels = "teacher" '
                "does without; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_way(self) -> "Student":
        if self.last_layers and self.lora_rank:
            raise ValueError(
                f"{self.name} asks for last_layers = {self.last_layers} and lora_rank = {self.lora_rank}; "
                "set one of them to 0: a student trains its last blocks, or adapters in every block"
            )
        if self.lora_targets and not self.lora_rank:
            raise ValueError(
                f"{self.name} asks for lora_targets without LoRA; set lora_rank above 0, or leave lora_targets out"
            )
        return self
