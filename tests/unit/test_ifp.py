"""Instruction-following pruning without a training: recipe fields, what a predictor reads, documents, a collapse."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from pipelines import ids, models, prompts, train
from pipelines.ifp import beginning, texts
from pipelines.recipe_file import BadInput
from pipelines.student import Ifp, Student
from pipelines.tiny import tokenizers
from pipelines.training import choosers, collapse, faults, reading
from serving import choosing
from tests import tiny, trainings


def student(**ifp: Any) -> Student:
    return Student(name="ifp", max_length=32, ifp=Ifp(**{"units": 8, **ifp}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "ifp"}, "needs a section ifp, with ifp.units at least"),
        ({"name": "sft", "ifp": {"units": 4}}, "students that begin with `ifp` have one"),
        ({"name": "ifp", "ifp": {"units": 4}, "compile": True}, "masks do not reach compiled blocks"),
        ({"name": "ifp", "ifp": {"units": 0}}, "greater than or equal to 1"),
        ({"name": "ifp", "ifp": {"units": 4, "temperature": [0.1, 0.5]}}, "temperature goes from 0.1 to 0.5"),
        ({"name": "ifp", "ifp": {"units": 4, "temperature": [1, 0]}}, "two numbers above 0"),
        ({"name": "ifp", "ifp": {"units": 4}, "alpha": 0.3}, "alpha is for dsbs"),
        ({"name": "ifp", "ifp": {"units": 4, "text": "t.jsonl"}, "max_length": 100}, "two chunks"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Student.model_validate(fields)


def test_what_is_learned_is_told_apart() -> None:
    assert Student(name="ifp-d", ifp=Ifp(units=4, learns="dsbs"), alpha=0.3).learns == "dsbs"
    assert student().learns == "sft" and Student(name="sdd-r8").learns == "sdd"


def test_the_first_human_message_chooses() -> None:
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert choosing.opening(messages) == messages[:2] and choosing.opening(messages[1:]) == messages[1:2]


def test_prompts_are_read_in_the_predictors_own_tokens(tmp_path: Path) -> None:
    own, other = tiny.tokenizer(), tokenizers.train(["Which word stands at place 2: frog gold?"] * 9, 600)
    for name, made in (("own", own), ("other", other)):
        made.save_pretrained(tmp_path / name)
    messages = prompts.answer("What is 1 + 2?")
    same = reading.prompt(reading.Reads(str(tmp_path / "own"), 99), own, messages)
    assert same == own(prompts.text(own, messages), add_special_tokens=False).input_ids
    unlike = reading.prompt(reading.Reads(str(tmp_path / "other"), 99), own, messages)
    assert unlike != same and other.decode(unlike) == own.decode(same), "text, not ids"
    ids = own("What is 1 + 2? The answer is 3.", add_special_tokens=False).input_ids
    chunks = reading.chunks(reading.Reads(str(tmp_path / "own"), 99), own, ids, 4)
    assert [token for chunk in chunks for token in chunk] == ids[: len(chunks) * 4] and len(chunks) == (
        len(ids) - 1
    ) // 4
    told = reading.chunks(reading.Reads(str(tmp_path / "other"), 99), own, ids, 4)
    assert [other.decode(chunk) for chunk in told] == [own.decode(chunk) for chunk in chunks]


def test_prompts_that_no_predictor_reads(tmp_path: Path) -> None:
    plain = tiny.tokenizer(chat=False)
    plain.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 2\d tokens, and the mask predictor reads 20 at most"):
        reading.prompt(reading.Reads(str(tmp_path), 20), plain, prompts.answer("x" * 24))
    from serving import predictor

    with pytest.raises(ValueError, match="the prompt is empty"):
        predictor.encode(plain, "", 20)


def test_documents_become_windows(tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "t.jsonl", tiny.tokenizer()
    long = "What is 1 + 2? The answer is 3. " * 20
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (long, "short")))
    how = student(text=str(file), text_chunk=8)
    made = list(texts.windows(how, tokenizer))
    assert "".join(text for _, text in made) == long[: len("".join(text for _, text in made))], "nothing between them"
    sizes = [len(tokenizer(text, add_special_tokens=False).input_ids) for _, text in made]
    assert all(8 < size <= 32 for size in sizes) and len({name for name, _ in made}) == len(made) > 2
    few = list(texts.windows(student(text=str(file), text_chunk=8, text_tokens=50), tokenizer))
    assert few[0] == made[0] and len(few) == 2 and len(tokenizer(few[1][1], add_special_tokens=False).input_ids) == 18


def test_documents_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "short"}\n{"words": 1}\n')
    with pytest.raises(BadInput, match="line 2: no column 'text'"):
        texts.write(student(text=str(file), text_chunk=8), tiny.tokenizer(), tmp_path / "o.parquet")
    file.write_text('{"text": "short"}\n')
    with pytest.raises(BadInput, match="has more than 8 tokens"):
        texts.write(student(text=str(file), text_chunk=8), tiny.tokenizer(), tmp_path / "o.parquet")


def steps(overlap: float, progress: float = 0.9, number: int = collapse.STEPS) -> list[dict[str, Any]]:
    return [{"progress": progress, "mask_overlap": overlap}] * number


def test_a_collapsed_predictor_is_told() -> None:
    with pytest.raises(faults.Stopped, match=r"ifp: the predictor has collapsed: for 50 steps .* 99.95%"):
        collapse.check(student(), steps(0.9995))
    collapse.check(student(), steps(0.99))
    collapse.check(student(), steps(0.9995, progress=0.2))  # while the width falls
    collapse.check(student(), steps(0.9995, number=collapse.STEPS - 1))
    collapse.check(student(), [*steps(0.9995), *steps(0.9, number=1)])
    collapse.check(student(mask="static"), steps(0.9995))


def rows_of(path: Path, *rows: dict[str, Any]) -> str:
    pq.write_table(pa.Table.from_pylist([{"id": str(at), "target": "1", **row} for at, row in enumerate(rows)]), path)
    return str(path)


def test_sub_networks_are_for_what_users_ask(tmp_path: Path) -> None:
    """Not for rationales, and not for prompts too long for the predictor, whose rows may be too long to be learned."""
    own = tiny.tokenizer(chat=False)
    own.save_pretrained(tmp_path)
    rows = [
        {"prompt": f"{task}{n}", "task": task, "family": task[:3]} for n in "123" for task in ("label", "rationale")
    ]
    given = student(), tmp_path, rows_of(tmp_path / "r.parquet", *rows, {"prompt": "x" * 90, "task": None})
    reads = reading.Reads(str(tmp_path), 40)
    assert beginning.asked(*given, reads) == [("lab", f"label{n}\n\n") for n in "123"]
    assert len(beginning.asked(*given, reads._replace(longest=99))) == 4 and beginning.asked(*given, None) == []
    with pytest.raises(BadInput, match=r"of 4 calibration prompts the mask predictor can read 0 .it reads 3 tokens"):
        beginning.asked(*given, reads._replace(longest=3))


def test_a_driver_killed_while_it_tidies_up(tmp_path: Path) -> None:
    """What was cut is whole and its model gone: nothing is trained again."""
    for name in ("whole", "chooser", "checkpoints", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "summary.json").write_text('{"units": 8}')
    assert train.train(trainings.recipe(1), student(), tmp_path, "none", tmp_path) == {"units": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "summary.json"]


def test_what_a_driver_killed_while_cutting_left_goes(tmp_path: Path) -> None:
    tiny.model_dir(tmp_path / "whole", layers=1)
    how = student(mask="importance", units=8)
    choosers._write_scores(torch.rand(1, 128), tmp_path / "chooser")
    for name in (".model.12345678", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    told = train._cut(how, [], 0, tmp_path, "org/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chooser", "model", "whole"]
    assert told["units_before"] == 128 and not (tmp_path / "model" / "half").exists()
    assert 'base_model: "org/base"' in (tmp_path / "model" / "README.md").read_text()


def test_cards_tell_masks_without_the_paths_of_this_machine() -> None:
    told = train._masks(Ifp(units=8, predictor="/here/small", text="/here/t.jsonl"))
    assert (told["ifp.units"], told["ifp.predictor"], told["ifp.text"]) == (8, "small", "t.jsonl")
    assert train._masks(Ifp(units=8, predictor="org/small@main"))["ifp.predictor"] == "org/small"


def test_an_artifact_is_the_same_wherever_its_files_lie(tmp_path: Path) -> None:
    found = []
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        (place / "t.jsonl").write_text('{"text": "words"}\n')
        tiny.model_dir(place / "small", layers=1)
        how = student(text=str(place / "t.jsonl"), predictor=str(place / "small"), text_chunk=8)
        found.append(ids.Shaped(trainings.recipe(1)).train(how, None, []))  # type: ignore[arg-type]
    assert found[0] == found[1] and {"text", "predictor"} <= found[0]["digests"].keys()
    with pytest.raises(ValueError, match=r"ifp.text .* cannot be read"):
        ids.Shaped(trainings.recipe(1)).train(student(text="none.jsonl", text_chunk=8), None, [])  # type: ignore[arg-type]


def test_predictors_that_are_none(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    words, teacher = tiny.tokenizer(), tiny.model_dir(tmp_path / "teacher", layers=1)
    shape = {"vocab_size": len(words), "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**shape, num_hidden_layers=1)).save_pretrained(tmp_path / "bert")
    tiny.model_dir(tmp_path / "few", layers=1, vocab_size=50)
    (tiny.model_dir(tmp_path / "bare", layers=1) / "model.safetensors").unlink()
    words.save_pretrained(tmp_path / "bert")
    said = {
        "bert": "BertModel is an encoder; give a causal",
        "few": f"its embedding has 50 rows, its tokenizer {len(words)}",
        "bare": "no file named model.safetensors",
    }
    for name, why in said.items():
        with pytest.raises(BadInput, match=f"ifp.predictor = .*{name}.*{why}"):
            choosers._given(str(tmp_path / name))
    assert choosers._given(str(teacher))[0].dtype == torch.float32
    asked = trainings.recipe(1).model_copy(update={"student": (student(predictor="first-9"),)})
    with pytest.raises(BadInput, match=r"ifp.predictor = 'first-9': choose from 1 to 8 blocks"):
        train.check(asked, models.TINY)


def test_tokenizers_that_do_not_tell_where_tokens_end(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(BadInput, match=r"ByT5Tokenizer. does not tell"):
        next(texts.windows(student(text=str(tmp_path), text_chunk=8), ByT5Tokenizer()))
