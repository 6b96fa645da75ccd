"""Few-shot chain-of-thought prompts: text files with a place for the columns of a row. Pure.

Source: Distilling Step-by-Step (arXiv 2305.02301, §3.1) shows the teacher triplets of input, rationale and label and
then the bare input. The packaged files' triplets were written for this project. A file of one's own is plain text in
which `{column}` stands for a row's column and `{{` and `}}` for braces.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "prompts_cot"
PACKAGED = ("arithmetic", "choice", "nli")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}|[{}]")


def packaged(name: str) -> str:
    """The text of a packaged prompt file: `choice` (columns question, choices), `arithmetic` (input; the label is an
    expression) or `nli` (premise, hypothesis). Raises ValueError for another name."""
    if name not in PACKAGED:
        raise ValueError(f"no packaged prompt {name!r}; there are {', '.join(PACKAGED)}")
    return (FOLDER / f"{name}.txt").read_text(encoding="utf8")


def named(prompt: str) -> tuple[str, tuple[str, ...]]:
    """(template, stop texts) of a packaged prompt's name or of a file's path; a packaged one stops a base model before
    it writes the next question. Raises ValueError where there is neither."""
    if prompt in PACKAGED:
        return packaged(prompt), ("\n\nPremise:",) if prompt == "nli" else ("\n\nQ:",)
    try:
        return Path(prompt).read_text(encoding="utf8"), ()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompt {prompt!r}: no such file to read, nor a packaged one ({', '.join(PACKAGED)})"
        ) from error


def columns(template: str) -> list[str]:
    """The columns that a prompt file names, in the order of their first place.

    Raises ValueError for a brace that belongs to no column, with its line, and for a file that names none."""
    found: dict[str, None] = {}
    for place in _PLACE.finditer(template):
        if place[1]:
            found[place[1].strip()] = None
        elif place[0] in "{}":
            line = template.count("\n", 0, place.start()) + 1
            raise ValueError(f"line {line} of the prompt has a lone {place[0]!r}; write {place[0] * 2!r} for a brace")
    if not found:
        raise ValueError("the prompt names no column, so that every row would be asked the same; write {column}")
    return list(found)


def render(template: str, row: Mapping[str, Any]) -> str:
    """The prompt for one row: `template` with the row's values; line breaks at its end are not part of it.

    A list, such as choices, becomes lines "(a) ...", "(b) ...". Values are put in as they are: a brace in one is
    only text. Raises ValueError for a column that the row lacks, with the columns it has, for one that is null
    or neither text, number nor list, and as `columns` does."""
    for name in columns(template):
        if name not in row:
            raise ValueError(f"the prompt needs column {name!r}; the row has {', '.join(map(repr, row)) or 'none'}")

    def value(place: re.Match[str]) -> str:
        return _written(row[place[1].strip()], place[1].strip()) if place[1] else place[0][0]

    return _PLACE.sub(value, template.rstrip("\n"))


def lettered(choices: Sequence[Any]) -> str:
    """Up to 26 choices as lines "(a) ...", "(b) ..."."""
    return "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _written(value: Any, name: str) -> str:
    if hasattr(value, "tolist"):  # NumPy's, as Ray Data hands out lists and numbers
        value = value.tolist()
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= len(LETTERS):
            raise ValueError(f"column {name!r} is a list of {len(value)}; 1 to {len(LETTERS)} can be lettered")
        return lettered([_written(item, name) for item in value])
    if value is None or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r} is {'null' if value is None else type(value).__name__}, not text")
    return str(value)
