"""From rows to a packet, and from an answered packet to the table that is committed."""

import json
from typing import Any

import pyarrow as pa
import pytest

from pipelines import parts
from pipelines.generation import columns, engines, shaping
from pipelines.generation.job import Columns, Job
from pipelines.generation.source import Row
from serving.writers.request import Sample, Written

TYPES = {"prompt": "string", "text": "string", "number": "int64", "nested": "string"}
ROWS: list[dict[str, Any] | str] = [
    {"prompt": " one two ", "text": "own", "number": 7, "nested": {"a": [1, None]}},
    {"prompt": "", "number": 8},
    "not JSON: it ends too early",
    {"prompt": "half", "text": "a \ud800 pair", "number": None},
    {"text": "has no prompt"},
    {"prompt": "last", "text": None, "nested": "plain"},
]


def packed(job: Job, rows: list[dict[str, Any] | str], types: dict[str, str] = TYPES) -> pa.Table:
    """The packet of `rows`, which have the ids `0`, `1`, …"""
    typed = {name: columns.arrow(kind) for name, kind in types.items()}
    made = [Row(str(place), "in.jsonl", place + 1, row) for place, row in enumerate(rows)]
    return shaping.packet(job, "", typed, "part-0", made)


def answered(packet: pa.Table, texts: list[list[str]], held: list[dict[str, Any]] | None = None) -> pa.Table:
    """`packet` with `texts` of each row that was asked, and more rows in quarantine."""
    found = [Written([Sample(text, "stop", 2) for text in some], 5) for some in texts]
    kept = json.loads(packet.column("held")[0].as_py()) + (held or [])
    return pa.table({"name": packet.column("name"), "rows": packet.column("rows"), "held": [json.dumps(kept)],
                     "answers": pa.array([shaping.pack(engines.answers(found))])})  # fmt: skip


def test_the_committed_table() -> None:
    """Our columns first, then the input's under names of their own, cells as their column's type takes them."""
    table, _ = shaping.table(job := a_job(), answered(packed(job, ROWS), [["ja"], ["b"], [" c "]]))
    assert table.schema.names == [
        *parts.OURS.names, "input.prompt", "input.text", "number", "nested",
    ]  # fmt: skip
    assert pa.schema(list(table.schema)[: len(parts.OURS)]) == parts.OURS
    assert table.select(["id", "prompt", "text", "target", "verdict"]).to_pylist() == [
        {"id": "0", "prompt": "one two", "text": "ja", "target": "ja", "verdict": "unchecked"},
        {"id": "3", "prompt": "half", "text": "b", "target": "b", "verdict": "unchecked"},
        {"id": "5", "prompt": "last", "text": " c ", "target": "c", "verdict": "unchecked"},
    ]
    assert table.select(["input.prompt", "input.text", "number", "nested"]).to_pylist() == [
        {
            "input.prompt": " one two ",
            "input.text": "own",
            "number": 7,
            "nested": '{"a": [1, null]}',
        },
        {"input.prompt": "half", "input.text": "a ? pair", "number": None, "nested": None},
        {"input.prompt": "last", "input.text": None, "number": None, "nested": "plain"},
    ]
    rest = ("sample", "task", "reference", "rationale", "label", "error", "agreement", "answer", "kind")
    assert table.select(rest).to_pylist()[0] == {
        "sample": 0, "task": "respond", "reference": "", "rationale": None, "label": None, "error": "",
        "agreement": None, "answer": "", "kind": "none",
    }  # fmt: skip
    assert table.select(["finish_reason", "prompt_tokens", "completion_tokens"]).to_pylist()[2] == {
        "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 2,
    }  # fmt: skip


def test_quarantine() -> None:
    """Rows that cannot be asked, and rows that an engine refused, each with its place and reason."""
    refused = {"id": "3", "reason": "the engine died of this row", "attempts": 3}
    packet = answered(packed(job := a_job(), ROWS), [["a"], [], ["c"]], [refused])
    table, held = shaping.table(job, packet)
    assert table.column("id").to_pylist() == ["0", "5"]
    assert [(one["id"], one["line"], one["attempts"], one["prompt"]) for one in held] == [
        ("1", 2, 0, ""), ("2", 3, 0, ""), ("4", 5, 0, ""), ("3", 4, 3, "half"),
    ]  # fmt: skip
    assert {one["file"] for one in held} == {"in.jsonl"}
    assert "empty" in held[0]["reason"]
    assert held[1]["reason"] == ROWS[2]
    assert "'prompt' is missing" in held[2]["reason"]
    assert held[3]["reason"] == refused["reason"]


def test_samples() -> None:
    """Every sample is a row, with its row's own columns, in order."""
    packet = answered(packed(job := a_job(n=2, temperature=0.5), ROWS), [["a", "b"], ["c", ""], ["e", "f"]])
    table, _ = shaping.table(job, packet)
    found = table.select(["id", "sample", "text", "verdict", "input.text", "number"])
    assert list(zip(*found.to_pydict().values(), strict=True)) == [
        ("0", 0, "a", "unchecked", "own", 7), ("0", 1, "b", "unchecked", "own", 7),
        ("3", 0, "c", "unchecked", "a ? pair", None), ("3", 1, "", "unparsable", "a ? pair", None),
        ("5", 0, "e", "unchecked", None, None), ("5", 1, "f", "unchecked", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [[], ["not JSON", {"prompt": ""}]])
def test_no_row_answered(rows: list[dict[str, Any] | str]) -> None:
    """The table has its columns and types all the same, so that shards can be read together."""
    empty, held = shaping.table(job := a_job(), answered(packed(job, rows), []))
    full, _ = shaping.table(job, answered(packed(job, ROWS), [["a"], ["b"], ["c"]]))
    assert (empty.num_rows, len(held)) == (0, len(rows))
    assert empty.schema == full.schema


def test_votes_are_of_one_row() -> None:
    """In mode rationale the samples of a row are read together, and not with those of another."""
    job = a_job(mode="rationale", kind="text", n=3, temperature=1.0)
    said = [["So the answer is x."] * 2 + ["So the answer is y."], ["So the answer is z."] * 3]
    table, _ = shaping.table(job, answered(packed(job, [{"prompt": "a"}, {"prompt": "b"}]), said))
    assert table.column("target").to_pylist() == ["x"] * 3 + ["z"] * 3
    assert table.column("agreement").to_pylist() == pytest.approx([2 / 3] * 3 + [1.0] * 3)


def test_what_the_engine_is_asked() -> None:
    """A chat endpoint is asked the conversation, single turns among them; with --raw the text alone."""
    turns = [{"role": "system", "content": "brief"}, {"role": "user", "content": "zwei?"}]
    rows: list[dict[str, Any] | str] = [{"messages": turns}, {"messages": [{"role": "user", "content": " drei? "}]}]
    job = a_job(columns=Columns(messages="messages"))
    asked = engines.requests(job, packed(job, rows, {}))
    assert [one.prompt for one in asked] == [turns, [{"role": "user", "content": "drei?"}]]
    assert [one.key for one in asked] == ["0", "1"]
    raw = engines.requests(job, packed(job.model_copy(update={"raw": True}), rows, {}))
    assert [one.prompt for one in raw] == ["[system]\nbrief\n\n[user]\nzwei?", "drei?"]


def test_seeds_are_the_rows_own() -> None:
    """Greedy requests have none; others one that does not depend on the rows beside them."""
    warm = a_job(temperature=0.7, seed=3)
    both = [one.seed for one in engines.requests(warm, packed(warm, [{"prompt": "a"}, {"prompt": "b"}]))]
    alone = [one.seed for one in engines.requests(warm, packed(warm, [{"prompt": "a"}]))]
    assert both[0] == alone[0] != both[1]
    assert [one.seed for one in engines.requests(a_job(), packed(a_job(), ROWS))] == [None] * 3


def a_job(**given: Any) -> Job:
    """A job of the echo."""
    return Job(model="echo", output="out", **given)


def test_what_a_prompt_file_came_to_is_kept() -> None:
    """As it was asked: the columns as they are stored would read otherwise."""
    job, types = a_job(template="{a} of {c}?"), {"a": "double", "c": "string", "asked": "string"}
    rows: list[dict[str, Any] | str] = [{"a": 3, "c": "x", "asked": "mine"}, {"a": 2.5, "c": "y", "asked": None}]
    table, _ = shaping.table(job, answered(packed(job, rows, types), [["ja"], ["no"]]))
    assert table.column(parts.TURN).to_pylist() == ["3 of x?", "2.5 of y?"]
    assert table.column("a").to_pylist() == [3.0, 2.5]
    assert parts.own(table.to_pylist()[0]) == {"a": 3.0, "c": "x", "asked": "mine"}
