"""`regrow serve`: its options, and an endpoint made of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow serve runs/quickstart` · `regrow serve runs/quickstart --only teacher --only sdd` · "
    "`regrow serve runs/quickstart --min-replicas 0 --max-replicas 4` · "
    "`regrow serve runs/quickstart --host 0.0.0.0 --keys keys.txt --tls-cert cert.pem --tls-key key.pem` · "
    "`regrow serve runs/quickstart --access-log access.jsonl`"
)

Run = Annotated[str, typer.Argument(help="A run's directory, or the name of a run under runs/.")]
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


def serve(
    run: Run, only: Only = None, host: Host = None, port: Port = None, keys: Keys = None, without_keys: Keyless = False,
    tls_cert: Certificate = None, tls_key: PrivateKey = None, min_replicas: Least = None, max_replicas: Most = None,
    access_log: AccessLog = None,
) -> None:  # fmt: skip
    """Serve teacher and students of a run behind an OpenAI-compatible endpoint until Ctrl-C."""
    from cluster.session import session
    from pipelines import run as story
    from pipelines.recipe_file import BadInput, remembered
    from serving import endpoint, engine

    recipe = remembered(run)
    models = story.servable(recipe, only or [])
    asked = {"host": host, "port": port, "min_replicas": min_replicas, "max_replicas": max_replicas}
    settings = _settings(recipe.serve, {key: value for key, value in asked.items() if value is not None})
    if keys:
        _check_keys(keys)
    elif not without_keys and not endpoint.is_loopback(settings.host):
        raise BadInput(
            f"other machines reach {settings.host}, and there are no API keys: give --keys FILE, or say --without-keys"
        )
    tls = _tls(tls_cert, tls_key)
    if access_log:
        _check_log(access_log)
    with session(recipe.cluster.address, recipe.cluster.cpus):
        teacher = recipe.teacher
        lengths = (teacher.max_model_len, teacher.dtype, teacher.tensor_parallel)
        engine.check_room(len(models) * settings.min_replicas, teacher.tensor_parallel)
        log = access_log and access_log.resolve()
        endpoint.serve_forever(models, settings, *lengths, keys=keys and keys.resolve(), tls=tls, log=log)


def _check_keys(file: Path) -> None:
    from pipelines.recipe_file import BadInput
    from serving.keys import KeysFile

    try:
        KeysFile(file)
    except (OSError, ValueError) as error:
        raise BadInput(f"--keys: {error}") from error


def _check_log(file: Path) -> None:
    from pipelines.recipe_file import BadInput

    try:
        file.open("a").close()
    except OSError as error:
        raise BadInput(f"--access-log {file}: {error.strerror}") from error


def _settings(told: Any, given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from pipelines.recipe_file import BadInput

    try:
        return type(told).model_validate({**told.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{str(first['loc'][-1]).replace('_', '-')}: " if first["loc"] else ""
        raise BadInput(f"{name}{first['msg'].removeprefix('Value error, ')}") from error


def _tls(certificate: Path | None, private: Path | None) -> Any:
    from pipelines.recipe_file import BadInput
    from serving import endpoint

    if not (certificate and private):
        if certificate or private:
            raise BadInput("--tls-cert and --tls-key go together: a certificate and its private key, both as PEM files")
        return None
    tls = endpoint.Tls(certificate, private)
    try:
        tls.check()
    except ValueError as error:
        raise BadInput(f"--tls-cert, --tls-key: {error}") from error
    return tls
