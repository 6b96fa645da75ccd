"""Conversations: taken apart, kept word for word, asked again with every turn, refused with the reason."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts import Artifact
from pipelines import conversations, evaluate, inputs, prepare, prompts
from pipelines.conversations import Unfit
from pipelines.generation import asking, job
from pipelines.recipe import Dataset, Prune, Recipe
from pipelines.rows import records
from pipelines.student import Student
from pipelines.training import batches, encoding
from tests import tiny

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "What is 1 + 2?"}
SAID = {"role": "assistant", "content": "The answer is 3."}
MORE = {"role": "user", "content": "And 3 + 4?"}
LAST = {"role": "assistant", "content": "The answer is 7."}
WHOLE = [SYSTEM, ASKED, SAID, MORE, LAST]
CHATS = Dataset(name="d", source="x", messages="messages")


def recipe(path: Path, **dataset: object) -> Recipe:
    data = CHATS.model_copy(update={"source": str(path), **dataset})
    return Recipe(name="r", dataset=(data,), prune=Prune(layers=1), student=(Student(name="sft"),))


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("turns", "before", "question", "reference"),
    [
        (WHOLE, [SYSTEM, ASKED, SAID], MORE, LAST["content"]),
        ([ASKED, SAID], [], ASKED, SAID["content"]),
        ([SYSTEM, ASKED], [SYSTEM], ASKED, None),
        ([ASKED, MORE, LAST], [ASKED], MORE, LAST["content"]),
        ([ASKED, SAID, SAID, MORE], [ASKED, SAID, SAID], MORE, None),
        ([{**ASKED, "name": "Tom"}, {**SAID, "tool_calls": None}], [], ASKED, SAID["content"]),
    ],
)
def test_parts(turns: list, before: list, question: dict, reference: str | None) -> None:
    expected = conversations.Parts(before, question["content"], reference)
    assert conversations.parts(turns) == expected == conversations.parts(json.dumps(turns))
    assert conversations.load(conversations.dump(before)) == before


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hello", "neither a list of turns nor JSON"),
        ({"role": "user"}, "a conversation is a list of turns, this is an object with 'role'"),
        ([], "this is a list of 0"),
        (3, "this is of type int"),
        (["hello"], "turn 1: an object with role and content is needed, this is of type str"),
        ([{"from": "human", "value": "?"}], "turn 1: .* this is an object with 'from', 'value'"),
        ([ASKED, {"role": "tool", "content": "3"}], "turn 2: unknown role 'tool'; known are system, user, assistant"),
        ([{"role": ["user"], "content": "3"}], "unknown role"),
        ([{"role": "user", "content": None}], "the content is null"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the content is a list of 1; only text"),
        ([{"role": "user", "content": " \n"}], r"turn 1 \(user\) is empty"),
        ([ASKED, SYSTEM, SAID], "turn 2: a system turn can only be the first"),
        ([SYSTEM, SAID], "no user turn"),
        ([ASKED, SAID, LAST], "the last answer follows a turn of the role 'assistant'"),
        ([{"role": "user", "content": "x" * 200_001}], "turn 1 has 200,001 characters"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair at character 0"),
    ],
)
def test_bad_shapes_are_refused_with_the_reason(value: object, said: str) -> None:
    with pytest.raises(Unfit, match=said):
        conversations.parts(value)


def test_records_of_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": WHOLE},
        {"messages": [ASKED, SAID]},
        {"messages": [SYSTEM, MORE], "answer": LAST["content"]},
        {"messages": [SYSTEM, MORE]},
        {"messages": [SYSTEM]},
        {"turns": WHOLE},
    ]
    found, bad = records.read(CHATS, str(jsonl(tmp_path / "a.jsonl", rows)), "train", None)
    assert [(r.input, r.reference, r.answer) for r in found] == [
        (MORE["content"], LAST["content"], "7"),
        (ASKED["content"], SAID["content"], "3"),
        (MORE["content"], LAST["content"], "7"),
    ]
    assert [conversations.load(r.history) for r in found] == [[SYSTEM, ASKED, SAID], [], [SYSTEM]]
    assert len({r.id for r in found}) == 3, "the turns before a question belong to the record's identity"
    assert [row.line for row in bad] == [4, 5, 6]
    assert "ends with the user's turn, and column 'answer' is missing" in bad[0].reason
    assert "column 'messages' is missing" in bad[2].reason
    same = jsonl(tmp_path / "b.jsonl", [{"question": ASKED["content"], "answer": SAID["content"]}])
    assert records.read(Dataset(name="d", source="x"), str(same), "train", None)[0][0].id == found[1].id


def test_parquet_lists_and_csv_texts_read_like_jsonl(tmp_path: Path) -> None:
    rows = [{"messages": WHOLE}, {"messages": [ASKED, SAID]}]
    expected = records.read(CHATS, str(jsonl(tmp_path / "a.jsonl", rows)), "train", None)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    cells = ['"' + json.dumps(row["messages"]).replace('"', '""') + '"' for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(["messages", *cells]))
    for name in ("a.parquet", "a.csv"):
        assert records.read(CHATS, str(tmp_path / name), "train", None) == expected


def test_every_stage_asks_the_whole_conversation(tmp_path: Path) -> None:
    """Calibration, rewriting, training and evaluation see every turn, in the model's own template."""
    folder = tiny.model_dir(tmp_path / "model", layers=1)
    prepare.prepare(recipe(jsonl(tmp_path / "a.jsonl", [{"messages": WHOLE}])), tmp_path)
    data = Artifact("prepare", "x", str(tmp_path))
    row = inputs.records(data, "train")[0]
    plain = "<|system|>Be brief.<|end|><|user|>What is 1 + 2?<|end|><|assistant|>The answer is 3.<|end|>"
    wrapped = prompts.REWRITE.format(question="And 3 + 4?", reference="The answer is 7.")

    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    rewriting = job.of_recipe(recipe(tmp_path / "a.jsonl"), str(tmp_path / "out"))
    text = asking.text(rewriting, words, asking.ask(rewriting, row).messages)
    assert text == f"{plain}<|user|>{wrapped}<|end|><|assistant|>"
    assert words.decode(asking.tokens(words, [text], templated=True)[0]) == text
    assert prompts.explain("x", [SYSTEM])[0] == SYSTEM
    assert inputs.calibration(recipe(tmp_path / "a.jsonl"), data) == [WHOLE[:-1]]
    assert evaluate._asked(folder, [row], "") == [WHOLE[:-1]]

    path, held = inputs.targets(Student(name="sft"), data, None, tmp_path)
    assert held is None, "no validation rows"
    told = encoding.encode(pa.table({"group": [0]}), [0], str(folder), path, tmp_path, 512, "drop").to_pylist()
    (encoded,) = pa.ipc.open_file(encoding.part(tmp_path, 0)).read_all().to_pylist()
    ids, start = encoded["ids"], encoded["prompt"]
    assert batches.Encoded(ids, start) == batches.encode(words, WHOLE[:-1], "The answer is 7.")
    assert [row["state"] for row in told] == [encoding.KEPT]
    assert words.decode(ids[:start]) == f"{plain}<|user|>And 3 + 4?<|end|><|assistant|>"
    assert words.decode(ids[start:]) == "The answer is 7.<|end|>"


def test_base_models_get_the_contents_blank_line_separated() -> None:
    text = prompts.text(tiny.tokenizer(chat=False), prompts.answer("And 3 + 4?", [SYSTEM, ASKED, SAID]))
    assert text == "Be brief.\n\nWhat is 1 + 2?\n\nThe answer is 3.\n\nAnd 3 + 4?\n\n"


def test_a_template_that_wants_other_roles_is_named() -> None:
    words = tiny.tokenizer()
    words.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}hi"
    assert prompts.text(words, [ASKED]) == "hi"
    with pytest.raises(ValueError, match=r"roles system, user \(no system role\): it ends 'What is 1 \+ 2\?'"):
        prompts.text(words, [SYSTEM, ASKED])


def test_transcripts() -> None:
    assert conversations.transcript([ASKED]) == "What is 1 + 2?"
    assert conversations.transcript([SYSTEM, ASKED]) == "[system]\nBe brief.\n\n[user]\nWhat is 1 + 2?"
