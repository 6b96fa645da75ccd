"""`regrow serve`: its options, and an endpoint made of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow serve runs/quickstart` · `regrow serve runs/quickstart --only teacher --only sdd` · "
    "`regrow serve runs/quickstart --host 0.0.0.0 --keys keys.txt`"
)

Only = Annotated[list[str] | None, Opt(help="Serve this model of the run; repeat for more.")]
Host = Annotated[str | None, Opt(help="Address to listen on.")]
Port = Annotated[int | None, Opt(help="Port to listen on.")]
Keys = Annotated[
    Path | None, Opt(help="File of API keys: one a line, plain or sha256:…, or .toml with [[key]] tables.")
]
Keyless = Annotated[bool, Opt("--without-keys", help="Let anybody in who reaches --host.")]


def serve(recipe: Any, only: list[str], host: str | None, port: int | None, keys: Path | None, keyless: bool) -> None:
    """Serve a run's models until Ctrl-C. Raises BadInput for keys that cannot be read, and where other machines
    would be let in without any."""
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
    with session(recipe.cluster.address, recipe.cluster.cpus):
        teacher = recipe.teacher
        lengths = (teacher.max_model_len, teacher.dtype, teacher.tensor_parallel)
        endpoint.serve_forever(models, settings, *lengths, keys=keys and keys.resolve())
