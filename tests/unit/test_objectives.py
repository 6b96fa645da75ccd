"""What each objective makes of a record and of what the teacher wrote about it."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines import objectives
from pipelines.student import LEARNED, Ifp, Student, objective_of

RECORD = {"id": "a", "context": "", "input": "2 + 3?", "history": "", "reference": "It is 5.", "answer": "5"}
SAID = {"rationale": "2 and 3 are 5.", "label": "5", "verdict": "match", "target": "2 + 3 = 5\n#### 5"}
WRONG = {"rationale": "2 and 3 are 6.", "label": "6", "verdict": "mismatch", "target": "It is 5."}


def learned(name: str, said: dict[str, Any] | None, record: dict[str, Any] = RECORD, **fields: Any) -> list[tuple]:
    """(task, prompt, target) of the rows of one record."""
    found = objectives.rows(Student(name=name, **fields), record, said)
    assert all(row["id"] == "a" and row["history"] == "" for row in found)
    return [(row["task"], row["prompt"], row["target"]) for row in found]


def test_references_and_rewrites() -> None:
    assert learned("sft", SAID) == [("label", "2 + 3?", "It is 5.")]
    assert learned("sdd-r8", SAID) == [("label", "2 + 3?", "2 + 3 = 5\n#### 5")]
    assert learned("sdd", None) == [("label", "2 + 3?", "It is 5.")], "in quarantine: the reference"


def test_step_by_step_is_two_tasks_of_one_row() -> None:
    assert learned("dsbs", SAID) == [
        ("label", "predict: 2 + 3?", "5"),
        ("rationale", "explain: 2 + 3?", "2 and 3 are 5."),
    ]
    assert learned("dsbs", None) == [("label", "predict: 2 + 3?", "5")], "no rationale was read: the row stays"
    chosen = Student(name="ifp-d", ifp=Ifp(units=4, learns="dsbs"))
    assert objectives.prefix(Student(name="dsbs-r8")) == objectives.prefix(chosen) == "predict: "
    assert objectives.prefix(Student(name="label")) == objectives.prefix(None) == ""
    record = {**RECORD, "context": "Think.", "weight": "0.25"}
    assert [row["prompt"] for row in objectives.rows(Student(name="dsbs"), record, SAID)] == [
        "predict: Think.\n\n2 + 3?", "explain: Think.\n\n2 + 3?",
    ]  # fmt: skip
    assert {row["weight"] for row in objectives.rows(Student(name="dsbs"), record, SAID)} == {0.25}


def test_its_baselines() -> None:
    assert learned("label", SAID) == [("label", "2 + 3?", "5")]
    assert learned("label-x", WRONG, labels="teacher") == [("label", "2 + 3?", "6")], "task distillation"
    assert learned("rationale_then_label", SAID) == [("label", "2 + 3?", "2 and 3 are 5. So the answer is 5.")]
    assert learned("label_then_rationale", SAID) == [("label", "2 + 3?", "The answer is 5. 2 and 3 are 5.")]


def test_whose_labels() -> None:
    assert learned("dsbs", WRONG)[0][2] == "5" and len(learned("dsbs", WRONG)) == 2, "the paper filters nothing"
    assert learned("dsbs", WRONG, teacher_correct_only=True) == [("label", "predict: 2 + 3?", "5")]
    assert learned("rationale_then_label", WRONG, teacher_correct_only=True)[0][2] == "So the answer is 5."
    unlabelled = {**RECORD, "reference": "", "answer": ""}
    assert [row[2] for row in learned("dsbs", WRONG, unlabelled, labels="teacher")] == ["6", "2 and 3 are 6."]
    assert learned("dsbs", None, unlabelled, labels="teacher") == [], "nothing to learn"
    assert learned("dsbs", {**SAID, "label": None, "rationale": None}, labels="teacher") == []


def test_what_the_teacher_has_to_write() -> None:
    modes = {name: objectives.writes(Student(name=name)) for name in LEARNED}
    assert modes == {
        "sft": None, "sdd": "self_distill", "dsbs": "rationale", "label": None,
        "rationale_then_label": "rationale", "label_then_rationale": "rationale",
    }  # fmt: skip
    assert objectives.writes(Student(name="label", labels="teacher")) == "rationale"


def test_weights_of_the_two_losses() -> None:
    assert objectives.shares(Student(name="dsbs")) == (0.5, 0.5, 0.0)
    assert objectives.shares(Student(name="dsbs", alpha=0.3)) == (0.3, 0.7, 0.0)
    assert objectives.shares(Student(name="dsbs", rationale_weight=0.2)) == (1.0, 0.2, 0.0)
    assert objectives.shares(Student(name="label")) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "sdd", "alpha": 0.3}, "alpha is for dsbs; leave it out"),
        ({"name": "sft", "labels": "teacher"}, "labels is for dsbs, label"),
        ({"name": "dsbs", "alpha": 0.3, "rationale_weight": 1.0}, "say the same twice"),
        ({"name": "dsbs", "labels": "teacher", "teacher_correct_only": True}, "does without"),
        ({"name": "labels"}, "starts with its objective, one of none, sft, sdd, dsbs, label"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Student(**fields)


def test_the_objective_is_the_name_up_to_its_first_mark() -> None:
    names = ("label", "label-2", "label_then_rationale", "label_then_rationale.b", "rationale_then_label-r8", "dsbs_x")
    assert [objective_of(name) for name in names] == [
        "label", "label", "label_then_rationale", "label_then_rationale", "rationale_then_label", "dsbs",
    ]  # fmt: skip
