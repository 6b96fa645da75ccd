"""`regrow loadtest`: its options, and what it prints."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.load import Outcome

Opt = typer.Option
EXAMPLES = (
    "Examples: `regrow loadtest http://127.0.0.1:8000/v1` · `regrow loadtest http://127.0.0.1:8000/v1 --model sdd "
    "--concurrency 64 --seconds 60` · `regrow loadtest http://127.0.0.1:8000/v1 --rate 20 --json load.json`. "
    "The API key is $OPENAI_API_KEY."
)
EVERY = 5.0  # seconds between two lines of progress

Url = Annotated[str, typer.Argument(help="The endpoint, as in http://127.0.0.1:8000/v1.")]
Model = Annotated[str | None, Opt(help="Model to ask; else the first that the endpoint lists.")]
Concurrency = Annotated[int, Opt(min=1, max=4096, help="Clients, each of which asks as soon as it has its answer.")]
Rate = Annotated[float | None, Opt(help="Instead of clients: requests a second, whatever becomes of those before.")]
Seconds = Annotated[float, Opt(min=1, help="How long requests are sent.")]
Words = Annotated[int, Opt(min=1, max=100_000, help="Words of each prompt.")]
Tokens = Annotated[int, Opt("--max-tokens", min=1, help="Longest answer in tokens.")]
Ignore = Annotated[bool, Opt("--ignore-eos", help="Answers of exactly --max-tokens; vLLM and regrow take this.")]
Spread = Annotated[
    float, Opt(min=0, max=0.99, help="Lengths vary by this share, each way: clients do not march in step.")
]
Seed = Annotated[int, Opt(help="Of the prompts and the times between them.")]
Json = Annotated[Path | None, Opt("--json", help="File for all figures and each request.")]


def loadtest(
    url: Url, model: Model = None, concurrency: Concurrency = 32, rate: Rate = None, seconds: Seconds = 30,
    words: Words = 64, max_tokens: Tokens = 64, ignore_eos: Ignore = False, spread: Spread = 0,
    seed: Seed = 0, as_json: Json = None,
) -> None:  # fmt: skip
    """Put load on an OpenAI-compatible endpoint, and print its rates, times and refusals."""
    from pipelines.recipe_file import BadInput
    from pipelines.screen import say
    from serving import load
    from serving.writers import address

    if rate is not None and not 0 < rate <= 10_000:
        raise BadInput(f"--rate {rate:g}: give requests a second, more than 0 and at most 10,000")
    try:
        address.public(url)
    except ValueError as error:
        raise BadInput(str(error)) from error
    key = os.environ.get("OPENAI_API_KEY", "")
    if as_json and not as_json.parent.is_dir():
        raise BadInput(f"--json {as_json}: there is no directory {as_json.parent}")
    shape = load.Shape(model or _first(url, key), words, max_tokens, ignore_eos, spread)
    how = f"{rate:g} requests a second" if rate else f"{concurrency} clients"
    say(f"loadtest: {how} ask {shape.model} for {seconds:g} s, {words} words in, {max_tokens} tokens out at most")
    more: dict[str, Any] = {"key": key, "seed": seed, "done": _Progress(seconds).one}
    asking = load.opened(url, shape, rate, seconds, **more) if rate else load.closed(
        url, shape, concurrency, seconds, **more
    )  # fmt: skip
    outcomes = asyncio.run(asking)
    _show(load.summary(outcomes))
    if as_json:
        as_json.write_text(json.dumps(load.record(shape, outcomes), indent=1))
    if not any(one.status == 200 for one in outcomes):
        raise RuntimeError(f"no request was answered: {next((o.error for o in outcomes if o.error), 'none was sent')}")


class _Progress:
    """A line now and then."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        self.shown, self.counts = self.began, dict[int, int]()

    def one(self, outcome: "Outcome") -> None:
        """Called with each outcome."""
        from pipelines.screen import say

        self.counts[outcome.status] = self.counts.get(outcome.status, 0) + 1
        now = time.monotonic()
        if now - self.shown >= EVERY:
            self.shown = now
            left = self.seconds - (now - self.began)
            counted = ", ".join(f"{count:,} × {status or 'no answer'}" for status, count in self.counts.items())
            say(f"loadtest: {counted}; " + (f"{left:.0f} s left" if left > 0 else "waits for what is under way"))


def _first(url: str, key: str) -> str:
    """The first model of the endpoint. Raises RuntimeError where it lists none."""
    import openai

    try:
        listed = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=1, timeout=20).models.list()
        first = next((model.id for model in listed), None)
    except openai.APIStatusError as error:
        raise RuntimeError(f"{url}/models: {error.message}") from error
    except openai.APIConnectionError as error:
        raise RuntimeError(f"{url}/models: no connection ({error.__cause__ or error})") from error
    except (AttributeError, TypeError, ValueError, openai.APIError) as error:  # what the client makes of other answers
        raise RuntimeError(
            f"{url}/models lists no models; is this the /v1 of an OpenAI-compatible endpoint?"
        ) from error
    if first is None:
        raise RuntimeError(f"{url}/models lists no model")
    return first


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    told = Console(width=None)
    statuses = ", ".join(f"{count:,} × {status if status != '0' else 'no answer'}" for status, count in
                         figures["statuses"].items())  # fmt: skip
    told.print(
        f"{figures['requests']:,} requests in {figures['seconds']:.1f} s: {statuses}\n"
        f"{figures['requests_per_second']:,.2f} answers/s · {figures['output_tokens_per_second']:,.1f} output tokens/s"
        f" · {figures['input_tokens_per_second']:,.1f} input tokens/s",
        highlight=False,
    )
    shown = Table("milliseconds", "p50", "p95", "p99")
    names = {"first_token": "to the first token", "token": "between tokens", "answer": "whole answer",
             "refusal": "refusal (429, 503)"}  # fmt: skip
    for key, name in names.items():
        if figures[key]:
            shown.add_row(name, *(f"{figures[key][p] * 1000:,.1f}" for p in ("p50", "p95", "p99")))
    told.print(shown)
    for error in figures["errors"]:
        told.print(error, markup=False)
