"""Rows of JSONL, Parquet and CSV files, gzipped or not, local or remote; what does not parse comes as a reason."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from pipelines import conversations


def rows(url: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, row) of a JSONL, Parquet or CSV file, gzipped or not; a row that does not parse comes
    as the reason in words. Raises ValueError for a file that is missing or broken, or has an unknown ending."""
    name = url.removesuffix(".gz")
    if not name.endswith((".parquet", ".csv", ".jsonl", ".ndjson")):
        raise ValueError(f"data file {url!r} has an unknown ending; use .jsonl, .parquet or .csv (also .gz)")
    try:
        data = storage.read(url)
        data = gzip.decompress(data) if url.endswith(".gz") else data
        if name.endswith(".parquet"):
            yield from enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1)
        elif name.endswith(".csv"):
            yield from _csv_rows(data.decode("utf-8-sig"))
        else:
            yield from ((n, _json_row(text)) for n, text in enumerate(data.split(b"\n"), 1) if text.strip())
    except (OSError, ValueError, ImportError, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"data file {url!r} cannot be read: {error}") from error


def _json_row(text: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON object is needed, this is a {type(row).__name__}"


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows by the line they end on; one with more or fewer cells than the header is none."""
    csv.field_size_limit(max(csv.field_size_limit(), 4 * conversations.MAX_TEXT))
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        wrong = "more" if None in row else "fewer" if None in row.values() else ""
        yield reader.line_num, f"the row has {wrong} cells than the header" if wrong else row
