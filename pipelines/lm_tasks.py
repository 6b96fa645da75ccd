"""lm-eval tasks, asked of an endpoint: what is scored is what is served."""

import contextlib
import io
import logging
import math
from pathlib import Path
from typing import Any

TABLES = ("results", "versions", "n-samples", "n-shot", "higher_is_better")
BATCH = 8  # prompts a request; lm-eval waits for all of them


def run(
    base_url: str, name: str, model: Path, tasks: tuple[str, ...], limit: int | None, concurrency: int, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scores of model `name` on `tasks` (lm-eval names or YAML files), and lm-eval's own result tables.

    `limit` items of each task at most; `max_length` in tokens. The chat template is applied where the
    tokenizer in `model` has one. Files need no network; named tasks fetch their data from the hub.
    Raises ValueError for a task that there is not, RuntimeError where the endpoint stays away."""
    import aiohttp

    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    from lm_eval import evaluator

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        asked, chat = served(base_url, name, model, concurrency, max_length)
        loaded = _load(tasks)
        try:
            found = evaluator.evaluate(
                lm=asked, task_dict=loaded, limit=limit, apply_chat_template=chat, log_samples=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeError(f"{base_url} no longer answers lm-eval for model {name}: {error}") from error
    tables = {key: found[key] for key in TABLES if key in found}
    return rows(tables), tables


def served(base_url: str, name: str, model: Path, concurrency: int, max_length: int) -> tuple[Any, bool]:
    """lm-eval's model object for an endpoint, and whether its tokenizer has a chat template."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import AutoTokenizer

    chat = bool(AutoTokenizer.from_pretrained(model).chat_template)
    asked = LocalCompletionsAPI(
        base_url=f"{base_url}/completions",
        model=name,
        tokenizer=str(model),
        tokenizer_backend="huggingface",
        add_bos_token=not chat,  # a template brings its own first token
        num_concurrent=max(2, concurrency // BATCH),
        batch_size=BATCH,
        max_length=max_length,
        max_retries=5,
    )
    return asked, chat


def rows(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Score rows {suite, task, metric, value, n, stderr} of lm-eval's result tables, aggregates left out."""
    made = []
    for task, values in tables["results"].items():
        if task not in tables["n-samples"]:  # a group: its members are there themselves
            continue
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            known = isinstance(stderr, int | float) and math.isfinite(stderr)
            n = int(tables["n-samples"][task]["effective"])
            shown = metric if kind == "none" else f"{metric},{kind}"
            scored = {"suite": "lm-eval", "task": task, "metric": shown, "value": float(value), "n": n}
            made.append(scored | {"stderr": float(stderr) if known else None})
    return made


def _load(tasks: tuple[str, ...]) -> Any:
    """lm-eval's task objects. Its index of some ten thousand task files is read only where a name needs it."""
    from lm_eval.tasks import TaskManager

    files = [task for task in tasks if task.endswith((".yaml", ".yml"))]
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"lm-eval task file {file!r} does not exist")
    manager = TaskManager(include_defaults=len(files) < len(tasks), metadata={})
    try:
        loaded = manager.load(list(tasks))
    except KeyError as error:
        raise ValueError(f"{error.args[0]}; `lm-eval ls tasks` lists the names") from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return loaded
