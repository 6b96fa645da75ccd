"""Checkpoints that do not fit together: told before anything is cut, never filled up with random weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import prune, weights
from pipelines.recipe import Recipe
from tests import tiny

UP = "model.layers.1.mlp.up_proj.weight"
ASKED = [[{"role": "user", "content": "What is 1 + 2?"}]]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return tiny.model_dir(tmp_path / "teacher", layers=3)


def configure(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def without(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != name}, file, {"format": "pt"})


def sharded(folder: Path) -> None:
    names = {name: f"model-0000{1 + (name != UP)}-of-00002.safetensors" for name in load_file(folder / MODEL)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / MODEL).rename(folder / "model-00002-of-00002.safetensors")


MODEL = "model.safetensors"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another width": (lambda t: configure(t, hidden_size=128), "is 466 x 64, but config.json there makes it 466 x 128"),
    "another vocabulary": (lambda t: configure(t, vocab_size=99), "but config.json there makes it 99 x 64"),
    "more blocks": (lambda t: configure(t, num_hidden_layers=5), "lack model.layers.3.input_layernorm.weight"),
    "a matrix missing": (lambda t: without(t, UP), f"lack {UP};"),
    "heads that do not divide": (lambda t: configure(t, num_attention_heads=3), "not a multiple of the number of"),
    "an encoder": (lambda t: configure(t, model_type="bert", architectures=["BertModel"]), "lack bert."),
    "an encoder-decoder": (lambda t: configure(t, model_type="t5"), "describes a 't5' model, which is no causal"),
    "an unknown kind": (lambda t: configure(t, model_type="wonder"), "config.json: The checkpoint you are trying"),
    "torn": (lambda t: (t / MODEL).write_bytes((t / MODEL).read_bytes()[:-9]), "is torn or no safetensors file"),
    "rubbish": (lambda t: (t / MODEL).write_bytes(b"<html>" * 99), "is torn or no safetensors file"),
    "pickled": (lambda t: (t / MODEL).rename(t / "pytorch_model.bin"), "model.safetensors is missing"),
    "a shard missing": (sharded, "model-00001-of-00002.safetensors is missing"),
    "an index of nothing": (lambda t: (t / f"{MODEL}.index.json").write_text("[]"), "is no index of weights"),
    "another tokenizer": (lambda t: shrunk(t, 40), "the model's embedding has 40 rows"),
}


def shrunk(folder: Path, rows: int) -> None:
    """A model with so few tokens that its tokenizer cannot be its own."""
    file = folder / MODEL
    kept = {key: value[:rows].clone() if "embed" in key else value for key, value in load_file(file).items()}
    save_file(kept, file, {"format": "pt"})
    configure(folder, vocab_size=rows)


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(teacher: Path, what: str) -> None:
    damage, said = WRONG[what]
    damage(teacher)
    data = [{"name": "d", "source": "tiny-tasks"}]
    recipe = Recipe.model_validate(
        {"name": "t", "teacher": {"model": str(teacher)}, "dataset": data, "prune": {"layers": 1}}
    )
    with pytest.raises(ValueError) as raised:
        prune.measure(recipe, teacher, ASKED)
    assert said in str(raised.value), raised.value
    assert str(teacher) in str(raised.value)


def test_what_is_left_over_is_said_once(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(teacher, num_hidden_layers=2)
    for _ in range(2):
        assert weights.load(teacher, torch.float32).config.num_hidden_layers == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("describes a model without model.layers.2.input_layernorm.weight") == 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_checkpoint_is_read_to_the_bit(tmp_path: Path, tied: bool) -> None:
    folder = tiny.model_dir(tmp_path / "model", tie_word_embeddings=tied)
    model = weights.load(folder, torch.float32)
    there = load_file(folder / MODEL)
    assert {name for name, _ in model.named_parameters()} == set(there)
    assert all(torch.equal(value, there[name]) for name, value in model.named_parameters())
