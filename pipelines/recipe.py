"""The recipe: one frozen model of everything a run is told. Descriptions are what `recipes show` prints."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.sections import Name, Section
from pipelines.student import Student, objective_of
from serving.settings import Bounds, Dtype

NAMED_SETS = ("tiny-tasks", "gsm8k-sample")  # sources that are no files


def _importable(hook: str) -> str:
    module, _, name = hook.partition(":")
    if not all(word.isidentifier() for word in (*module.split("."), name)):
        raise ValueError(f"a hook is module:function, for example my_metrics:log; got {hook!r}")
    return hook


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
