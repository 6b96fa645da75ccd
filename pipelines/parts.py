"""Parts: the Parquet files that a job commits, one a shard, each created once under its deterministic name.

Below a job's output: `settings.json` (what shapes the texts), `data/part-*.parquet` (one row a sample),
`quarantine/part-*.jsonl` (rows that got no answer), and at the end `manifest.json` and `README.md`. A part's footer
holds the shard's counts and its quarantine, so that one commit decides about both and no row is in neither or in both.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipelines import verdicts
from pipelines.recipe_file import BadInput

DATA, QUARANTINE = "data", "quarantine"
SETTINGS, MANIFEST, CARD = "settings.json", "manifest.json", "README.md"
FOOTER = b"regrow"
# What pyarrow's OSErrors say of bytes that are no whole Parquet; storage that fails says none of it.
DAMAGE = re.compile("thrift|flatbuffers|Malformed|corrupt|decompression|end of stream|dictionary encoding")
BEFORE = "input."  # stands before the name of an input's column where it is one of ours
PLACE = ("_file", "_line")  # columns of a shard on its way: where in the input its rows are
TURN = "asked"  # where a prompt file was filled in: what came of it, the last turn that the model was asked
OURS = pa.schema([
    ("id", pa.string()), ("sample", pa.int64()), ("task", pa.string()), ("prompt", pa.string()),
    ("reference", pa.string()), ("text", pa.string()), ("rationale", pa.string()), ("label", pa.string()),
    ("target", pa.string()), ("verdict", pa.string()), ("finish_reason", pa.string()), ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()), ("error", pa.string()), ("agreement", pa.float64()),
    ("answer", pa.string()), ("kind", pa.string()),
])  # fmt: skip


def own_name(column: str) -> str:
    """The name of an input's column in the output: where ours has it, `input.<name>`. No two columns get one name:
    a column `input.prompt` is `input.input.prompt` there."""
    return f"{BEFORE}{column}" if _ours(column) else column


def own(row: dict[str, Any]) -> dict[str, Any]:
    """The input's own columns of a committed row, under the names they had."""
    return {
        name.removeprefix(BEFORE) if _ours(name) else name: value
        for name, value in row.items()
        if name not in (*OURS.names, TURN)
    }


def _ours(column: str) -> bool:
    """Whether `column` is one of our names, or one of those behind any number of `input.`."""
    while column.startswith(BEFORE):
        column = column.removeprefix(BEFORE)
    return column in (*OURS.names, *PLACE, TURN)


def names(url: str) -> dict[str, int]:
    """Name → size of every committed part, without folder and ending."""
    found = storage.files(storage.join(url, DATA))
    return {name.removesuffix(".parquet"): size for name, size in found.items() if name.endswith(".parquet")}


def file(url: str, name: str) -> str:
    """The URL of one part."""
    return storage.join(url, DATA, f"{name}.parquet")


def commit(url: str, name: str, table: pa.Table, held: list[dict[str, Any]], parser: str) -> bool:
    """Create one part, once; False where another writer's copy stands already and this one is thrown away.

    `held`: the shard's rows in quarantine, {id, reason, attempts, file, line, prompt, readable}."""
    return storage.create(file(url, name), _bytes(table, held, parser))


def rewrite(url: str, name: str, table: pa.Table, held: list[dict[str, Any]], parser: str) -> None:
    """Put another reading of the same texts in a part's place, atomically."""
    storage.replace(file(url, name), _bytes(table, held, parser))


def free(url: str, name: str, parser: str) -> None:
    """Take a part's quarantine away, with a part that is nothing but quarantine the whole part."""
    there = table(url, name)
    if there.num_rows:
        rewrite(url, name, there, [], parser)
    else:
        storage.remove(file(url, name))


def footer(url: str, name: str) -> dict[str, Any]:
    """Counts of one part: {rows, verdicts, prompt_tokens, completion_tokens, parser, quarantine: […]}. Raises BadInput
    for a file that is no part, or a damaged one."""
    with storage.opened(file(url, name)) as handle, _told(file(url, name)):
        return _about(pq.read_metadata(handle).metadata)


def footers(url: str, committed: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, footer) of each of the parts `committed`, sixteen read at a time. Raises BadInput as `footer` does."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(committed), 256):
            some = committed[start : start + 256]
            yield from zip(some, pool.map(lambda name: footer(url, name), some), strict=True)


def ids(url: str, name: str) -> set[tuple[str, bool]]:
    """The ids that one part answers or holds in quarantine, each with whether its row could be read: the id of one
    that could not is never the row's own. Raises BadInput as `footer` does."""
    with storage.opened(file(url, name)) as handle, _told(file(url, name)):
        table = pq.read_table(handle, columns=["id"])
        about = _about(table.schema.metadata)
    held = ((row["id"], row.get("readable", True)) for row in about["quarantine"])
    return {*((one, True) for one in table.column("id").to_pylist()), *held}


def table(url: str, name: str) -> pa.Table:
    """One part, whole. Raises BadInput for a file that is no Parquet, or damaged."""
    data = storage.read(file(url, name))
    with _told(file(url, name)):
        return pq.read_table(io.BytesIO(data))


def rows(url: str) -> Iterator[dict[str, Any]]:
    """The committed rows below `url`, part after part."""
    for name in names(url):
        yield from table(url, name).to_pylist()


def strange(url: str, why: object) -> BadInput:
    """What to raise about the file `url`, which stands where one of ours would."""
    return BadInput(
        f"{url} was not made by `regrow generate`, or is damaged ({why}); move it away, or give another --output"
    )


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever is wrong with the content of the part `url` is a BadInput that names it."""
    try:
        yield
    except (ValueError, pa.ArrowException) as error:
        raise strange(url, error) from error
    except OSError as error:  # storage that fails, or what pyarrow says of bytes that it cannot make out
        if error.errno is not None or not DAMAGE.search(str(error)):
            raise
        raise strange(url, error) from error


def _about(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    if FOOTER not in (metadata or {}):
        raise ValueError("its footer has none of our counts")
    return json.loads((metadata or {})[FOOTER])


def _bytes(table: pa.Table, held: list[dict[str, Any]], parser: str) -> bytes:
    said = table.column("verdict").value_counts().to_pylist() if table.num_rows else []
    about = {
        "rows": table.num_rows,
        "ids": len(table.column("id").unique()),
        "verdicts": {row["values"]: row["counts"] for row in said},
        "fallback": sum(row["counts"] for row in said if row["values"] not in verdicts.KEPT),
        "prompt_tokens": _first(table, "prompt_tokens"),
        "completion_tokens": sum(table.column("completion_tokens").to_pylist()),
        "parser": parser,
        "quarantine": held,
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(about).encode()}), buffer, compression="zstd")
    return buffer.getvalue()


def _first(table: pa.Table, column: str) -> int:
    """The sum of `column` over first samples: a prompt is read once for all samples of a row."""
    pairs = zip(table.column(column).to_pylist(), table.column("sample").to_pylist(), strict=True)
    return sum(value for value, sample in pairs if sample == 0)
