"""`regrow serve`: its options, and an endpoint made of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow serve runs/quickstart` · `regrow serve runs/quickstart --only teacher --only sdd` · "
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
Keyless = Annotated[bool, Opt("--without-keys", help="Let anybody in who reaches --host.")]


def serve(
    recipe: Any, only: list[str], host: str | None, port: int | None, keys: Path | None, keyless: bool,
    certificate: Path | None, private: Path | None,
) -> None:  # fmt: skip
    """Serve a run's models until Ctrl-C. Raises BadInput for keys and certificates that cannot be read, and where other
    machines would be let in without a key."""
    from cluster.session import session
    from pipelines import run as story
    from pipelines.recipe_file import BadInput
    from serving import endpoint
    from serving.keys import KeysFile

    models = story.servable(recipe, only)
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    settings = recipe.serve.model_copy(update=given)
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
