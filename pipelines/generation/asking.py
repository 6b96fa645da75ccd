"""From a row to what the model is asked: the conversation, its text under the chat template, its tokens. Pure but for
the tokenizer, which is handed in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import answers, conversations, few_shot, prompts
from pipelines.conversations import Message, Unfit
from pipelines.generation.job import Job


@dataclass(frozen=True)
class Asked:
    """One row's question. `reference` and `answer` are "" where the row has none."""

    messages: list[Message]
    reference: str
    answer: str
    kind: str
    task: str


def ask(job: Job, row: Mapping[str, Any]) -> Asked:
    """What `row` asks under `job`. Raises Unfit with what is wrong with the row."""
    columns = job.columns
    before: list[Message] = conversations.load(_text(row, columns.history)) if columns.history else []
    reference = _text(row, columns.reference, needed=job.mode == "self_distill")
    question = ""
    if columns.messages and row.get(columns.messages) is not None:
        parts = conversations.parts(row[columns.messages])
        before, question = parts.before, parts.question
        reference = reference or parts.reference or ""
    elif job.template is None or columns.prompt in row:
        question = prompts.question(
            _text(row, columns.context), _text(row, columns.prompt, needed=job.template is None)
        )
    if job.mode == "self_distill" and not reference:
        raise Unfit("the row has no reference answer to rewrite")
    kind = _text(row, columns.kind) or job.kind
    return Asked(
        messages=_messages(job, row, question, reference, before),
        reference=reference,
        answer=_text(row, columns.answer) or _said(reference, kind),
        kind=kind,
        task=_text(row, columns.task) or job.mode,
    )


def text(job: Job, tokenizer: Any, messages: list[Message]) -> str:
    """The prompt's text: under the model's chat template, or as it stands where there is none or `job.raw`.
    Raises Unfit where the template does not take the conversation."""
    if job.raw or (job.template is not None and not tokenizer.chat_template):
        return "\n\n".join(message["content"] for message in messages)
    try:
        return prompts.text(tokenizer, messages)
    except ValueError as error:
        raise Unfit(str(error)) from error


def tokens(tokenizer: Any, texts: list[str], templated: bool) -> list[list[int]]:
    """Token ids of `texts`. A chat template writes its own begin token; a second one would shift the prompt."""
    return tokenizer(texts, add_special_tokens=not templated).input_ids if texts else []


def settled(job: Job, columns: Mapping[str, str]) -> Job:
    """`job` with the columns it does not name taken by their usual names: `messages` where there is no prompt column,
    `reference`. Raises ValueError where the input lacks a column that the job needs."""
    found: dict[str, str] = {}
    if job.template is None and job.columns.prompt not in columns and "messages" in columns:
        found["messages"] = job.columns.messages or "messages"
    if job.columns.reference is None and "reference" in columns:
        found["reference"] = "reference"
    job = job.model_copy(update={"columns": job.columns.model_copy(update=found)})
    check(job, columns)
    return job


def check(job: Job, columns: Mapping[str, str]) -> None:
    """Raise ValueError where the input's `columns` lack one that the job names."""
    if not columns:
        return  # an input without rows lacks nothing
    have = ", ".join(map(repr, columns))
    wanted = {"--messages": job.columns.messages, "--reference": job.columns.reference, "--answer": job.columns.answer,
              "--id": job.columns.id, "--task": job.columns.task, "--context": job.columns.context}  # fmt: skip
    if job.template is not None:
        for name in few_shot.columns(job.template):
            if name not in columns:
                raise ValueError(f"the prompt file names column {name!r}, which the input lacks; it has {have}")
    elif not job.columns.messages:
        wanted["--column"] = job.columns.prompt
    for option, column in wanted.items():
        if column is not None and column not in columns:
            raise ValueError(f"the input has no column {column!r} ({option}); it has {have}")
    if job.mode == "self_distill" and not (job.columns.reference or job.columns.messages):
        raise ValueError(f"mode self_distill rewrites a reference answer; name its column (--reference COLUMN); {have}")


def _messages(job: Job, row: Mapping[str, Any], question: str, reference: str, before: list[Message]) -> list[Message]:
    if job.template is not None:
        try:
            return prompts.answer(conversations.fit(few_shot.render(job.template, row), "the prompt"), before)
        except ValueError as error:
            raise Unfit(str(error)) from error
    if not question:
        raise Unfit("the prompt is empty")
    if job.mode == "self_distill":
        return prompts.rewrite(question, reference, before)
    return prompts.explain(question, before) if job.mode == "rationale" else prompts.answer(question, before)


def _said(reference: str, kind: str) -> str:
    """The short right answer that a reference gives; the reference itself where it gives none that is clear."""
    return (kind in answers.KINDS and answers.extract(reference, kind)) or reference


def _text(row: Mapping[str, Any], column: str | None, needed: bool = False) -> str:
    value = row.get(column) if column else None
    if value is None:
        if needed and column:
            state = "null" if column in row else f"missing; the row has {', '.join(map(repr, list(row)[:12]))}"
            raise Unfit(f"column {column!r} is {state}")
        return ""
    if isinstance(value, bool | list | dict | bytes):
        raise Unfit(f"column {column!r} is {type(value).__name__}, not text")
    return conversations.fit(str(value), f"column {column!r}")
