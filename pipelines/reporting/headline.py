"""The result of a run in words: the sentence on top of the report, and what stands behind it."""

from collections.abc import Mapping
from typing import Any

from pipelines.reporting.findings import Inputs, difference
from pipelines.reporting.recovery import Interval


def headline(inputs: Inputs, made: Mapping[str, Any]) -> tuple[str, str]:
    """The run's result in one sentence, and what stands behind it in a second or third.

    It speaks of the first SDD student of the recipe (else its first student) and its first SFT
    student: chosen by place, never by score."""
    rows = {row["model"]: row for row in made["recovery"]}
    students, cuts = inputs.named("student"), inputs.named("pruned")
    teacher = next(iter(inputs.named("teacher")), None)
    if teacher is None:
        return "No verdict: the run has not scored its teacher.", ""
    if not rows[teacher]["average"]:
        return "No verdict: the teacher itself gets nothing right on these tasks.", ""
    if not cuts:
        return "No verdict: the run has not scored a pruned model.", ""
    cut = rows[cuts[0]]
    kept = f"Pruning left {cut['recovery']:.1f} % of the teacher’s quality{_within(cut['ci95'])}."
    if not students:
        return kept, "No student has been trained and scored yet."
    star = (inputs.objective("sdd") or students)[0]
    got, gain = rows[star], difference(inputs, star, cuts[0])
    back = f"from {cut['recovery']:.0f} % to {got['recovery']:.0f} % of the teacher’s"
    if gain.low is not None and gain.low > 0:
        first = f"Quality grew back {back}"
    elif gain.high is not None and gain.high < 0:
        first = f"Training made the pruned model worse, {back}"
    else:
        first = f"Quality did not clearly grow back: {back}"
    reached = f"{got['recovery']:.1f} % of the teacher’s average{_within(got['ci95'])}"
    measured = f"{_smaller(inputs, teacher, star)}{inputs.label(star)} reaches {reached}"
    measured += f"; the pruned model without training {cut['recovery']:.1f} %{_within(cut['ci95'])}."
    sft = next(iter(inputs.objective("sft")), None)
    if sft is None or star not in inputs.objective("sdd"):
        return f"{first}.", measured
    return f"{first}, and {_versus(difference(inputs, star, sft))}.", measured + _apart(inputs, star, sft)


def _smaller(inputs: Inputs, teacher: str, student: str) -> str:
    size = {model["name"]: model.get("parameters") or 0 for model in inputs.models}
    if not size[teacher] or not size[student]:
        return ""
    return f"With {100 * (1 - size[student] / size[teacher]):.0f} % fewer parameters, "


def _versus(found: Interval) -> str:
    low, high, value = found.low or 0.0, found.high or 0.0, found.value or 0.0
    near, far = sorted((abs(low), abs(high)))
    by = f"by {abs(100 * value):.1f} points (95 % interval {100 * near:.1f} to {100 * far:.1f})"
    if low > 0:
        return f"self-data distillation (SDD) beat plain fine-tuning (SFT) {by}"
    if high < 0:
        return f"self-data distillation (SDD) fell behind plain fine-tuning (SFT) {by}"
    span = f"{_signed(value)} points (95 % interval {_signed(low)} to {_signed(high)})"
    return f"self-data distillation (SDD) and plain fine-tuning (SFT) cannot be told apart: {span}"


def _apart(inputs: Inputs, a: str, b: str) -> str:
    said = []
    for part, tasks in inputs.parts().items():
        if tasks is not None:
            found = difference(inputs, a, b, tasks)
            said.append(f"{_signed(found.value or 0)} points {part.replace('_', '-')}"
                        f" ({_signed(found.low or 0)} to {_signed(found.high or 0)})")  # fmt: skip
    return f" Against {inputs.label(b)}: {', '.join(said)}." if said else ""


def _within(ends: list[float] | None) -> str:
    return f" (95 % interval {ends[0]:.1f} to {ends[1]:.1f})" if ends else ""


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
