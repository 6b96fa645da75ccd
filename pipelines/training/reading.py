"""What the mask predictor reads of a row, in its own tokens: the first human message; of a document, chunks."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import prompts
from serving import predictor
from serving.choosing import opening


class Reads(NamedTuple):
    """Whose tokens: those of the predictor in `folder`, of which it reads `longest` at most."""

    folder: str
    longest: int


def prompt(reads: Reads, tokenizer: Any, messages: Sequence[prompts.Message]) -> list[int]:
    """The predictor's tokens of a conversation, of which `tokenizer`, the model's, makes the text.

    ValueError for an empty prompt, and for one that is too long for the predictor."""
    return predictor.encode(_tokenizer(reads.folder), prompts.text(tokenizer, opening(list(messages))), reads.longest)


def chunks(reads: Reads, tokenizer: Any, ids: Sequence[int], chunk: int) -> list[list[int]]:
    """The predictor's tokens of each chunk of `chunk` of a document's `ids` but the last, which chooses no units.

    ValueError as in `prompt`. Where the model's tokenizer is another one, chunks go as text."""
    parts = [list(ids[at : at + chunk]) for at in range(0, len(ids) - chunk, chunk)]
    if _alike(reads.folder, tokenizer) and chunk <= reads.longest:
        return parts
    own = _tokenizer(reads.folder)
    return [predictor.encode(own, tokenizer.decode(part), reads.longest) for part in parts]


def fits(reads: Reads, text: str) -> bool:
    """Whether the predictor can read `text`."""
    try:
        predictor.encode(_tokenizer(reads.folder), text, reads.longest)
    except ValueError:
        return False
    return True


def of(folder: Path) -> Reads:
    """What the predictor in `folder` can read."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return Reads(str(folder.resolve()), predictor.longest(config, _tokenizer(str(folder))))


@lru_cache(2)
def _alike(folder: str, tokenizer: Any) -> bool:
    """Whether the tokens are the same; a large vocabulary takes a tenth of a second."""
    return _tokenizer(folder).get_vocab() == tokenizer.get_vocab()


@lru_cache(2)
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
