"""What the manifests of one run depend on: nothing else goes into them, so equal workloads are rendered equal."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from cluster.k8s.rendering import refusals
from cluster.k8s.rendering.refusals import LONGEST

RUN_LABEL = "regrow/run"  # of every object and pod of a run, of its endpoint's and of a cluster's to work on
PART_LABEL = "regrow/part"  # which of these three: the name that its account and its network have too
GPU = "nvidia.com/gpu"
RECIPE = "/etc/regrow/recipe.toml"
SCRATCH = "/scratch"  # the disk that all pods share
PACKAGED = "~/recipes"  # stands for the recipes folder of the image, wherever regrow is installed there


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
    value of the label `RUN_LABEL`. `part` says which of what is applied, and deleted, by itself: the run, its endpoint
    or a cluster to work on. `recipe` is TOML text, `run_dir` an s3:// URL or a path on one of `volumes`. `gpus`
    are all GPUs that the run holds at once (0: it runs on CPUs), `gpu_nodes` pods with `gpus_per_node` of them each at
    most. Raises ValueError where Kubernetes or KubeRay would refuse something, or a field holds a secret."""

    name: str
    recipe: str
    run_dir: str
    image: str
    run: str = ""
    part: Literal["", "api", "ray"] = ""
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
        refusals.check(self)

    @property
    def label(self) -> str:
        """The value of `RUN_LABEL`."""
        return self.run or self.name

    @property
    def labels(self) -> dict[str, str]:
        """Of every object and pod."""
        return {"app.kubernetes.io/part-of": "regrow", RUN_LABEL: self.label, PART_LABEL: self.own}

    @property
    def own(self) -> str:
        """The name of what this part shares with no other: deleting one leaves the others their account, network,
        recipe and disk."""
        return {"": self.name, "api": self.service, "ray": f"{self.name}-ray"}[self.part]

    @property
    def account(self) -> str:
        """The ServiceAccount of the part's pods."""
        return self.service_account or self.own

    @property
    def service(self) -> str:
        """The name of its RayService: KubeRay would give a RayJob of the same name a service of the same name."""
        return f"{cut(self.name, LONGEST - 4)}-api"

    @property
    def scratch(self) -> str:
        """The claim of the volume that all pods of the part share."""
        return self.scratch_claim or f"{self.own}-scratch"

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


def cut(name: str, longest: int) -> str:
    """`name`, at most `longest` characters of it; a cut one ends in a hash of the whole, so that names that begin alike
    stay apart."""
    return name if len(name) <= longest else hashed(name[: longest - 7], name)


def hashed(word: str, name: str) -> str:
    """`word` with a hash of `name`, six characters and a `-`, behind it."""
    return f"{word.rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
