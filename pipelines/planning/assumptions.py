"""What a plan assumes where nobody can know: each by name, with its value, unit and reason, each to be overridden.

The defaults are cautious figures for dense models of 7 to 70 billion parameters on data-centre GPUs; none is
a measurement of this project, but for those that say so. Replace them by your own cluster's:
`--assume train_mfu=0.45`. Where those of the capacity come from, docs/plan.md tells.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.recipe_file import BadInput, nearest


class Assumptions(BaseModel):
    """Every assumption of a plan. Descriptions are what the plan prints beside the value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_mfu: float = Field(0.40, gt=0, le=1, description="share of bf16 peak that training's model FLOPs reach")
    prefill_mfu: float = Field(0.50, gt=0, le=1, description="share of bf16 peak that reading prompts reaches")
    scoring_mfu: float = Field(0.20, gt=0, le=1, description="the same where every prompt token's logprob is asked for")
    decode_bandwidth: float = Field(0.60, gt=0, le=1, description="share of memory bandwidth that decoding reaches")
    tensor_parallel_efficiency: float = Field(0.70, gt=0, le=1, description="speed left of an engine split over GPUs")
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1, description="share of a GPU that vLLM takes (its default)")
    engine_overhead_gb: float = Field(4.0, ge=0, description="GB an engine needs for activations, CUDA graphs, NCCL")
    training_overhead_gb: float = Field(4.0, ge=0, description="GB for CUDA context, NCCL buffers, fragmentation")
    start_minutes: float = Field(3.0, ge=0, description="minutes until an engine or a group of workers is up")
    disk_gb_per_second: float = Field(1.0, gt=0, description="GB/s at which prune reads and writes checkpoints")
    rows: int = Field(10_000, ge=1, description="train rows of a data set that is not at hand and says no number")
    test_rows: int = Field(1_000, ge=1, description="test rows of such a data set")
    question_tokens: float = Field(120, gt=0, description="tokens of a question with its context, data not at hand")
    reference_tokens: float = Field(150, gt=0, description="tokens of a reference answer, data not at hand")
    characters_per_token: float = Field(4.0, gt=0, description="by which the texts of data at hand become tokens")
    chat_tokens: float = Field(15, ge=0, description="tokens that a chat template puts around a question")
    rewrite_template_tokens: float = Field(40, ge=0, description="tokens of the instruction to rewrite a reference")
    rewrite_ratio: float = Field(1.2, gt=0, description="length of the teacher's rewrite over its reference's")
    label_tokens: float = Field(4, gt=0, description="tokens of a short answer (dsbs and its baselines)")
    lm_eval_items: int = Field(1_000, ge=1, description="items of an lm-eval task that the plan does not know")
    lm_eval_requests: int = Field(4, ge=1, description="requests an item of such a task")
    lm_eval_example_tokens: float = Field(100, gt=0, description="tokens of one item, and of each of its examples")
    gpus_per_node: int = Field(8, ge=1, description="GPUs in a node")
    driver_ms_per_shard: float = Field(12, gt=0, description="ms of the driver's core a shard (measured)")
    ray_tasks_per_second: float = Field(
        550, gt=0, description="tasks that Ray starts (its release test many_tasks: 569)"
    )
    row_cpu_us: float = Field(70, gt=0, description="µs of a node's cores a row beside the engine (measured)")
    shard_cpu_ms: float = Field(16, gt=0, description="ms of a node's cores a shard on top (measured)")
    s3_puts_per_second: float = Field(3500, gt=0, description="writes a second below one prefix (as S3 documents)")
    s3_put_seconds: float = Field(0.2, gt=0, description="seconds of one write (S3 documents 0.1 to 0.2)")
    node_gb_per_second: float = Field(3, gt=0, description="GB/s of a node's network (25 Gbit/s)")
    storage_gb_per_second: float = Field(25, gt=0, description="GB/s that all nodes together read weights at")


# Those that the capacity alone rests on.
CAPACITY = tuple(Assumptions.model_fields)[list(Assumptions.model_fields).index("gpus_per_node") :]


def assumed(overrides: list[str] | tuple[str, ...] = ()) -> Assumptions:
    """The assumptions with `name=value` overrides applied. Raises BadInput with the nearest name."""
    given: dict[str, str] = {}
    for override in overrides:
        name, sign, value = override.partition("=")
        if not sign:
            raise BadInput(f"--assume {override!r} is not name=value; for example --assume train_mfu=0.45")
        if name not in Assumptions.model_fields:
            known = list(Assumptions.model_fields)
            raise BadInput(f"no assumption named {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        given[name] = value
    try:
        return Assumptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"--assume {first['loc'][0]}={first['input']}: {first['msg']}") from error
