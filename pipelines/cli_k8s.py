"""`regrow k8s`: manifests of a run, rendered and checked."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli_submit import Overrides, RecipeArgument

if TYPE_CHECKING:
    from cluster.k8s.rendering.workload import Volume

app = typer.Typer(
    help="Kubernetes manifests of a run: render them, check them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Opt = typer.Option
RENDERED = (
    "Examples: `regrow k8s render quickstart run_dir=s3://my-bucket/quickstart -o k8s/quickstart` · "
    "`regrow k8s render llama-3.1-8b-sdd run_dir=s3://my-bucket/llama -o k8s/llama --spot --deadline-hours 48` · "
    "`regrow k8s render mine.toml run_dir=/data/runs/mine -o k8s/mine --volume data=team-data:/data` · "
    "`regrow k8s render mine.toml run_dir=s3://my-bucket/mine -o k8s/mine --model sdd=s3://my-bucket/mine/sdd/model`"
)
CHECKED = (
    "Examples: `regrow k8s check k8s/quickstart` · `regrow k8s check k8s/quickstart/rayjob.yaml --json` · "
    "`regrow k8s check k8s --off RULE` · `regrow k8s check --rules`"
)
Output = Annotated[Path, Opt("--output", "-o", help="Directory to write to; it holds nothing but what was rendered.")]
Image = Annotated[str | None, Opt(help="Image of all pods; else regrow:VERSION-gpu, for a recipe without GPUs -cpu.")]
Called = Annotated[str, Opt("--name", help="Name of the RayJob; else the recipe's.")]
Namespace = Annotated[str, Opt(help="Namespace of all objects.")]
Each = Annotated[int | None, Opt("--gpus-per-node", min=1, help="GPUs of a pod at most; else 8, or all if fewer.")]
Spot = Annotated[bool, Opt("--spot/--no-spot", help="GPU pods on spot nodes first, on others where there are none.")]
SpotLabel = Annotated[
    str, Opt("--spot-selector", help="LABEL=VALUE of spot nodes: cloud.google.com/gke-spot=true on GKE.")
]
Label = Annotated[list[str] | None, Opt("--gpu-selector", help="LABEL=VALUE of the GPUs' nodes; repeat for more.")]
Hours = Annotated[float, Opt("--deadline-hours", help="The run is ended after so long, retries included.")]
Retries = Annotated[int, Opt(min=0, help="New clusters after one that failed; each goes on from the run's directory.")]
Mounts = Annotated[
    list[str] | None, Opt("--volume", help="NAME=CLAIM:/path, a PersistentVolumeClaim for all pods; repeat for more.")
]
Scratch = Annotated[str, Opt("--scratch-claim", help="An existing claim (ReadWriteMany) as the shared disk of pods.")]
Account = Annotated[
    str, Opt("--service-account", help="An existing ServiceAccount for the pods; else one is rendered.")
]
Variables = Annotated[list[str] | None, Opt("--env", help="NAME=VALUE in all pods, no secrets; repeat for more.")]
Models = Annotated[
    list[str] | None, Opt("--model", help="NAME=s3://… that the endpoint serves; repeat for more. Else the students.")
]
Operator = Annotated[str, Opt("--operator-namespace", help="Where KubeRay's operator runs, for the NetworkPolicy.")]


@app.command(epilog=RENDERED)
def render(
    recipe: RecipeArgument, output: Output, overrides: Overrides = None, image: Image = None, name: Called = "",
    namespace: Namespace = "regrow", gpus_per_node: Each = None, spot: Spot = False,
    spot_selector: SpotLabel = "karpenter.sh/capacity-type=spot", gpu_selector: Label = None,
    deadline_hours: Hours = 24.0, retries: Retries = 2, volume: Mounts = None, scratch_claim: Scratch = "",
    service_account: Account = "", env: Variables = None, model: Models = None,
    operator_namespace: Operator = "kuberay-system",
) -> None:  # fmt: skip
    """Write the manifests of a run: RayJob, endpoint, cluster to work on, access, network, templates of Secrets."""
    from importlib.metadata import version

    from cluster.k8s.rendering import render as rendering
    from cluster.k8s.rendering import writing
    from pipelines import needs, recipe_file, workloads

    read = recipe_file.load(recipe, overrides or [])
    made = workloads.workload(
        read,
        image or f"regrow:{version('regrow')}-{'gpu' if needs.wants_gpus(read) else 'cpu'}",
        name=name,
        namespace=namespace,
        gpus_per_node=gpus_per_node,
        spot=spot,
        spot_selector=_pairs("--spot-selector", [spot_selector]),
        gpu_selector=_pairs("--gpu-selector", gpu_selector),
        deadline_seconds=_seconds(deadline_hours),
        retries=retries,
        volumes=tuple(_volume(word) for word in volume or []),
        scratch_claim=scratch_claim,
        service_account=service_account,
        env=_pairs("--env", env),
        models=_models(model),
        operator_namespace=operator_namespace,
    )
    try:
        written = writing.write(rendering.files(made), output, made.name)
    except ValueError as error:
        raise recipe_file.BadInput(str(error)) from error
    typer.echo(f"wrote {len(written)} files to {output}: {_sizes(made)}")
    typer.echo(_next(made, output))


@app.command(epilog=CHECKED)
def check(
    place: Annotated[str | None, typer.Argument(help="A directory of manifests, or one file.")] = None,
    off: Annotated[list[str] | None, Opt(help="Leave this rule out; repeat for more.")] = None,
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
    rules: Annotated[bool, Opt("--rules", help="List the rules.")] = False,
) -> None:
    """Check manifests as the API server, KubeRay's operator and this project's policy would; no cluster is needed.
    Exit status 1 where something is found."""
    from cluster.k8s.checking import check as checking
    from cluster.k8s.checking import reading
    from pipelines.recipe_file import BadInput, nearest

    known = checking.rules()
    if rules:
        for rule, about in known.items():
            typer.echo(f"{rule:36} {about}")
        return
    if place is None:
        raise BadInput("check what? give a directory of manifests or one file, for example `regrow k8s check k8s`")
    for rule in off or []:
        if rule not in known:
            close = nearest(rule, list(known))
            raise BadInput(f"--off {rule}: no such rule{close}; `regrow k8s check --rules` lists them")
    try:
        objects = reading.read(place)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    found = checking.check(objects, off or [])
    if as_json:
        typer.echo(json.dumps({"objects": len(objects), "findings": [asdict(one) for one in found]}, indent=2))
    else:
        for one in found:
            said = f"policy: {one.message}" if one.kind == "policy" else one.message
            typer.echo(f"{one.file}: {one.object}: {one.path}: [{one.rule}] {said}")
        typer.echo(_counted(len(objects), found))
    raise typer.Exit(1 if found else 0)


def _counted(objects: int, found: list[Any]) -> str:
    kinds = {kind: sum(one.kind == kind for one in found) for kind in ("schema", "operator", "policy")}
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    return f"{objects} objects, {len(found)} findings" + (f": {shown}" if shown else "")


def _pairs(option: str, words: list[str] | None) -> tuple[tuple[str, str], ...]:
    from pipelines.recipe_file import BadInput

    pairs = [word.partition("=") for word in words or []]
    for word, (name, sign, _) in zip(words or [], pairs, strict=True):
        if not (name and sign):
            raise BadInput(f"{option} {name if sign else word.split('=')[0]}: say NAME=VALUE")
    return tuple((name, value) for name, _, value in pairs)


def _seconds(hours: float) -> int:
    from cluster.k8s.rendering.refusals import SECONDS
    from pipelines.recipe_file import BadInput

    if not 1 <= hours * 3600 <= SECONDS:  # nor is nan
        most = SECONDS // 3600
        raise BadInput(f"--deadline-hours {hours:g}: write hours from a second (0.0003) to {most}, for example 48")
    return round(hours * 3600)


def _volume(word: str) -> "Volume":
    from cluster.k8s.rendering.workload import Volume
    from pipelines.recipe_file import BadInput

    name, _, rest = word.partition("=")
    claim, _, path = rest.partition(":")
    if not (name and claim and path.startswith("/")):
        raise BadInput(f"--volume {word!r}: say NAME=CLAIM:/path, for example data=team-data:/data")
    return Volume(name, claim, path.rstrip("/") or "/")


def _models(words: list[str] | None) -> dict[str, str] | None:
    from pipelines.recipe_file import BadInput

    if words is None:
        return None
    for word in words:
        if not word.partition("=")[2].startswith("s3://"):
            raise BadInput(f"--model {word!r}: say NAME=s3://bucket/model, where every node can read it")
    return dict(_pairs("--model", words))


def _sizes(made: Any) -> str:
    gpus = f"up to {made.gpu_nodes} pod(s) of {made.gpus_per_node} GPUs" if made.gpus else "CPUs alone"
    return f"{gpus}, a head of {made.head.cpus} CPUs and {made.head.memory} GiB"


def _next(made: Any, output: Path) -> str:
    """What to do with what was written."""
    secret = f"kubectl -n {made.namespace} create secret generic"
    lines = [
        "next, where Secrets are needed (templates in secrets/; a workload identity does without the first):",
        f"  {secret} regrow-s3 --from-env-file=s3.env",
        f"  {secret} regrow-hub --from-env-file=hub.env",
        "then:",
        f"  regrow k8s check {output}",
        f"  kubectl apply -k {output}",
    ]
    if made.endpoint:
        lines += [
            "and for the endpoint, once the run is done:",
            f"  {secret} regrow-api-keys --from-file=keys.txt",
            f"  {secret} regrow-redis --from-file=password",
            f"  kubectl apply -k {output}/service",
        ]
    else:
        lines.append("no endpoint: where its models will be does not follow from here; --model NAME=s3://… says it")
    return "\n".join(lines)
