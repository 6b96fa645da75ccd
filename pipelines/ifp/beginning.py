"""What an IFP training needs before its workers start: calibration rows, what chooses the units, documents to read."""

from pathlib import Path
from typing import Any

from pipelines import conversations, prompts
from pipelines.objectives import LABEL
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from pipelines.training import batches, packs, reading
from serving.choosing import opening


def begin(
    student: Student, teacher: Path, rows: str, seed: int, storage: Path
) -> tuple[Path | None, reading.Reads | None]:
    """`storage`/chooser, written where it is not there (choosers.start), and what a predictor in it can read; nothing
    for students without masks. BadInput where it cannot be."""
    from transformers import AutoTokenizer

    from pipelines.training import choosers

    how, folder = student.ifp, storage / "chooser"
    if not how:
        return None, None
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
        some = _calibration(student, rows)
        encoded = batches.encode_all(
            tokenizer, [_messages(row) for row in some], [row["target"] or "" for row in some]
        )  # fmt: skip
        partial = folder.with_suffix(".part")
        try:
            choosers.start(
                how, teacher, [row._replace(ids=row.ids[: student.max_length]) for row in encoded], seed, partial
            )
        except ValueError as error:
            raise BadInput(f"student {student.name}: {error}") from error
        partial.rename(folder)
    return folder, reading.of(folder) if how.mask == "prompt" else None


def texts(student: Student, teacher: Path, seed: int, storage: Path, reads: reading.Reads | None) -> list[Path]:
    """The folder of packs of stage 1, or none. BadInput where its texts cannot be read."""
    from transformers import AutoTokenizer

    from pipelines.ifp import texts as documents

    if not student.ifp or not student.ifp.text:
        return []
    tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    file = documents.write(student, tokenizer, storage / "texts.parquet")
    once = student.model_copy(update={"epochs": 1.0})
    return [packs.write(teacher, str(file), once, seed, storage / "texts", reads=reads).folder]


def asked(student: Student, teacher: Path, rows: str, reads: reading.Reads | None) -> list[tuple[str, str]]:
    """(family, prompt as the predictor reads it) of calibration rows that ask for a label, as users do; none where
    prompts do not choose. Without those that the predictor cannot read: rows that are too long to be learned may have
    such. BadInput where fewer than two are left, which would be found out when all is trained."""
    from transformers import AutoTokenizer

    if not reads:
        return []
    tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    some = _calibration(student, rows, labels=True)
    told = [(row.get("family") or "", prompts.text(tokenizer, opening(_messages(row)))) for row in some]
    fit = [(family, text) for family, text in told if reading.fits(reads, text)]
    if len(fit) < 2:
        raise BadInput(
            f"student {student.name}: of {len(some):,} calibration prompts the mask predictor can read {len(fit)} (it "
            f"reads {reads.longest:,} tokens at most); sub-networks are made for two prompts or more, give more rows"
        )
    return fit


def _calibration(student: Student, rows: str, labels: bool = False) -> list[dict[str, Any]]:
    """Rows spread evenly over the file, as many as `ifp.calibration_rows`; `labels`: of those whose target is one."""
    import io

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from cluster import storage

    table = pq.read_table(io.BytesIO(storage.read(rows)))
    if labels and "task" in table.column_names:
        table = table.filter(pc.equal(pc.fill_null(table["task"].cast("string"), LABEL), LABEL))
    wanted = student.ifp.calibration_rows if student.ifp else 0
    some = min(wanted, len(table))
    return table.take([at * len(table) // some for at in range(some)]).to_pylist()


def _messages(row: dict[str, Any]) -> list[prompts.Message]:
    return prompts.answer(row["prompt"], conversations.load(row.get("history")))
