"""The rows that a generation job reads: which task reads what, what a row's id is made of, and the rows themselves.

A file's rows are scanned once, before anything is generated: a digest of each row, its size, and the types of the
columns. From these the shards are planned (`shards.plan`); then `read` hands out the rows shard by shard. Both
take plain data and give plain data, so they run wherever a task runs.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipelines.generation import columns
from pipelines.rows import files
from pipelines.rows.files import Piece

UNIT_BYTES = 64 << 20
UNIT_FILES = 1_000
DIGEST = 16  # bytes
IDENTITY = 10  # bytes; an id is these in hex
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Unit:
    """Consecutive pieces of the input that one task reads."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Scanned:
    """What is known of a unit's rows. `digests`: (rows, 2) uint64, the bytes of each row's digest; `sizes`: uint32,
    the bytes of each row as JSON; `rows` and `lines`: how many each piece has; `unreadable`: rows that do not
    parse; `columns`: the types of the other rows' columns."""

    digests: np.ndarray
    sizes: np.ndarray
    rows: list[int]
    lines: list[int]
    unreadable: int
    columns: columns.Types


@dataclass(frozen=True)
class Shard:
    """Rows that are committed together: those of a unit from `start` up to `stop`, counted from 0, less those in
    `left_out`. `repeated` holds (row, occurrence) of each of them that has equal ones before it in the input."""

    name: str
    start: int
    stop: int
    left_out: np.ndarray = field(default_factory=lambda: NONE)
    repeated: np.ndarray = field(default_factory=lambda: NONE.reshape(0, 2))

    @property
    def rows(self) -> int:
        """How many rows the shard has."""
        return self.stop - self.start - len(self.left_out)


class Row(NamedTuple):
    """One input row. `line` counts the file's lines from 1; `content` is the reason where the row does not parse."""

    id: str
    url: str
    line: int
    content: dict[str, Any] | str


def units(sizes: Mapping[str, int]) -> list[Unit]:
    """The input `sizes` (file → bytes, in the order to be read) as units of up to 64 MB or 1,000 pieces.

    Deterministic; files at the end move no unit but the last. Raises ValueError for a file of an unknown ending."""
    cut: list[list[Piece]] = []
    held = 0
    for url, size in sizes.items():
        for piece in files.pieces(url, size, UNIT_BYTES):
            if not cut or held + piece.size > UNIT_BYTES or len(cut[-1]) >= UNIT_FILES:
                cut.append([])
                held = 0
            cut[-1].append(piece)
            held += piece.size
    return [Unit(tuple(part)) for part in cut]


def canonical(content: dict[str, Any]) -> bytes:
    """The JSON of a row that its digest is made of: ASCII, keys sorted, no white space. Never fails on what files
    hold: NaN stays `NaN`, half a surrogate pair its escape; dates and times are ISO text, decimals their digits,
    bytes an object with their hex. So a row has one digest in JSONL and Parquet where both hold its types and its
    nulls."""
    return ENCODER.encode(content).encode()


def digest(text: bytes) -> bytes:
    """The first 16 bytes of the sha256 of a row's canonical JSON."""
    return hashlib.sha256(text).digest()[:DIGEST]


def identity(digest: bytes, occurrence: int) -> bytes:
    """The 10 bytes of a row's id: by its digest, and which of the rows with that digest it is in the whole input,
    counted from 1. So equal rows stay two rows."""
    return hashlib.sha256(digest + occurrence.to_bytes(8, "big")).digest()[:IDENTITY]


def suffix(identities: Sequence[bytes]) -> str:
    """The end of the name of the shard that holds these ids, in this order."""
    return hashlib.sha256(b"".join(identities)).hexdigest()[:12]


def scan(unit: Unit, id_column: str | None = None) -> Scanned:
    """Digests, sizes and column types of the unit's rows; with `id_column` a digest is of the row's own id alone.
    Raises ValueError for a missing or broken file, naming it."""
    digests, sizes = bytearray(), array("I")
    rows, lines, unreadable = [], [], 0
    types: columns.Types = {}
    for piece in unit.pieces:
        before, seen = len(sizes), dict[tuple[str, type], None]()
        reading = files.read(piece)
        for number, row in reading:
            content = _identified(row, id_column)
            text = _text(piece, number, content)
            digests += digest(text if id_column is None else _key(text, content, id_column))
            sizes.append(min(len(text), 2**32 - 1))
            unreadable += isinstance(content, str)
            if reading.schema is None and isinstance(row, dict):  # columns also of rows without an id, to name them
                for name, value in row.items():
                    kind = type(value)
                    if kind is int and not columns.LEAST <= value <= columns.LARGEST:
                        kind = str
                    seen[name, kind] = None
        rows.append(len(sizes) - before)
        lines.append(reading.lines)
        types = columns.merge(types, columns.of(seen) if reading.schema is None else columns.of_schema(reading.schema))
    found = np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)
    return Scanned(found, np.array(sizes, np.uint32), rows, lines, unreadable, types)


def read(
    unit: Unit, shards: Sequence[Shard], lines_before: int = 0, id_column: str | None = None
) -> Iterator[tuple[Shard, list[Row]]]:
    """Each of `shards` (of this unit, in order) with its rows, in one pass over the unit; one shard's rows are in
    memory. `lines_before`: the lines of the unit's first file that are in units before it; `id_column` as in `scan`.

    Raises ValueError for a missing or broken file, and RuntimeError where the rows are not those of the plan."""
    if not shards:
        return
    following = iter(shards[1:])
    shard: Shard = shards[0]
    left_out, repeated = _sparse(shard)
    taken, identities = list[Row](), list[bytes]()
    place, url = -1, unit.pieces[0].url
    for piece in unit.pieces:
        lines_before, url = lines_before if piece.url == url else 0, piece.url
        reading = files.read(piece)
        for number, content in reading:
            place += 1
            if place < shard.start or place in left_out:
                continue
            content = _identified(content, id_column)
            text = _text(piece, number, content)
            key = text if id_column is None else _key(text, content, id_column)
            identities.append(made := identity(digest(key), repeated.get(place, 1)))
            own = str(content[id_column]) if id_column and isinstance(content, dict) else made.hex()
            taken.append(Row(own, url, lines_before + number, content))
            if place < shard.stop - 1:
                continue
            if not shard.name.endswith(suffix(identities)):
                raise RuntimeError(f"{url!r} has changed since its rows were planned; run the command again")
            yield shard, taken
            if (after := next(following, None)) is None:
                return
            shard, taken, identities = after, [], []
            left_out, repeated = _sparse(shard)
        lines_before += reading.lines
    raise RuntimeError(f"{url!r} has lost rows since they were planned; run the command again")


def _sparse(shard: Shard) -> tuple[set[int], dict[int, int]]:
    return set(shard.left_out.tolist()), dict(shard.repeated.tolist())


def _text(piece: Piece, number: int, content: dict[str, Any] | str) -> bytes:
    """What a row's digest is made of; an unreadable row's place makes it one of its own."""
    if isinstance(content, str):
        return ENCODER.encode([piece.url, piece.start, number, content]).encode()
    return canonical(content)


def stored(identifier: str, id_column: str | None) -> str:
    """What stands for a row's id among committed ones: itself, or, where ids are the rows' own, what we make of it."""
    return identifier if id_column is None else identity(digest(_own(identifier)), 1).hex()


def _identified(content: dict[str, Any] | str, id_column: str | None) -> dict[str, Any] | str:
    """A row that lacks the id which it should have is one that cannot be used."""
    if id_column is None or isinstance(content, str):
        return content
    own = content.get(id_column)
    if own in (None, ""):
        return f"column {id_column!r}, the row's id, is empty or missing"
    return content if columns.storable(str(own)) else f"column {id_column!r}, the row's id, is no Unicode text"


def _key(text: bytes, content: dict[str, Any] | str, id_column: str) -> bytes:
    return text if isinstance(content, str) else _own(str(content[id_column]))


def _own(identifier: str) -> bytes:
    return b"id " + identifier.encode("utf8", "surrogatepass")


def _told_apart(value: Any) -> Any:
    return {"bytes": value.hex()} if isinstance(value, bytes) else columns.plain(value)


ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False, default=_told_apart)
