"""What the teacher and the students are asked: the three prompts, as chat messages or plain text.

The rewrite prompt follows the structure of the parent work of self-data distillation (SDFT,
arXiv 2402.13669): instruction, reference answer as a guide, response left open. Students never see
the reference: they train on, and are asked, the plain question. Where a question stands in a
conversation, the turns before it come first, word for word; the instruction wraps the question alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import conversations
from pipelines.conversations import Message

REWRITE = (
    "Here is a question and a reference answer. Use the reference as a guide and answer in your own words.\n\n"
    "Question: {question}\n\nReference answer: {reference}"
)
EXPLAIN = "Explain how to answer the question, then give the answer.\n\nQuestion: {question}"

# The tasks of distilling step-by-step, as the authors' code tells them apart (arXiv 2305.02301).
PREDICT_TASK, EXPLAIN_TASK = "predict: ", "explain: "

# Reasoning models (Qwen3) would else think aloud: targets, calibration and scores are of the plain answer.
# Templates without such a switch ignore it.
TEMPLATE = {"enable_thinking": False}


def question(context: str, text: str) -> str:
    """The plain question of a record: its context, where it has one, above its input."""
    return f"{context}\n\n{text}" if context else text


def answer(asked: str, before: Sequence[Message] = ()) -> list[Message]:
    """Messages that ask the plain question: what students are trained on and everyone is scored with."""
    return [*before, {"role": "user", "content": asked}]


def rewrite(asked: str, reference: str, before: Sequence[Message] = ()) -> list[Message]:
    """Messages that show question and reference and ask for the model's own answer (SDD, the y~ of eq. c,x,y)."""
    return answer(REWRITE.format(question=asked, reference=reference), before)


def explain(asked: str, before: Sequence[Message] = ()) -> list[Message]:
    """Messages that ask for a rationale and then the answer."""
    return answer(EXPLAIN.format(question=asked), before)


def of(row: Mapping[str, Any], prefix: str = "") -> list[Message]:
    """Messages that ask the question of a record's row: the turns before it, then `prefix`, context and input."""
    return answer(prefix + question(row["context"], row["input"]), conversations.load(row["history"]))


def text(tokenizer: Any, messages: list[Message]) -> str:
    """`messages` as the text before the assistant's turn; a tokenizer without chat template gets the
    plain contents, blank-line separated, so that base models work on plain prompts.

    Raises ValueError where the template does not take such a conversation (some know no system turn, some
    want the sides to alternate)."""
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages) + "\n\n"
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the model's chat template does not take a conversation of the roles {roles} ({error}): it ends "
            f"{messages[-1]['content'][-80:]!r}; leave such rows out of the data, or give another template"
        ) from error
