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
    dry_run: DryRun = False, gpu_hour_price: Price = None, gpu: Gpu = None, address: Address = "local",
) -> None:  # fmt: skip
    """Let a model answer millions of rows, each exactly once; a killed job goes on where it was."""
    from cluster import storage
    from cluster.session import session
    from pipelines import generate as stage
    from pipelines import parts
    from pipelines.generation import finishing

    job, folder = _job(context.params)
    files = {url: size for pattern in input_ for url, size in storage.find(pattern).items()}
    if dry_run:
        from pipelines.dry_run import estimating

        typer.echo(estimating.dry_run(job, files, folder, gpu, gpu_hour_price))
        return
    with session(address, None):
        done = stage.generate(job, files, folder, new, gpu_hour_price)
    job = done["job"]
    finishing.write(folder, done)
    typer.echo(_told(done))
    if format_ == "jsonl":
        typer.echo(f"{finishing.messages(job):,} conversations in {storage.join(job.output, finishing.MESSAGES)}")
    if done["quarantined"]:
        where = storage.join(job.output, parts.QUARANTINE)
        said = f"done, but {done['quarantined']:,} of {done['rows']:,} rows are in quarantine: {where}"
        typer.echo(f"regrow: {said}", err=True)
        raise typer.Exit(3)


def _job(given: dict[str, Any]) -> tuple[Any, Path | None]:
    """The job of the command's options, checked, and the directory of the model that its engines load."""
    import pydantic

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
    folder = _folder(given)
    named = {"prompt": given["column"], "messages": given["messages"], "reference": given["reference"],
             "answer": given["answer"], "context": given["about"], "id": given["id_"]}  # fmt: skip
    plain = ("model", "mode", "raw", "temperature", "top_p", "max_tokens", "n", "seed", "endpoint", "concurrency",
             "engines", "tensor_parallel", "dtype", "shard_rows", "limit")  # fmt: skip
    made = {key: given[key] for key in plain} | {
        "output": str(Path(given["output"]).resolve()) if "://" not in given["output"] else given["output"],
        "columns": named, "template": template, "stop": tuple(given["stop"] or stops),
        "kind": given["kind"] or ("text" if given["mode"] == "rationale" else "none"),
        "schema_": _schema(given["schema"]), "max_num_seqs": given["seats"],
        "adapter": given["adapter"] and _adapter(given["adapter"]),
        "max_model_len": given["max_model_len"] or _length(folder),
    }  # fmt: skip
    try:
        return jobs.Job(**made), folder
    except pydantic.ValidationError as error:
        raise recipe_file.BadInput("; ".join(_line(one) for one in error.errors())) from error


def _folder(given: dict[str, Any]) -> Path | None:
    from pipelines import models, weights
    from pipelines.generation import job as jobs

    if given["endpoint"] or given["model"] == jobs.ECHO:
        if given["adapter"]:
            raise ValueError("--adapter goes with engines of this job's own; an endpoint has its adapters by name")
        return None
    from serving import engine

    folder = models.resolve(given["model"])
    longest = weights.check(folder).get_text_config().max_position_embeddings
    if (given["max_model_len"] or 0) > longest:
        raise ValueError(f"--max-model-len {given['max_model_len']}: the model's longest sequence is {longest} tokens")
    engine.check_split(models.configuration(folder), given["tensor_parallel"])
    return folder


def _length(folder: Path | None) -> int:
    """The model's longest sequence in tokens, 4,096 at most: more costs memory that few prompts need."""
    from pipelines import models

    own = models.configuration(folder).get("max_position_embeddings", 4096) if folder else 1 << 20
    return min(own, 4096) if folder else own


def _schema(file: Path | None) -> dict[str, Any] | None:
    """A JSON schema, read and checked against its meta-schema."""
    if file is None:
        return None
    import jsonschema

    try:
        schema = json.loads(file.read_text(encoding="utf8"))
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", None) or error
        raise ValueError(f"--schema {file}: {reason}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"--schema {file}: a JSON object is needed, this is a {type(schema).__name__}")
    return schema


def _adapter(path: str) -> str:
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"--adapter {path}: no adapter_config.json there; give the directory that peft saved")
    return str(folder.resolve())


def _line(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]).rstrip("_")
    said = error["msg"].removeprefix("Value error, ")
    return f"--{where.replace('_', '-')}: {said}, got {error['input']!r}" if where else said


def _told(done: dict[str, Any]) -> str:
    from pipelines import verdicts

    said = ", ".join(f"{done[v]:,} {v}" for v in verdicts.VERDICTS if done[v])
    return (
        f"{done['rows']:,} rows, {done['samples']:,} samples ({said or 'none'}), {done['prompt_tokens']:,} tokens read "
        f"and {done['completion_tokens']:,} written in all; {done['seconds']:.0f} s: {done['output']}"
    )
