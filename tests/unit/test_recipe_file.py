"""Recipes: every shipped one loads; every kind of bad one is refused with field, reason and remedy."""

import tomllib
from pathlib import Path

import pytest

from pipelines import recipe_file, reference
from pipelines.recipe_file import BadInput

GOOD = 'name = "mine"\n[[dataset]]\nname = "d"\nsource = "rows.jsonl"\n[prune]\nlayers = 2\n'


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", recipe_file.names())
def test_shipped_recipes_load_and_read_back(name: str, tmp_path: Path) -> None:
    recipe = recipe_file.load(name)
    again = recipe_file.load(write(tmp_path, reference.render(recipe)))
    assert again == recipe


def test_every_field_is_described() -> None:
    for section in map(recipe_file.section_of, [(), *[(name,) for name in recipe_file.Recipe.model_fields]]):
        if section is not None:
            assert all(field.description for field in section.model_fields.values()), section


def test_paths_are_relative_to_the_recipe_file(tmp_path: Path) -> None:
    recipe = recipe_file.load(write(tmp_path, GOOD))
    assert recipe.dataset[0].source == str(tmp_path / "rows.jsonl")


def test_overrides_reach_sections_and_list_entries() -> None:
    recipe = recipe_file.load("quickstart", ["prune.layers=2", "student.sdd.epochs=3", "dataset.0.rows=10", "seed=7"])
    assert (recipe.prune.layers, recipe.student[1].epochs, recipe.dataset[0].rows, recipe.seed) == (2, 3.0, 10, 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (b"\x00\xff\xfe\x80", "not a text file"),
        ("name = [", "not valid TOML"),
        (GOOD + "layrs = 3\n", "did you mean 'layers'"),
        (GOOD.replace("name = \"mine\"", 'nam = "mine"'), "'name' is missing"),
        (GOOD.replace("layers = 2", 'layers = "two"'), "prune.layers"),
        (GOOD.replace("layers = 2", "layers = 0"), "prune.layers: input should be greater than or equal to 1"),
        (GOOD + '[[student]]\nname = "sfd"\n', "starts with its objective"),
        (GOOD + '[[student]]\nname = "sft"\n[[student]]\nname = "sft"\n', "names must differ"),
        (GOOD.replace("[[dataset]]", "[dataset]"), "dataset"),
        (GOOD + '[cluster]\nmetrics_hook = "mine.log"\n', "a hook is module:function"),
        *[
            (f'{GOOD}[[student]]\nname = "dsbs"\n{field} = {value}\n', f".{field}: input should be a finite number")
            for field in ("epochs", "learning_rate", "weight_decay", "rationale_weight", "alpha")
            for value in ("inf", "nan")
        ],
        (GOOD + '[[student]]\nname = "sft"\nseed = -1\n', "0.seed: input should be greater than or equal to 0"),
        ("seed = 4294967296\n" + GOOD, "seed: input should be less than 4294967296"),
        (GOOD + '[[student]]\nname = "sft"\nlora_rank = 2\nlast_layers = 1\n', "set one of them to 0"),
        (GOOD + '[[student]]\nname = "sft"\nlora_targets = ["q_proj"]\n', "set lora_rank above 0"),
        (GOOD + "[cluster]\nworkers = 6\nreplicas = 4\n", "6 workers cannot hold 4 copies"),
        (GOOD + "[cluster]\nworkers = 6\nreplicas = 4\n", "set cluster.replicas to one of 1, 2, 3, 6"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(BadInput, match=None) as caught:
        recipe_file.load(write(tmp_path, text))
    assert said in str(caught.value) and "mine.toml" in str(caught.value) and "got '{" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("quickstrat", [], "did you mean 'quickstart'"),
        ("no/such.toml", [], "does not exist"),
        ("quickstart", ["prune.layers"], "section.field=value"),
        ("quickstart", ["prune.layrs=2"], "did you mean 'layers'"),
        ("quickstart", ["student.sdx.epochs=2"], "no entry 'sdx'"),
        ("quickstart", ["name.x=2"], "no section"),
    ],
)
def test_bad_names_and_overrides_are_refused(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        recipe_file.load(name, overrides)
    assert said in str(caught.value)


def test_a_recipe_is_frozen() -> None:
    recipe = recipe_file.load("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        recipe.prune.layers = 1  # type: ignore[misc]


def test_rendered_recipe_is_toml() -> None:
    assert tomllib.loads(reference.render(recipe_file.load("gsm8k")))["prune"]["layers"] == 3
