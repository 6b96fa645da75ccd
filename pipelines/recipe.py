"""The recipe: one frozen model of everything a run is told. Descriptions are what `recipes show` prints."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.settings import Bounds, Dtype

# Distilling step-by-step (dsbs, arXiv 2305.02301) comes with its baselines: the label alone, and both in one output.
DISTILLED = ("dsbs", "label", "rationale_then_label", "label_then_rationale")
OBJECTIVES = ("none", "sft", "sdd", *DISTILLED)
NAMED_SETS = ("tiny-tasks", "gsm8k-sample")  # sources that are no files
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


_ONLY = {  # fields that other objectives do not read
    "labels": DISTILLED, "teacher_correct_only": DISTILLED, "alpha": ("dsbs",), "rationale_weight": ("dsbs",),
}  # fmt: skip


def _objective_first(name: str) -> str:
    if objective_of(name) not in OBJECTIVES:
        raise ValueError(f"a student's name starts with its objective, one of {', '.join(OBJECTIVES)}: got {name!r}")
    return name


def _importable(hook: str) -> str:
    module, _, name = hook.partition(":")
    if not all(word.isidentifier() for word in (*module.split("."), name)):
        raise ValueError(f"a hook is module:function, for example my_metrics:log; got {hook!r}")
    return hook


def objective_of(name: str) -> str:
    """The objective that a student's name starts with: `sdd-r8` → `sdd`; the longest, where one begins another."""
    found = [o for o in OBJECTIVES if name == o or name.startswith((f"{o}-", f"{o}_", f"{o}."))]
    return max(found, key=len, default="")


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys refused, and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Teacher(Section):
    model: str = Field("tiny", description="`tiny`, a directory, or a hub id with optional @revision")
    max_model_len: int = Field(1024, ge=64, description="Longest prompt plus answer in tokens, for every engine")
    dtype: Dtype = Field("auto", description="Engine weights; auto: fp32 on CPU, bf16 on GPU")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that an engine's weights are split over; CPUs: no effect")


class Dataset(Section):
    name: Name = Field(description="How reports call it")
    source: str = Field(
        description="`tiny-tasks`, `gsm8k-sample`, or a JSONL, Parquet or CSV file (local, s3://, hf://)"
    )
    test_source: str | None = Field(None, description="A file of test rows beside `source`")
    families: tuple[str, ...] = Field((), description="tiny-tasks: the families to train on; empty: test rows only")
    test_families: tuple[str, ...] = Field((), description="tiny-tasks: the families to test on; empty: all")
    style: Literal["prose", "notes"] = Field("prose", description="tiny-tasks: the voice of the reference answers")
    validation_rows: int = Field(
        0, ge=0, description="Train rows that are held out, to choose each student's best checkpoint by"
    )
    rows: int | None = Field(
        None, ge=0, description="Train rows at most (tiny-tasks: exactly); 0: the source holds test rows only"
    )
    test_rows: int | None = Field(
        None,
        ge=1,
        description="Test rows at most (tiny-tasks: for each family); without test_source: held out of source",
    )
    format: Literal["columns", "gsm8k"] = Field("columns", description="gsm8k: question, answer with a `####` line")
    input: str = Field("question", description="Column of the question")
    reference: str = Field("answer", description="Column of the reference answer")
    answer: str | None = Field(None, description="Column of the short right answer; None: taken out of the reference")
    context: str | None = Field(None, description="Column of a text the question is about")
    weight: str | None = Field(None, description="Column of a train row's weight in the loss; None: all weigh alike")
    messages: str | None = Field(
        None,
        description="Column of a list of {role, content} in place of input; its last turn is the reference",
    )
    kind: Literal["number", "choice", "label", "text", "list", "expression", "none"] = Field(
        "number", description="What the final answer is; none: open-ended"
    )
    max_bad_rows: int = Field(0, ge=0, description="Unreadable rows that are set aside before the run fails")


class Prune(Section):
    layers: int = Field(ge=1, description="Decoder blocks to remove")
    method: Literal["angular", "influence", "tail"] = Field("angular", description="How the blocks are chosen")
    calibration_rows: int = Field(128, ge=1, description="Train questions the importance is measured on")
    baselines: tuple[Literal["angular", "influence", "tail"], ...] = Field(
        ("tail",), description="Other cuts of the same size, scored untrained"
    )

    @property
    def methods(self) -> list[str]:
        """All ways to cut, the one that students start from first."""
        return list(dict.fromkeys((self.method, *self.baselines)))


class Generate(Section):
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling")
    max_tokens: int = Field(256, ge=1, description="Longest rewrite or rationale in tokens")
    rationale_prompt: str | None = Field(
        None,
        description="Rationales: `arithmetic`, or a file with examples and a place for {input}; None: a plain request",
    )
    engines: int = Field(
        1, ge=1, description="vLLM engines, each on tensor_parallel GPUs (or, without GPUs, one process)"
    )
    max_num_seqs: int = Field(64, ge=1, description="Rows an engine works on at once")
    shard_rows: int = Field(128, ge=1, le=4096, description="Rows a committed Parquet shard")


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


class Serve(Bounds, Section):
    host: str = Field("127.0.0.1", description="Address of the endpoint")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint")
    models_at_a_time: int = Field(2, ge=1, description="Engines up at once during evaluation")


class Evaluate(Section):
    max_tokens: int = Field(256, ge=1, description="Longest answer in tokens")
    concurrency: int = Field(64, ge=1, description="Requests in flight")
    lm_eval: tuple[str, ...] = Field(
        (), description="lm-eval tasks: names, or YAML files beside the recipe; `:5` after one shows five examples"
    )
    lm_eval_limit: int | None = Field(None, ge=1, description="Items of each lm-eval task")
    overlap_words: int = Field(
        13, ge=4, description="Words in a row that a test row shares with a train row to count as contaminated"
    )
    bootstrap: int = Field(2000, ge=100, description="Resamples of the paired bootstrap")


class Cluster(Section):
    address: str = Field("local", description="`local`: a private cluster; else the address of a running one")
    workers: int = Field(2, ge=1, description="Training workers (FSDP2 ranks)")
    replicas: int = Field(
        1, ge=1, description="Whole copies of a student: each divided over workers / replicas (nodes, say); 1: one copy"
    )
    cpus: int | None = Field(None, ge=1, description="Logical CPUs of a private cluster; None: enough for the stages")
    gpus: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="GPUs of the cluster, those it adds as needed too; with --plan: what so many write",
    )
    metrics_hook: Annotated[str, AfterValidator(_importable)] | None = Field(
        None, description="module:function that gets every training step's figures (docs/training.md)"
    )
    gpu: Literal["A100-40GB", "A100-80GB", "L40S-48GB", "H100-80GB", "H200-141GB"] | None = Field(
        None, description="The cluster's GPU, for --plan alone; None: memory without a limit, no hours"
    )

    @model_validator(mode="after")
    def _whole_replicas(self) -> "Cluster":
        if self.workers % self.replicas:
            fit = ", ".join(str(n) for n in range(1, self.workers + 1) if self.workers % n == 0)
            raise ValueError(
                f"{self.workers} workers cannot hold {self.replicas} copies of a student in equal parts; "
                f"set cluster.replicas to one of {fit}"
            )
        return self


class Recipe(Section):
    """One run, from the teacher to the scored students."""

    name: Name = Field(description="Name of the run")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Seed of every random choice")
    run_dir: str = Field("", description="Where artifacts and the report go (local or s3://); empty: runs/NAME")
    teacher: Teacher = Field(Teacher(), description="The unpruned model")
    dataset: tuple[Dataset, ...] = Field(min_length=1, description="Train and test rows")
    prune: Prune = Field(description="What is cut off")
    generate: Generate = Field(Generate(), description="How the teacher writes")
    student: tuple[Student, ...] = Field((), description="What is trained, and how")
    serve: Serve = Field(Serve(), description="Endpoints")
    evaluate: Evaluate = Field(Evaluate(), description="How models are scored")
    cluster: Cluster = Field(Cluster(), description="Where work runs")

    @property
    def trained(self) -> list[Student]:
        """The students that are trained: all but the cut as it is."""
        return [student for student in self.student if objective_of(student.name) != "none"]

    @model_validator(mode="after")
    def _unique_names(self) -> "Recipe":
        for what, names in (("student", [s.name for s in self.student]), ("dataset", [d.name for d in self.dataset])):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"two [[{what}]] entries are named {sorted(twice)[0]!r}; names must differ")
        return self
