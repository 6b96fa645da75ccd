"""Generation jobs for tests: an input with a mark on every row, a job without a model, and the promise it must keep.

A mark is a number of the row's own, in the column `mark`: what is in the output is counted by it, not by the ids that
the product makes."""

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from pipelines import generate, parts
from pipelines.generation import finishing
from pipelines.generation.job import Job
from tests import commands

LONG = 1 << 20  # tokens that fit: echo has no model whose length would end a prompt


def rows(count: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    """`count` rows with marks from `start` on."""
    return [{"prompt": f"What is {n} + {n}?", "mark": n, **more} for n in range(start, start + count)]


def lines(found: Iterable[Any]) -> str:
    """JSONL of rows; a string is a line as it is."""
    return "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in found)


def write(path: Path, found: Iterable[Any]) -> Path:
    """A JSONL file (gzipped where its name says so) of rows; a string is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = lines(found).encode("utf8", "surrogatepass")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def job(output: Path | str, **settings: Any) -> Job:
    """A job of the model `echo`, which needs none."""
    return Job(**{"model": "echo", "output": str(output), "max_model_len": LONG, "shard_rows": 8, **settings})


def run(given: Path | str, output: Path | str, new: bool = False, **settings: Any) -> dict[str, Any]:
    """The counts of a job over what `given` names, in this process's Ray session."""
    done = generate.generate(job(output, **settings), storage.find(str(given)), None, new)
    finishing.write(None, done)
    return done


def command(given: Path | str, output: Path | str, *words: str) -> tuple[int, str]:
    """Exit status, and all that is said, of `regrow generate --model echo` in this process and its Ray session."""
    return commands.command("generate", "--model", "echo", "--input", str(given), "--output", str(output), *words)


def bytes_of(output: Path | str) -> dict[str, bytes]:
    """Name → content of each committed part."""
    return {name: storage.read(parts.file(str(output), name)) for name in parts.names(str(output))}


def answered(output: Path | str) -> list[dict[str, Any]]:
    """All committed rows."""
    return [row for data in bytes_of(output).values() for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def held(output: Path | str) -> list[dict[str, Any]]:
    """All rows in quarantine, as its files have them."""
    folder = storage.join(str(output), parts.QUARANTINE)
    found = [storage.read(storage.join(folder, name)).decode().splitlines() for name in storage.files(folder)]
    return [json.loads(line) for some in found for line in some]


def check(
    output: Path | str, marks: Iterable[Any], quarantined: int = 0, before: Mapping[str, bytes] | None = None
) -> list[dict[str, Any]]:
    """Assert that `output` answers each of `marks` once and nothing else, that the echo is that of the row, that
    `quarantined` other rows are held, no id is in two places, the parts of `before` keep their bytes, and nothing
    temporary is left under data/. Returns the committed rows."""
    there = answered(output)
    assert Counter(str(row["mark"]) for row in there) == Counter(map(str, marks)), "lost, or written twice"
    assert all(row["text"] == " ".join(row["prompt"].split()) for row in there), "another row's answer"
    aside = held(output)
    assert len(aside) == quarantined and all(row["reason"] and row["line"] >= 1 for row in aside), aside
    ids = [row["id"] for row in [*there, *aside]]
    assert len(ids) == len(set(ids)), "an id stands for two rows"
    now = bytes_of(output)
    assert all(now.get(name) == data for name, data in (before or {}).items()), "a committed part was touched"
    if storage.is_local(str(output)) and (Path(output) / parts.DATA).is_dir():
        assert [path.name for path in (Path(output) / parts.DATA).iterdir() if path.suffix != ".parquet"] == []
    manifest = json.loads(storage.read(storage.join(str(output), parts.MANIFEST)))
    assert manifest["counts"]["rows"] == len(ids) and manifest["counts"]["quarantined"] == quarantined
    assert set(manifest["files"]) == {f"data/{name}.parquet" for name in now}
    assert storage.exists(storage.join(str(output), parts.CARD))
    return there
