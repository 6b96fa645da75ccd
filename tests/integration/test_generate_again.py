"""What a second go does: rows in quarantine asked again, chat messages as they were asked, one manifest at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster import lock, storage
from pipelines import generate, parts
from pipelines.generation import board, finishing, rereading
from pipelines.generation import job as jobs
from pipelines.recipe_file import BadInput
from tests import generated

pytestmark = pytest.mark.usefixtures("ray_session")
LONG = "x " * 5_000


def marks(output: Path) -> list[int]:
    return sorted(row["mark"] for row in parts.rows(str(output)))


def test_rows_in_quarantine_are_asked_again_when_told_to(tmp_path: Path) -> None:
    """Too long at first, then there is room: those rows alone are asked, whole parts of quarantine go."""
    given, out = tmp_path / "in.jsonl", tmp_path / "out"
    rows = generated.rows(24)
    for place in (3, *range(8, 16)):  # one of a part, and a part's all
        rows[place]["prompt"] = ""
    generated.write(given, rows)
    done = generated.run(given, out)
    assert (done["rows"], done["quarantined"]) == (24, 9)
    kept = {
        name: data for name, data in generated.bytes_of(out).items() if not parts.footer(str(out), name)["quarantine"]
    }
    for row in rows:
        row["prompt"] = row["prompt"] or "now there is one"
    generated.write(given, rows)
    length = ("--max-model-len", str(generated.LONG), "--shard-rows", "8")
    status, said = generated.command(given, out, *length, "--retry")
    assert status == 0 and "9 row(s) out of quarantine, to be asked again" in said, said
    assert marks(out) == list(range(24))
    after = generated.bytes_of(out)
    assert kept and all(after[name] == data for name, data in kept.items())
    assert not list((out / "quarantine").glob("*")), "nothing is left of it"
    assert json.loads((out / parts.MANIFEST).read_text())["counts"]["quarantined"] == 0


def test_a_retry_that_is_killed_between_two_parts_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, out = generated.write(tmp_path / "in.jsonl", [{"prompt": "", "mark": n} for n in range(24)] +
                                 generated.rows(8, 24)), tmp_path / "out"  # fmt: skip
    generated.run(given, out)
    free, freed = parts.free, []

    def once(*words: Any) -> None:
        if freed:
            raise KeyboardInterrupt
        freed.append(free(*words))

    monkeypatch.setattr(parts, "free", once)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(generated.job(out), storage.find(str(given)), None, retry=True)
    monkeypatch.undo()
    done = generated.run(given, out)
    assert (done["rows"], done["quarantined"]) == (32, 24)
    held = [json.loads(line) for file in (out / "quarantine").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len({row["id"] for row in held}) == len(held) == 24


def messages(output: Path) -> list[list[dict[str, str]]]:
    files = sorted((output / "messages").glob("*.jsonl"))
    return [json.loads(line)["messages"] for file in files for line in file.read_text().splitlines()]


def test_messages_hold_what_was_asked(tmp_path: Path) -> None:
    given, out = (
        generated.write(tmp_path / "in.jsonl", [{"a": 3, "c": ["p", "q"]}, {"a": 2.5, "c": ["r"]}]),
        tmp_path / "o",
    )
    generated.run(given, out, template="{a} of {c}?")
    finishing.messages(jobs.Job(**json.loads((out / parts.SETTINGS).read_text())["settings"]))
    asked = [turns[0]["content"] for turns in messages(out)]
    assert sorted(asked) == sorted(row["asked"] for row in parts.rows(str(out)))
    assert any(text.startswith("3 of ") for text in asked) and not any("3.0" in text or "[" in text for text in asked)


def test_messages_of_rationales_teach_rationale_and_label_of_those_that_are_right(tmp_path: Path) -> None:
    said = {"good": "48 and 24 are 72. The answer is 72.", "bad": "I guess. The answer is 71.", "none": "Well."}
    rows = [{"prompt": text, "gold": "72"} for text in said.values()]
    given, out = generated.write(tmp_path / "in.jsonl", rows), tmp_path / "out"
    columns = jobs.Columns(answer="gold")
    job = generated.job(
        out, mode="rationale", kind="number", template="{prompt}", columns=columns, n=3, temperature=0.5
    )
    generate.generate(job, storage.find(str(given)), None)
    assert {row["verdict"] for row in parts.rows(str(out))} == {"match", "mismatch", "unparsable"}
    assert finishing.messages(job) == 1, "three samples of one text are one conversation"
    (turns,) = messages(out)
    assert turns[1]["content"] == "48 and 24 are 72. So the answer is 72."


def test_a_column_that_is_no_text_is_named_when_texts_are_read_again(tmp_path: Path) -> None:
    rows = [{"prompt": "a 5", "right": "5", "good": True}, {"prompt": "b 5", "right": "5", "good": False}]
    given, out = generated.write(tmp_path / "in.jsonl", rows), tmp_path / "out"
    generated.run(given, out, columns=jobs.Columns(reference="right"))
    before = generated.bytes_of(out)
    with pytest.raises(BadInput, match=f"row .* of {out}: column 'good' is bool, not text; the texts there are left"):
        generated.run(given, out, columns=jobs.Columns(reference="good"))
    assert generated.bytes_of(out) == before


def test_the_manifest_is_written_while_nobody_else_may_write(tmp_path: Path) -> None:
    given, out, tried = generated.write(tmp_path / "in.jsonl", generated.rows(3)), tmp_path / "out", []

    def finish(done: dict[str, Any]) -> None:
        code = f"from pathlib import Path; from cluster import lock; lock.held(Path({str(out)!r})).__enter__()"
        tried.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr)

    generate.generate(generated.job(out), storage.find(str(given)), None, finish=finish)
    assert len(tried) == 1 and lock.Busy.__name__ in tried[0]


def test_another_drivers_copy_of_a_part_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.generation import flow, metrics

    counted: list[int] = []
    monkeypatch.setattr(metrics, "count", lambda name, by, **_: counted.append(by))
    monkeypatch.setattr(flow.shaping, "table", lambda job, batch: (table, []))
    given, out = generated.write(tmp_path / "in.jsonl", generated.rows(3)), tmp_path / "out"
    job = generated.job(out)
    generated.run(given, out)
    (name,) = parts.names(str(out))
    table = parts.table(str(out), name)
    storage.remove(parts.file(str(out), name))
    import pyarrow as pa

    for _ in range(2):
        flow._commit(pa.table({"name": [name]}), job, rereading.mark(job))
    assert sum(counted) == 3 and pq.read_table(parts.file(str(out), name)).num_rows == 3


def test_an_engine_that_came_again_is_one_engine() -> None:
    said = {"state": "up", "rows": 5, "searching": 2}
    made = board.Board()
    made.tell("old", {**said, "actor": "a"})
    made.tell("other", {**said, "actor": "b"})
    made.tell("new", {**said, "actor": "a", "rows": 1})
    told = made.read()
    assert [who for who, one in told.items() if one["state"] == "up"] == ["other", "new"]
    assert sum(one["searching"] for one in told.values()) == 4 and sum(one["rows"] for one in told.values()) == 11


KEYS = {"OPENAI_API_KEY": "sk-hidden-1234", "HF_TOKEN": "hf-hidden-1234", "AWS_SECRET_ACCESS_KEY": "aws-hidden-1234"}
CALL = """
import os
import ray
from cluster.session import session
with session("local", 2):
    seen = ray.remote(lambda: {name: os.environ.get(name) for name in %r})
    assert ray.get(seen.remote()) == ray.get(seen.options(runtime_env={"env_vars": {"X": "1"}}).remote()) == %r
    print(ray._private.worker._global_node.get_session_dir_path())
"""


def test_keys_reach_workers_and_no_log() -> None:
    call = CALL % ([*KEYS], KEYS)
    ended = subprocess.run(
        [sys.executable, "-c", call], env=os.environ | KEYS, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    session = Path(ended.stdout.split()[-1])
    files = [file for file in session.rglob("*") if file.is_file()]
    assert any("runtime_env" in file.name and file.stat().st_size for file in files), "Ray wrote what it logs of them"
    assert not [file for file in files if b"-hidden-1234" in file.read_bytes()]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    given, out = generated.write(tmp_path / "in.jsonl", generated.rows(3)), tmp_path / "out"
    (out / "data").mkdir(parents=True)
    for name in (f".part-0.parquet.{'0' * 32}.tmp", ".mine.tmp"):
        (out / "data" / name).write_bytes(b"PAR1")
    generated.run(given, out)
    assert [path.name for path in (out / "data").iterdir() if path.suffix != ".parquet"] == [".mine.tmp"]
