"""What the manifests of one run depend on: nothing else goes into them, so equal workloads are rendered equal."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from cluster import secrets

RUN_LABEL = "regrow/run"  # of every object and pod of a run
LONGEST = 47  # KubeRay adds six characters for the cluster's name, which ends at 53 (its utils/constant.go)
GPU = "nvidia.com/gpu"
RECIPE = "/etc/regrow/recipe.toml"
SCRATCH = "/scratch"  # the disk that all pods share
PACKAGED = "~/recipes"  # stands for the recipes folder of the image, wherever regrow is installed there
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PATH = re.compile(r"/[^\s:]+")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim that is there already, and where pods see it."""

    name: str
    claim: str
    path: str

    def holds(self, path: str) -> bool:
        """Whether `path` lies on this volume."""
        return path == self.path or path.startswith(self.path.rstrip("/") + "/")


@dataclass(frozen=True)
class Size:
    """CPUs, main memory in GiB and GPUs of a pod: its requests and its limits."""

    cpus: int
    memory: int
    gpus: int = 0


@dataclass(frozen=True)
class Endpoint:
    """What a RayService runs: a Serve config (docs.ray.io, "Serve Config Files"), how many engines that is at most, and
    the GPUs of each; 0: they run on CPUs."""

    config: dict[str, Any]
    engines: int = 1
    gpus_per_engine: int = 0


@dataclass(frozen=True)
class Workload:
    """One run on Kubernetes.

    `name` is that of its RayJob and the beginning of all others' (a DNS-1035 label of at most 47 characters), `run` the
    value of the label `RUN_LABEL`. `recipe` is TOML text, `run_dir` an s3:// URL or a path on one of `volumes`. `gpus`
    are all GPUs that the run holds at once (0: it runs on CPUs), `gpu_nodes` pods with `gpus_per_node` of them each at
    most. Raises ValueError where Kubernetes or KubeRay would refuse something, or a field holds a secret."""

    name: str
    recipe: str
    run_dir: str
    image: str
    run: str = ""
    namespace: str = "regrow"
    gpus: int = 0
    gpus_per_node: int = 0
    gpu_nodes: int = 0
    spot: bool = False
    spot_selector: tuple[tuple[str, str], ...] = (("karpenter.sh/capacity-type", "spot"),)
    gpu_selector: tuple[tuple[str, str], ...] = ()
    head: Size = Size(4, 16)
    gpu_pod: Size = Size(8, 64)
    cpu_pod: Size = Size(8, 16)
    cpu_nodes: int = 2
    packaged_tasks: bool = False
    arguments: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    scratch_claim: str = ""
    scratch_gib: int = 50
    service_account: str = ""
    env: tuple[tuple[str, str], ...] = ()
    endpoint: Endpoint | None = None
    deadline_seconds: int = 24 * 3600
    retries: int = 2
    ttl_seconds: int = 600
    idle_seconds: int = 300
    ray_version: str = "2.60.0"
    operator_namespace: str = "kuberay-system"

    def __post_init__(self) -> None:
        for field in fields(self):
            for text in _texts(getattr(self, field.name)):
                if what := secrets.kind(text):
                    raise ValueError(f"{field.name} holds {what}: manifests are kept and read by many; {secrets.WAY}")
        for name, _ in self.env:
            if secrets.named(name):
                raise ValueError(f"env {name} is a secret by its name, and a manifest holds none; {secrets.WAY}")
        self._check_names()
        for volume in self.volumes:
            if not _PATH.fullmatch(volume.path) or volume.path.startswith(("/etc/regrow", "/dev", "/scratch", "/tmp")):
                raise ValueError(f"volume {volume.name}: {volume.path} is no place to mount it; give a path like /data")
        if self.gpus and not self.gpus_per_node * self.gpu_nodes > 0:
            raise ValueError(f"gpus = {self.gpus}, but no GPU pods: set gpus_per_node and gpu_nodes")
        for seconds in ("deadline_seconds", "retries", "ttl_seconds", "idle_seconds"):
            if getattr(self, seconds) < (seconds == "deadline_seconds"):
                raise ValueError(f"{seconds} = {getattr(self, seconds)} is too little")

    def _check_names(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST:
            raise ValueError(
                f"name {self.name!r} cannot be a RayJob's: up to {LONGEST} small letters, digits and -, a letter first"
            )
        if not _LABEL.fullmatch(self.label):
            raise ValueError(f"run {self.run!r} cannot be a label's value: at most 63 letters, digits, -, _ and .")
        called = {"namespace": self.namespace, "service_account": self.service_account, "scratch": self.scratch_claim}
        for volume in self.volumes:
            called |= {f"volume {volume.name}": volume.name, f"claim {volume.claim}": volume.claim}
        for what, name in called.items():
            if name and (not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63):
                raise ValueError(f"{what}: {name!r} is no Kubernetes name; small letters, digits and - are allowed")

    @property
    def label(self) -> str:
        """The value of `RUN_LABEL`."""
        return self.run or self.name

    @property
    def labels(self) -> dict[str, str]:
        """Of every object and pod."""
        return {"app.kubernetes.io/part-of": "regrow", RUN_LABEL: self.label}

    @property
    def account(self) -> str:
        """The ServiceAccount of all pods."""
        return self.service_account or self.name

    @property
    def service(self) -> str:
        """The name of its RayService: KubeRay would give a RayJob of the same name a service of the same name."""
        return f"{self.name[: LONGEST - 4].rstrip('-')}-api"

    @property
    def scratch(self) -> str:
        """The claim of the volume that all pods share."""
        return self.scratch_claim or f"{self.name}-scratch"

    @property
    def entrypoint(self) -> str:
        """The run, as the job's shell starts it. What the driver makes for its workers under temporary names (copies of
        artifacts on S3, checkpoints of a training) they must see: so TMPDIR is the shared disk. Status 3 says that all
        is done but for rows in quarantine, which the report tells: with it KubeRay would start a new cluster and find
        the same. Where the job is stopped, the shell waits for the run to end."""
        words = [
            f"TMPDIR={SCRATCH} regrow run",
            RECIPE,
            "cluster.address=auto",
            *([f"cluster.gpus={self.gpus}"] if self.gpus else []),
        ]
        command = " ".join([*words, *self.arguments]) + "; s=$?; [ $s -eq 3 ] && exit 0; exit $s"
        where = "from pipelines.recipe_file import PACKAGED; print(PACKAGED)"
        link = f'ln -sfn "$(python -c "{where}")" {PACKAGED}; '
        return f"trap : TERM; {link if self.packaged_tasks else ''}{command}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Endpoint):
        yield from _texts(value.config)
    elif isinstance(value, Volume):
        yield from (value.name, value.claim, value.path)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (*_texts(name), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
