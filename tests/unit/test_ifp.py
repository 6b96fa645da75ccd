"""Instruction-following pruning without a training: recipe fields, what a predictor reads, documents, a collapse."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines import prompts
from pipelines.ifp import collapse, reading, texts
from pipelines.recipe_file import BadInput
from pipelines.student import Ifp, Student
from pipelines.tiny import tokenizers
from pipelines.training import faults
from tests import tiny


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
    assert reading.asked(messages) == messages[:2] and reading.asked(messages[1:]) == messages[1:2]


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
    collapse.check(student(), steps(0.9995, progress=0.4))  # while the width falls
    collapse.check(student(), steps(0.9995, number=collapse.STEPS - 1))
    collapse.check(student(), [*steps(0.9995), *steps(0.9, number=1)])
    collapse.check(student(mask="static"), steps(0.9995))
