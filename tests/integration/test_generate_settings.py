"""What a job's output is: tables that every reader takes, and an output bound to the settings that made it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipelines import conversations, parts
from pipelines.generation import board, finishing
from tests import generated

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input of 24 rows and the output of a job over it."""
    home = tmp_path_factory.mktemp("made")
    rows = [
        # The echo says what it was asked; unless the reference is in it, that is no answer.
        {"prompt": f"The answer is {n}. Or: The answer is {n + n % 2}.", "mark": n, "reference": f"The answer is {n}.",
         "nested": {"a": [1]}}
        for n in range(23)
    ]  # fmt: skip
    generated.write(home / "in.jsonl", [*rows, {"prompt": "", "mark": 23}])
    status, said = generated.command(home / "in.jsonl", home / "out", "--shard-rows", "5", "--format", "jsonl")
    assert status == 3 and f"23 conversations in {home}/out/messages" in said, said
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(made, tmp_path / "home")


def test_readers(made: Path) -> None:
    """pyarrow, pandas and datasets read the same rows, and the schema is ours and then the input's."""
    import datasets
    import pandas

    rows = generated.check(made / "out", range(23), 1)
    read = pq.read_table(made / "out/data")
    own = pa.schema([("input.prompt", pa.string()), ("mark", pa.int64()), ("input.reference", pa.string()),
                     ("nested", pa.string())])  # fmt: skip
    assert read.schema.remove_metadata() == pa.unify_schemas([parts.OURS, own])
    assert read.num_rows == pyarrow.dataset.dataset(made / "out/data").count_rows() == 23
    assert len(pandas.read_parquet(made / "out/data")) == 23
    loaded = datasets.load_dataset(str(made / "out"), cache_dir=str(made / "cache"))["train"]
    assert sorted(loaded["mark"]) == list(range(23)) and set(loaded.column_names) == set(read.column_names)
    assert rows[0]["nested"] == '{"a": [1]}' and rows[0]["input.reference"] == rows[0]["reference"]


def test_manifest_and_card(made: Path) -> None:
    """The counts are those of the tables; the manifest tells settings and sizes."""
    manifest = json.loads((made / "out/manifest.json").read_text())
    rows, counts = generated.answered(made / "out"), manifest["counts"]
    assert (counts["rows"], counts["samples"], counts["quarantined"], counts["parts"]) == (24, 23, 1, 5)
    assert counts["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows) > 23
    assert counts["error"] == 1 and sum(counts[verdict] for verdict in finishing.verdicts.VERDICTS) == 24
    assert manifest["settings"]["temperature"] == 0 and manifest["settings"]["model"] == "echo"
    assert {name: (made / "out" / name).stat().st_size for name in manifest["files"]} == manifest["files"]
    card = (made / "out/README.md").read_text()
    assert "| input rows | 24 |" in card and "| in quarantine | 1 |" in card and "data_files: data/*.parquet" in card


def test_messages(made: Path) -> None:
    """Each usable row is a conversation that ends with what the student shall say."""
    rows = {row["id"]: row for row in generated.answered(made / "out")}
    files = sorted((made / "out/messages").glob("part-*.jsonl"))
    said = [json.loads(line)["messages"] for file in files for line in file.read_text().splitlines()]
    assert [file.stem for file in files] == list(parts.names(str(made / "out"))) and len(said) == len(rows) == 23
    for turns in said:
        taken = conversations.parts(turns)
        assert taken.reference and taken.question.startswith("The answer is ")
    assert {turns[-1]["content"] for turns in said} == {row["target"] for row in rows.values()}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--temperature", "0.5"), ["temperature: 0.0 there, 0.5 asked"]),
        (("--max-tokens", "9", "--seed", "1"), ["max_tokens: 256 there, 9 asked", "seed: 0 there, 1 asked"]),
        (("--prompt", "PROMPT"), ["prompt: nothing there, "]),
        (("--model", "other", "--endpoint", "http://127.0.0.1:9/v1"), ['model: "echo" there, "other" asked']),
        (("--column", "nested"), ['columns asked: prompt: "prompt" there, "nested" asked']),
    ],
    ids=["temperature", "two", "prompt", "model", "column"],
)
def test_other_settings(words: tuple[str, ...], named: list[str], made: Path, tmp_path: Path) -> None:
    """Texts made otherwise are not mixed: what differs is named, and nothing is touched."""
    (tmp_path / "prompt.txt").write_text("Please: {prompt}")
    before = {path: path.stat().st_mtime_ns for path in (made / "out").rglob("*.*") if path.name != ".lock"}
    words = tuple(str(tmp_path / "prompt.txt") if word == "PROMPT" else word for word in words)
    status, said = generated.command(made / "in.jsonl", made / "out", *words)
    assert status == 2 and "made otherwise" in said and "--new" in said and "REGROW_DEBUG" not in said, said
    assert [line for line in named if line not in said] == []
    assert before == {path: path.stat().st_mtime_ns for path in (made / "out").rglob("*.*") if path.name != ".lock"}


def test_new_goes_beside_and_resumes_there(home: Path) -> None:
    """--new starts beside what is there; the same again finds its own and does no work."""
    words = ("--max-tokens", "3", "--shard-rows", "5", "--new")
    assert generated.command(home / "in.jsonl", home / "out", *words)[0] == 3
    (beside,) = home.glob("out-*")
    assert all(len(row["text"].split()) == 3 for row in generated.answered(beside))
    before = {path: path.stat().st_mtime_ns for path in (beside / "data").iterdir()}
    next(iter(before)).unlink()
    status, said = generated.command(home / "in.jsonl", home / "out", *words)
    assert (status == 3 and "19 of 24 rows there already, 5 to write" in said) or "20 of 24" in said, said
    there = {path: path.stat().st_mtime_ns for path in (beside / "data").iterdir()}
    assert there.keys() == before.keys() and sum(there[path] == before[path] for path in before) == 4
    assert list(home.glob("out-*")) == [beside]


def test_another_kind_reads_stored_texts_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts follow --kind and no text is generated anew: an engine would fail here at once."""
    monkeypatch.setattr(board, "put_up", lambda: pytest.fail("an engine was asked for"))
    before = {row["id"]: row for row in generated.answered(home / "out")}
    assert {row["verdict"] for row in before.values()} == {"unchecked"}
    status, said = generated.command(home / "in.jsonl", home / "out", "--shard-rows", "5", "--kind", "number")
    assert status == 3 and "reading the texts of 5 part(s) again" in said, said
    after = {row["id"]: row for row in generated.answered(home / "out")}
    assert after.keys() == before.keys()
    assert {row["verdict"] for row in after.values()} == {"match", "mismatch"}
    assert all((row["verdict"] == "match") == (row["mark"] % 2 == 0) for row in after.values())
    changed = {key for id_, row in after.items() for key in row if row[key] != before[id_][key]}
    assert changed == {"verdict", "target", "kind", "answer"}, "the answer is what the reference says under the kind"
    generated.check(home / "out", range(23), 1)
