"""`regrow serve`: its options, and an endpoint made of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow serve runs/quickstart` · `regrow serve runs/quickstart --only teacher --only sdd` · "
    "`regrow serve runs/quickstart --min-replicas 0 --max-replicas 4` · "
    "`regrow serve runs/quickstart --host 0.0.0.0 --keys keys.txt --tls-cert cert.pem --tls-key key.pem`"
)

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
Keyless = Annotated[bool, Opt("--without-keys", help="Let anybody in who reaches --host.")]


def serve(
    recipe: Any, only: list[str], host: str | None, port: int | None, keys: Path | None, keyless: bool,
    certificate: Path | None, private: Path | None, least: int | None, most: int | None,
) -> None:  # fmt: skip
    """Serve a run's models until Ctrl-C. Raises BadInput for numbers, keys and certificates that cannot be used, and
    where other machines would be let in without a key."""
    from cluster.session import session
    from pipelines import run as story
    from pipelines.recipe_file import BadInput
    from serving import endpoint
    from serving.keys import KeysFile

    models = story.servable(recipe, only)
    asked = {"host": host, "port": port, "min_replicas": least, "max_replicas": most}
    settings = _settings(recipe.serve, {key: value for key, value in asked.items() if value is not None})
    if keys:
        try:
            KeysFile(keys)
        except (OSError, ValueError) as error:
            raise BadInput(f"--keys: {error}") from error
    elif not keyless and not endpoint.is_loopback(settings.host):
        raise BadInput(
            f"other machines reach {settings.host}, and there are no API keys: give --keys FILE, or say --without-keys"
        )
    tls = _tls(certificate, private)
    with session(recipe.cluster.address, recipe.cluster.cpus):
        teacher = recipe.teacher
        lengths = (teacher.max_model_len, teacher.dtype, teacher.tensor_parallel)
        endpoint.serve_forever(models, settings, *lengths, keys=keys and keys.resolve(), tls=tls)


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
