"""A look at a job's input before anything is paid for: files, rows, columns, and a sample of rows as the model will be
asked them. Small inputs are read whole, of large ones the beginnings of up to sixteen files."""

import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow.parquet as pq

from cluster import storage
from pipelines.generation import shaping
from pipelines.generation.job import Job
from pipelines.generation.packets import part
from pipelines.generation.source import Row
from pipelines.rows import files as reader

SAMPLE = 256  # rows that are asked
FILES = 16  # files of a large input whose beginnings are read
WHOLE = 64 << 20  # bytes of an input, and
MANY = 512  # its files, up to which it is read whole
FEW = 10_000  # rows, if the job takes no more
BEGINNING = 1 << 20  # bytes of a file from which the length of a row is taken
ENDLESS = 1 << 40  # a model's length that no prompt reaches

T = TypeVar("T")
Found = tuple[str, int, dict[str, Any] | str]  # file, line, row or why it does not parse


class Survey(NamedTuple):
    """What an input holds. `rows`: of them all, or the job's limit; `counted` says whether that is exact. Of the
    `looked` rows that were read, `columns` says how many have each, and `unreadable` how many do not parse."""

    files: dict[str, int]
    rows: int
    counted: bool
    looked: int
    columns: dict[str, int]
    unreadable: int
    sample: list[Row]


class Prompt(NamedTuple):
    """One row as the model is asked it. `tokens` is None where the writer has the tokenizer; `fits`: whether the
    prompt and the longest text stay within the model's length."""

    row: Row
    text: str
    tokens: int | None
    fits: bool
    reference: str


class Asked(NamedTuple):
    """A sample's prompts, those that are too long among them, and `held`: every row that would go to quarantine, those
    that are too long among them, as {file, line, reason, …}."""

    prompts: list[Prompt]
    held: list[dict[str, Any]]


def survey(files: dict[str, int], limit: int | None = None) -> Survey:
    """What is in `files` (URL → bytes), of which a job takes the first `limit` rows. Raises ValueError for a file of an
    unknown ending, and for one that cannot be read, of those that are opened."""
    small = sum(files.values()) <= WHOLE and len(files) <= MANY
    if small or (limit is not None and limit <= FEW):
        looked, columns, unreadable, sample = _look(itertools.islice(_rows(files), limit))
        return Survey(files, looked, True, looked, columns, unreadable, sample)
    for url in files:
        reader.pieces(url, 0)  # opens nothing, and raises for an ending that no row can be read from
    rows, counted = _rows_in(files)
    taken = sum(files.values()) * (1.0 if limit is None else min(1.0, limit / max(rows, 1)))
    ends = itertools.accumulate(files.values())
    within = [url for url, end in zip(files, ends, strict=True) if end - files[url] < taken]
    looked, columns, unreadable, sample = _look(_beginnings(_spread(within, FILES)))
    rows = rows if limit is None else min(rows, limit)
    return Survey(files, max(rows, looked), counted, looked, columns, unreadable, sample)


def ask(job: Job, folder: Path | None, rows: Sequence[Row]) -> Asked:
    """What `job` makes of `rows`, whose ids are their places, by the function that makes the packets of its engines.
    `folder` as generate's."""
    fitting, held = _packed(job, folder, rows, True)
    # Too long prompts are left out of a packet; were there no end to the model's length, they would be in.
    endless = job.model_copy(update={"max_model_len": ENDLESS})
    long, _ = _packed(endless, folder, [rows[int(one["id"])] for one in held], False)
    return Asked(sorted([*fitting, *long], key=lambda one: int(one.row.id)), held)


def _packed(
    job: Job, folder: Path | None, rows: Sequence[Row], fits: bool
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """The prompts of a packet of `rows`, and what it holds back, in order."""
    name = str(folder.resolve()) if folder else ""
    said = shaping.packet(job, name, {}, "sample", rows)
    ready, place = part(said, "rows").select(["id", "prompt", "reference"]), {row.id: row for row in rows}
    prompts = []
    for one, tokens in zip(ready.to_pylist(), part(said, "asked").column("tokens").to_pylist(), strict=True):
        length = None if tokens is None else len(tokens)
        prompts.append(Prompt(place[one["id"]], one["prompt"], length, fits, one["reference"]))
    return prompts, sorted(json.loads(said.column("held")[0].as_py()), key=lambda one: int(one["id"]))


def _rows(urls: Iterable[str]) -> Iterator[Found]:
    for url in urls:
        for line, content in reader.rows(url):
            yield url, line, content


def _beginnings(urls: Sequence[str]) -> Iterator[Found]:
    """`SAMPLE` rows, shared out among the beginnings of `urls`; what a short file lacks, later ones make up for."""
    taken = 0
    for place, url in enumerate(urls):
        share = -(-(SAMPLE - taken) // (len(urls) - place))
        for row in itertools.islice(_rows([url]), share):
            taken += 1
            yield row


def _look(rows: Iterable[Found]) -> tuple[int, dict[str, int], int, list[Row]]:
    """(rows, column → rows that have it, rows that do not parse, `SAMPLE` of them drawn) of `rows`."""
    columns: Counter[str] = Counter()
    kept: list[tuple[int, Found]] = []
    looked, unreadable, draw = 0, 0, random.Random(0)
    for row in rows:
        columns.update(row[2].keys() if isinstance(row[2], dict) else ())
        unreadable += isinstance(row[2], str)
        # Every row has the same chance (reservoir sampling); a fixed step would see one kind of rows that take turns.
        place = draw.randrange(looked + 1)
        if looked < SAMPLE:
            kept.append((looked, row))
        elif 0 < place < SAMPLE:  # the first row stays
            kept[place] = (looked, row)
        looked += 1
    found = enumerate(row for _, row in sorted(kept, key=lambda one: one[0]))
    sample = [Row(id=str(place), url=url, line=line, content=content) for place, (url, line, content) in found]
    return looked, dict(columns), unreadable, sample


def _spread(items: list[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spread, the first among them."""
    return items if len(items) <= most else [items[place * len(items) // most] for place in range(most)]


def _rows_in(files: dict[str, int]) -> tuple[int, bool]:
    """(rows, whether they are counted): Parquet files say how many they have, of others it follows from the length of
    the rows at their beginnings, for each format apart."""
    from concurrent.futures import ThreadPoolExecutor

    formats: dict[tuple[str, bool], list[str]] = {}
    for url in files:
        formats.setdefault((url.removesuffix(".gz").rsplit(".", 1)[-1], url.endswith(".gz")), []).append(url)
    rows, counted = 0.0, True
    for (kind, _), urls in formats.items():
        columnar = kind == "parquet"
        looked = _spread(urls, MANY if columnar else FILES)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(_parquet if columnar else _beginning, looked, [files[url] for url in looked]))
        seen, held = sum(size for _, size in found), sum(number for number, _ in found)
        rows += held * sum(files[url] for url in urls) / max(seen, 1)
        counted = counted and columnar and looked == urls
    return round(rows), counted


def _parquet(url: str, size: int) -> tuple[int, int]:
    """(rows, bytes) of a Parquet file, by its footer."""
    import pyarrow as pa

    try:
        with storage.opened(url) as file:
            return pq.read_metadata(file).num_rows, size
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"data file {url!r} cannot be read: {error}") from error


def _beginning(url: str, size: int) -> tuple[int, int]:
    """(rows, bytes that they take in the file) of the beginning of a text file of `size` bytes."""
    try:
        with storage.opened(url) as file:
            text = file.read(min(BEGINNING, size))
        used = len(text)
        if url.endswith(".gz"):
            gunzip = zlib.decompressobj(wbits=31)
            text = gunzip.decompress(text, 32 * BEGINNING)
            used -= len(gunzip.unconsumed_tail) + len(gunzip.unused_data)
    except (OSError, zlib.error) as error:
        raise ValueError(f"data file {url!r} cannot be read: {error}") from error
    header = url.removesuffix(".gz").endswith(".csv")
    return max(text.count(b"\n") - header, 1), max(used, 1)
