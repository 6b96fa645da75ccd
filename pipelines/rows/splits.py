"""Train and test rows: some held out where there is one file, and none of both kinds at once. Pure."""

import hashlib
from collections import Counter
from dataclasses import asdict

from pipelines.rows import records
from pipelines.rows.records import Record


def held_out(rows: list[Record], wanted: int, split: str = "test") -> tuple[list[Record], list[Record]]:
    """Train rows and about `wanted` rows of another split out of `rows`: those whose questions hash lowest,
    equal questions together. So the same questions are held out whatever the seed, the order, or the number of rows."""
    asked: dict[str, list[Record]] = {}
    for record in rows:
        key = hashlib.sha256("\0".join(question(record)).encode()).hexdigest()
        asked.setdefault(key, []).append(record)
    chosen: set[str] = set()
    for key in sorted(asked):
        if len(chosen) >= wanted:
            break
        chosen |= {record.id for record in asked[key]}
    seen: Counter[str] = Counter()
    moved = [asdict(record) | {"split": split} for record in rows if record.id in chosen]
    held = [records.numbered({key: row[key] for key in row if key != "id"}, seen) for row in moved]
    return [record for record in rows if record.id not in chosen], held


def question(record: Record) -> tuple[str, str, str]:
    """What makes two questions the same: the turns before it, the context, and the words."""
    return record.history, record.context, record.input


def apart(found: list[Record]) -> None:
    """A question that is trained on, or that a checkpoint is chosen by, is never scored: raises ValueError naming the
    first one."""
    trained = {question(record) for record in found if record.split != "test"}
    for record in found:
        if record.split == "test" and question(record) in trained:
            raise ValueError(
                f"task {record.task!r}: the test question {record.input[:80]!r} is a train question too; "
                "take it out of one of the files"
            )
