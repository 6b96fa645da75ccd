"""What stored texts say: rationale, label, verdict and training target of each sample. Pure; read again whenever the
code that reads them has changed, without asking the model again."""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

from pipelines import answers, arithmetic, rationales, verdicts
from pipelines.generation import asking
from pipelines.rows import published

FIELDS = ("rationale", "label", "target", "verdict", "agreement")


def parser() -> str:
    """What the reading of texts depends on: a digest of the code that does it."""
    import pipelines.generation.reading as this

    whole = hashlib.sha256()
    for module in (answers, arithmetic, asking, rationales, verdicts, published, this):
        whole.update(inspect.getsource(module).encode())
    return whole.hexdigest()[:16]


def read(mode: str, row: dict[str, Any], samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`FIELDS` of each of one row's `samples` ({text, finish_reason}).

    `row` holds prompt, reference, answer and kind. In mode `rationale` the label is compared with the reference;
    where there is none the label that most samples agree on stands in for it, and `agreement` is their share
    (self-consistency, arXiv 2203.11171)."""
    if mode == "rationale":
        return _rationales(row, samples)
    found = []
    for sample in samples:
        said = _verdict(row, sample, rewrite=mode == "self_distill")
        target = verdicts.target(said, sample["text"], row["reference"])
        found.append({"rationale": None, "label": None, "target": target, "verdict": said, "agreement": None})
    return found


def label_kind(kind: str) -> str:
    """The answer kind under which labels of rows of `kind` are compared: as words where none is stated."""
    return "text" if kind == "none" else kind


def _verdict(row: dict[str, Any], sample: dict[str, Any], rewrite: bool) -> str:
    if row["reference"] or row["answer"]:
        return verdicts.verdict(
            text=sample["text"], finish_reason=sample["finish_reason"], error="",
            kind=row["kind"], answer=row["answer"], prompt=row["prompt"], reference=row["reference"], rewrite=rewrite,
        )  # fmt: skip
    if sample["finish_reason"] == "length":
        return "truncated"
    return "unchecked" if sample["text"].strip() else "unparsable"


def _rationales(row: dict[str, Any], samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    kind = label_kind(row["kind"])
    gold = row["answer"]
    parts = [rationales.split(sample["text"], kind) for sample in samples]
    voted = rationales.vote([part and part[1] for part in parts], kind)
    found = []
    for part, sample in zip(parts, samples, strict=True):
        rationale, label = part or ("", "")
        if not label:
            said = "truncated" if sample["finish_reason"] == "length" else "unparsable"
        else:
            said = published.judge(label, gold, kind) if gold else "unchecked"
        target = row["reference"] or gold or (voted[0] if voted else label)
        agreement = voted[1] if voted and len(samples) > 1 else None
        found.append(
            {"rationale": rationale, "label": label, "target": target, "verdict": said, "agreement": agreement}
        )
    return found
