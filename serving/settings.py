"""What an endpoint is told: models, adapters, bounds. The arguments of the Serve application and its config file."""

from itertools import count, takewhile
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.deployments import deployment_name

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Rank = Literal[8, 16, 32, 64, 128, 256, 320, 512]  # that vLLM's kernels know


class Bounds(BaseModel):
    """What is let in, and how many engines answer; as a recipe's `serve` section says it too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_num_seqs: int = Field(64, ge=1, description="Requests an engine works on at once")
    min_replicas: int = Field(1, ge=0, description="Engines of each model at least; 0: none while nobody asks")
    max_replicas: int = Field(1, ge=1, description="Engines of each model at most, as load asks for them")
    idle_seconds: float = Field(
        300.0, gt=0, description="How long an engine has to be one too many before it is stopped"
    )
    warm_subnetworks: int = Field(
        2, ge=1, description="Sub-networks of a routed model with min_replicas engines; the others have none at rest"
    )
    predictor_gpus: float = Field(
        0.0, ge=0, le=1, description="Share of a GPU for a routed model's mask predictor; 0: it runs on CPU"
    )
    cpu_threads: int = Field(0, ge=0, description="Threads of an engine without a GPU; 0: one a core")
    queue: int = Field(256, ge=0, description="Requests that may wait for each model; more are refused (429)")
    max_output_tokens: int | None = Field(None, ge=1, description="Longest answer that a request may ask for")
    max_body_bytes: int = Field(2 << 20, ge=1024, description="Largest request")
    timeout_seconds: float = Field(600.0, gt=0, description="Deadline of a request")

    @model_validator(mode="after")
    def _least_and_most(self) -> "Bounds":
        if self.min_replicas > self.max_replicas:
            least, most = self.min_replicas, self.max_replicas
            raise ValueError(f"min_replicas = {least} is more than max_replicas = {most}; raise max_replicas")
        return self


class Adapter(BaseModel):
    """A LoRA adapter in peft's format: the directory `path`, on top of `model`, one of those served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    path: str


class Endpoint(Bounds):
    """One endpoint. `models`: the names clients ask for → checkpoint directories, as they are found on every node that
    may have an engine (a path, or an s3:// URL that each node copies). `adapters`: names → LoRA adapters.
    `adapters_at`: model → s3:// folder, each directory of which is an adapter, loaded when somebody asks for
    `model:directory`. `routed`: names → routed models (serving.routed) whose sub-networks are among `models`; they get
    there by `routed.expanded`."""

    models: dict[str, str] = Field(min_length=1)
    routed: dict[str, str] = {}
    adapters: dict[str, Adapter] = {}
    adapters_at: dict[str, Annotated[str, Field(pattern="^s3://.+")]] = {}
    max_lora_rank: Rank = Field(64, description="Largest rank of an adapter at adapters_at")
    max_model_len: int = Field(ge=1, description="Longest prompt plus answer in tokens")
    dtype: Dtype = "auto"
    tensor_parallel: int = Field(1, ge=1)
    keys: str | None = Field(None, description="File of API keys on the node that listens; None: anybody is let in")
    access_log: str | None = Field(None, description="File of the access log, there too")

    @model_validator(mode="after")
    def _names(self) -> "Endpoint":
        for name in (*self.models, *self.adapters, *self.routed):
            if not name or {":", "#"} & set(name) or name.strip() != name:
                raise ValueError(f"model name {name!r}: a name has no colon, no #, and no space at its ends")
        called = {deployment_name(name): name for name in self.models}
        if alike := [name for name in self.models if called[deployment_name(name)] != name]:
            twin = called[deployment_name(alike[0])]
            raise ValueError(f"models {alike[0]!r} and {twin!r} would have one name for Ray; rename one")
        if both := self.models.keys() & self.adapters.keys() | self.routed.keys() & (self.models | self.adapters):
            raise ValueError(f"{', '.join(sorted(both))} is the name of a model and of an adapter; rename one")
        for name, model in [(n, a.model) for n, a in self.adapters.items()] + [(m, m) for m in self.adapters_at]:
            if model not in self.models:
                raise ValueError(f"adapter {name!r} is for model {model!r}; served are: {', '.join(self.models)}")
        for name in self.routed:
            if subnetwork(name, 0) not in self.models:
                raise ValueError(f"routed model {name!r} has no sub-network {subnetwork(name, 0)!r} among the models")
        return self

    @property
    def output_tokens(self) -> int:
        """The longest answer in tokens: none is longer than the model's length."""
        return min(self.max_output_tokens or self.max_model_len, self.max_model_len)

    @property
    def engines(self) -> dict[str, str]:
        """Every name that clients may ask for → the model whose engine answers it; a routed one has none of its own."""
        own = {name: name for name in (*self.routed, *self.models)}
        return own | {name: one.model for name, one in self.adapters.items()}

    def least(self, model: str) -> int:
        """How many engines `model` has at least: of a routed model's sub-networks the first few alone have any."""
        cold = any(model in self.subnetworks(name)[self.warm_subnetworks :] for name in self.routed)
        return 0 if cold else self.min_replicas

    def subnetworks(self, name: str) -> list[str]:
        """The models that a routed model's requests go to."""
        return list(takewhile(self.models.__contains__, (subnetwork(name, number) for number in count())))


def subnetwork(name: str, number: int) -> str:
    """What the sub-network of that number of the routed model `name` is called."""
    return f"{name}/{number}"
