"""Rows of JSONL, Parquet and CSV files, gzipped or not, local or remote, as a stream.

A file is read in pieces, so that many tasks can share one: a byte range of plain JSONL, some row groups of
Parquet, else the whole file. However large the file, a few megabytes of it are in memory. A row that does not
parse comes as the reason in words.
"""

import contextlib
import csv
import gzip
import io
import json
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import conversations
from pipelines.recipe_file import BadInput

Row = dict[str, Any] | str  # a row's columns, or the reason why it does not parse
TARGET = 64 << 20  # bytes of a piece
LONGEST = 16 << 20  # bytes (CSV: characters) of a line; a longer one is no row
DEEPEST = 200  # levels of lists and objects in a row; what is deeper may not be written again
WHOLE = sys.maxsize  # the stop of a piece that ends with its file
BLOCK = 1 << 20  # bytes that are fetched at a time
BATCH = 8 << 20  # bytes of a Parquet file that are rows in memory, and at most so many rows:
BATCH_ROWS = 4096
BROKEN = (OSError, ValueError, ImportError, EOFError, OverflowError, zlib.error, csv.Error, pa.ArrowException)


@dataclass(frozen=True)
class Piece:
    """A part of a file that one task reads. `start` and `stop` count bytes in plain JSONL (a line belongs to the
    piece that it starts in) and row groups in Parquet; `size` is about what there is to read, in bytes."""

    url: str
    start: int
    stop: int
    size: int


def pieces(url: str, size: int, target: int = TARGET) -> list[Piece]:
    """The pieces of the file `url` of `size` bytes, each of about `target` bytes where its format can be cut.

    Only a Parquet file of more than `target` bytes is opened for it. What is appended to a JSONL file moves none
    but its last piece. Raises ValueError for an unknown ending, and for a Parquet file that cannot be read."""
    kind = _kind(url)
    if size <= target or url.endswith(".gz") or kind == "csv":
        return [Piece(url, 0, size if _cut_by_bytes(url) else WHOLE, size)]
    if kind == "jsonl":
        return [Piece(url, at, min(at + target, size), min(target, size - at)) for at in range(0, size, target)]
    with _told(url), _opened(url) as file:
        footer = _parquet_file(file).metadata
        sizes = [footer.row_group(group).total_byte_size for group in range(footer.num_row_groups)]
    cut: list[Piece] = []
    start = held = 0
    for group, more in enumerate(sizes):
        if held and held + more > target:
            cut.append(Piece(url, start, group, held))
            start, held = group, 0
        held += more
    return [*cut, Piece(url, start, len(sizes), held)]


class Reading:
    """The rows of one piece, to be iterated over once: (number, row), where the number counts the piece's lines
    (Parquet: rows) from 1. Once the rows have all come, `lines` is how many lines the piece has, and `schema` is
    that of a Parquet file. Raises ValueError for a file that is missing or broken, also in mid-stream."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.lines = 0
        self.schema: pa.Schema | None = None

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        url, kind = self.piece.url, _kind(self.piece.url)
        with _told(url), _opened(url) as file:
            if kind == "parquet":
                yield from self._parquet(file)
            elif kind == "csv":
                yield from self._csv(file)
            else:
                yield from self._jsonl(file)

    def _parquet(self, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
        found = _parquet_file(file)
        self.schema = found.schema_arrow
        groups = range(self.piece.start, min(self.piece.stop, found.metadata.num_row_groups))
        held = [found.metadata.row_group(group) for group in groups]
        rows, size = sum(group.num_rows for group in held), sum(group.total_byte_size for group in held)
        most = max(1, min(BATCH_ROWS, rows * BATCH // max(size, 1)))
        for batch in found.iter_batches(most, list(groups), use_threads=False) if held else ():
            for row in _converted(batch):
                self.lines += 1
                yield self.lines, row

    def _csv(self, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
        """Rows by the line they end on; one with more or fewer cells than the header is none.

        After a quote that is lost nobody can tell where rows end: there the file is broken."""
        csv.field_size_limit(max(csv.field_size_limit(), 4 * conversations.MAX_TEXT))
        reader = csv.reader(_texts(io.TextIOWrapper(file, "utf-8-sig", newline="")), strict=True)
        try:
            header = next(reader, [])
            if twice := [name for name, times in Counter(header).items() if times > 1]:
                raise ValueError(f"the header names the column {twice[0]!r} twice; give each column its own name")
            self.lines = reader.line_num
            for row in reader:
                self.lines = reader.line_num
                wrong = "more" if len(row) > len(header) else "fewer" if len(row) < len(header) else ""
                if row:  # not a blank line
                    said = f"the row has {wrong} cells than the header"
                    yield self.lines, said if wrong else dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"the row that begins in line {self.lines + 1} does not end well: {error} (line {reader.line_num}); "
                'look for a quote (") that is missing, or that is inside a quoted cell: there it is written twice'
            ) from error

    def _jsonl(self, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
        at, stop = self.piece.start, self.piece.stop
        if at:  # a line that starts before the piece is another's, however far it reaches
            file.seek(at - 1)
            at += _skipped(file) - 1
        while at < stop and (line := file.readline(LONGEST + 1)):
            at += len(line)
            self.lines += 1
            if len(line) > LONGEST and not line.endswith(b"\n"):
                at += _skipped(file)
                yield self.lines, f"the line is longer than {LONGEST >> 20} MiB"
            elif not line.isspace():
                yield self.lines, _json_row(line.rstrip(b"\r\n"))


def read(piece: Piece) -> Reading:
    """The rows of `piece` as a stream; see `Reading`."""
    return Reading(piece)


def rows(url: str) -> Iterator[tuple[int, Row]]:
    """(line, row) of a JSONL, Parquet or CSV file, gzipped or not; a row that does not parse comes
    as the reason in words. Raises ValueError for a file that is missing or broken, or has an unknown ending."""
    yield from read(Piece(url, 0, WHOLE, 0))


def _kind(url: str) -> str:
    for ending, kind in ((".parquet", "parquet"), (".csv", "csv"), (".jsonl", "jsonl"), (".ndjson", "jsonl")):
        if url.removesuffix(".gz").endswith(ending):
            return kind
    raise BadInput(f"data file {url!r} has an unknown ending; use .jsonl, .parquet or .csv (also .gz)")


def _cut_by_bytes(url: str) -> bool:
    return _kind(url) == "jsonl" and not url.endswith(".gz")


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever goes wrong with the file's content is a BadInput that names the file."""
    try:
        yield
    except BROKEN as error:
        raise BadInput(f"data file {url!r} cannot be read: {error}") from error


@contextlib.contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked and buffered."""
    fs, path = storage.filesystem(url)
    fs.invalidate_cache(path)  # a file that has grown since it was listed has another size
    # Parquet is read here and there by its own buffers, everything else from one end to the other.
    ahead = {"cache_type": "none"} if url.endswith(".parquet") else {"cache_type": "readahead", "block_size": 8 * BLOCK}
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(fs.open(path, "rb", **ahead))
        if url.endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        if url.endswith(".parquet.gz"):  # Parquet is read from its end
            packed, file = file, stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(packed, file, BLOCK)
        yield file if url.endswith((".parquet", ".gz")) else stack.enter_context(io.BufferedReader(file, BLOCK))


def _parquet_file(file: IO[bytes]) -> pq.ParquetFile:
    """Buffered and not fetched ahead: else a whole row group is in memory."""
    try:
        return pq.ParquetFile(file, buffer_size=BLOCK, pre_buffer=False)
    except pa.ArrowException as error:
        raise ValueError(f"it is no whole Parquet file: {error}") from error


def _skipped(file: IO[bytes]) -> int:
    """Pass over the rest of the line; returns its bytes."""
    passed = 0
    while line := file.readline(BLOCK):
        passed += len(line)
        if line.endswith(b"\n"):
            break
    return passed


def _texts(file: io.TextIOWrapper) -> Iterator[str]:
    """Lines of text, none of which may fill the memory."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise ValueError(f"line {number} is longer than {LONGEST >> 20} Mi characters")
        yield line


def _converted(batch: pa.RecordBatch) -> Iterable[Row]:
    """The rows of a batch; one that Python has no value for (a text that is no UTF-8, the year 10000) is a reason."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [f"a value cannot be read: {error}"]
        half = batch.num_rows // 2
        return [*_converted(batch.slice(0, half)), *_converted(batch.slice(half))]


def _json_row(text: bytes) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"a JSON object is needed, this is a {type(row).__name__}"
    if text.count(b"[") + text.count(b"{") > DEEPEST and _deep(row):
        return f"nested deeper than {DEEPEST} levels"
    return row


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
    return True
