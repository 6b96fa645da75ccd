"""Stored texts read again: where the code that reads answers has changed, or what they are compared with."""

import hashlib
import json
from collections import defaultdict
from typing import Any

import pyarrow as pa

from cluster.spread import spread
from pipelines import parts
from pipelines.conversations import Unfit
from pipelines.generation import asking, reading
from pipelines.generation.job import READING, Job
from pipelines.recipe_file import BadInput
from pipelines.screen import say


def mark(job: Job) -> str:
    """What a part's verdicts depend on beside its texts: the code that reads them, the answer kind, the columns."""
    named = {key: value for key, value in job.columns.model_dump().items() if key in READING}
    text = json.dumps([reading.parser(), job.kind, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reread(job: Job, names: list[str]) -> None:
    """Read the texts of the parts `names` again and put the result in their place, each atomically."""
    if not names:
        return
    say(f"generate: reading the texts of {len(names):,} part(s) again, as answers are read now; nothing is generated")
    for _ in spread(_again, names, job):
        pass


def _again(name: str, job: Job) -> None:
    held = parts.footer(job.output, name)["quarantine"]
    table = parts.table(job.output, name)
    parts.rewrite(job.output, name, table_again(job, table), held, mark(job))


def table_again(job: Job, table: pa.Table) -> pa.Table:
    """`table` with task, reference, answer and kind taken from the input's columns anew and the texts read again."""
    by_id: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for place, row in enumerate(table.to_pylist()):
        by_id[row["id"]].append((place, row))
    new: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for samples in by_id.values():
        first = samples[0][1]
        try:
            asked = asking.ask(job, parts.own(first))
        except Unfit as error:
            where = f"row {first['id']} of {job.output}: {error}; the texts there are left as they were read before"
            raise BadInput(where) from error
        about = {"task": asked.task, "reference": asked.reference, "answer": asked.answer, "kind": asked.kind}
        made = reading.read(job.mode, {**about, "prompt": first["prompt"]}, [row for _, row in samples])
        for (place, _), said in zip(samples, made, strict=True):
            new[place] = about | said
    for name in ("task", "reference", "answer", "kind", *reading.FIELDS):
        field = parts.OURS.field(name)
        column = pa.array([row[name] for row in new], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, column)
    return table
