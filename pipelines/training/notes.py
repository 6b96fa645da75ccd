"""Sentences on what went wrong in a training and was mended: said on the user's screen, and kept for its summary.

Workers have no screen: theirs go through a file beside the checkpoints, which the driver looks at.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from pipelines.screen import say

KEPT, TOLD = "notes.jsonl", "told.jsonl"


def note(storage: Path, text: str) -> None:
    """Say `text` and keep it, also where this driver gets killed."""
    say(escape(text))
    _write(storage / KEPT, text)


def notes(storage: Path) -> list[str]:
    """What was noted so far."""
    return list(_lines(storage / KEPT))


def tell(storage: Path, text: str) -> None:
    """Have the driver note `text`. Called by one worker, the first."""
    _write(storage / TOLD, text)


def hear(storage: Path, heard: int) -> int:
    """Note what the worker told since `heard` sentences; returns how many there are now."""
    told = list(_lines(storage / TOLD))
    for text in told[heard:]:
        note(storage, text)
    return len(told)


def _write(file: Path, text: str) -> None:
    with file.open("a", encoding="utf8") as opened:
        opened.write(json.dumps(text, ensure_ascii=False) + "\n")


def _lines(file: Path) -> Iterator[str]:
    """The sentences of a file; a line that a killed process left unfinished is left out."""
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)
