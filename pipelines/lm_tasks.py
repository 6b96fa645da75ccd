"""lm-eval tasks, asked of an endpoint: what is scored is what is served."""

import contextlib
import difflib
import functools
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import prompts

TABLES = ("results", "versions", "n-samples", "n-shot", "higher_is_better")
BATCH = 8  # prompts a request; lm-eval waits for all of them


def run(
    base_url: str, name: str, model: Path, tasks: tuple[str, ...], limit: int | None, concurrency: int, max_length: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scores of model `name` on `tasks` (lm-eval names or YAML files, each with `:n` for n examples before the
    question, else as many as the task itself says), and lm-eval's own result tables.

    `limit` items of each task at most; `max_length` in tokens. The chat template is applied where the
    tokenizer in `model` has one. Files need no network; named tasks fetch their data from the hub.
    Raises ValueError for a task that there is not, RuntimeError where the endpoint stays away."""
    import aiohttp

    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    from lm_eval import evaluator

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        asked, chat = served(base_url, name, model, concurrency, max_length)
        loaded = load(tasks)
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
    if chat:
        asked.tokenizer.apply_chat_template = functools.partial(asked.tokenizer.apply_chat_template, **prompts.TEMPLATE)
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


def named(asked: str) -> tuple[str, int | None]:
    """A recipe's word for a task, taken apart: `arc_challenge:25` → ("arc_challenge", 25); no number: None."""
    name, _, shots = asked.rpartition(":")
    return (name, int(shots)) if name and shots.isdecimal() else (asked, None)


def check(tasks: Sequence[str]) -> None:
    """Raise ValueError where a recipe's word for a task names no file, and no task that lm-eval knows."""
    names = [named(task)[0] for task in tasks]
    for file in filter(_is_file, names):
        if not Path(file).is_file():
            raise ValueError(f"evaluate.lm_eval: task file {file!r} does not exist")
    if all(map(_is_file, names)):
        return  # reading lm-eval's index takes seconds
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for name in names:
        if not _is_file(name) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"evaluate.lm_eval: no task {name!r}; {meant}`lm-eval ls tasks` lists the names")


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def load(tasks: Sequence[str]) -> Any:
    """lm-eval's task objects, each with its number of examples set. Its index of some ten thousand task files
    is read only where a name needs it.

    Raises ValueError for a task that there is not, one that is asked for twice, and examples it cannot show."""
    from lm_eval.tasks import TaskManager

    asked = [named(task) for task in tasks]
    check([name for name, _ in asked if _is_file(name)])
    manager = TaskManager(include_defaults=not all(_is_file(name) for name, _ in asked), metadata={})
    whole: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, shots in asked:  # one by one: of a group's or tag's tasks, each has the number asked for the group
        try:
            found = manager.load([name])
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; `lm-eval ls tasks` lists the names") from error
        for leaf, task in found["tasks"].items():
            if leaf in whole["tasks"]:
                raise ValueError(f"evaluate.lm_eval asks for {leaf!r} twice; a task has one number of examples")
            _show_examples(leaf, task, shots)
        for kind, members in whole.items():
            members.update(found.get(kind, {}))
    return whole


def _show_examples(name: str, task: Any, shots: int | None) -> None:
    """Set how many examples `task` shows: `shots`, else its own number, else none."""
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise ValueError(f"evaluate.lm_eval: {name} is to be asked without examples; leave `:{shots}` out")
    settings = getattr(task, "fewshot_cfg", None)  # tasks written in Python have none
    source = settings is not None and (settings.split or settings.samples)
    if shots and not (source or task.has_training_docs() or task.has_validation_docs()):
        # lm-eval would take them from the test rows, the question itself among them
        raise ValueError(f"evaluate.lm_eval: {name} has no rows to take {shots} examples from (fewshot_split)")
    task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
    task.set_fewshot_seed(seed=1234)
