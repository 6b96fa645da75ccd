"""Conversations: lists of turns, `{"role": …, "content": …}`, as OpenAI's chat API has them. Pure.

A data set's row holds one. Its last assistant turn is the reference; the user's turn before that is the
question; what stands before the question is kept as JSON text, since records are columns of strings.
"""

import json
from typing import Any, NamedTuple

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
MAX_TEXT = 200_000  # characters of one text; a longer one makes a row unfit


class Unfit(ValueError):
    """A row cannot be used; the message is the reason, in words for the row's owner."""


class Parts(NamedTuple):
    """One conversation taken apart. `reference` is None where the user has the last word."""

    before: list[Message]
    question: str
    reference: str | None


def parts(value: Any) -> Parts:
    """The parts of one row's conversation: a list of turns, or the same as JSON text (CSV has no lists).

    A system turn may only come first, and the question is a user's turn; two turns in a row of one side are
    left as they are. Keys other than role and content are dropped. Raises Unfit with the turn and reason."""
    turns = [_turn(number, turn) for number, turn in enumerate(_listed(value), 1)]
    if late := next((n for n, turn in enumerate(turns[1:], 2) if turn["role"] == "system"), None):
        raise Unfit(f"turn {late}: a system turn can only be the first")
    if not any(turn["role"] == "user" for turn in turns):
        raise Unfit("no user turn in the conversation")
    reference = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if turns[-1]["role"] != "user":
        raise Unfit(f"the last answer follows a turn of the role {turns[-1]['role']!r}, not a user's question")
    return Parts(turns[:-1], turns[-1]["content"], reference)


def dump(before: list[Message]) -> str:
    """The turns before a question as one string, "" where there are none."""
    return json.dumps(before, ensure_ascii=False) if before else ""


def load(text: str | None) -> list[Message]:
    """The turns that `dump` wrote, or an empty list. Raises Unfit where `text` holds something else."""
    if not text or text.strip() == "[]":
        return []
    return [_turn(number, turn) for number, turn in enumerate(_listed(text), 1)]


def transcript(messages: list[Message]) -> str:
    """A conversation for people to read: the plain text of a single turn, else a line with its role above each."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unfit(f"the conversation is neither a list of turns nor JSON text: {error}") from error
    if not isinstance(value, list) or not value:
        raise Unfit(f"a conversation is a list of turns, this is {_described(value)}")
    return value


def _turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise Unfit(f"turn {number}: an object with role and content is needed, this is {_described(turn)}")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise Unfit(f"turn {number}: unknown role {str(role)[:40]!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise Unfit(f"turn {number}: the content is {_described(content)}; only text can be used")
    if not content.strip():
        raise Unfit(f"turn {number} ({role}) is empty")
    return {"role": role, "content": fit(content, f"turn {number}")}


def fit(text: str, what: str) -> str:
    """`text` without white space round it. Raises Unfit where it is too long, or no Unicode text (half a
    surrogate pair, which JSON can spell and nothing can store)."""
    if len(text) > MAX_TEXT:
        raise Unfit(f"{what} has {len(text):,} characters, more than {MAX_TEXT:,}")
    try:
        text.encode("utf8")
    except UnicodeEncodeError as error:
        raise Unfit(f"{what} holds half a surrogate pair at character {error.start}") from error
    return text.strip()


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:6])) or 'no keys'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"of type {type(value).__name__}"
