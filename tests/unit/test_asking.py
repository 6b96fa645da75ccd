"""What a row asks: template, messages, history, the columns taken by default, and what is wrong in words."""

import json
from typing import Any

import pytest

from pipelines import few_shot, prompts
from pipelines.conversations import Unfit
from pipelines.generation import asking
from pipelines.generation.job import Columns, Job
from tests import tiny

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1 + 2?"}
SAID = {"role": "assistant", "content": "It is 3."}
MORE = {"role": "user", "content": "And 3 + 4?"}


def job(**settings: Any) -> Job:
    return Job(**{"model": "tiny", "output": "out"} | settings)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("settings", "row", "messages"),
    [
        ({}, {"prompt": " Why? "}, [user("Why?")]),
        ({}, {"prompt": 17}, [user("17")]),
        ({"columns": Columns(prompt="q", context="about")}, {"q": "Why?", "about": "Rain."}, [user("Rain.\n\nWhy?")]),
        ({"columns": Columns(context="about")}, {"prompt": "Why?", "about": None}, [user("Why?")]),
        ({"columns": Columns(history="h")}, {"prompt": "Why?", "h": json.dumps([SYSTEM])}, [SYSTEM, user("Why?")]),
        ({"columns": Columns(history="h")}, {"prompt": "Why?", "h": ""}, [user("Why?")]),
        ({"columns": Columns(messages="m")}, {"m": [SYSTEM, ASKED, SAID, MORE]}, [SYSTEM, ASKED, SAID, MORE]),
        ({"columns": Columns(messages="m")}, {"m": json.dumps([ASKED, SAID])}, [ASKED]),
        ({"columns": Columns(messages="m")}, {"m": None, "prompt": "Why?"}, [user("Why?")]),
        ({"mode": "rationale"}, {"prompt": "Why?"}, prompts.explain("Why?")),
        ({"template": "Q: {q} {{now}}\n"}, {"q": "Why?"}, [user("Q: Why? {now}")]),
        ({"template": "{q}", "columns": Columns(messages="m")}, {"q": "Why?", "m": [SYSTEM, ASKED]},
         [SYSTEM, user("Why?")]),
        ({"template": "{q}", "mode": "rationale"}, {"q": "Why?"}, [user("Why?")]),
    ],
)  # fmt: skip
def test_messages(settings: dict[str, Any], row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert asking.ask(job(**settings), row).messages == messages


def test_a_packaged_prompt_letters_the_choices() -> None:
    asked = asking.ask(
        job(template=few_shot.packaged("choice")), {"question": "What flies?", "choices": ["a fish", "a bird"]}
    )
    (message,) = asked.messages
    assert "What flies?" in message["content"] and message["content"].count("(b) a bird") == 1


def test_rewriting_shows_the_reference_and_keeps_it() -> None:
    columns = Columns(reference="r", answer="a", kind="k", task="t", history="h")
    row = {"prompt": "1 + 2?", "r": "It is 3.", "a": "3", "k": "number", "t": "sums", "h": json.dumps([SYSTEM])}
    asked = asking.ask(job(mode="self_distill", columns=columns), row)
    assert asked.messages == prompts.rewrite("1 + 2?", "It is 3.", [SYSTEM])
    assert (asked.reference, asked.answer, asked.kind, asked.task) == ("It is 3.", "3", "number", "sums")


def test_what_columns_do_not_say_follows_from_the_job() -> None:
    """The answer is the reference, kind and task are the job's; the last assistant's turn is a reference."""
    asked = asking.ask(job(kind="label", columns=Columns(reference="r")), {"prompt": "Why?", "r": "rain"})
    assert (asked.reference, asked.answer, asked.kind, asked.task) == ("rain", "rain", "label", "respond")
    for kind, told, short in (
        ("number", "He sold 48 / 2 = 24 and 48.\n#### 72", "72"), ("choice", "It floats. The answer is (B).", "B"),
        ("label", "It does not say. Answer: neutral", "neutral"), ("number", "72", "72"), ("choice", "bank", "bank"),
    ):  # fmt: skip
        asked = asking.ask(job(kind=kind, columns=Columns(reference="r")), {"prompt": "Why?", "r": told})
        assert (asked.reference, asked.answer) == (told, short)
    plain = asking.ask(job(), {"prompt": "Why?"})
    assert (plain.reference, plain.answer, plain.kind) == ("", "", "none")
    columns = Columns(messages="m", reference="r")
    row: dict[str, Any] = {"m": [ASKED, SAID]}
    assert asking.ask(job(mode="self_distill", columns=columns), row | {"r": "3, then."}).reference == "3, then."
    assert asking.ask(job(columns=columns), row | {"r": None}).reference == "It is 3."


@pytest.mark.parametrize(
    ("settings", "row", "said"),
    [
        ({}, {"question": "Why?"}, "column 'prompt' is missing; the row has 'question'"),
        ({}, {"prompt": None}, "column 'prompt' is null"),
        ({}, {"prompt": " \n"}, "the prompt is empty"),
        ({}, {"prompt": ["Why?"]}, "column 'prompt' is list, not text"),
        ({}, {"prompt": True}, "column 'prompt' is bool, not text"),
        ({}, {"prompt": "x" * 200_001}, "column 'prompt' has 200,001 characters"),
        ({}, {"prompt": "\ud800"}, "column 'prompt' holds half a surrogate pair"),
        ({"columns": Columns(messages="m")}, {"m": [SYSTEM]}, "no user turn"),
        ({"columns": Columns(messages="m")}, {}, "column 'prompt' is missing"),
        ({"template": "{q}"}, {"q": None}, "column 'q' is null"),
        ({"template": "{q}"}, {"q": "x" * 200_001}, "the prompt has 200,001 characters"),
        ({"mode": "self_distill", "columns": Columns(reference="r")}, {"prompt": "?", "r": None}, "column 'r' is null"),
        ({"mode": "self_distill", "columns": Columns(reference="r")}, {"prompt": "?", "r": " "}, "no reference answer"),
        ({"mode": "self_distill", "columns": Columns(messages="m")}, {"m": [ASKED]}, "no reference answer to rewrite"),
    ],
)
def test_unfit_rows_are_told_why(settings: dict[str, Any], row: dict[str, Any], said: str) -> None:
    with pytest.raises(Unfit, match=said):
        asking.ask(job(**settings), row)


def test_columns_by_default() -> None:
    def found(there: str, **settings: Any) -> tuple[str | None, str | None]:
        made = asking.settled(job(**settings), dict.fromkeys(there.split(), "string")).columns
        return made.messages, made.reference

    assert found("prompt other") == (None, None)
    assert found("prompt messages reference") == (None, "reference")
    assert found("messages") == ("messages", None)
    assert found("chat prompt reference mine", columns=Columns(messages="chat", reference="mine")) == ("chat", "mine")
    assert found("q messages", template="{q}") == (None, None)
    assert found("") == (None, None), "an input without rows lacks nothing"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"no column 'prompt' \(--column\); it has 'q', 'r'"),
        ({"columns": Columns(prompt="Q")}, r"no column 'Q' \(--column\); it has 'q', 'r'"),
        ({"columns": Columns(prompt="q", reference="ref")}, r"no column 'ref' \(--reference\)"),
        ({"columns": Columns(prompt="q", answer="a")}, r"no column 'a' \(--answer\)"),
        ({"columns": Columns(prompt="q", id="key")}, r"no column 'key' \(--id\)"),
        ({"columns": Columns(messages="m")}, r"no column 'm' \(--messages\)"),
        ({"columns": Columns(prompt="q", context="about")}, r"no column 'about' \(--context\)"),
        ({"template": "{q} {choices}"}, "names column 'choices', which the input lacks; it has 'q', 'r'"),
        ({"mode": "self_distill", "columns": Columns(prompt="q")}, r"name its column \(--reference COLUMN\)"),
    ],
)
def test_columns_that_the_input_lacks_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asking.settled(job(**settings), {"q": "string", "r": "string"})


def test_text_and_tokens_under_a_chat_template() -> None:
    words = tiny.tokenizer()
    asked = [SYSTEM, user("Why?")]
    text = asking.text(job(), words, asked)
    assert text == "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"
    assert asking.text(job(raw=True), words, asked) == "Be brief.\n\nWhy?"
    ids, few = asking.tokens(words, [text, "Why?"], templated=True)
    assert words.decode(ids) == text and words.decode(few) == "Why?"
    assert asking.tokens(words, [], templated=True) == []
    words.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(Unfit, match="no system role"):
        asking.text(job(), words, asked)


def test_text_without_a_chat_template() -> None:
    """A base model goes on from a prompt file's last character; a plain question is set off by a blank line."""
    words = tiny.tokenizer(chat=False)
    assert asking.text(job(template="{q}\nA:"), words, [user("Why?\nA:")]) == "Why?\nA:"
    assert asking.text(job(raw=True), words, [user("Why?")]) == "Why?"
    assert asking.text(job(), words, [user("Why?")]) == "Why?\n\n"


def test_a_begin_token_is_put_in_front_once() -> None:
    from tokenizers.processors import TemplateProcessing

    words = tiny.tokenizer()
    end = words.eos_token
    words._tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, words.eos_token_id)])
    (templated,) = asking.tokens(words, ["Why?"], templated=True)
    (plain,) = asking.tokens(words, ["Why?"], templated=False)
    assert plain == [words.eos_token_id, *templated]
