"""What `regrow generate` does not take: it says so at once, with status 2 and what to write instead, and nothing is
written; and outputs that lie where inputs do, or were made by an older version."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from cluster import dataflow, storage
from pipelines import cli_generate, parts, recipe_file
from pipelines.generation import job as jobs
from pipelines.generation import settling
from tests import generated

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return generated.write(tmp_path / "in.jsonl", generated.rows(3))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster or a model that is asked for fails the test: what is refused is refused before."""
    monkeypatch.setattr("cluster.session.session", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr("pipelines.models.resolve", lambda *_: pytest.fail("a model was fetched"))


def refused(given: Path | str, output: Path | str, *words: str) -> str:
    """What is said, in a line and without a hint at a traceback."""
    status, said = generated.command(given, output, *words)
    assert status == 2 and said.startswith("regrow: ") and "Traceback" not in said and "REGROW_DEBUG" not in said, said
    return said


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--endpoint", "localhost:8000/v1"), "--endpoint: the endpoint's address is not one: write it as http://host"),
        (("--endpoint", ""), "write it as http://host:8000/v1"),
        (("--endpoint", "http://user:S3CRET@host/v1"), "give the key as OPENAI_API_KEY"),
        (("--endpoint", "http://host/v1?key=S3CRET"), "give the key as OPENAI_API_KEY"),
        (("--temperature", "inf"), "--temperature: Input should be a finite number, got inf"),
        (("--top-p", "nan"), "--top-p: Input should be a finite number, got nan"),
        (("--stop", ""), "--stop: an empty text would end every answer"),
        (("--model", "tiny", "--stop", ""), "--stop: an empty text would end every answer"),
        (("--model", "tiny", "--dtype", "foo"), "--dtype: Input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        (("--model", "tiny", "--tensor-parallel", "0"), "--tensor-parallel: Input should be greater than"),
        (("--max-model-len", "0"), "--max-model-len: Input should be greater than or equal to 16"),
        (("--output", "gs://x/y"), "--output 'gs://x/y': only paths of this machine and s3://bucket/... are taken"),
        (("--output", "s3://"), "--output 's3://': only paths of this machine and s3://bucket/... are taken"),
        (("--output", ""), "--output is empty"),
        (("--output", "~nobody-of-that-name/x"), "--output '~nobody-of-that-name/x': "),
        (("--input", "hf://datasets/a/b"), "--input 'hf://datasets/a/b': only paths of this machine and s3://bucket"),
        (("--input", ""), "--input is empty"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_options(words: tuple[str, ...], named: str, given: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    said = refused(given, tmp_path / "out", *words)
    assert named in said and "S3CRET" not in said and everything(tmp_path) == before


@pytest.mark.usefixtures("no_ray")
def test_the_echos_seconds(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_ECHO_SECONDS", "x")
    assert "REGROW_ECHO_SECONDS is 'x': write the seconds" in refused(given, tmp_path / "out")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"$schema": 5}', "$schema is 5; write the URL of a JSON schema draft"),
        ('{"type": 5}', "5 is not valid"),
        ("[]", "a JSON object is needed, this is a list"),
        ("[" * 100_000, "recursion"),
        ("{", "Expecting property name"),
    ],
    ids=["$schema", "type", "list", "deep", "torn"],
)
def test_schemas(text: str, named: str, given: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(text)
    said = refused(given, tmp_path / "out", "--schema", str(tmp_path / "schema.json"))
    assert f"--schema {tmp_path}/schema.json: " in said and named in said


@pytest.mark.usefixtures("no_ray")
def test_a_file_is_no_output(given: Path, tmp_path: Path) -> None:
    for output in (given, given / "deep/er", f"file://{given}"):
        assert f"{given} is a file; give a directory" in refused(given, output)


def test_outputs_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli_generate._output("~/x") == cli_generate._output(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert cli_generate._output("s3://b/~/x") == "s3://b/~/x"


PART = pa.table({"prompt": ["a"]})


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("data/train-00000.parquet", None, "its footer has none of our counts"),
        ("data/part-0000000-a.parquet", b"PAR1 and no more", "Parquet magic bytes not found"),
        ("data/part-0000000-a.parquet", b"", "Parquet file size is 0 bytes"),
        ("data/part-0000000-a.parquet", b"PAR1" + b"\xff" * 8 + b"\x08\0\0\0PAR1", "thrift"),
        ("settings.json", b'{"editor": 1}', "no fingerprint in it"),
        ("settings.json", b"", "not JSON"),
        ("settings.json", b"\xff", "not JSON"),
        ("settings.json", b"[1]", "no fingerprint in it"),
    ],
    ids=["dataset", "torn", "empty", "noise", "editor", "empty settings", "bytes", "list"],
)
def test_outputs_of_others(name: str, content: bytes | None, why: str, given: Path, tmp_path: Path) -> None:
    """The file is named, and nothing is written beside it, with --new either."""
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    pq.write_table(PART, file) if content is None else file.write_bytes(content)
    before = everything(tmp_path)
    for words in ((), ("--new",), ("--dry-run",)):
        said = refused(given, tmp_path / "out", *words)
        assert f"{file} was not made by `regrow generate`, or is damaged" in said and why in said, said
        assert "move it away, or give another --output" in said
    assert everything(tmp_path) == before


def test_a_part_that_is_damaged_later(given: Path, tmp_path: Path, ray_session: None) -> None:
    """It is named; moved away, its rows are answered again."""
    generated.run(given, tmp_path / "out")
    (part,) = (tmp_path / "out/data").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    status, said = generated.command(given, tmp_path / "out", "--max-model-len", str(generated.LONG))
    assert status == 2 and f"{part} was not made by `regrow generate`, or is damaged" in said and "DEBUG" not in said
    for read in (parts.table, parts.footer, parts.ids):
        with pytest.raises(recipe_file.BadInput, match=part.name):
            read(str(tmp_path / "out"), part.stem)
    part.unlink()
    generated.run(given, tmp_path / "out")
    generated.check(tmp_path / "out", range(3))


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_an_output_below_its_input(
    where: str, bucket: str, tmp_path: Path, regrow: Callable[..., Any], ray_session: None
) -> None:
    """What a job wrote is no input of the next go, nor is that of --new beside it."""
    home = str(tmp_path) if where == "disk" else f"{bucket}/{tmp_path.name}"
    rows = [*generated.rows(3), {"prompt": "", "mark": 9}]
    storage.create(f"{home}/in/a.jsonl", generated.lines(rows).encode())
    more = ("--format", "jsonl", "--input", f"{home}/in/**/*.jsonl")
    for words in (more, ("--max-tokens", "2", "--new"), (*more, "--max-tokens", "2", "--new")):
        if where == "disk":
            status, said = generated.command(f"{home}/in", f"{home}/in/out", *words)
        else:  # in a process of its own, which knows the bucket from its start on
            done = regrow("generate", "--model", "echo", "--input", f"{home}/in", "--output", f"{home}/in/out", *words)
            status, said = done.returncode, done.stdout + done.stderr
        assert status == 3 and "reading 1 file(s)" in said and "of 4 rows are in quarantine" in said, said
    generated.check(f"{home}/in/out", range(3), 1)
    assert len(storage.beside(f"{home}/in/out")) == 1
    found = storage.files(f"{home}/in")
    assert {"out/README.md", "out/manifest.json"} < found.keys() and any(name.startswith("out/mess") for name in found)
    said = refused(f"{home}/in/out/data", f"{home}/in/out")
    assert f"only what jobs wrote to {home}/in/out is there; name your own rows" in said


def test_only_what_jobs_wrote_is_left_out(tmp_path: Path) -> None:
    """A folder may hold rows and the output of a job, and be named through a link; another's files stay."""
    place = tmp_path / "place"
    (tmp_path / "link").symlink_to(place)
    for name in ("in.jsonl", "data/in.jsonl", "data/part-1.parquet", "README.md", "settings.json"):
        generated.write(place / name, ["{}"])
    whole = storage.find(str(place))
    assert settling.others(whole, str(place)) == whole, "another program's settings.json"
    generated.write(place / "settings.json", ['{"fingerprint": {}}'])
    for home in (place, tmp_path / "link"):
        left = settling.others(storage.find(str(home)), str(place))
        assert [*left] == [str(home / "data/in.jsonl"), str(home / "in.jsonl")]
    whole = storage.find(str(place))
    for elsewhere in (place / "deeper", tmp_path / "pla", "s3://b/place", place.parent):
        assert settling.others(whole, str(elsewhere)) == whole


def test_csv(tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "a.csv").write_text('id,prompt\n1,hello\n2,"broken\n3,x\n4,y\n5,z\n')
    status, said = generated.command(tmp_path / "a.csv", tmp_path / "out")
    assert status == 2 and "a.csv' cannot be read: the row that begins in line 3" in said and "REGROW_DEBUG" not in said
    (tmp_path / "a.csv").write_text("id,prompt,id\n1,hello,2\n")
    status, said = generated.command(tmp_path / "a.csv", tmp_path / "out")
    assert status == 2 and "a.csv' cannot be read: the header names the column 'id' twice" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", [False, True])
def test_a_column_that_gets_its_first_text(new: bool, tmp_path: Path, ray_session: None) -> None:
    """It was stored as one of strings before; also in the settings of an older version, which have it as null, and in
    an output beside another that an older version named."""
    rows = generated.rows(3, about=None)
    given = generated.write(tmp_path / "in.jsonl", rows)
    words = ("--max-tokens", "9", "--new") if new else ()
    if new:
        assert generated.command(given, tmp_path / "out")[0] == 0
    assert generated.command(given, tmp_path / "out", *words)[0] == 0
    out = next(tmp_path.glob("out-*")) if new else tmp_path / "out"
    older = json.loads((out / "settings.json").read_text())
    assert older["fingerprint"]["input columns"]["about"] == "string"
    older["fingerprint"]["input columns"]["about"] = "null"
    (out / "settings.json").write_text(json.dumps(older))
    if new:
        named = f"out-{jobs.name_of(older['fingerprint'])}"
        out = Path(shutil.move(out, tmp_path / named))
    before = generated.bytes_of(out)
    generated.write(given, [*rows, *generated.rows(1, 3, about="text")])
    status, said = generated.command(given, tmp_path / "out", *words)
    assert status == 0 and "3 of 4 rows there already, 1 to write" in said, said
    there = generated.check(out, range(4), before=before)
    assert {row["about"] for row in there} == {None, "text"}
    assert not new or [*tmp_path.glob("out-*")] == [out]


def _fail(how: str) -> None:
    class Settings(pydantic.BaseModel):
        dtype: int

    if how == "pydantic":
        Settings.model_validate({"dtype": "foo"})
    if how == "lines":
        raise RuntimeError("the engine does not start: a\n\n  b\nc\nd")
    raise KeyError(how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pydantic", "1 validation error for Settings dtype Input should be a valid integer"),
        ("lines", r"^the engine does not start: a b c$"),
        ("key", "^KeyError: 'key"),
    ],
)
def test_a_reason_of_many_lines(how: str, said: str, ray_session: None) -> None:
    """Its first lines are told, not the last alone."""

    def work(_: pa.Table) -> Any:
        _fail(how)

    with pytest.raises(RuntimeError, match=said):
        list(dataflow.each([{"a": 1}], work))


def test_reasons_in_rays_words() -> None:
    code = '\x1b[36mray::Map()\x1b[39m\n  File "a.py", line 3, in f\n    call(\n    ^^^^^\n'
    assert dataflow._reason(f"{code}ValueError: 1 error\nx\n  bad", of_ray=True) == "ValueError: 1 error x bad"
    died = "The actor died.\n\tclass_name: A\nThe actor is dead because its node has died."
    assert dataflow._reason(died, of_ray=True) == "The actor is dead because its node has died."
    assert dataflow._reason("", of_ray=False) == dataflow._reason("\n", of_ray=True) == ""


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("name", "content"), [("README.md", "# mine"), ("manifest.json", "{}"), ("manifest.json", "[")]
)
def test_files_of_others_that_the_end_would_write_over(name: str, content: str, given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    assert f"{out / name} was not made by `regrow generate`" in refused(given, out)
    assert everything(out) == {str(out / name): content.encode()}
