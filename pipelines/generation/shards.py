"""The plan of shards: which rows are written to which file, and which of them are still to be done. Pure.

A shard's name follows from the ids of its rows, so the same input has the same shards on every machine, and a run
that was killed goes on by planning again and leaving out the files that are there. Where the input has grown or
moved since, committed files that are no longer planned hold rows too: those are taken out of the shards that are
still to be done. So each row is written once, whatever happened to the input in between.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from pipelines.generation.source import DIGEST, IDENTITY, Scanned, Shard, Unit, identity, suffix

SHARD_BYTES = 16 << 20
IDS = np.dtype(f"S{IDENTITY}")


@dataclass(frozen=True)
class Work:
    """A unit's shards that are still to be done; `lines_before` as `source.read` takes it."""

    unit: Unit
    lines_before: int
    shards: list[Shard]


@dataclass(frozen=True)
class Plan:
    """What is to be done. `work` has the units with pending shards; `rows` = `done` + `pending`. `orphans`: committed
    rows that are not among them, since the input has changed or the limit is lower; None where all rows are done,
    so that nobody read the ids in `strangers`, the committed shards that the input as it is does not make."""

    work: list[Work]
    rows: int
    done: int
    pending: int
    strangers: list[str]
    orphans: int | None


def plan(
    scanned: Sequence[Scanned],
    units: Sequence[Unit],
    shard_rows: int,
    shard_bytes: int,
    limit: int | None,
    committed: Set[str],
    ids_in: Callable[[str], Iterable[str]],
) -> Plan:
    """The plan for the first `limit` rows (None: all) of `units`, of which `scanned` tells.

    A shard has at most `shard_rows` rows and `shard_bytes` bytes, or one row that is larger. `committed`: names of
    the shards that are there; `ids_in` gives the row ids in one of them. Raises ValueError for a size below 1 and
    for ids that are none of ours."""
    if shard_rows < 1 or shard_bytes < 1 or (limit is not None and limit < 1):
        raise ValueError("shard_rows, shard_bytes and limit must each be at least 1")
    work, rows, strangers = [], 0, set(committed)
    for number, shards in enumerate(_planned(scanned, shard_rows, shard_bytes, limit)):
        for shard in shards:
            rows += shard.rows
            strangers.discard(shard.name)
        left = [shard for shard in shards if shard.name not in committed]
        if left:
            work.append((number, left))
    known, removed = NO_IDS, 0
    if work and strangers:
        known = np.unique(np.concatenate([_stored(name, ids_in(name)) for name in sorted(strangers)]))
        for at, (number, shards) in enumerate(work):
            fewer = [_without(shard, scanned[number].digests, known) for shard in shards]
            removed += sum(shard.rows for shard in shards) - sum(shard.rows for shard in fewer)
            work[at] = number, [shard for shard in fewer if shard.rows]
    before = _lines_before(units, scanned)
    todo = [Work(units[number], before[number], shards) for number, shards in work if shards]
    pending = sum(shard.rows for part in todo for shard in part.shards)
    orphans = None if strangers and not work else len(known) - removed
    return Plan(todo, rows, rows - pending, pending, sorted(strangers), orphans)


def occurrences(digests: Sequence[np.ndarray], limit: int | None = None) -> np.ndarray:
    """(row, occurrence) of every row that has equal ones before it, in the order of rows, as int64 (…, 2).

    Sorts by the first half of the digests, and by both where those are equal: most rows are one of a kind."""
    first = _half(digests, 0)[:limit]
    rows = _shared(first)
    first, second = first[rows], _half(digests, 1)[rows] if len(rows) else NO_ROWS
    order = np.lexsort((second, first))
    first, second, rows = first[order], second[order], rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    del first, second, order
    starts = np.flatnonzero(new)
    counted = np.arange(1, len(rows) + 1) - np.repeat(starts, np.diff(starts, append=len(rows)))
    found = np.stack((rows[~new], counted[~new]), axis=1)
    return found[np.argsort(found[:, 0])]


def _half(digests: Sequence[np.ndarray], half: int) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *(each[:, half] for each in digests)])


def _shared(keys: np.ndarray) -> np.ndarray:
    """The rows, in order, whose key another row has too."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    marked = np.zeros(len(keys), bool)
    marked[1:] |= same
    marked[:-1] |= same
    return np.sort(order[marked])


def _planned(scanned: Sequence[Scanned], shard_rows: int, shard_bytes: int, limit: int | None) -> Iterator[list[Shard]]:
    """Each unit's shards of the input as it is."""
    again = occurrences([each.digests for each in scanned], limit)
    ordinal = base = 0
    for each in scanned:
        rows = len(each.sizes) if limit is None else min(len(each.sizes), limit - base)
        here = again[slice(*np.searchsorted(again[:, 0], (base, base + rows)))] - (base, 0)
        shards = []
        for start, stop in _runs(each.sizes[:rows], shard_rows, shard_bytes):
            repeated = here[slice(*np.searchsorted(here[:, 0], (start, stop)))].astype(np.uint32)
            shards.append(_named(ordinal, Shard("", start, stop, repeated=repeated), each.digests))
            ordinal += 1
        base += rows
        yield shards


def _runs(sizes: np.ndarray, most_rows: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + most_bytes, side="right"))
        stop = min(len(sizes), start + most_rows, max(start + 1, fitting))
        yield start, stop
        start = stop


def _identities(shard: Shard, digests: np.ndarray) -> list[bytes]:
    """The ids of the rows from the shard's start to its stop."""
    raw = digests[shard.start : shard.stop].tobytes()
    made = [identity(raw[at : at + DIGEST], 1) for at in range(0, len(raw), DIGEST)]
    for row, occurrence in shard.repeated.tolist():
        at = (row - shard.start) * DIGEST
        made[row - shard.start] = identity(raw[at : at + DIGEST], occurrence)
    return made


def _named(ordinal: int, shard: Shard, digests: np.ndarray) -> Shard:
    return replace(shard, name=f"part-{ordinal:07d}-{suffix(_identities(shard, digests))}")


def _without(shard: Shard, digests: np.ndarray, known: np.ndarray) -> Shard:
    """`shard` less the rows whose ids are in `known` (sorted), named after those left; it may have none."""
    found = _identities(shard, digests)
    ids = np.frombuffer(b"".join(found), IDS)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    left = np.flatnonzero(known[at] != ids) if len(known) else np.arange(len(ids))
    if len(left) == len(ids):
        return shard
    if not len(left):
        return replace(shard, stop=shard.start, left_out=NO_ROWS)
    start, stop = shard.start + int(left[0]), shard.start + int(left[-1]) + 1
    left_out = np.setdiff1d(np.arange(start, stop), left + shard.start, assume_unique=True)
    name = f"{shard.name.rsplit('-', 1)[0]}-{suffix([found[place] for place in left])}"
    return Shard(name, start, stop, left_out, shard.repeated)


def _stored(name: str, ids: Iterable[str]) -> np.ndarray:
    """The ids in a committed shard, sorted, as bytes."""
    found = list(ids)
    wrong = next((each for each in found if len(each) != 2 * IDENTITY), None)
    try:
        if wrong is None:
            return np.unique(np.frombuffer(bytes.fromhex("".join(found)), IDS))
    except ValueError:
        pass
    some = repr(wrong) if wrong is not None else "one that is no hex"
    raise ValueError(f"{name} holds an id that regrow did not make ({some}); move the file out of the output")


def _lines_before(units: Sequence[Unit], scanned: Sequence[Scanned]) -> list[int]:
    """Of each unit's first file, the lines that are in units before it."""
    before, url, lines = [], "", 0
    for unit, each in zip(units, scanned, strict=False):
        before.append(lines if unit.pieces[0].url == url else 0)
        for piece, more in zip(unit.pieces, each.lines, strict=True):
            lines, url = (lines if piece.url == url else 0) + more, piece.url
    return before


NO_IDS = np.empty(0, IDS)
NO_ROWS = np.empty(0, np.int64)
