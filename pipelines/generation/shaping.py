"""From a shard's rows to its packet, and from its answers to the table that is committed."""

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipelines import conversations, parts
from pipelines.conversations import Message, Unfit
from pipelines.generation import asking, columns, reading
from pipelines.generation.job import Job
from pipelines.generation.packets import pack, part
from pipelines.generation.source import Row

EXCERPT = 200  # characters of a prompt that quarantine shows
# What the engine is asked of each row of `rows`: `messages` is JSON, "" where the prompt is one user's turn, null where
# it goes as it stands; `tokens` is null where the writer has the tokenizer.
ASKED = pa.schema([("messages", pa.string()), ("tokens", pa.list_(pa.int32()))])
OWN = ("id", "task", "prompt", "reference", "answer", "kind")
ANSWERS = pa.schema([
    ("row", pa.int64()), ("sample", pa.int64()), ("text", pa.string()), ("finish_reason", pa.string()),
    ("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64()),
])  # fmt: skip
Ready = tuple[Row, asking.Asked, str, list[int] | None]  # a row, what it asks, the prompt's text and tokens


def packet(job: Job, folder: str, types: dict[str, pa.DataType], name: str, rows: Sequence[Row]) -> pa.Table:
    """The packet of one shard: what the engine is asked, the rows as they will be committed, and the rows that
    cannot be asked, with their reasons."""
    asked, held = [], []
    for row in rows:
        try:
            asked.append((row, _asked(job, row)))
        except Unfit as error:
            held.append(_held(row, str(error), ""))
    ready: list[Ready] = []
    prompts = _prompts(job, folder, [one for _, one in asked])
    for (row, one), (prompt, tokens, reason) in zip(asked, prompts, strict=True):
        if reason:
            held.append(_held(row, reason, prompt))
        else:
            ready.append((row, one, prompt, tokens))
    messages = [None if folder or job.raw else _spelt(one.messages) for _, one, _, _ in ready]
    ask = pa.table({"messages": messages, "tokens": [tokens for *_, tokens in ready]}, ASKED)
    said = {"name": name, "rows": pack(_rows(job, ready, types)), "asked": pack(ask), "held": json.dumps(held)}
    return pa.table({key: [value] for key, value in said.items()})


def table(job: Job, packet: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The table of one answered packet, as it is committed, and its rows in quarantine. A packet is answered where
    its `asked` has made way for `answers` (`ANSWERS`, samples of a row together, rows in order)."""
    rows, answers, held = part(packet, "rows"), part(packet, "answers"), json.loads(packet.column("held")[0].as_py())
    places, read = answers.column("row").to_pylist(), _read(job, rows, answers)
    every = places == list(range(rows.num_rows))
    taken = rows if every else rows.take(answers.column("row"))
    made: dict[str, Any] = {name: taken.column(name) for name in OWN}
    made |= {name: answers.column(name) for name in ANSWERS.names if name != "row"}
    made |= {name: [one[name] for one in read] for name in reading.FIELDS}
    made["error"] = pa.repeat("", len(places))
    ours = pa.table({name: made[name] for name in parts.OURS.names}, parts.OURS)
    for name in taken.column_names:
        if name not in (*OWN, *parts.PLACE):
            ours = ours.append_column(name, taken.column(name))
    where = {row["id"]: row for row in rows.select(["id", "prompt", "_file", "_line"]).to_pylist()} if held else {}
    return ours, [_told(one, where) for one in held]


def _read(job: Job, rows: pa.Table, answers: pa.Table) -> list[dict[str, Any]]:
    """What each of `answers` says, in their order."""
    own = rows.select(OWN).to_pylist()
    said = answers.select(["row", "text", "finish_reason"]).to_pylist()
    grouped = itertools.groupby(said, key=lambda sample: sample["row"])
    return [about for place, samples in grouped for about in reading.read(job.mode, own[place], list(samples))]


def _rows(job: Job, ready: Sequence[Ready], types: dict[str, pa.DataType]) -> pa.Table:
    """Rows with what is ours of them and, typed, the input's own columns."""
    text = pa.string()
    made = {
        "id": pa.array([row.id for row, *_ in ready], text),
        "prompt": pa.array([prompt for _, _, prompt, _ in ready], text),
        "_file": pa.array([row.url for row, *_ in ready], text),
        "_line": pa.array([row.line for row, *_ in ready], pa.int64()),
    }
    if job.template is not None:
        made[parts.TURN] = pa.array([one.messages[-1]["content"] for _, one, _, _ in ready], text)
    made |= {name: pa.array([getattr(one, name) for _, one, _, _ in ready], text)
             for name in ("task", "reference", "answer", "kind")}  # fmt: skip
    for name, kind in types.items():
        cells = [row.content.get(name) for row, *_ in ready]  # type: ignore[union-attr]
        made[parts.own_name(name)] = columns.array(cells, kind)
    return pa.table(made)


def _spelt(messages: list[Message]) -> str:
    """`messages` as `ASKED` has them."""
    return "" if len(messages) == 1 else json.dumps(messages, ensure_ascii=False)


def _asked(job: Job, row: Row) -> asking.Asked:
    if isinstance(row.content, str):
        raise Unfit(row.content)
    return asking.ask(job, row.content)


def _prompts(job: Job, folder: str, asked: list[asking.Asked]) -> Iterable[tuple[str, list[int] | None, str]]:
    """(text, tokens, "" or why the prompt cannot be asked) of each of `asked`."""
    if not folder:
        return [(conversations.transcript(one.messages), None, "") for one in asked]
    tokenizer, texts = tokenizer_of(folder), []
    for one in asked:
        try:
            texts.append((asking.text(job, tokenizer, one.messages), ""))
        except Unfit as error:
            texts.append((conversations.transcript(one.messages), str(error)))
    templated = bool(tokenizer.chat_template) and not job.raw
    tokens = asking.tokens(tokenizer, [text for text, _ in texts], templated)
    return [(text, ids, reason or _too_long(job, len(ids))) for (text, reason), ids in zip(texts, tokens, strict=True)]


def _too_long(job: Job, tokens: int) -> str:
    if tokens + job.max_tokens <= job.max_model_len:
        return "" if tokens else "the prompt is empty"
    return (
        f"the prompt has {tokens:,} tokens; with max_tokens = {job.max_tokens:,} it needs "
        f"{tokens + job.max_tokens:,} of max_model_len = {job.max_model_len:,}"
    )


def _held(row: Row, reason: str, prompt: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "reason": reason,
        "attempts": 0,
        "file": row.url,
        "line": row.line,
        "prompt": prompt[:EXCERPT],
        "readable": not isinstance(row.content, str),
    }


def _told(one: dict[str, Any], where: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A quarantined row with its place in the input: rows that an engine refused come with their id alone."""
    if "file" in one:
        return one
    row = where[one["id"]]
    return one | {"file": row["_file"], "line": row["_line"], "prompt": row["prompt"][:EXCERPT]}


@functools.lru_cache(maxsize=2)
def tokenizer_of(folder: str) -> Any:
    """The tokenizer in the model directory `folder`, loaded once a process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
