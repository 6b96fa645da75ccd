"""What a student learns from: the (prompt, target) rows that each objective makes of a record. Pure.

sft: the reference. sdd: the teacher's rewrite of it. Distilling step-by-step (dsbs, arXiv 2305.02301, §3.2): two tasks,
told apart by a prefix of the question as in the authors' code: `predict: ` → label, `explain: ` → rationale. Its
baselines learn the label alone (with the teacher's labels: task distillation), or both in one output.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines import prompts
from pipelines.student import DISTILLED, Student

Row = dict[str, Any]  # id, task, prompt, history, target, weight
# Of dsbs; the others have one task, the first. `text`: documents, stage 1 of instruction-following pruning.
LABEL, RATIONALE, TEXT = TASKS = ("label", "rationale", "text")


def writes(student: Student) -> str | None:
    """The mode in which the teacher writes what `student` learns from; None where references are enough."""
    objective = student.learns
    if objective == "sdd":
        return "self_distill"
    told = objective in DISTILLED and (objective != "label" or student.labels == "teacher")
    return "rationale" if told else None


def written(students: Iterable[Student]) -> list[str]:
    """The modes in which the teacher writes for `students`, in their order, each once."""
    return list(dict.fromkeys(mode for student in students if (mode := writes(student))))


def shares(student: Student) -> tuple[float, float, float]:
    """The weights of the label's and of the rationale's loss: (α, 1 - α) as in the authors' code, or (1, λ) as in
    arXiv 2305.02301, eq. 4. Where there is one task, (1, 0). Documents have steps of their own: 1 where there are."""
    text = 1.0 if student.ifp and student.ifp.text else 0.0
    if student.learns != "dsbs":
        return 1.0, 0.0, text
    label, rationale = (
        (student.alpha, 1 - student.alpha) if student.rationale_weight is None else (1.0, student.rationale_weight)
    )
    return label, rationale, text


def rows(student: Student, record: Mapping[str, Any], said: Mapping[str, Any] | None) -> list[Row]:
    """The training rows of one record; `said`, what the teacher wrote about it: a row of a generate artifact, None
    where it wrote nothing or lies in quarantine. Empty where nothing can be learned: no label, or none was read."""
    objective = student.learns
    if objective not in DISTILLED:
        return [_row(record, LABEL, said["target"] if said and objective == "sdd" else record["reference"])]
    label = record["answer"] if student.labels == "gold" else (said or {}).get("label")
    rationale = (said or {}).get("rationale") or ""
    if student.teacher_correct_only and said and said["verdict"] != "match":
        rationale = ""
    if not label:
        return []
    if objective == "dsbs":
        told = [_row(record, RATIONALE, rationale, prompts.EXPLAIN_TASK)] if rationale else []
        return [_row(record, LABEL, label, prompts.PREDICT_TASK), *told]
    if objective == "label":
        return [_row(record, LABEL, label)]
    both = (rationale, f"So the answer is {label}.")
    if objective == "label_then_rationale":
        both = (f"The answer is {label}.", rationale)
    return [_row(record, LABEL, " ".join(filter(None, both)))]


def prefix(student: Student | None) -> str:
    """What stands before each question to a student: one of dsbs answers as it was taught to. None: another model."""
    return prompts.PREDICT_TASK if student and student.learns == "dsbs" else ""


def _row(record: Mapping[str, Any], task: str, target: str, prefix: str = "") -> Row:
    return {
        "id": record["id"],
        "task": task,
        "prompt": prefix + prompts.question(record["context"], record["input"]),
        "history": record["history"],
        "target": target,
        "weight": float(record.get("weight") or 1.0),
    }
