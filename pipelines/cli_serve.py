"""`regrow serve`: its options, and an endpoint made of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from serving.listening import Http
    from serving.settings import Endpoint

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow serve runs/quickstart` · `regrow serve runs/quickstart --only teacher --only sdd` · "
    "`regrow serve models/llama small=models/llama-6-layers --max-model-len 4096` · "
    "`regrow serve models/llama --adapter sql=adapters/sql --adapters-at s3://bucket/adapters` · "
    "`regrow serve ifp=models/routed --warm-subnetworks 2` · "
    "`regrow serve runs/quickstart --min-replicas 0 --max-replicas 4` · "
    "`regrow serve runs/quickstart --host 0.0.0.0 --keys keys.txt --tls-cert cert.pem --tls-key key.pem` · "
    "`regrow serve runs/quickstart --access-log access.jsonl` · "
    "`regrow serve runs/quickstart --write-config serve.yaml`, then `serve deploy serve.yaml`"
)

Run = Annotated[str, typer.Argument(help="A run's directory, or the name of a run under runs/.")]
Words = Annotated[
    list[str],
    typer.Argument(help="A run (its directory, or its name under runs/), or models: [NAME=]DIRECTORY, hub id, s3://…"),
]
Only = Annotated[list[str] | None, Opt(help="Serve this model of the run; repeat for more.")]
Host = Annotated[str | None, Opt(help="Address to listen on.")]
Port = Annotated[int | None, Opt(help="Port to listen on.")]
Keys = Annotated[
    Path | None, Opt(help="File of API keys: one a line, plain or sha256:…, or .toml with [[key]] tables.")
]
Certificate = Annotated[Path | None, Opt("--tls-cert", help="PEM file of the certificate and its chain: HTTPS.")]
PrivateKey = Annotated[Path | None, Opt("--tls-key", help="PEM file of the certificate's private key.")]
Least = Annotated[int | None, Opt("--min-replicas", help="Engines of each model at least; 0: none while nobody asks.")]
Most = Annotated[int | None, Opt("--max-replicas", help="Engines of each model at most, as load asks for them.")]
AccessLog = Annotated[
    Path | None, Opt("--access-log", help="File that gets a line of JSON a request, with no prompt in it.")
]
Keyless = Annotated[bool, Opt("--without-keys", help="Let anybody in who reaches --host.")]
Length = Annotated[int | None, Opt("--max-model-len", help="Longest prompt plus answer in tokens.")]
Seats = Annotated[int | None, Opt("--max-num-seqs", help="Requests that an engine works on at once.")]
Warm = Annotated[
    int | None, Opt("--warm-subnetworks", help="Sub-networks of a routed model with engines at rest; others wake up.")
]
PredictorGpus = Annotated[
    float | None, Opt("--predictor-gpus", help="Share of a GPU for a routed model's mask predictor; 0: it runs on CPU.")
]
Threads = Annotated[int | None, Opt("--cpu-threads", help="Threads of an engine without a GPU; 0: one a core.")]
Queue = Annotated[int | None, Opt(help="Requests that may wait for each model; more get 429 and when to try again.")]
Answer = Annotated[int | None, Opt("--max-output-tokens", help="Longest answer that a request may ask for.")]
Timeout = Annotated[float | None, Opt("--timeout-seconds", help="Deadline of a request.")]
Dtype = Annotated[str | None, Opt(help="Weights: auto, float32, bfloat16 or float16.")]
Parallel = Annotated[int | None, Opt("--tensor-parallel", help="GPUs that an engine's weights are split over.")]
Adapters = Annotated[list[str] | None, Opt("--adapter", help="LoRA adapter NAME=DIRECTORY[@MODEL]; repeat for more.")]
AdaptersAt = Annotated[
    list[str] | None,
    Opt(
        "--adapters-at", help="Folder of adapters on S3, [MODEL=]s3://…, asked for as MODEL:DIRECTORY; repeat for more."
    ),
]
Rank = Annotated[int | None, Opt("--max-lora-rank", help="Largest rank of an adapter at --adapters-at; 64.")]
Address = Annotated[str | None, Opt("--address", help="Ray cluster to serve on; else a private one.")]
Config = Annotated[
    Path | None, Opt("--write-config", help="Start nothing; write the Serve config file for `serve deploy` instead.")
]


def serve(
    what: Words, only: Only = None, host: Host = None, port: Port = None, keys: Keys = None,
    without_keys: Keyless = False, tls_cert: Certificate = None, tls_key: PrivateKey = None,
    min_replicas: Least = None, max_replicas: Most = None, access_log: AccessLog = None, max_model_len: Length = None,
    max_num_seqs: Seats = None, queue: Queue = None, max_output_tokens: Answer = None, timeout_seconds: Timeout = None,
    dtype: Dtype = None, tensor_parallel: Parallel = None, adapter: Adapters = None,
    adapters_at: AdaptersAt = None, max_lora_rank: Rank = None, cpu_threads: Threads = None, address: Address = None,
    warm_subnetworks: Warm = None, predictor_gpus: PredictorGpus = None, write_config: Config = None,
) -> None:  # fmt: skip
    """Serve the models of a run, or any others, behind an OpenAI-compatible endpoint until Ctrl-C."""
    from cluster.session import session
    from pipelines.recipe import Cluster
    from serving import config_file, endpoint, engine

    recipe = _run(what)
    given = {"min_replicas": min_replicas, "max_replicas": max_replicas, "max_model_len": max_model_len,
             "max_num_seqs": max_num_seqs, "queue": queue, "max_output_tokens": max_output_tokens,
             "timeout_seconds": timeout_seconds, "dtype": dtype, "tensor_parallel": tensor_parallel,
             "max_lora_rank": max_lora_rank, "cpu_threads": cpu_threads,
             "warm_subnetworks": warm_subnetworks, "predictor_gpus": predictor_gpus,
             "keys": keys and str(keys.resolve()), "access_log": access_log and str(access_log.resolve())}  # fmt: skip
    asked = _endpoint(recipe, what, only or [], adapter or [], adapters_at or [], given)
    http = _http(recipe, host, port, _tls(tls_cert, tls_key))
    _check_files(keys, access_log)
    _check_open(http, keys, without_keys)
    if write_config:
        config_file.write(write_config, asked, http)
        return
    there = recipe.cluster if recipe else Cluster()
    with session(address or there.address, there.cpus, there.gpus):
        engine.check_room(sum(map(asked.least, asked.models)), asked.tensor_parallel)
        endpoint.serve_forever(asked, http)


def _run(words: list[str]) -> "Recipe | None":
    """The recipe of the run that is meant, or None where models are."""
    from cluster import storage
    from pipelines import models
    from pipelines.recipe_file import BadInput, remembered
    from serving import routed

    if len(words) > 1 or "=" in words[0]:
        return None
    try:
        return remembered(words[0])
    except BadInput:
        word = words[0]
        hub = models.on_hub(word) and not word.startswith("runs/")
        if word == "tiny" or hub or storage.exists(storage.join(word, "config.json")) or routed.is_routed(word):
            return None
        raise


def _endpoint(
    recipe: "Recipe | None",
    words: list[str],
    only: list[str],
    adapters: list[str],
    adapters_at: list[str],
    given: dict[str, Any],
) -> "Endpoint":
    from pipelines import run as story
    from pipelines import served
    from pipelines.recipe_file import BadInput
    from serving.adapters import rank

    given = {name: value for name, value in given.items() if value is not None}
    if recipe is None and only:
        raise BadInput("--only is for a run's models; name just those models that are to be served")
    with _told():
        paths = story.servable(recipe, only) if recipe else {}
        made = served.of_run(recipe, paths, **given) if recipe else served.of_models(words, **given)
        names = list(made.models)
        added: dict[str, Any] = {
            "adapters": served.adapters(adapters, names),
            "adapters_at": served.growing(adapters_at, names),
        }
        for one in added["adapters"].values():
            rank(one.path)
        return type(made).model_validate(made.model_dump() | added)


def _http(recipe: "Recipe | None", host: str | None, port: int | None, tls: Any) -> "Http":
    from pipelines.recipe import Serve
    from serving.listening import Http

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    with _told():
        told = Serve.model_validate((recipe.serve.model_dump() if recipe else {}) | given)
    return Http(told.host, told.port, tls)


@contextmanager
def _told() -> Iterator[None]:
    """Say what is wrong with a setting as the options are called. Raises BadInput."""
    from pydantic import ValidationError

    from pipelines.recipe_file import BadInput

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise BadInput(f"{name}{first['msg'].removeprefix('Value error, ')}") from error
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def _check_files(keys: Path | None, log: Path | None) -> None:
    from pipelines.recipe_file import BadInput
    from serving.keys import KeysFile

    try:
        KeysFile(keys) if keys else None
    except (OSError, ValueError) as error:
        raise BadInput(f"--keys: {error}") from error
    try:
        log.open("a").close() if log else None
    except OSError as error:
        raise BadInput(f"--access-log {log}: {error.strerror}") from error


def _check_open(http: "Http", keys: Path | None, without_keys: bool) -> None:
    from pipelines.recipe_file import BadInput
    from serving import listening

    if not (keys or without_keys or listening.is_loopback(http.host)):
        raise BadInput(
            f"other machines reach {http.host}, and there are no API keys: give --keys FILE, or say --without-keys"
        )


def _tls(certificate: Path | None, private: Path | None) -> Any:
    from pipelines.recipe_file import BadInput
    from serving import listening

    if not (certificate and private):
        if certificate or private:
            raise BadInput("--tls-cert and --tls-key go together: a certificate and its private key, both as PEM files")
        return None
    tls = listening.Tls(certificate, private)
    try:
        tls.check()
    except ValueError as error:
        raise BadInput(f"--tls-cert, --tls-key: {error}") from error
    return tls
