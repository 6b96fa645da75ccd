"""Packs on disk: the steps that Ray Data writes are those worked out in memory, row by row and bit for bit."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import objectives, prompts
from pipelines.recipe_file import BadInput
from pipelines.student import Student
from pipelines.training import batches, feed, gathering, packs
from tests import tiny, trainings

pytestmark = pytest.mark.usefixtures("ray_session")
STUDENT = Student(name="dsbs", alpha=0.3, epochs=2.5, batch_tokens=150, micro_tokens=64, max_length=100)
SEED = 3


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("pruned"), layers=2)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two tasks of most ids, of several weights and lengths, in no order."""
    made = [
        {"id": f"{n}", "task": task, "prompt": f"What is {'1 + ' * (n % 9)}{n}?", "target": said, "weight": 1.0 + n % 3}
        for n in range(60)
        for task, said in (("label", f"{n}."), ("rationale", "The answer " * (n % 7)))
        if task == "label" or n % 5
    ]
    return [made[n] for n in np.random.default_rng(0).permutation(len(made))]


def written(rows: list[dict[str, Any]], path: Path, groups: int = 1000) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=groups)
    return str(path)


def in_memory(pruned: Path, rows: list[dict[str, Any]]) -> batches.Rows:
    """The rows by id and task, encoded one by one."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(pruned)
    ordered = sorted(rows, key=lambda row: (row["id"], objectives.TASKS.index(row["task"])))
    ids = sorted({row["id"] for row in rows})
    return batches.flat(
        [batches.encode(words, prompts.answer(row["prompt"]), row["target"]) for row in ordered],
        [objectives.TASKS.index(row["task"]) for row in ordered],
        [row["weight"] for row in ordered],
        [ids.index(row["id"]) for row in ordered],
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 4])
def test_they_are_the_steps_worked_out_in_memory(
    pruned: Path, rows: list[dict[str, Any]], tmp_path: Path, ranks: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "FILE_TOKENS", 400)
    made = packs.write(pruned, written(rows, tmp_path / "rows.parquet", 17), STUDENT, SEED, tmp_path / "packs")
    assert len(made.about.files) > 5, "several files of steps"
    alone = in_memory(pruned, rows)
    assert (made.about.rows, made.about.tokens) == (len(rows), len(alone.ids))
    for rank in range(ranks):
        total, expected = feed.steps(alone, STUDENT, SEED, made.about.pad, first, rank, ranks)
        read = feed.read(made, STUDENT, SEED, first, rank, ranks)
        assert total == len(made)
        for ours, theirs in zip(read, expected, strict=True):
            assert (ours.done, ours.shares, ours.tokens, ours.all_tokens) == (
                theirs.done, theirs.shares, theirs.tokens, theirs.all_tokens,
            )  # fmt: skip
            for a, b in zip(ours.passes, theirs.passes, strict=True):
                torch.testing.assert_close(a.inputs, b.inputs, rtol=0, atol=0)
                torch.testing.assert_close(a.weights, b.weights, rtol=1e-12, atol=0)


def test_neither_the_rows_order_nor_their_groups_change_a_byte(
    pruned: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = packs.write(pruned, written(rows, tmp_path / "a.parquet", 17), STUDENT, SEED, tmp_path / "a")
    again = packs.write(pruned, written(rows[::-1], tmp_path / "b.parquet", 50), STUDENT, SEED, tmp_path / "b")
    files = sorted(path.name for path in made.folder.iterdir())
    assert files == sorted(path.name for path in again.folder.iterdir()) == ["packs.json", "steps-00000.arrow"]
    assert (made.folder / files[1]).read_bytes() == (again.folder / files[1]).read_bytes()


def test_what_is_there_is_kept_and_what_is_half_there_or_of_other_settings_is_not(
    pruned: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file, folder = written(rows, tmp_path / "rows.parquet"), tmp_path / "packs"
    (steps,) = packs.write(pruned, file, STUDENT, SEED, folder).folder.glob("steps-*")
    first = steps.stat().st_ino, steps.read_bytes()
    packs.write(pruned, file, STUDENT.model_copy(update={"micro_tokens": 99}), SEED, folder)
    assert (steps.stat().st_ino, steps.read_bytes()) == first, "micro_tokens change no step"
    for other in ((file, SEED + 1), (written(rows[1:], tmp_path / "rows.parquet"), SEED)):
        packs.write(pruned, other[0], STUDENT, other[1], folder)
        assert steps.read_bytes() != first[1]
    written(rows, tmp_path / "rows.parquet")
    (folder / packs.MANIFEST).unlink()
    steps.write_bytes(first[1][:100])
    with pytest.raises(FileNotFoundError):
        packs.Packs(folder)
    assert len(packs.write(pruned, file, STUDENT, SEED, folder)) and steps.read_bytes() == first[1]


def test_validation_rows_are_one_step_in_order(pruned: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    made = packs.write(pruned, written(rows, tmp_path / "rows.parquet", 9), STUDENT, 0, tmp_path / "packs", held=True)
    read, ids = made.step(0)
    assert len(made) == 1 and ids == sorted(row["id"] for row in rows)
    alone = in_memory(pruned, rows)
    for name in ("ids", "ends", "prompts", "tasks", "weights"):
        assert np.array_equal(getattr(read, name), getattr(alone, name)), name
    seen = sum(batch.weights[0].sum().item() for batch in feed.held(made, STUDENT, 0, 1))
    assert seen == pytest.approx(1), "the mean over the labels, each weighted as its row is"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"target": None}, "row x: no target; every row needs one"),
        ({"task": "lable"}, "row x: no task 'lable'; there are label, rationale"),
        ({"weight": -1.0}, "row x: the weight -1.0; one is a number from 0 up"),
        ({"weight": float("nan")}, "row x: the weight nan; one is a number from 0 up"),
        ({"history": "no JSON"}, "row x: history: the conversation is neither a list of turns nor JSON text"),
        ({"history": "[" * 100_000}, "row x: history: the conversation is neither a list of turns nor JSON text"),
        ({"history": '{"role": "user"}'}, "row x: history: a conversation is a list of turns, this is an object with"),
        ({"history": '[{"role": "user", "content": null}]'}, "row x: history: turn 1: the content is null"),
        ({"id": None}, "the row of number 109: no id; every row needs one"),
        ({"prompt": "a" * 500}, "too_long"),
        ({"weight": 0.0}, "weightless"),
        ({"history": "[]"}, ""),
    ],
)
def test_rows_that_cannot_be_trained_on(
    more: dict[str, Any], why: str, pruned: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The row is named, with the file; a long one is set aside and counted, as is one of no weight, which may not have
    a step of its own."""
    bad = {"id": "x", "task": "label", "prompt": "a", "target": "b", "weight": 1.0, "history": None, **more}
    file = written([{**row, "history": None} for row in rows] + [bad], tmp_path / "rows.parquet", 30)
    if not why:
        assert packs.write(pruned, file, STUDENT, SEED, tmp_path / "packs").about.rows == len(rows) + 1
    elif why not in ("too_long", "weightless"):
        with pytest.raises(BadInput, match=f"^training data {re.escape(file)}, {re.escape(why)}"):
            packs.write(pruned, file, STUDENT, SEED, tmp_path / "packs")
        assert not (tmp_path / "packs" / packs.MANIFEST).exists()
    else:
        about = packs.write(pruned, file, STUDENT, SEED, tmp_path / "packs").about
        assert (about.rows, about.too_long + about.weightless, getattr(about, why)) == (len(rows), 1, 1)


def test_other_faults_are_counted_apart(pruned: Path, tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "prompt": "a", "target": "b", "weight": w} for n, w in enumerate((1.0, -1.0, -1.0, np.inf))]
    said = "row 1: the weight -1.0; one is a number from 0 up (2 rows like that, 1 with other faults)"
    with pytest.raises(BadInput, match=re.escape(said)):
        packs.write(pruned, written(rows, tmp_path / "rows.parquet"), STUDENT, SEED, tmp_path / "packs")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"prompt": "a" * 500}, "none of the 2 rows can be used; 2 are longer than max_length = 100 tokens"),
        ({"weight": 0.0}, "none of the 2 rows can be used; 2 have the weight 0 or no target"),
        ({"task": "rationale"}, "there are rationales alone; the best checkpoint is chosen by labels"),
    ],
)
def test_validation_rows_of_which_none_counts(more: dict[str, Any], why: str, pruned: Path, tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "task": "label", "prompt": "a", "target": "b", "weight": 1.0, **more} for n in range(2)]
    file = written(rows, tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match=f"^validation data {re.escape(file)}: {re.escape(why)}"):
        packs.write(pruned, file, STUDENT, SEED, tmp_path / "packs", held=True)


def test_a_damaged_page_is_said_of_its_file(pruned: Path, tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "prompt": f"What is {n}?", "target": f"{n * n}"} for n in range(2000)]
    file = Path(written(rows, tmp_path / "rows.parquet"))
    torn = bytearray(file.read_bytes())
    torn[len(torn) // 3 : len(torn) // 3 + 400] = np.random.default_rng(0).bytes(400)
    file.write_bytes(torn)
    with pytest.raises((OSError, RuntimeError), match=f"training data {re.escape(str(file))} are damaged in row group"):
        packs.write(pruned, str(file), STUDENT, SEED, tmp_path / "packs")


def test_long_rows_are_dropped_or_cut_off(pruned: Path, tmp_path: Path) -> None:
    """Room for every prompt but one and a token more."""
    long = {"id": "long", "prompt": "What is 1 + 1?" * 60, "target": "2"}
    file = trainings.sums(tmp_path / "rows.parquet", long)

    def read(room: int, long_rows: str = "drop") -> packs.Packs:
        student = Student(name="sft").model_copy(update={"max_length": room, "long_rows": long_rows})
        return packs.write(pruned, file, student, 0, tmp_path / "packs", held=True)

    everything = read(1000)
    all_, ids = everything.step(0)
    assert (everything.about.too_long, everything.about.truncated, ids[-1]) == (0, 0, "long")
    room = max(all_.prompts.tolist()[:-1]) + 1
    assert room < min(all_.lengths()) and all_.prompts[-1] > room
    with pytest.raises(BadInput, match="none of the 41 rows can be used; 41 are longer than max_length = "):
        read(room)
    cut = read(room, "truncate")
    assert (cut.about.too_long, cut.about.truncated, cut.about.rows) == (1, 40, 40)
    kept, end = cut.step(0)[0], tiny.tokenizer().eos_token_id
    for number in range(40):
        row = all_.row(number)
        assert kept.row(number) == batches.Encoded(row.ids[:room], row.prompt)
        assert row.ids[-1] == end != kept.row(number).ids[-1]


CALL = """
import sys
from pathlib import Path
from cluster.session import session
from pipelines.student import Student
from pipelines.training import packs
with session("local", 2):
    try:
        print("whole", len(packs.write(Path(sys.argv[1]), sys.argv[2], Student(name="sft"), 0, Path(sys.argv[3]))))
    except OSError as error:
        print("said", error)
"""


def test_a_full_disk_is_named_and_with_room_the_call_goes_on(pruned: Path, small_disk: Any, tmp_path: Path) -> None:
    big = [{"id": f"{n}", "prompt": "What is 1 + 2? " * 20, "target": f"{n}."} for n in range(3000)]
    file = written(big, tmp_path / "rows.parquet", 1000)
    (tmp_path / "call.py").write_text(CALL)
    call = f"python {tmp_path}/call.py {pruned} {file} {tmp_path}/small/packs"
    ended = small_disk(f"disk 256k {tmp_path}/small; {call}; mount -o remount,size=64m {tmp_path}/small; {call}")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^said .*No space left on device.*\nwhole \d+$", ended.stdout, re.M), ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
