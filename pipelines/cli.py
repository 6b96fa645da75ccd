"""The command line: `regrow run quickstart`. Thin: parses, calls, and turns errors into exit codes.

Exit status: 0 done; 1 failed; 2 bad input; 3 done with rows in quarantine; 130 and 143 interrupted.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import signals
from pipelines import cli_export, cli_generate, cli_k8s, cli_loadtest, cli_serve, cli_submit
from pipelines.cli_submit import Overrides, RecipeArgument

app = typer.Typer(
    help="Make a large language model smaller and grow its quality back, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text: importing rich for it would take longer than everything else
)
recipes = typer.Typer(
    help="List the packaged recipes, show one, or write one for your own data.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(recipes, name="recipes")


@app.command(
    epilog="Examples: `regrow run quickstart` · `regrow run quickstart prune.layers=2 --until prune` · "
    "`regrow run llama-3.1-8b-sdd cluster.gpus=64 --plan --gpu-hour-price 3`"
)
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "report",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print stages, memory, hours and what is there already; do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: as JSON.")] = False,
    gpu_hour_price: Annotated[float | None, typer.Option(help="With --plan: price of an hour of one GPU.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option(help="With --plan: name=value for one of its assumptions; repeat for more.")
    ] = None,
) -> None:
    """Run a recipe: prepare, prune, generate, train, evaluate, report. Finished work is reused."""
    from pipelines import recipe_file
    from pipelines import run as story

    story.check_stage(until)
    read = recipe_file.load(recipe, overrides or [])
    if plan:
        _plan(read, until, as_json, gpu_hour_price, assume or [])
        return
    if as_json or assume or gpu_hour_price is not None:
        raise recipe_file.BadInput("--json, --assume and --gpu-hour-price are a plan's; give --plan with them")
    done = story.run(read, until)
    if done.report is not None:
        _show(read, done.report)
    if done.quarantine:
        raise typer.Exit(_fail(f"done, but rows are in quarantine: {'; '.join(done.quarantine)}", 3))


app.command(epilog=cli_submit.EXAMPLES)(cli_submit.submit)
app.add_typer(cli_submit.jobs, name="jobs")
app.add_typer(cli_k8s.app, name="k8s")
app.command(epilog=cli_generate.EXAMPLES)(cli_generate.generate)


@app.command(epilog="Example: `regrow status runs/quickstart`")
def status(run: cli_serve.Run) -> None:
    """Show which stages of a run are done."""
    from pipelines import recipe_file
    from pipelines import run as story

    _stages(story, recipe_file.remembered(run))


@app.command(epilog="Example: `regrow report runs/quickstart`")
def report(run: cli_serve.Run) -> None:
    """Write the report of a run again from what is done, and print its table."""
    from pipelines import recipe_file
    from pipelines import run as story

    recipe = recipe_file.remembered(run)
    made = story.again(recipe)
    if made is None:
        raise recipe_file.BadInput(f"run {run!r} has no scored model yet; `regrow run` goes on with it")
    _show(recipe, made)


app.command(epilog=cli_serve.EXAMPLES)(cli_serve.serve)
app.command(epilog=cli_loadtest.EXAMPLES)(cli_loadtest.loadtest)
app.command(epilog=cli_export.EXAMPLES)(cli_export.export_mask)


@app.command(epilog="Examples: `regrow clean runs/quickstart` · `regrow clean runs/quickstart --yes`")
def clean(
    run: Annotated[str | None, typer.Argument(help="A run's directory or name; none: every run under runs/.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed; without it nothing is removed.")] = False,
) -> None:
    """List, or with --yes remove, what a run's directory holds beside the recipe run there last."""
    from pipelines import clean as cleaning
    from pipelines import recipe_file

    for place in [run] if run else cleaning.runs(Path()):
        for line in cleaning.clean(recipe_file.remembered(place), yes):
            typer.echo(line)


@app.command(
    epilog="Examples: `regrow doctor` · `regrow doctor mine.toml` · `regrow doctor --fast --json` · "
    "`regrow doctor mine.toml --address http://head:8265 --token-file token`"
)
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="Check for this recipe: its directory and port.")] = None,
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the import of vLLM.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    address: Annotated[str | None, typer.Option(help="Look at every node of this cluster instead.")] = None,
    token_file: cli_submit.Token = None,
    storage: Annotated[str | None, typer.Option(help="With --address: try to write here; else the run_dir.")] = None,
    env: cli_submit.Env = None,
    autoscaled: cli_submit.Autoscaled = False,
) -> None:
    """Look at what this machine, or a Ray cluster, has and what is missing; exit status 1 where a run would fail."""
    from pipelines import doctor as surgery
    from pipelines import doctor_cluster, recipe_file

    read, checks = recipe_file.load(recipe, overrides or []) if recipe else None, []
    if address:
        client = cli_submit.connected(address, token_file)
        found = doctor_cluster.examine(client, read, storage, cli_submit.environment(env), autoscaled)
    elif token_file or storage or env or autoscaled:
        raise recipe_file.BadInput("--token-file, --storage, --env and --autoscaled are for a cluster; give --address")
    else:
        found = surgery.examine(read, fast)
    for check in found:
        checks.append(check)
        if not as_json:
            typer.echo(surgery.line(check))
    well = all(check.mark != "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": well, "checks": [vars(check) for check in checks]}, indent=2))
    raise typer.Exit(0 if well else 1)


@recipes.callback()
def list_recipes(context: typer.Context) -> None:
    """List the packaged recipes."""
    from pipelines import recipe_file

    if context.invoked_subcommand is None:
        for name in recipe_file.names():
            about = (recipe_file.PACKAGED / f"{name}.toml").read_text().split("\n", 1)[0].lstrip("# ")
            typer.echo(f"{name:18} {about}")


@recipes.command(epilog="Example: `regrow recipes show quickstart > mine.toml`")
def show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print a recipe with every field, its value and what it means."""
    from pipelines import recipe_file, reference

    typer.echo(reference.render(recipe_file.load(recipe, overrides or [])))


@recipes.command(
    epilog="Examples: `regrow recipes init mine.toml --data train.jsonl --model ./my-model` · `regrow recipes init "
    "--data rows.csv --model meta-llama/Llama-3.1-8B-Instruct --input query --reference reply --kind none`"
)
def init(
    data: Annotated[str, typer.Option(help="Train rows: a JSONL, Parquet or CSV file (local, s3://, hf://).")],
    model: Annotated[str, typer.Option(help="The teacher: a directory, a hub id, or `tiny`.")],
    file: Annotated[Path | None, typer.Argument(help="The recipe to write; by default named after the data.")] = None,
    test_data: Annotated[str | None, typer.Option(help="Test rows; by default some are held out of the data.")] = None,
    input_: Annotated[str | None, typer.Option("--input", help="Column of the question.")] = None,
    reference: Annotated[str | None, typer.Option(help="Column of the reference answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="Column of the short right answer.")] = None,
    context: Annotated[str | None, typer.Option(help="Column of a text the question is about.")] = None,
    messages: Annotated[str | None, typer.Option(help="Column of conversations, lists of {role, content}.")] = None,
    kind: Annotated[str | None, typer.Option(help="What the final answer is: number, choice, …, none.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there already.")] = False,
) -> None:
    """Write a recipe for your own rows and model, each choice with its reason."""
    from pipelines.own_data import starter

    named = {"input": input_, "reference": reference, "answer": answer, "context": context, "messages": messages}
    told = {field: column for field, column in named.items() if column}
    path = file or Path(f"{Path(data).name.split('.')[0]}.toml")
    notes = starter.write(path, data, test_data, model, told, kind, force)
    for field, why in notes.items():
        typer.echo(f"{field:24} {why}")
    typer.echo(f"wrote {path}; read it, then: regrow run {path} --until prune")


def _show(recipe: Any, made: dict[str, Any]) -> None:
    """The recovery table, and where the report is."""
    from pipelines import place, screen

    screen.table(made)
    typer.echo(f"report: {place.home(recipe)}/report.html")


def _plan(recipe: Any, until: str, as_json: bool, price: float | None, assume: list[str]) -> None:
    from pipelines import plan
    from pipelines.planning import screen as plan_page
    from pipelines.planning.assumptions import assumed

    made = plan.plan(recipe, assumed(assume), price, until)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
    else:
        plan_page.show(made)


def _stages(story: Any, recipe: Any) -> None:
    from rich.table import Table

    from pipelines.screen import console

    story.check(recipe)
    shown = Table("stage", "artifact", "state", "seconds", title=recipe.name, title_justify="left")
    for step in story.steps(recipe):
        for out in step.outs.values():
            manifest = out.manifest()
            shown.add_row(
                step.stage,
                f"{out.name}-{out.id}",
                *(("done", f"{manifest['seconds']:.0f}") if manifest else ("to do", "")),
            )
    console.print(shown)


STOPPED = {130: "interrupted", 143: "terminated"}


def main() -> None:
    """Entry point of `regrow`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not os.environ.get("REGROW_DEBUG"):
        logging.disable(logging.WARNING)  # the stages tell what a user wants to know; Ray's parts tell pages
    try:
        with signals.interruptible():
            app()
    except signals.Left:
        raise
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns most of the first into the second
        status: Any = 130 if isinstance(ended, KeyboardInterrupt) else ended.code
        if status in STOPPED:
            sys.exit(_fail(f"{STOPPED[status]}; the same command goes on from here", status))
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if os.environ.get("REGROW_DEBUG"):
            raise
        ours = type(error).__name__ == "BadInput"  # not imported here: --help would pay for it
        hint = "" if ours else " (REGROW_DEBUG=1 shows the traceback)"
        sys.exit(_fail(f"{error}{hint}", 2 if isinstance(error, ValueError) else 1))
    except Exception as error:  # botocore's errors are of no common kind, and importing it for them is dear
        if not type(error).__module__.startswith("botocore") or os.environ.get("REGROW_DEBUG"):
            raise
        how = "see AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        sys.exit(_fail(f"S3: {error}; {how}", 2 if "Credential" in type(error).__name__ else 1))


def _fail(message: object, status: int) -> int:
    print(f"regrow: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
