"""What the teacher and the students are asked: the three prompts, as chat messages or plain text.

The rewrite prompt follows the structure of the parent work of self-data distillation (SDFT,
arXiv 2402.13669): instruction, reference answer as a guide, response left open. Students never see
the reference: they train on, and are asked, the plain question.
"""

from typing import Any

REWRITE = (
    "Here is a question and a reference answer. Use the reference as a guide and answer in your own words.\n\n"
    "Question: {question}\n\nReference answer: {reference}"
)
EXPLAIN = "Explain how to answer the question, then give the answer.\n\nQuestion: {question}"

# Reasoning models (Qwen3) would else think aloud: targets, calibration and scores are of the plain answer.
# Templates without such a switch ignore it.
TEMPLATE = {"enable_thinking": False}

Message = dict[str, str]


def question(context: str, text: str) -> str:
    """The plain question of a record: its context, where it has one, above its input."""
    return f"{context}\n\n{text}" if context else text


def answer(asked: str) -> list[Message]:
    """Messages that ask the plain question: what students are trained on and everyone is scored with."""
    return [{"role": "user", "content": asked}]


def rewrite(asked: str, reference: str) -> list[Message]:
    """Messages that show question and reference and ask for the model's own answer (SDD, the y~ of eq. c,x,y)."""
    return [{"role": "user", "content": REWRITE.format(question=asked, reference=reference)}]


def explain(asked: str) -> list[Message]:
    """Messages that ask for a rationale and then the answer."""
    return [{"role": "user", "content": EXPLAIN.format(question=asked)}]


def text(tokenizer: Any, messages: list[Message]) -> str:
    """`messages` as the text before the assistant's turn; a tokenizer without chat template gets the
    plain contents, blank-line separated, so that base models work on plain prompts."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE)
    return "\n\n".join(message["content"] for message in messages) + "\n\n"
