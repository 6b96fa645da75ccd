"""`regrow submit` and `regrow jobs`: a recipe on a running Ray cluster, or on Kubernetes by KubeRay."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cluster.jobs.submit import Job

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow submit mine.toml run_dir=s3://bucket/mine --address http://head:8265` · "
    "`regrow submit mine.toml run_dir=/shared/mine --address http://head:8265 --token-file token --detach` · "
    "`regrow submit llama-3.1-8b-sdd run_dir=s3://bucket/llama --kuberay --namespace ml --image regrow:0.1.0-gpu` · "
    "the same with `--dry-run` prints the objects"
)
JOBS = (
    "Examples: `regrow jobs --address http://head:8265` · `regrow jobs logs mine-1a2b3c4d-1 --address http://head:8265`"
    " · `regrow jobs stop mine-1a2b3c4d-1 --address http://head:8265` · `regrow jobs --kuberay --namespace ml`"
)
RecipeArgument = Annotated[str, typer.Argument(help="A packaged recipe's name or a .toml file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.field=value, any number.")]
Address = Annotated[
    str | None, Opt(envvar="RAY_API_SERVER_ADDRESS", help="URL of the Ray dashboard, http://HOST:8265.")
]
Token = Annotated[Path | None, Opt("--token-file", help="File with the cluster's token; else RAY_AUTH_TOKEN and such.")]
Until = Annotated[str, Opt(help="Stop after this stage.")]
Detach = Annotated[bool, Opt("--detach", help="Return once it is submitted.")]
Code = Annotated[str, Opt(help="project: send this installation's code along; image: the nodes have regrow.")]
There = Annotated[
    list[str] | None, Opt("--cluster-path", help="Paths below this are the cluster's own; repeat for more.")
]
Env = Annotated[list[str] | None, Opt("--env", help="NAME=VALUE for the job, no secrets; repeat for more.")]
Autoscaled = Annotated[bool, Opt("--autoscaled", help="The cluster adds GPU nodes as work asks for them.")]
Kuberay = Annotated[bool, Opt("--kuberay", help="On Kubernetes: a RayJob with a cluster of its own.")]
Namespace = Annotated[str | None, Opt(help="With --kuberay: the namespace; else the context's own.")]
Context = Annotated[str | None, Opt("--context", help="With --kuberay: the kubeconfig's context.")]
Image = Annotated[str | None, Opt(help="With --kuberay, and needed there: the image of every pod.")]
DryRun = Annotated[bool, Opt("--dry-run", help="With --kuberay: print the objects, checked; change nothing.")]
JobId = Annotated[str, typer.Argument(help="The job's id, as `regrow jobs` lists it.")]

jobs = typer.Typer(
    help="List regrow's jobs on a cluster, read a job's log, or stop it.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def submit(
    recipe: RecipeArgument, overrides: Overrides = None, address: Address = None, token_file: Token = None,
    until: Until = "report", detach: Detach = False, code: Code = "project", cluster_path: There = None,
    env: Env = None, autoscaled: Autoscaled = False, kuberay: Kuberay = False, namespace: Namespace = None,
    context: Context = None, image: Image = None, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Run a recipe as a Ray job on a cluster: its log is shown here, its exit status is this command's. Submitted again
    it goes on from what is there. Ctrl-C leaves the job running."""
    from pipelines import recipe_file
    from pipelines import run as story

    story.check_stage(until)
    read = recipe_file.load(recipe, overrides or [])
    if kuberay:
        from pipelines import submitting_kuberay

        with _left_running():
            status = submitting_kuberay.submit(read, until, image, namespace, context, dry_run, detach)
        raise typer.Exit(status)
    if dry_run or namespace or context or image:
        raise recipe_file.BadInput("--dry-run, --namespace, --context and --image are for --kuberay; give it with them")
    _check_code(code)
    client = connected(address, token_file)
    from pipelines import submitting

    how = submitting.How(until, code == "project", tuple(cluster_path or ()), environment(env), autoscaled)
    job_id = submitting.submit(client, read, how, _say)
    follow_up = f"--address {client.get_address()}"
    _say(f"job {job_id}; `regrow jobs logs {job_id} {follow_up}` shows its log, `regrow jobs stop {job_id} …` stops it")
    if not detach:
        raise typer.Exit(_follow(client, job_id))


@jobs.callback(epilog=JOBS)
def list_jobs(
    called: typer.Context, address: Address = None, token_file: Token = None, kuberay: Kuberay = False,
    namespace: Namespace = None, context: Context = None,
) -> None:  # fmt: skip
    """List regrow's jobs on a cluster, the newest first."""
    if called.invoked_subcommand is not None:
        given = ("address", "token_file", "kuberay", "namespace", "context")
        if any(getattr(called.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in given):
            from pipelines.recipe_file import BadInput

            verb = called.invoked_subcommand
            raise BadInput(f"options go behind the verb: regrow jobs {verb} JOB --address http://HOST:8265")
        return
    if kuberay:
        from pipelines import submitting_kuberay

        submitting_kuberay.show(namespace, context)
        return
    from cluster.jobs.submit import jobs as there

    found = there(connected(address, token_file))
    for one in found:
        typer.echo(_line(one))
    if not found:
        _say("no job of regrow on this cluster")


@jobs.command(epilog="Example: `regrow jobs logs mine-1a2b3c4d-1 --address http://head:8265`")
def logs(
    job: JobId, address: Address = None, token_file: Token = None,
    no_follow: Annotated[bool, Opt("--no-follow", help="What is there, and no more.")] = False,
    kuberay: Kuberay = False, namespace: Namespace = None, context: Context = None,
) -> None:  # fmt: skip
    """Show a job's log until it ends; exit status is the job's."""
    if kuberay:
        from pipelines import submitting_kuberay

        with _left_running():
            status = submitting_kuberay.logs(job, namespace, not no_follow, context)
        raise typer.Exit(status)
    client = connected(address, token_file)
    _known(client, job)
    if no_follow:
        from cluster.jobs import follow

        typer.echo(follow.log(client, job), nl=False)
        return
    raise typer.Exit(_follow(client, job))


@jobs.command(epilog="Example: `regrow jobs stop mine-1a2b3c4d-1 --address http://head:8265`")
def stop(
    job: JobId, address: Address = None, token_file: Token = None, kuberay: Kuberay = False,
    namespace: Namespace = None, context: Context = None,
) -> None:  # fmt: skip
    """Stop a job; the same recipe submitted again goes on from what it has done."""
    if kuberay:
        from pipelines import submitting_kuberay

        raise typer.Exit(submitting_kuberay.stop(job, namespace, context))
    client = connected(address, token_file)
    if _known(client, job).ended:
        _say(f"job {job} is over already")
        return
    client.stop_job(job)
    while not _known(client, job).ended:
        time.sleep(0.5)
    _say(f"job {job} is stopped; the same recipe submitted again goes on from here")


def _follow(client: Any, job_id: str) -> int:
    from cluster.jobs import follow

    with _left_running(f"the job goes on; `regrow jobs logs {job_id} --address {client.get_address()}` follows it"):
        ended = follow.follow(client, job_id, _write, _say)
    took = f" after {ended.end - ended.start:,.0f} s" if ended.start and ended.end else ""
    _say(f"job {job_id}: {ended.status.lower()}{took}{_why(ended)}")
    return follow.exit_status(ended)


@contextmanager
def _left_running(said: str = "") -> Iterator[None]:
    """Ctrl-C or SIGTERM within leaves the job alone: `said` tells so, where nothing has yet."""
    from cluster.signals import Left

    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if said:
            _say(said)
        raise Left(130 if isinstance(stopped, KeyboardInterrupt) else stopped.code) from None


def connected(address: str | None, token_file: Path | None) -> Any:
    """A client of the cluster's Jobs API. Raises BadInput where there is none to be had."""
    from cluster.jobs import connect
    from pipelines.recipe_file import BadInput

    if not address:
        raise BadInput("which cluster? give --address http://HOST:8265 (or RAY_API_SERVER_ADDRESS), or --kuberay")
    try:
        return connect.connect(address, token_file)
    except (ValueError, ConnectionError) as error:
        raise BadInput(str(error)) from error


def _known(client: Any, job_id: str) -> "Job":
    from cluster.jobs import follow
    from pipelines.recipe_file import BadInput

    try:
        return follow.told(client, job_id)
    except ValueError as error:
        raise BadInput(str(error)) from error


def _check_code(code: str) -> None:
    from pipelines.recipe_file import BadInput, nearest

    if code not in ("project", "image"):
        raise BadInput(f"--code {code!r}{nearest(code, ['project', 'image'])}; give project or image")


def environment(words: list[str] | None) -> dict[str, str]:
    """The variables of --env. Raises BadInput, for secrets too."""
    from cluster import secrets
    from pipelines.recipe_file import BadInput

    made = {}
    for word in words or []:
        name, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise BadInput(f"--env {name!r} is not NAME=VALUE")
        if what := "a secret by its name" if secrets.named(name) else secrets.kind(value):
            raise BadInput(f"--env {name} looks like {what}, and a job's environment is shown to all; {secrets.WAY}")
        made[name] = value
    return made


def _line(job: "Job") -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.start)) if job.start else ""
    return f"{job.id:32} {job.status.lower():10} {began:16} {job.name}{_why(job)}"


def _why(job: "Job") -> str:
    if job.status != "FAILED":
        return ""
    return f" with exit status {job.exit_status}" if job.exit_status else f": {' '.join(job.message.split())[:300]}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    from rich.markup import escape

    from pipelines.screen import say

    say(escape(text))
