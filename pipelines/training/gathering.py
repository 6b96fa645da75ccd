"""Steps gathered from encoded rows: Arrow files in which a record batch is a global step, by tasks of Ray Data."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import dataflow
from pipelines.training import encoding

FILE_TOKENS = 1 << 24  # tokens of a file of steps: 64 MiB of ids


def steps_file(folder: Path, number: int) -> Path:
    """The file of steps of that number."""
    return folder / f"steps-{number:05d}.arrow"


def files(steps: list[list[int]], lengths: list[int]) -> list[int]:
    """How many steps go to each file."""
    counts, tokens = [0], 0
    for step in steps:
        more = sum(lengths[row] for row in step)
        if counts[-1] and tokens + more > FILE_TOKENS:
            counts.append(0)
            tokens = 0
        counts[-1] += 1
        tokens += more
    return counts


def gather(folder: Path, steps: list[list[int]], counts: list[int], numbers: np.ndarray, first: np.ndarray) -> None:
    """Write the files of steps, `counts` of them each. `numbers`: of each kept row in the data;
    `first`: of each row group's first row."""
    items, at = [], 0
    for file, count in enumerate(counts):
        some = steps[at : at + count]
        rows = numbers[np.concatenate([np.sort(step) for step in some])]
        items.append({"file": file, "rows": rows.tolist(), "sizes": [len(step) for step in some]})
        at += count
    for _ in dataflow.each(items, partial(_write_steps, folder=folder.resolve(), first=first)):
        pass


def _write_steps(batch: pa.Table, folder: Path, first: np.ndarray) -> pa.Table:
    """Write one file of steps: `rows` by their numbers in the data, step by step, `sizes` of them each."""
    item = batch.to_pylist()[0]
    wanted = np.array(item["rows"])
    group = np.searchsorted(first, wanted, side="right") - 1
    found, places = [], []
    for number in np.unique(group):
        here = np.flatnonzero(group == number)
        found.append(opened(encoding.part(folder, number)).read_all().take(wanted[here] - first[number]))
        places.append(here)
    table = pa.concat_tables(found).take(np.argsort(np.concatenate(places))).combine_chunks()
    at = 0
    with encoding.writing(steps_file(folder, item["file"])) as out:
        for size in item["sizes"]:
            out.write_batch(table.slice(at, size).to_batches()[0])
            at += size
    return batch.select(["file"])


def opened(file: Path) -> Any:
    """A reader of an Arrow file that maps it: what is read of it takes no memory of its own."""
    return pa.ipc.open_file(pa.memory_map(str(file)))
