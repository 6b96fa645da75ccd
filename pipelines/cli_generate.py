"""`regrow generate`: its options, and a job made of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Opt = typer.Option
Text = str | None
EXAMPLES = (
    "Examples: `regrow generate --model ./llama --input 'rows/*.jsonl' --output out` · `regrow generate --model "
    "meta-llama/Llama-3.1-8B-Instruct --input s3://b/in --output s3://b/out --engines 8 --address auto` · "
    "`regrow generate --model tiny --input qa.csv --output out --mode rationale --prompt choice --reference answer "
    "--kind choice --n 5 --temperature 0.7` · `regrow generate --model echo --input in.parquet --output out --dry-run`"
)

UNBOUND = 1 << 20  # tokens of a prompt and text: echo and endpoints know their own lengths

Model = Annotated[str, Opt(help="A directory, a hub id, `tiny`, `echo` (no model), or the endpoint's model name.")]
Input = Annotated[list[str], Opt("--input", help="JSONL, Parquet, CSV (.gz): file, folder or glob, local or s3://.")]
Output = Annotated[str, Opt(help="Directory or s3:// URL; the same command goes on there.")]
Mode = Annotated[str, Opt(help="respond, self_distill (rewrite --reference) or rationale (explain, then answer).")]
Prompt = Annotated[Text, Opt(help="Prompt file with {column} places, or packaged: choice, arithmetic, nli.")]
Column = Annotated[str, Opt(help="Column of the prompt.")]
Messages = Annotated[Text, Opt(help="Column of conversations, lists of {role, content}; by default `messages`.")]
Reference = Annotated[Text, Opt(help="Column of the reference answer; by default `reference`.")]
Answer = Annotated[Text, Opt(help="Column of the short right answer; none: taken out of the reference.")]
Kind = Annotated[Text, Opt(help="What the final answer is: number, choice, label, text, list, expression, none.")]
Context = Annotated[Text, Opt(help="Column of a text the prompt is about.")]
Id = Annotated[Text, Opt("--id", help="Column of unique ids; none: made of each row's content.")]
Raw = Annotated[bool, Opt("--raw", help="Send prompts without the model's chat template.")]
Temperature = Annotated[float, Opt(help="0 is greedy.")]
TopP = Annotated[float, Opt(help="Nucleus sampling.")]
MaxTokens = Annotated[int, Opt(help="Longest text in tokens.")]
N = Annotated[int, Opt("--n", help="Samples a row; in mode rationale they vote.")]
Seed = Annotated[int, Opt(help="Seed of sampling.")]
Stop = Annotated[list[str] | None, Opt(help="Text that ends an answer; repeat for more.")]
Schema = Annotated[Path | None, Opt(help="JSON schema file that every text satisfies.")]
Adapter = Annotated[Text, Opt(help="Directory of a LoRA adapter.")]
Endpoint = Annotated[Text, Opt(help="Ask this OpenAI-compatible URL instead; key from OPENAI_API_KEY.")]
Concurrency = Annotated[int, Opt(help="Requests in flight to the endpoint.")]
Engines = Annotated[int, Opt(help="vLLM engines.")]
TensorParallel = Annotated[int, Opt(help="GPUs that one engine's weights are split over.")]
Seats = Annotated[int, Opt("--max-num-seqs", help="Rows an engine works on at once.")]
Length = Annotated[int | None, Opt("--max-model-len", help="Prompt plus text in tokens; none: the model's, 4096 most.")]
Dtype = Annotated[str, Opt(help="Weights in the engine: auto, float32, bfloat16, float16.")]
ShardRows = Annotated[int, Opt(help="Rows a committed Parquet file.")]
Limit = Annotated[int | None, Opt(help="The first rows only; more later goes on from there.")]
Format = Annotated[str, Opt("--format", help="parquet, or jsonl: chat messages for SFT tools as well.")]
New = Annotated[bool, Opt("--new", help="Where the output was made otherwise: start beside it.")]
Retry = Annotated[bool, Opt("--retry", help="Ask the rows in quarantine again.")]
DryRun = Annotated[bool, Opt("--dry-run", help="Show three prompts, tokens, time and cost; start nothing.")]
Price = Annotated[float | None, Opt(help="Price of an hour of one GPU.")]
Gpu = Annotated[Text, Opt(help="With --dry-run: the GPU to reckon with, such as H100-80GB.")]
Address = Annotated[str, Opt(help="Ray cluster: `local` starts one, `auto` or an address joins one.")]


def generate(
    context: typer.Context, model: Model, input_: Input, output: Output, mode: Mode = "respond", prompt: Prompt = None,
    column: Column = "prompt", messages: Messages = None, reference: Reference = None, answer: Answer = None,
    kind: Kind = None, about: Context = None, id_: Id = None, raw: Raw = False, temperature: Temperature = 0.0,
    top_p: TopP = 1.0, max_tokens: MaxTokens = 256, n: N = 1, seed: Seed = 0, stop: Stop = None, schema: Schema = None,
    adapter: Adapter = None, endpoint: Endpoint = None, concurrency: Concurrency = 64, engines: Engines = 1,
    tensor_parallel: TensorParallel = 1, seats: Seats = 64, max_model_len: Length = None, dtype: Dtype = "auto",
    shard_rows: ShardRows = 512, limit: Limit = None, format_: Format = "parquet", new: New = False,
    retry: Retry = False, dry_run: DryRun = False, gpu_hour_price: Price = None, gpu: Gpu = None,
    address: Address = "local",
) -> None:  # fmt: skip
    """Let a model answer millions of rows, each exactly once; a killed job goes on where it was."""
    from cluster import storage
    from cluster.session import session
    from pipelines import generate as stage
    from pipelines import parts
    from pipelines.generation import finishing, settling

    job, folder = _job(context.params)
    settling.check(job.output)  # here, before Ray is started
    files = _files(input_, job.output)
    if dry_run:
        from pipelines.dry_run import estimating

        typer.echo(estimating.dry_run(job, files, folder, gpu, gpu_hour_price))
        return
    with session(address, None):
        done = stage.generate(
            job, files, folder, new, gpu_hour_price, finish=lambda done: finishing.write(folder, done), retry=retry
        )
    job = done["job"]
    typer.echo(_told(done))
    if format_ == "jsonl":
        typer.echo(f"{finishing.messages(job):,} conversations in {storage.join(job.output, finishing.MESSAGES)}")
    if done["quarantined"]:
        where = storage.join(job.output, parts.QUARANTINE)
        said = f"done, but {done['quarantined']:,} of {done['rows']:,} rows are in quarantine: {where}"
        typer.echo(f"regrow: {said}", err=True)
        raise typer.Exit(3)


def _job(given: dict[str, Any]) -> tuple[Any, Path | None]:
    """The job of the command's options, checked before a model is fetched, and the directory of the model that its
    engines load. Raises BadInput."""
    from pipelines import answers, few_shot, recipe_file
    from pipelines.generation import job as jobs

    if given["format_"] not in ("parquet", "jsonl"):
        raise recipe_file.BadInput(f"--format {given['format_']!r}; formats are parquet and jsonl")
    if given["mode"] not in jobs.MODES:
        close = recipe_file.nearest(given["mode"], list(jobs.MODES))
        raise recipe_file.BadInput(f"no mode {given['mode']!r}{close}; modes are {', '.join(jobs.MODES)}")
    if given["kind"] and given["kind"] not in answers.KINDS:
        close = recipe_file.nearest(given["kind"], list(answers.KINDS))
        raise recipe_file.BadInput(f"no answer kind {given['kind']!r}{close}; kinds are {', '.join(answers.KINDS)}")
    template, stops = few_shot.named(given["prompt"]) if given["prompt"] else (None, ())
    _writer(given)
    named = {"prompt": given["column"], "messages": given["messages"], "reference": given["reference"],
             "answer": given["answer"], "context": given["about"], "id": given["id_"]}  # fmt: skip
    plain = ("model", "mode", "raw", "temperature", "top_p", "max_tokens", "n", "seed", "endpoint", "concurrency",
             "engines", "tensor_parallel", "dtype", "shard_rows", "limit")  # fmt: skip
    made = {key: given[key] for key in plain} | {
        "output": _output(given["output"]),
        "columns": named, "template": template, "stop": tuple(given["stop"] or stops),
        "kind": given["kind"] or ("text" if given["mode"] == "rationale" else "none"),
        "schema_": _schema(given["schema"]), "max_num_seqs": given["seats"],
        "adapter": given["adapter"] and _adapter(given["adapter"]),
        "max_model_len": UNBOUND if given["max_model_len"] is None else given["max_model_len"],
    }  # fmt: skip
    job = _checked(made)
    if not job.local:
        return job, None
    folder = _folder(job, given["max_model_len"])
    return _checked(made | {"max_model_len": given["max_model_len"] or _length(folder)}), folder


def _checked(made: dict[str, Any]) -> Any:
    import pydantic

    from pipelines import recipe_file
    from pipelines.generation import job as jobs

    try:
        return jobs.Job(**made)
    except pydantic.ValidationError as error:  # not chained: its values may be secrets
        raise recipe_file.BadInput("; ".join(_line(one) for one in error.errors())) from None


def _writer(given: dict[str, Any]) -> None:
    """Raise BadInput for what an endpoint or echo has no use for or cannot read."""
    from pipelines.generation import job as jobs
    from pipelines.recipe_file import BadInput

    if given["endpoint"] is None and given["model"] != jobs.ECHO:
        return
    if given["adapter"]:
        raise BadInput("--adapter goes with engines of this job's own; an endpoint has its adapters by name")
    if given["endpoint"] is None:
        from serving.writers import echo

        try:
            echo.seconds()
        except ValueError as error:
            raise BadInput(str(error)) from error


def _output(given: str) -> str:
    """Where the output goes: an absolute path or an S3 URL. Raises BadInput for what cannot be a directory."""
    from cluster import storage
    from pipelines.recipe_file import BadInput

    _taken(given, "--output")
    if storage.on_s3(given):
        return given
    try:
        path = Path(given.removeprefix("file://")).expanduser().resolve()
    except RuntimeError as error:  # nobody's home, links that go round
        raise BadInput(f"--output {given!r}: {error}") from error
    standing = next(one for one in (path, *path.parents) if one.exists())
    if not standing.is_dir():
        raise BadInput(f"--output {given!r}: {standing} is a file; give a directory, there already or not")
    return str(path)


def _files(patterns: list[str], output: str) -> dict[str, int]:
    """URL → size of the input's files. Raises BadInput where a pattern names none that can be read, ValueError where
    it finds nothing."""
    from cluster import storage
    from pipelines.generation import settling
    from pipelines.recipe_file import BadInput

    found: dict[str, int] = {}
    for pattern in patterns:
        _taken(pattern, "--input")
        found |= storage.find(pattern)
    files = settling.others(found, output)
    if not files:
        raise BadInput(f"--input {', '.join(patterns)}: only what jobs wrote to {output} is there; name your own rows")
    return files


def _taken(url: str, option: str) -> None:
    from cluster import storage
    from pipelines.recipe_file import BadInput

    if not url.strip():
        raise BadInput(f"{option} is empty; give a path or an s3:// URL")
    if not storage.taken(url):
        raise BadInput(f"{option} {url!r}: only paths of this machine and s3://bucket/... are taken")


def _folder(job: Any, length: int | None) -> Path:
    """The directory of the model. Raises ValueError where there is none that engines can load as `job` says."""
    from pipelines import models, weights
    from pipelines.recipe_file import BadInput
    from serving import engine

    folder = models.resolve(job.model)
    longest = weights.check(folder).get_text_config().max_position_embeddings
    if (length or 0) > longest:
        raise BadInput(f"--max-model-len {length}: the model's longest sequence is {longest} tokens")
    engine.check_split(models.configuration(folder), job.tensor_parallel)
    return folder


def _length(folder: Path) -> int:
    """The model's longest sequence in tokens, 4,096 at most: more costs memory that few prompts need."""
    from pipelines import models

    return min(models.configuration(folder).get("max_position_embeddings", 4096), 4096)


def _schema(file: Path | None) -> dict[str, Any] | None:
    """A JSON schema, read and checked against its meta-schema. Raises BadInput with what is wrong with it."""
    if file is None:
        return None
    import jsonschema

    from pipelines.recipe_file import BadInput

    try:
        schema = json.loads(file.read_text(encoding="utf8"))
        if not isinstance(schema, dict):
            raise ValueError(f"a JSON object is needed, this is a {type(schema).__name__}")
        if not isinstance(kind := schema.get("$schema", ""), str):
            raise ValueError(f"$schema is {json.dumps(kind)}; write the URL of a JSON schema draft, or leave it out")
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (OSError, ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", None) or error
        raise BadInput(f"--schema {file}: {reason}") from error
    return schema


def _adapter(path: str) -> str:
    from pipelines.recipe_file import BadInput

    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise BadInput(f"--adapter {path}: no adapter_config.json there; give the directory that peft saved")
    return str(folder.resolve())


def _line(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]).rstrip("_")
    said = error["msg"].removeprefix("Value error, ")
    got = "" if where == "endpoint" else f", got {error['input']!r}"  # an address may hold a password
    return f"--{where.replace('_', '-')}: {said}{got}" if where else said


def _told(done: dict[str, Any]) -> str:
    from pipelines import verdicts

    said = ", ".join(f"{done[v]:,} {v}" for v in verdicts.VERDICTS if done[v])
    return (
        f"{done['rows']:,} rows, {done['samples']:,} samples ({said or 'none'}), {done['prompt_tokens']:,} tokens read "
        f"and {done['completion_tokens']:,} written in all; {done['seconds']:.0f} s: {done['output']}"
    )
