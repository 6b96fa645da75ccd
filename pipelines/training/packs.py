"""The global steps of a training on disk, numbered: written once by Ray Data before the workers start, read by them.

Row groups are encoded where there is a core; their lengths alone come to the driver, which puts rows into steps
(packing.global_steps); then every file of steps is gathered from the encoded rows. A step is one record batch of an
Arrow file. Which of its rows a rank packs together (packing.shared) follows from their lengths, so that another number
of workers goes on with the same files. All of it follows from the data and the settings: written again, it is the same.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import dataflow, storage
from pipelines import objectives
from pipelines.recipe_file import BadInput
from pipelines.screen import say
from pipelines.student import Student
from pipelines.training import batches, data, encoding, gathering, packing
from pipelines.training.reading import Reads

MANIFEST = "packs.json"
SHOW_SECONDS = 5.0


class About(NamedTuple):
    """What packs.json says: `made_of`, what the packs follow from; `rows` of the data that are in them, `tokens` of
    these rows, each counted once; those `too_long` that were set aside and those `truncated`; `pad`, the padding token;
    `files`, the steps of each file; `weightless`, the rows of weight 0 or without a target, set aside as well."""

    made_of: dict[str, Any]
    rows: int
    tokens: int
    too_long: int
    truncated: int
    pad: int
    files: list[int]
    weightless: int = 0


class Packs:
    """The steps in a folder. Raises FileNotFoundError where they are not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, About(**json.loads((folder / MANIFEST).read_text()))
        self.ends = np.cumsum(self.about.files)
        self.open: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def step(self, number: int) -> tuple[batches.Rows, list[str]]:
        """The rows of one global step, and their ids."""
        file = int(np.searchsorted(self.ends, number, side="right"))
        if self.open[0] != file:
            self.open = file, gathering.opened(gathering.steps_file(self.folder, file))
        batch = self.open[1].get_batch(number - int(self.ends[file]) + self.about.files[file])
        ids = batch["ids"]
        ends = ids.offsets.to_numpy()[1:] - ids.offsets[0].as_py()
        prompts, tasks, weights = (batch[name].to_numpy() for name in ("prompt", "task", "weight"))
        reads = batch["reads"].to_pylist()
        rows = batches.Rows(
            ids.flatten().to_numpy(), ends, prompts, tasks, weights, np.arange(len(ids)), reads if any(reads) else None
        )
        return rows, batch["id"].to_pylist()


class InOrder:
    """Packs one after the other, as one; `about` is the last's."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders, self.parts = list(folders), [Packs(folder) for folder in folders]
        self.about = self.parts[-1].about

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def step(self, number: int) -> tuple[batches.Rows, list[str]]:
        """See Packs."""
        for part in self.parts:
            if number < len(part):
                return part.step(number)
            number -= len(part)
        raise IndexError(number)


def write(
    pruned: Path, file: str, student: Student, seed: int, folder: Path, held: bool = False, reads: Reads | None = None
) -> Packs:
    """Write the steps of `student`, who starts from the checkpoint in `pruned`, over the rows of `file` (train.train
    says which columns) to `folder`, on a disk that all nodes see; `held`: these are the validation rows, all in one
    step, in order. `reads`: where a mask predictor learns too. What stands there already and follows from the same is
    kept.

    Needs a Ray session. Raises BadInput where the data cannot be trained on, OSError and RuntimeError where they cannot
    be read or written."""
    sizes = data.groups(file)
    made_of = {
        "pruned": str(pruned.resolve()), "file": file, "sha256": storage.digest(file), "seed": seed, "held": held,
        **student.model_dump(include={"max_length", "long_rows", "batch_tokens", "epochs"}),
        **({"reads": list(reads), "chunk": _chunk(student)} if reads else {}),
    }  # fmt: skip
    if (folder / MANIFEST).exists() and (packs := Packs(folder)).about.made_of == made_of:
        return packs
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    told = _encode(pruned, file, student, folder, sizes, reads)
    kept = _kept(f"{'validation' if held else 'training'} data {file}", told, student.max_length)
    if held and not (kept["task"].to_numpy() == objectives.TASKS.index(objectives.LABEL)).any():
        raise BadInput(f"validation data {file}: there are rationales alone; the best checkpoint is chosen by labels")
    lengths = kept["length"].to_pylist()
    grouped = [part.tolist() for part in np.split(np.arange(len(kept)), _starts(kept["id"]))]
    steps = [list(range(len(kept)))] if held else packing.global_steps(
        grouped, lengths, student.batch_tokens, student.epochs, seed
    )  # fmt: skip
    files = gathering.files(steps, lengths)
    gathering.gather(folder, steps, files, kept["number"].to_numpy(), np.cumsum([0, *sizes]))
    states = told["state"].to_numpy()
    named = {"too_long": encoding.TOO_LONG, "truncated": encoding.TRUNCATED, "weightless": encoding.WEIGHTLESS}
    counts = {name: int((states == state).sum()) for name, state in named.items()}
    about = About(made_of, len(kept), sum(lengths), **counts, pad=_pad(pruned), files=files)
    (folder / "packs.part").write_text(json.dumps(about._asdict()))
    (folder / "packs.part").replace(folder / MANIFEST)
    for group in range(len(sizes)):
        encoding.part(folder, group).unlink()
    return Packs(folder)


def _chunk(student: Student) -> int:
    return student.ifp.text_chunk if student.ifp else 0


def _encode(pruned: Path, file: str, student: Student, folder: Path, sizes: list[int], reads: Reads | None) -> pa.Table:
    """Encode all row groups; returns what is told of their rows (encoding.TOLD), by the rows' numbers."""
    encode = partial(
        encoding.encode, first=np.cumsum([0, *sizes]).tolist(), pruned=str(pruned), file=file, folder=folder.resolve(),
        max_length=student.max_length, long_rows=student.long_rows, reads=reads, chunk=_chunk(student),
    )  # fmt: skip
    told, rows, shown = [], 0, time.monotonic()
    for table in dataflow.each([{"group": group} for group in range(len(sizes))], encode):
        told.append(table)
        rows += len(table)
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            say(f"{student.name}: {rows:,} of {sum(sizes):,} rows encoded")
    return pa.concat_tables(told).sort_by("number")


def _kept(what: str, told: pa.Table, max_length: int) -> pa.Table:
    """The rows that count, by id and task. `what`: the data, in words. Raises BadInput."""
    faulty = told.filter(pc.field("state") == encoding.FAULTY).to_pylist()
    if faulty:
        first = faulty[0]
        row = f"the row of number {first['number'] + 1:,}" if first["id"] is None else f"row {first['id']}"
        alike = sum(one["fault"] == first["fault"] for one in faulty)
        more = [f"{alike:,} rows like that"] if alike > 1 else []
        more += [f"{len(faulty) - alike:,} with other faults"] if len(faulty) > alike else []
        raise BadInput(f"{what}, {row}: {first['fault']}" + (f" ({', '.join(more)})" if more else ""))
    order = [("id", "ascending"), ("task", "ascending"), ("number", "ascending")]
    kept = told.filter(pc.field("state").isin(encoding.LEARNED)).sort_by(order)
    if not len(kept):
        long = told["state"].to_pylist().count(encoding.TOO_LONG)
        empty = len(told) - long
        why = [f"{long:,} are longer than max_length = {max_length} tokens"] if long else []
        why += [f"{empty:,} have the weight 0 or no target"] if empty else []
        raise BadInput(f"{what}: none of the {len(told):,} rows can be used; {', '.join(why)}")
    return kept


def _starts(ids: pa.ChunkedArray) -> np.ndarray:
    """Where another id begins than that of the row before."""
    return np.flatnonzero(pc.not_equal(ids[1:], ids[:-1]).to_numpy()) + 1


def _pad(pruned: Path) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pruned, local_files_only=True)
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
