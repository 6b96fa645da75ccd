"""A recipe's [[student]]: what is trained, from what, and how."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines import cuts
from pipelines.sections import Name, Section

# Distilling step-by-step (dsbs, arXiv 2305.02301) comes with its baselines: the label alone, and both in one output.
DISTILLED = ("dsbs", "label", "rationale_then_label", "label_then_rationale")
LEARNED = ("sft", "sdd", *DISTILLED)
BUILT_IN = r"(first|fresh)-(\d+)"  # predictors of instruction-following pruning that need no file
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


class Ifp(Section):
    """Instruction-following pruning (arXiv 2501.02086): FFN units of the teacher, chosen by the prompt."""

    units: int = Field(ge=1, description="FFN units of every block that stay on, of the teacher's intermediate_size")
    mask: Literal["prompt", "static", "importance", "random"] = Field(
        "prompt", description="Who chooses them: a predictor by the prompt; or, the same for all, as baselines: scores "
        "that are learned; activation * norm; chance"
    )  # fmt: skip
    learns: Literal["sft", "sdd", "dsbs", "label", "rationale_then_label", "label_then_rationale"] = Field(
        "sft", description="The objective whose rows are learned"
    )
    predictor: str = Field(
        "first-2", description="Small language model that reads the prompt: `first-N`, a copy of the teacher's first N "
        "blocks; `fresh-N`, N untrained blocks of width 128; a directory; or a hub id with optional @revision"
    )  # fmt: skip
    predictor_learning_rate: float | None = Field(
        None, gt=0, description="Peak rate of predictor and scores; None: learning_rate"
    )
    temperature: tuple[float, float] = Field(
        (1.0, 0.05), description="Of the soft mask, at first and once annealed; scores begin with variance 1"
    )
    anneal: float = Field(
        0.25, ge=0, le=1, description="Share of training over which width and temperature go down; 0: narrow at once"
    )
    guidance: float = Field(
        1.0, ge=0, description="Weight of the loss that draws the predictor's scores towards the activations of the "
        "row's own units while the width goes down; 0: the paper's loss alone"
    )  # fmt: skip
    calibration_rows: int = Field(
        256, ge=2, description="Train rows on which importance is measured and sub-networks are clustered"
    )
    subnetworks: int = Field(
        2, ge=1, le=64, description="mask = prompt: dense sub-networks that are exported and served behind a router"
    )
    text: str | None = Field(
        None, description="Stage 1: a JSONL, Parquet or CSV file with a column `text` to pre-train on first; None: none"
    )
    text_chunk: int = Field(
        128, ge=2, description="Stage 1: tokens of a chunk; each chunk chooses the units for the next one"
    )
    text_tokens: int | None = Field(None, ge=1, description="Stage 1: tokens at most; None: the whole file once")

    @model_validator(mode="after")
    def _falls(self) -> "Ifp":
        first, last = self.temperature
        if not first >= last > 0:
            raise ValueError(f"temperature goes from {first} to {last}; choose two numbers above 0, the first no less")
        return self


class Student(Section):
    name: Annotated[Name, AfterValidator(_objective_first)] = Field(
        description=f"Starts with the objective: {', '.join(OBJECTIVES)}"
    )
    ifp: Ifp | None = Field(None, description="ifp: which FFN units stay on, and who chooses them; None: not masked")
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

    @property
    def learns(self) -> str:
        """The objective whose rows are learned: its own, or the one that instruction-following pruning is told."""
        return self.ifp.learns if self.ifp else objective_of(self.name)

    def check_units(self, width: int, tensor_parallel: int) -> None:
        """ValueError where blocks of `width` FFN units, or engines over so many GPUs, do not go with `ifp.units`."""
        if not self.ifp:
            return
        try:
            cuts.check_units(self.ifp.units, width, tensor_parallel)
        except ValueError as error:
            raise ValueError(f"student {self.name}, ifp.units: {error}") from error

    @model_validator(mode="after")
    def _fits(self) -> "Student":
        if (objective_of(self.name) == "ifp") != (self.ifp is not None):
            what = "needs a section ifp, with ifp.units at least" if self.ifp is None else "has a section ifp"
            raise ValueError(f"student {self.name!r} {what}; students that begin with `ifp` have one, and no others")
        if self.ifp and self.compile:
            raise ValueError(f"student {self.name!r}: masks do not reach compiled blocks; set compile = false")
        if self.ifp and self.ifp.text and self.max_length < 2 * self.ifp.text_chunk:
            raise ValueError(
                f"student {self.name!r}: max_length = {self.max_length} does not hold two chunks of ifp.text_chunk = "
                f"{self.ifp.text_chunk} tokens; raise it, or shorten the chunks"
            )
        objective = self.learns
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
