"""`recipes init`: what it writes loads, says why, fits data and model, and is never written over another file."""

import json
from pathlib import Path

import pytest

from pipelines import models, prepare, recipe_file
from pipelines.own_data import starter
from pipelines.recipe_file import BadInput


def rows(n: int = 40) -> list[dict]:
    return [{"question": f"What is {i} + 1?", "answer": f"It is {i} + 1. The answer is {i + 1}."} for i in range(n)]


def jsonl(path: Path, content: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
    return str(path)


def model(path: Path, **config: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": 30, "max_position_embeddings": 1000, **config}))
    (path / "tokenizer.json").write_bytes((models.TINY / "tokenizer.json").read_bytes())
    return str(path)


def write(
    path: Path, data: str, teacher: str = "tiny", test: str | None = None, force: bool = False, **told: str
) -> dict:
    return starter.write(path, data, test, teacher, told, None, force)


def test_it_loads_says_why_and_the_run_can_read_it(tmp_path: Path) -> None:
    notes = write(tmp_path / "mine.toml", jsonl(tmp_path / "My rows.jsonl", rows()), model(tmp_path / "m"))
    recipe = recipe_file.load(str(tmp_path / "mine.toml"))
    data = recipe.dataset[0]
    assert (data.input, data.reference, data.kind, data.test_rows) == ("question", "answer", "number", 8)
    assert (recipe.name, data.name, recipe.prune.layers) == ("mine", "my-rows", 8)
    assert recipe.teacher.model == str(tmp_path / "m") and data.source == str(tmp_path / "My rows.jsonl")
    assert recipe.teacher.max_model_len == 384 and recipe.generate.max_tokens == 256
    assert [(student.name, student.lora_rank) for student in recipe.student] == [("sft", 0), ("sdd", 0)]
    text = (tmp_path / "mine.toml").read_text()
    for field, why in notes.items():
        assert f"# chosen: {why}\n{field.partition('.')[2]} =" in text
    assert prepare.prepare(recipe, tmp_path)["tasks"] == [
        {"task": "my-rows", "split": "train", "rows": 32}, {"task": "my-rows", "split": "test", "rows": 8}]  # fmt: skip


def test_paths_are_relative_to_the_recipe_where_they_were_given_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("recipes", "data"):
        (tmp_path / folder).mkdir()
    jsonl(tmp_path / "data" / "rows.jsonl", rows())
    model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    write(Path("recipes/mine.toml"), "data/rows.jsonl", "model", test="data/rows.jsonl")
    text = Path("recipes/mine.toml").read_text()
    assert 'model = "../model"' in text and 'source = "../data/rows.jsonl"' in text and str(tmp_path) not in text
    assert recipe_file.load("recipes/mine.toml").teacher.model == str(tmp_path / "model")
    write(Path("mine.toml"), "data/rows.jsonl", "model")
    assert 'model = "./model"' in Path("mine.toml").read_text()


def test_conversations_and_open_answers(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How do I cook rice?"},
             {"role": "assistant", "content": "Take twice as much water, let it simmer on a low flame."}]  # fmt: skip
    write(tmp_path / "chats.toml", jsonl(tmp_path / "chats.jsonl", [{"messages": turns}] * 20))
    data = recipe_file.load(str(tmp_path / "chats.toml")).dataset[0]
    assert (data.messages, data.kind) == ("messages", "none")


def test_rows_that_do_not_serve_are_told_and_stop_the_run(tmp_path: Path) -> None:
    notes = write(tmp_path / "mine.toml", jsonl(tmp_path / "a.jsonl", [*rows(), "{broken", {"question": "?"}]))
    assert notes["dataset.max_bad_rows"].startswith("2 rows do not serve (line 41: not JSON")
    recipe = recipe_file.load(str(tmp_path / "mine.toml"))
    with pytest.raises(ValueError, match="2 bad rows, 0 allowed"):
        prepare.prepare(recipe, tmp_path)
    assert prepare.prepare(recipe_file.load(str(tmp_path / "mine.toml"), ["dataset.0.max_bad_rows=2"]), tmp_path)


def test_lengths_follow_the_longest_row_up_to_what_the_model_takes(tmp_path: Path) -> None:
    long = {"question": "word " * 900, "answer": "so " * 199 + "the answer is 3."}
    notes = write(tmp_path / "mine.toml", jsonl(tmp_path / "a.jsonl", [*rows(), long]), model(tmp_path / "m"))
    recipe = recipe_file.load(str(tmp_path / "mine.toml"))
    assert recipe.teacher.max_model_len == 1000 and "longer rows end in quarantine" in notes["teacher.max_model_len"]
    assert 1.5 * 199 <= recipe.generate.max_tokens <= 500


def test_training_has_steps_enough_and_a_rate_that_fits_the_model(tmp_path: Path) -> None:
    few, many = jsonl(tmp_path / "few.jsonl", rows()), jsonl(tmp_path / "many.jsonl", rows(9000))
    for data, weights, expected in ((few, 1000, (3, 5e-4, 0, 1024)), (many, 1 << 30, (3, 2e-5, 0, 4096)),
                                    (many, 3 << 30, (3, 1e-4, 8, 4096))):  # fmt: skip
        folder = Path(model(tmp_path / f"{weights}-{Path(data).stem}"))
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(weights)  # a sparse file: only its size is asked for
        write(tmp_path / "mine.toml", data, str(folder), force=True)
        recipe = recipe_file.load(str(tmp_path / "mine.toml"))
        for student in recipe.student:
            assert (student.epochs, student.learning_rate, student.lora_rank, student.batch_tokens) == expected


def test_a_hub_model_is_not_fetched(tmp_path: Path) -> None:
    notes = write(tmp_path / "mine.toml", jsonl(tmp_path / "a.jsonl", rows()), "some/model@main")
    recipe = recipe_file.load(str(tmp_path / "mine.toml"))
    assert (recipe.teacher.model, recipe.prune.layers, recipe.student[0].lora_rank) == ("some/model@main", 8, 8)
    assert "not fetched" in notes["prune.layers"]


@pytest.mark.parametrize(
    ("name", "data", "teacher", "said"),
    [
        ("there.toml", "a.jsonl", "tiny", "there.toml is there already; --force writes over it"),
        ("mine.yaml", "a.jsonl", "tiny", "give one that ends in .toml"),
        ("no/mine.toml", "a.jsonl", "tiny", "there is no directory"),
        ("mine.toml", "none.jsonl", "tiny", "none.jsonl' cannot be read"),
        ("mine.toml", "empty.jsonl", "tiny", "empty.jsonl has no row that can be read"),
        ("mine.toml", "a.xlsx", "tiny", "unknown ending; use .jsonl"),
        ("mine.toml", "a.jsonl", "./nowhere", "model directory './nowhere' does not exist"),
        ("mine.toml", "a.jsonl", "shallow", "has 1 layer; there is none to spare"),
        ("mine.toml", "odd.jsonl", "tiny", "no column looks like the question; name one with --input"),
        ("mine.toml", "unanswered.jsonl", "tiny", "no row serves; line 1: column 'answer' is empty"),
    ],
)
def test_what_does_not_serve_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: str, teacher: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", rows())
    jsonl(tmp_path / "odd.jsonl", [{"a": "x", "b": "y", "c": "z"}])
    jsonl(tmp_path / "unanswered.jsonl", [{"question": "?", "answer": ""}])
    for empty in ("empty.jsonl", "there.toml"):
        (tmp_path / empty).touch()
    model(tmp_path / "shallow", num_hidden_layers=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput) as caught:
        write(Path(name), data, teacher)
    assert said in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.toml").read_text() == ""


def test_force_writes_over(tmp_path: Path) -> None:
    (tmp_path / "there.toml").touch()
    write(tmp_path / "there.toml", jsonl(tmp_path / "a.jsonl", rows()), force=True)
    assert recipe_file.load(str(tmp_path / "there.toml")).name == "there"
