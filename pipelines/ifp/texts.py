"""Stage 1, continued pre-training (arXiv 2501.02086, section 3.2): documents in windows, a training row each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.recipe_file import BadInput
from pipelines.rows import files
from pipelines.student import Student

COLUMN = "text"
AT_ONCE = 20_000  # windows of a row group


def write(student: Student, tokenizer: Any, to: Path) -> Path:
    """Write the windows of `student.ifp.text` as training rows (train.train), and return the file. A window has
    `max_length` tokens at most; one without a second chunk, whose loss counts, is left out.

    BadInput, with the line, for a row without text, and where there is not a single window."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("id", "task", "prompt", "target")
    schema = pa.schema([(name, pa.string()) for name in columns])
    count, some = 0, []
    with pq.ParquetWriter(to, schema) as out:
        for name, text in windows(student, tokenizer):
            some.append((name, "text", "", text))
            count += 1
            if len(some) == AT_ONCE:
                out.write_table(pa.Table.from_pylist([dict(zip(columns, one, strict=True)) for one in some], schema))
                some = []
        out.write_table(pa.Table.from_pylist([dict(zip(columns, one, strict=True)) for one in some], schema))
    if not count:
        least = student.ifp.text_chunk if student.ifp else 0
        raise BadInput(
            f"student {student.name}: no text in {student.ifp and student.ifp.text} has more than {least} tokens, a "
            "chunk (ifp.text_chunk); give longer texts, or shorter chunks"
        )
    return to


def windows(student: Student, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """(id, text) of every window, in the file's order, until `ifp.text_tokens` are there. BadInput as in `write`."""
    how = student.ifp
    if not how or not how.text:
        return
    if not tokenizer.is_fast:
        raise BadInput(
            f"student {student.name}: ifp.text is cut where tokens end, and this model's tokenizer "
            f"({type(tokenizer).__name__}) does not tell; give a model with a tokenizer.json, or leave ifp.text out"
        )
    left = how.text_tokens
    for number, row in files.rows(how.text):
        if isinstance(row, str) or not isinstance(row.get(COLUMN), str):
            why = row if isinstance(row, str) else f"no column {COLUMN!r} with a text"
            raise BadInput(f"student {student.name}: ifp.text {how.text}, line {number}: {why}")
        spans = tokenizer(row[COLUMN], add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        for at in range(0, len(spans), student.max_length):
            window = spans[at : at + student.max_length]
            if left is not None:
                window = window[:left]
                left -= len(window)
            if len(window) > how.text_chunk:  # something of a second chunk, whose loss counts
                yield f"{number:012}-{at:09}", row[COLUMN][window[0][0] : window[-1][1]]
            if left == 0:
                return
