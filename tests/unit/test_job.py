"""A job's fingerprint: what shapes the texts is in it, what does not is not, and differences are named."""

import shutil
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pipelines import recipe_file
from pipelines.generation import job as jobs
from pipelines.generation.job import Columns, Job
from tests import tiny

TYPES = {"prompt": "string", "reference": "string"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("m"), layers=1)


def job(**settings: Any) -> Job:
    return Job(**{"model": "tiny", "output": "out"} | settings)


def differences(before: Job, after: Job, folder: Path | None = None) -> list[str]:
    there, asked = (jobs.fingerprint(one, folder, TYPES) for one in (before, after))
    return jobs.differences(there, asked)


@pytest.mark.parametrize(
    "settings",
    [
        {"output": "elsewhere"}, {"engines": 8}, {"max_num_seqs": 256}, {"concurrency": 8}, {"tensor_parallel": 2},
        {"shard_rows": 16}, {"limit": 10}, {"kind": "number"},
        {"columns": Columns(reference="reference")}, {"columns": Columns(answer="a")}, {"columns": Columns(kind="k")},
        {"columns": Columns(task="t")},
    ],
    ids=str,
)  # fmt: skip
def test_how_fast_where_and_how_texts_are_read_changes_nothing(settings: dict[str, Any]) -> None:
    assert differences(job(), job(**settings)) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"temperature": 0.5}, "temperature: 0.0 there, 0.5 asked"),
        ({"top_p": 0.9}, "top_p: 1.0 there, 0.9 asked"),
        ({"max_tokens": 64}, "max_tokens: 256 there, 64 asked"),
        ({"max_model_len": 512}, "max_model_len: 1024 there, 512 asked"),
        ({"seed": 1}, "seed: 0 there, 1 asked"),
        ({"stop": ("\n",)}, r'stop: [] there, ["\n"] asked'),
        ({"dtype": "bfloat16"}, 'dtype: "auto" there, "bfloat16" asked'),
        ({"raw": True}, "raw: false there, true asked"),
        ({"mode": "rationale"}, 'mode: "respond" there, "rationale" asked'),
        ({"model": "other"}, 'model: "tiny" there, "other" asked'),
        ({"endpoint": "http://host/v1"}, 'endpoint: nothing there, "http://host/v1" asked'),
        ({"columns": Columns(prompt="q")}, 'columns asked: prompt: "prompt" there, "q" asked'),
        ({"columns": Columns(context="about")}, 'columns asked: context: nothing there, "about" asked'),
        ({"columns": Columns(messages="m")}, 'columns asked: messages: nothing there, "m" asked'),
        ({"columns": Columns(id="id")}, 'columns asked: id: nothing there, "id" asked'),
    ],
)
def test_what_shapes_texts_is_named(settings: dict[str, Any], line: str) -> None:
    assert differences(job(), job(**settings)) == [line]


def test_several_differences_are_listed_in_order() -> None:
    assert differences(job(), job(n=2, temperature=1.0)) == ["n: 1 there, 2 asked", "temperature: 0.0 there, 1.0 asked"]


def test_the_reference_shapes_rewrites_alone() -> None:
    for mode, named in (("self_distill", 1), ("rationale", 0)):
        before, after = (job(mode=mode, columns=Columns(reference=name)) for name in ("a", "b"))
        assert len(differences(before, after)) == named


@pytest.mark.parametrize(
    ("field", "key", "values"),
    [
        ("template", "prompt", ("{q}", "Q: {q}")),
        ("schema_", "schema", ({"type": "object"}, {"type": "array"})),
    ],
)
def test_long_texts_are_compared_by_their_digest(field: str, key: str, values: tuple[Any, Any]) -> None:
    one, other = (job(**{field: value}) for value in values)
    assert differences(one, one) == []
    (line,) = differences(one, other)
    assert line.startswith(f'{key}: "sha256 ') and line.count("sha256") == 2
    (line,) = differences(job(), one)
    assert line.startswith(f"{key}: nothing there, ")


def test_the_order_of_a_schemas_keys_is_nothing() -> None:
    one, other = {"type": "object", "title": "t"}, {"title": "t", "type": "object"}
    assert differences(job(schema_=one), job(schema_=other)) == []


def test_the_models_files_and_not_its_place(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    asked = job()
    assert jobs.fingerprint(asked, copy, TYPES) == jobs.fingerprint(asked, model, TYPES)
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    changed = jobs.differences(jobs.fingerprint(asked, model, TYPES), jobs.fingerprint(asked, copy, TYPES))
    assert [line.split(":")[0] for line in changed] == ["model's files"]
    assert "versions" in jobs.fingerprint(asked, model, TYPES), "another engine writes otherwise"
    assert "versions" not in jobs.fingerprint(job(endpoint="http://host/v1"), None, TYPES)


def test_the_adapters_files_and_not_its_place(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text(text)
    a, b, c = (job(adapter=str(tmp_path / name)) for name in "abc")
    assert differences(a, b) == []
    assert [line.split(":")[0] for line in differences(a, c)] == ["adapter's files"]


def test_other_columns_make_other_files() -> None:
    there = jobs.fingerprint(job(), None, {"prompt": "string", "n": "int64"})
    asked = jobs.fingerprint(job(), None, {"prompt": "string", "n": "double", "more": "bool"})
    assert jobs.differences(there, asked) == [
        'input columns: more: nothing there, "bool" asked',
        'input columns: n: "int64" there, "double" asked',
    ]
    assert jobs.name_of(there) != jobs.name_of(asked) and len(jobs.name_of(there)) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 2}, "n = 2 samples need a temperature above 0"),
        ({"max_tokens": 1024}, "max_tokens = 1024 leaves no room for a prompt in max_model_len = 1024"),
        ({"template": "no place"}, "the prompt names no column"),
        ({"template": "{q"}, "line 1 of the prompt has a lone '{'"),
        ({"top_p": 0}, "greater than 0"),
        ({"mode": "answer"}, "'self_distill', 'rationale' or 'respond'"),
        ({"temperature": float("inf")}, "finite number"),
        ({"temperature": float("nan")}, "finite number"),
        ({"top_p": float("nan")}, "finite number"),
        ({"stop": ("\n", "")}, "an empty text would end every answer"),
        ({"dtype": "foo"}, "'auto', 'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        job(**settings)


@pytest.mark.parametrize(
    "given",
    ["localhost:8000/v1", "host/v1", "", "ftp://host/v1", "http://", "http://:8000/v1", "http://[::1/v1",
     "http://host:port/v1", "http://host:99999/v1", "http://ho st/v1"],
)  # fmt: skip
def test_an_address_that_is_none(given: str) -> None:
    with pytest.raises(ValueError, match="write it as http://host:8000/v1"):
        job(endpoint=given)


@pytest.mark.parametrize(
    "given",
    ["http://user:S3CRET@host/v1", "http://S3CRET@host/v1", "http://host/v1?key=S3CRET", "http://host/v1#S3CRET",
     "http://host/v1?"],
)  # fmt: skip
def test_an_address_with_a_secret_is_refused(given: str) -> None:
    """It would be told in the output's files; the reason does not tell it either."""
    with pytest.raises(pydantic.ValidationError) as caught:
        job(endpoint=given)
    (error,) = caught.value.errors()
    assert "give the key as OPENAI_API_KEY" in error["msg"] and "S3CRET" not in error["msg"]


@pytest.mark.parametrize("given", ["http://host:8000/v1", "https://host", "http://[::1]:8000/v1", "http://host/a@b/v1"])
def test_an_address_that_is_one(given: str) -> None:
    assert job(endpoint=given).endpoint == given


def test_other_names_of_weights_types() -> None:
    assert differences(job(dtype="float16"), job(dtype="half")) == []
    assert (job(dtype="float").dtype, job(dtype="half").dtype) == ("float32", "float16")


def test_a_column_without_a_value_is_one_of_strings() -> None:
    """As it is stored. An older fingerprint, which has it as null, is the same one."""
    empty, filled = (jobs.fingerprint(job(), None, {"prompt": "string", "more": kind}) for kind in ("null", "string"))
    assert empty == filled
    older = filled | {"input columns": {"prompt": "string", "more": "null"}, "dtype": "half"}
    assert jobs.renewed(older) == filled | {"dtype": "float16"}
    assert jobs.renewed(filled) == filled and jobs.renewed({"other": 1}) == {"other": 1}


def test_an_endpoint_knows_its_own_context() -> None:
    assert job(endpoint="http://host/v1", max_tokens=4096).local is False
    assert job().local and not job(model="echo").local


def test_a_recipes_job() -> None:
    """Prepared records are asked as they are stored: the teacher's settings, the record's own id."""
    recipe = recipe_file.load("quickstart", ["seed=7", "generate.temperature=0.5", "generate.engines=2"])
    made = jobs.of_recipe(recipe, "s3://b/out")
    assert (made.mode, made.output, made.model) == ("self_distill", "s3://b/out", "tiny")
    assert (made.seed, made.temperature, made.engines) == (7, 0.5, 2)
    assert (made.max_tokens, made.max_model_len) == (recipe.generate.max_tokens, recipe.teacher.max_model_len)
    assert (made.columns.prompt, made.columns.reference, made.columns.id) == ("input", "reference", "id")
