"""Sizes that follow from a model and rows, without loading the model: lengths in tokens, and how to train students."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines import models, prompts, prune
from pipelines.rows.records import Record
from pipelines.student import Student

SHORTEST = 256  # tokens of an answer: a model may say more than a reference that is a bare number
LONGEST = 8192  # tokens of prompt and answer, unless the model takes fewer
LARGE = 2 << 30  # bytes of weights from which students are trained with LoRA
SMALL = 200 << 20  # bytes of weights below which a model takes, and needs, a high learning rate
STEPS = 100  # that a training should have at least: the rate warms up and falls within them
Notes = dict[str, str]


class Model(NamedTuple):
    """What is known of a teacher without loading it: its number of blocks, positions, bytes of weights, and how
    many tokens a text has; None where it is on the hub."""

    layers: int | None
    positions: int | None
    weights: int | None
    tokens: Callable[[str], int] | None


class Lengths(NamedTuple):
    """Tokens of the longest question (with all turns before it) and of the longest reference; of all rows, about;
    and in what they were counted."""

    question: int
    reference: int
    total: int
    unit: str


def look_at(model: str) -> Model:
    """What the model's directory says of it. Raises ValueError where there is none that can be pruned."""
    if models.on_hub(model):
        return Model(None, None, None, None)
    folder = models.resolve(model)
    config = models.configuration(folder)
    text = config.get("text_config") or config
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    layers, positions = prune.depth(config, str(folder / "config.json")), text.get("max_position_embeddings")
    if layers < 2:
        raise ValueError(f"model {model!r} has {layers} layer; there is none to spare")
    return Model(layers, positions if isinstance(positions, int) else None, weights, _counter(folder))


def lengths(rows: Sequence[Record], known: Model) -> Lengths:
    """The lengths of `rows`. Only the longest by characters are tokenised; the total follows from their ratio."""
    count = known.tokens or (lambda text: -(-len(text) // 3))
    texts = [("\n\n".join(turn["content"] for turn in prompts.of(vars(row))), row.reference) for row in rows]
    longest = [sorted((pair[field] for pair in texts), key=len)[-8:] for field in (0, 1)]
    counted = [[count(text) for text in some] for some in longest]
    ratio = sum(map(sum, counted)) / max(1, sum(len(text) for some in longest for text in some))
    total = round(ratio * sum(len(question) + len(reference) for question, reference in texts))
    unit = "tokens" if known.tokens else "tokens, at three characters each"
    return Lengths(max(counted[0]), max(counted[1]), total, unit)


def context(known: Model, found: Lengths, notes: Notes) -> tuple[int, int]:
    """`teacher.max_model_len` and `generate.max_tokens`; the reasons go to `notes`."""
    most = min(known.positions or LONGEST, LONGEST)
    reply = min(max(SHORTEST, _up(1.5 * found.reference, 32)), most // 2)
    whole = min(most, _up(found.question + found.reference + 96 + reply, 128))
    asked = f"the longest question ({found.question:,} {found.unit})"
    notes["teacher.max_model_len"] = f"room for {asked}, its reference and a rewrite"
    if whole == most:
        notes["teacher.max_model_len"] += f"; {most:,} is the most here, longer rows end in quarantine"
    said = f"the longest reference ({found.reference:,} {found.unit})"
    notes["generate.max_tokens"] = f"half as much again as {said}, {SHORTEST} at least"
    notes["evaluate.max_tokens"] = "as generate.max_tokens"
    return whole, reply


def students(known: Model, found: Lengths, whole: int, notes: Notes) -> tuple[Student, ...]:
    """An SFT and an SDD student of equal settings; the reasons go to `notes`."""
    large = known.weights is None or known.weights > LARGE
    small = known.weights is not None and known.weights < SMALL
    size = "a model of unknown size" if known.weights is None else f"{known.weights / 1e9:.2g} GB of weights"
    notes["student.lora_rank"] = f"{size}: {'LoRA' if large else 'full fine-tuning'}"
    rate = 1e-4 if large else 5e-4 if small else 2e-5
    kind = "LoRA" if large else "a very small model" if small else "full fine-tuning"
    notes["student.learning_rate"] = f"usual for {kind}"
    epochs = 3 if found.total < STEPS * 4096 else 1
    notes["student.epochs"] = f"about {found.total:,} {found.unit} in all rows"
    tokens = max(1024, min(16384, 1 << (found.total * epochs // STEPS).bit_length() - 1))
    notes["student.batch_tokens"] = f"so that there are about {max(1, found.total * epochs // tokens)} steps"
    notes["student.max_length"] = "as teacher.max_model_len"
    common = {"epochs": epochs, "learning_rate": rate, "batch_tokens": tokens, "max_length": whole}
    return tuple(Student(name=name, lora_rank=8 if large else 0, **common) for name in ("sft", "sdd"))


def _counter(folder: Path) -> Callable[[str], int] | None:
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _up(tokens: float, step: int) -> int:
    return -(-int(tokens) // step) * step or step
