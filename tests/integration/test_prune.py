"""The prune stage on real, tiny checkpoints: what it writes, and what it refuses."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import cards, cuts, layers, prompts, prune
from pipelines.recipe import Recipe
from tests import tiny

QUESTIONS = [f"What is {n} + {n * n}?" for n in range(20)]


def recipe(teacher: Path | str, blocks: int = 2, max_model_len: int = 1024, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "teacher": {"model": str(teacher), "max_model_len": max_model_len},
            "dataset": [{"name": "d", "source": "tiny-tasks"}],
            "prune": {"layers": blocks, **more},
        }
    )


def cut(asked: Recipe, method: str, teacher: Path, questions: list[str], out: Path) -> dict[str, Any]:
    """Measure and prune, as the stage does."""
    importance = prune.measure(asked, teacher, [prompts.answer(question) for question in questions])
    return prune.prune(asked, method, teacher, importance, out)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower with more, and very slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five bf16 blocks, grouped-query attention, a generation config and a licence."""
    home = tiny.model_dir(tmp_path_factory.mktemp("m") / "small-5", 5, num_key_value_heads=1, initializer_range=0.2)
    model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.bfloat16)
    model.save_pretrained(home)
    # such a file is refused by transformers on saving (temperature without sampling), yet hubs hold many
    (home / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": 1}')
    (home / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Small\n")
    (home / "LICENSE").write_text("Apache License")
    return home


def logits(model: Any, tokenizer: Path) -> torch.Tensor:
    with torch.no_grad():
        return model.float()(**AutoTokenizer.from_pretrained(tokenizer)(QUESTIONS[7], return_tensors="pt")).logits


@pytest.mark.parametrize("method", cuts.METHODS)
def test_writes_an_ordinary_checkpoint_and_the_table(teacher: Path, method: str, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in teacher.iterdir()}
    summary = cut(recipe(teacher), method, teacher, QUESTIONS, tmp_path)
    assert {file.name: file.read_bytes() for file in teacher.iterdir()} == before, "the teacher was touched"
    json.dumps(summary, allow_nan=False)
    modes = {file.stat().st_mode for file in (tmp_path / "model").iterdir()}
    assert len(modes) == 1, "weights that their owner alone can read"

    whole = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(teacher)
    texts = [words(prompts.text(words, prompts.answer(q)), add_special_tokens=False).input_ids for q in QUESTIONS]
    importance = layers.measure(whole, texts)
    removed = cuts.choose(method, 2, importance)
    table = json.loads((tmp_path / "importance.json").read_text())
    assert table == {
        "method": method,
        "layers_removed": 2,
        "removed_layers": removed,
        "angular": {str(n): row for n, row in importance.angular.items()},
        "influence": importance.influence,
        "rows": len(QUESTIONS),
    }
    block = sum(p.numel() for p in whole.model.layers[0].parameters())
    assert summary == {
        "removed_layers": removed,
        "method": method,
        "parameters_before": whole.num_parameters(),
        "parameters_after": whole.num_parameters() - 2 * block,
        "layers_before": 5,
        "layers_after": 3,
        "distance": cuts.distance(importance, removed),
    }

    made = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert made.dtype == torch.bfloat16 and len(made.model.layers) == 3
    source = AutoModelForCausalLM.from_pretrained(teacher, dtype="auto")
    kept = [block for block in range(5) if block not in removed]
    for new, old in enumerate(kept):
        for name, weight in source.model.layers[old].state_dict().items():
            assert torch.equal(made.model.layers[new].state_dict()[name], weight)
    # the same bf16 weights, run in fp32 from other addresses: sums of 128 terms near 1 differ by some 1e-6
    ours, theirs = logits(made, tmp_path / "model"), logits(layers.remove(source, removed), teacher)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_tokenizer_template_generation_config_licence_and_card_come_along(teacher: Path, tmp_path: Path) -> None:
    cut(recipe(teacher), "tail", teacher, QUESTIONS, tmp_path)
    model = tmp_path / "model"
    ours, theirs = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(teacher)
    messages = prompts.answer("Wie groß sind 17 + 199?")
    assert prompts.text(ours, messages) == prompts.text(theirs, messages)
    assert ours(prompts.text(ours, messages)).input_ids == theirs(prompts.text(theirs, messages)).input_ids
    assert (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    name = "generation_config.json"
    assert (model / name).read_bytes() == (teacher / name).read_bytes()
    assert (model / "LICENSE").read_text() == "Apache License"
    assert list(model.glob("*.safetensors")) and not list(model.glob("*.bin"))
    card = (model / "README.md").read_text()
    assert card.startswith('---\nlicense: apache-2.0\nbase_model: "small-5"\n')
    assert "# small-5, 3 of 5 layers" in card and "| removed layers | 3, 4 |" in card and "by regrow" in card
    assert str(teacher.parent) not in card, "a path of this machine"
    assert cards.licence(model) == "license: apache-2.0", "what is made from this model finds the licence too"


def test_same_work_same_bytes(teacher: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        cut(recipe(teacher, 1), "influence", teacher, QUESTIONS, tmp_path / out)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {"importance.json", "importance.svg", "model/model.safetensors"} <= {file.as_posix() for file in files}
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_picture_is_well_formed_and_names_the_cut(teacher: Path, tmp_path: Path) -> None:
    removed = cut(recipe(teacher), "angular", teacher, QUESTIONS, tmp_path)["removed_layers"]
    picture = ET.parse(tmp_path / "importance.svg").getroot()
    words = " ".join(element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert f"angular: 2 of 5 blocks removed ({removed[0]}, {removed[1]})" in words and "angular distance" in words


def test_picture_of_scattered_cuts_and_of_the_smallest_model(tmp_path: Path) -> None:
    scattered = cuts.Importance({1: [0.1, 0.2, 0.1], 2: [0.2, 0.3]}, [0.1, 0.3, 0.1])
    prune.draw(scattered, [0, 2], "influence", tmp_path / "a.svg")
    prune.draw(cuts.Importance({1: [0.1, 0.2]}, [0.1, 0.3]), [0], "angular", tmp_path / "b.svg")
    assert ET.parse(tmp_path / "a.svg") and ET.parse(tmp_path / "b.svg")


def test_works_without_a_chat_template_and_with_untied_embeddings(tmp_path: Path) -> None:
    home = tiny.model_dir(tmp_path / "base", 3, chat=False, tie_word_embeddings=False)
    summary = cut(recipe(home, 1), "angular", home, QUESTIONS, tmp_path / "out")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert made.lm_head.weight is not made.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").chat_template is None
    assert summary["layers_after"] == 2
    assert "names no licence" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_too_many_questions_are_sampled_and_long_ones_keep_their_end(teacher: Path, tmp_path: Path) -> None:
    many = recipe(teacher, calibration_rows=3, max_model_len=64)
    long = [f"{'word ' * 500}{question}" for question in QUESTIONS]
    cut(many, "angular", teacher, long, tmp_path)
    table = json.loads((tmp_path / "importance.json").read_text())
    assert table["rows"] == 3
    whole = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(teacher)
    texts = prune._calibration(many, words, [prompts.answer(question) for question in long])
    assert [len(text) for text in texts] == [64] * 3
    assert words.decode(texts[0]).endswith("?<|end|><|assistant|>")
    assert table["influence"] == layers.measure(whole, texts).influence


def test_no_questions_is_an_error_before_the_model_is_loaded(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no train question"):
        prune.measure(recipe(teacher), teacher, [])


def test_check_reads_the_config_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"no config\.json"):
        prune.check(recipe("x"), tmp_path)
    cases = {
        '{"num_hidden_layers": 8}': "prune.layers = 9, but the teacher has 8 layers; choose 1 to 7",
        '{"text_config": {"num_hidden_layers": 4}, "num_hidden_layers": 99}': "has 4 layers; choose 1 to 3",
        '{"n_layer": 9}': "has 9 layers; choose 1 to 8",
        '{"num_hidden_layers": 1}': "has 1 layer;",
        '{"hidden_size": 8}': "does not say how many layers",
        '{"num_hidden_layers": 20, "quantization_config": {}}': "quantized",
        "{": "is not JSON",
        "[]": "is not a JSON object",
    }
    for text, message in cases.items():
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            prune.check(recipe("x", 9), tmp_path)
    for text in ('{"num_hidden_layers": 10}', '{"text_config": {"num_hidden_layers": 10}}', '{"n_layer": 12}'):
        config.write_text(text)
        prune.check(recipe("x", 9), tmp_path)


def test_importing_the_stage_is_light() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'ray', 'vllm'}"
    code = f"import sys, pipelines.prune, pipelines.cards; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_card_is_plain_markdown_with_front_matter(tmp_path: Path) -> None:
    facts = {"blocks": [1, 2], "none": [], "share": 1 / 3, "parameters": 8030261248, "note": "a|b\nc", "ok": True}
    card = cards.card("Title", "org/base", facts, "license: other\nlicense_name: llama3.1")
    assert card.startswith('---\nlicense: other\nlicense_name: llama3.1\nbase_model: "org/base"\n')
    rows = ("blocks | 1, 2", "none | none", "share | 0.333333", "parameters | 8,030,261,248", "ok | True")
    for row in (*rows, r"note | a\|b c"):
        assert f"| {row} |" in card
    readme = tmp_path / "README.md"
    readme.write_text("# no front matter\nlicense: mit\n")
    assert cards.licence(tmp_path) == "" == cards.licence(tmp_path / "nowhere")
    readme.write_text("---\nlicense: other\nlicense_link: https://example.org/l\ntags:\n- x\n---\nlicense: mit\n")
    assert cards.licence(tmp_path) == "license: other\nlicense_link: https://example.org/l"
