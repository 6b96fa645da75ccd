"""Stage evaluate: models behind an endpoint are asked the test questions, and lm-eval's tasks, greedily."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts import Artifact
from pipelines import answers, objectives, prompts, served
from pipelines.recipe import Recipe
from pipelines.screen import say
from serving.client import Answer, Prompt
from serving.listening import Http

EVERY = 10.0  # seconds between two lines of progress
ITEMS = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "answer", "kind", "text", "extracted")]
    + [("correct", pa.bool_()), ("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64())]
    + [("finish_reason", pa.string())]
)


def check(recipe: Recipe) -> None:
    """What this stage will need, asked before the first one: its lm-eval tasks (ValueError), its port (OSError)."""
    from pipelines import lm_tasks
    from serving import listening

    lm_tasks.check(recipe.evaluate.lm_eval)
    if recipe.cluster.address == "local":
        listening.check_port(recipe.serve.host, recipe.serve.port)


def evaluate(
    recipe: Recipe, models: dict[str, Path], rows: list[dict[str, Any]], outs: dict[str, Artifact]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Score `models` ({name: checkpoint, or routed model}) on the test records `rows`; at most
    `serve.models_at_a_time` engines are up at once (on a GPU cluster, as many as its GPUs carry), one for each
    sub-network of a routed model, which are all up together. Writes items.parquet, scores.json and lm_eval.json
    into each model's artifact of `outs`, and yields (name, summary) as each is done.

    Raises OSError where the port is taken, RuntimeError where an engine does not start or dies."""
    from serving import endpoint, engine, routed

    # Bounds for strangers, who are not let in: here a refused question would be a wrong answer.
    needed = {name: routed.engines(str(path)) for name, path in models.items()}
    room = {"queue": max(recipe.serve.queue, recipe.evaluate.concurrency),
            "min_replicas": 1, "max_replicas": 1, "warm_subnetworks": max(needed.values()),
            "max_output_tokens": None, "max_body_bytes": 1 << 30, "timeout_seconds": 86_400.0}  # fmt: skip
    http = Http(port=recipe.serve.port)
    most = engine.at_once(recipe.serve.models_at_a_time, recipe.teacher.tensor_parallel)
    for names in waves(needed, most):
        engine.check_room(sum(needed[name] for name in names), recipe.teacher.tensor_parallel)
        wave = {name: models[name] for name in names}
        began = time.monotonic()
        say(f"evaluate: starting {', '.join(wave)}")
        with endpoint.endpoint(served.of_run(recipe, wave, **room), http) as base_url:
            up = time.monotonic() - began
            say(f"evaluate: {', '.join(wave)} up at {base_url} after {up:.0f} s")
            for name, path in wave.items():
                with outs[name].writing() as out:
                    scored = score(recipe, base_url, name, path, rows, out)
                yield name, scored | {"start_seconds": round(up, 1)}


def waves(needed: dict[str, int], most: int) -> list[list[str]]:
    """Models in their order, those together that are up together: at most `most` engines, or one model that needs more
    by itself. `needed`: engines of each."""
    found: list[list[str]] = []
    for name, engines in needed.items():
        if found and sum(needed[other] for other in found[-1]) + engines <= most:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def score(
    recipe: Recipe, base_url: str, name: str, model: Path, rows: list[dict[str, Any]], out: Path
) -> dict[str, Any]:
    """Ask one served model everything and write its files into `out`."""
    began = time.monotonic()
    items = ask_all(recipe, base_url, name, model, rows)
    own_seconds = time.monotonic() - began
    pq.write_table(pa.Table.from_pylist(items, ITEMS), out / "items.parquet")
    scores = own_scores(items)
    tables: dict[str, Any] = {}
    if recipe.evaluate.lm_eval:
        from pipelines import lm_tasks

        say(f"evaluate: {name} · lm-eval {', '.join(Path(task).stem for task in recipe.evaluate.lm_eval)}")
        limits = (recipe.evaluate.lm_eval_limit, recipe.evaluate.concurrency, recipe.teacher.max_model_len)
        found, tables = lm_tasks.run(base_url, name, model, recipe.evaluate.lm_eval, *limits)
        scores += found
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    (out / "lm_eval.json").write_text(json.dumps(tables, indent=1, default=str))
    refused = sum(item["finish_reason"] == "refused" for item in items)
    right = [item["correct"] for item in items if _has_answer(item)]
    shown = ", ".join(f"{row['task']} {row['value']:.3f}" for row in scores)
    say(f"evaluate: {name} done in {time.monotonic() - began:.0f} s: {shown}")
    return {
        "items": len(items),
        "refused": refused,
        "exact_match": sum(right) / len(right) if right else None,
        "completion_tokens": sum(item["completion_tokens"] for item in items),
        "own_seconds": round(own_seconds, 1),
        "lm_eval_seconds": round(time.monotonic() - began - own_seconds, 1),
    }


def ask_all(recipe: Recipe, base_url: str, name: str, model: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One item a row: what the model answered, and whether it is right."""
    from serving import client

    progress = _Progress(name, len(rows))
    settings = recipe.evaluate
    student = next((one for one in recipe.student if one.name == name), None)
    asked = _asked(model, rows, objectives.prefix(student))
    said = client.ask(
        base_url, name, asked, settings.max_tokens, settings.concurrency, progress.one, template=prompts.TEMPLATE
    )
    refused = [answer for answer in said if answer.finish_reason == "refused"]
    if refused:
        say(f"evaluate: {name} refused {len(refused)} of {len(rows)} questions, counted as wrong: {refused[0].error}")
    return [judged(row, answer) for row, answer in zip(rows, said, strict=True)]


def _asked(model: Path, rows: list[dict[str, Any]], prefix: str) -> list[Prompt]:
    """Messages for chat where the tokenizer has a template, else plain texts for completions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [prompts.of(row, prefix) for row in rows]
    if tokenizer.chat_template:
        return list(messages)
    return [prompts.text(tokenizer, message) for message in messages]


def judged(row: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The item of one test record. Without a right answer (kind `none`) nothing is correct, and nothing is scored."""
    extracted = answers.extract(answer.text, row["kind"])
    right = _has_answer(row) and extracted is not None and answers.same(extracted, row["answer"], row["kind"])
    return {key: row[key] for key in ("id", "task", "answer", "kind")} | {
        "text": answer.text,
        "extracted": extracted,
        "correct": right,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish_reason": answer.finish_reason,
    }


def own_scores(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The share of right answers of each task, with its binomial standard error."""
    tasks: dict[str, list[bool]] = defaultdict(list)
    for item in items:
        if _has_answer(item):
            tasks[item["task"]].append(item["correct"])
    made = []
    for task, right in tasks.items():
        p, n = sum(right) / len(right), len(right)
        scored = {"suite": "own", "task": task, "metric": "exact_match", "value": p, "n": n}
        made.append(scored | {"stderr": math.sqrt(p * (1 - p) / n)})
    return made


def _has_answer(row: dict[str, Any]) -> bool:
    return row["kind"] != "none" and bool(row["answer"])


class _Progress:
    """A line now and then: model, items done, rate, time left."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.began = self.shown = time.monotonic()

    def one(self, _: Answer) -> None:
        """Called as each answer comes."""
        self.done += 1
        now = time.monotonic()
        if self.done == self.total or now - self.shown >= EVERY:
            self.shown = now
            rate = self.done / (now - self.began)
            left = f", {(self.total - self.done) / rate:.0f} s left" if self.done < self.total else ""
            say(f"evaluate: {self.name} {self.done:,}/{self.total:,} questions, {rate:.1f}/s{left}")
