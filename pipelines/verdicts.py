"""What a rewrite is worth: the verdict on each, and the training target that follows from it.

Conditional selection of self-data distillation (after the parent work, arXiv 2402.13669): a rewrite
stays only if its final answer is the reference's; otherwise the row falls back to its reference.
"""

from pipelines import answers

VERDICTS = ("match", "mismatch", "unparsable", "truncated", "unchecked", "error")
KEPT = ("match", "unchecked")
# A rewrite that talks about the task it was set has leaked the prompt's scaffold into training data.
LEAKS = ("reference answer", "your response", "my response", "your own response", "your turn", "in your own words")
COPY = 40  # characters from which on a text that stands in the prompt is a copy of it; "yes" may be the answer
LENGTH_BOUNDS = (1 / 8, 8)  # open-ended rewrites: characters relative to the reference


def verdict(
    *, text: str, finish_reason: str, error: str, kind: str, answer: str, prompt: str, reference: str,
    rewrite: bool = True,
) -> str:  # fmt: skip
    """One of `VERDICTS` for a generated `text`.

    `error` is the engine's message, if any; `finish_reason` vLLM's (`stop` or `length`); `reference` "" where there is
    none but the `answer`; `rewrite`, whether the text was to be the reference in other words. A text that is empty,
    copies the prompt or, as a rewrite, names the scaffold counts as unparsable, whatever number it holds."""
    if error:
        return "error"
    if finish_reason == "length":
        return "truncated"
    said = text.strip()
    lowered = said.lower()
    shown = prompt.replace(reference, "") if reference else prompt
    copied = (len(said) >= COPY or said.endswith("?")) and said in shown
    if not said or copied or (rewrite and any(leak in lowered for leak in LEAKS)):
        return "unparsable"
    if kind == "none":
        low, high = LENGTH_BOUNDS
        return "unchecked" if not reference or low <= len(said) / len(reference) <= high else "unparsable"
    found = answers.extract(said, kind)
    if found is None:
        return "unparsable"
    return "match" if answers.same(found, answer, kind) else "mismatch"


def target(verdict: str, text: str, reference: str) -> str:
    """What the student is trained to write: the rewrite if it stays, else the reference."""
    return text.strip() if verdict in KEPT else reference
