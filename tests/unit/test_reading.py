"""What stored texts say: verdict and target in each mode, votes, and the digest of the code that reads."""

import inspect
from typing import Any

import pytest

from pipelines import answers
from pipelines.generation import reading

FOUR = "2 and 2 are 4. So the answer is 4."
FIVE = "2 and 2 are 5. So the answer is 5."
NOTHING = "I do not know."


def row(**changed: Any) -> dict[str, Any]:
    return {"prompt": "2 + 2?", "reference": "It is 4.", "answer": "4", "kind": "number"} | changed


def sample(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return {"text": text, "finish_reason": finish_reason}


def read(mode: str, about: dict[str, Any], *samples: dict[str, Any]) -> list[tuple[str, str]]:
    """(verdict, target) of each sample."""
    found = reading.read(mode, about, samples)
    assert all(set(one) == set(reading.FIELDS) for one in found)
    return [(one["verdict"], one["target"]) for one in found]


@pytest.mark.parametrize("mode", ["self_distill", "respond"])
@pytest.mark.parametrize(
    ("one", "verdict", "target"),
    [
        (sample(f" {FOUR}\n"), "match", FOUR),
        (sample(FIVE), "mismatch", "It is 4."),
        (sample(NOTHING), "unparsable", "It is 4."),
        (sample(""), "unparsable", "It is 4."),
        (sample(FOUR, "length"), "truncated", "It is 4."),
    ],
)
def test_against_a_reference(mode: str, one: dict[str, Any], verdict: str, target: str) -> None:
    assert read(mode, row(), one) == [(verdict, target)]


def test_a_rewrite_that_names_its_scaffold_is_none_and_a_response_has_no_scaffold() -> None:
    said = f"The reference answer says so. {FOUR}"
    assert read("self_distill", row(), sample(said)) == [("unparsable", "It is 4.")]
    assert read("respond", row(), sample(said)) == [("match", said)]


def test_an_answer_without_a_reference_is_compared_and_nothing_stands_in_for_it() -> None:
    about = row(reference="")
    assert read("respond", about, sample(FOUR), sample(FIVE)) == [("match", FOUR), ("mismatch", "")]
    assert read("rationale", about, sample(FIVE)) == [("mismatch", "4")], (
        "the given label is learned, not the wrong one"
    )
    long = sample("It rains. " * 90)
    assert read("respond", row(reference="", kind="none"), long) == [("unchecked", long["text"].strip())]


def test_open_ended_rewrites_are_kept_within_bounds() -> None:
    about = row(kind="none", answer="", reference="It rains.")
    assert read("self_distill", about, sample("Rain it is."), sample("Rain. " * 40), sample(" ")) == [
        ("unchecked", "Rain it is."),
        ("unparsable", "It rains."),
        ("unparsable", "It rains."),
    ]


def test_responses_without_a_reference() -> None:
    about = row(reference="", answer="", kind="none")
    assert read("respond", about, sample(" Rain. "), sample("Rain", "length"), sample(" \n")) == [
        ("unchecked", "Rain."),
        ("truncated", ""),
        ("unparsable", ""),
    ]


def test_rationales_are_judged_by_the_label() -> None:
    samples = [sample(FOUR), sample(FIVE), sample(NOTHING), sample("2 and 2", "length"), sample(FOUR, "length")]
    found = reading.read("rationale", row(reference="4"), samples)
    assert [one["verdict"] for one in found] == ["match", "mismatch", "unparsable", "truncated", "match"]
    assert [one["label"] for one in found] == ["4", "5", "", "", "4"]
    assert [one["rationale"] for one in found] == ["2 and 2 are 4.", "2 and 2 are 5.", "", "", "2 and 2 are 4."]
    assert {one["target"] for one in found} == {"4"}, "the student learns the given label, not the teacher's"
    assert {one["agreement"] for one in found} == {2 / 5}


def test_votes_stand_in_for_a_missing_label() -> None:
    """The share counts all samples, those without a label too; a tie goes to the label seen first."""
    unlabelled = row(reference="", answer="")
    found = reading.read("rationale", unlabelled, [sample(FIVE), sample(FOUR), sample(NOTHING), sample(FOUR)])
    assert [one["verdict"] for one in found] == ["unchecked", "unchecked", "unparsable", "unchecked"]
    assert {(one["target"], one["agreement"]) for one in found} == {("4", 2 / 4)}
    tied = reading.read("rationale", unlabelled, [sample(FIVE), sample(FOUR)])
    assert {(one["target"], one["agreement"]) for one in tied} == {("5", 1 / 2)}
    spelt = [sample(FOUR), sample("So the answer is 4.0."), sample(FIVE)]
    assert {(o["target"], o["agreement"]) for o in reading.read("rationale", unlabelled, spelt)} == {("4", 2 / 3)}


def test_one_sample_or_no_label_is_no_vote() -> None:
    unlabelled = row(reference="", answer="")
    (one,) = reading.read("rationale", unlabelled, [sample(FOUR)])
    assert (one["target"], one["verdict"], one["agreement"]) == ("4", "unchecked", None)
    none = reading.read("rationale", unlabelled, [sample(NOTHING), sample("2 and", "length")])
    assert [(one["target"], one["verdict"], one["agreement"]) for one in none] == [
        ("", "unparsable", None),
        ("", "truncated", None),
    ]


def test_labels_of_the_kind_none_are_compared_as_words() -> None:
    (one,) = reading.read("rationale", row(kind="none", reference="Rain", answer="Rain"),
                          [sample("It is wet. So the answer is rain.")])  # fmt: skip
    assert (one["label"], one["verdict"]) == ("rain", "match")


def test_another_parser_is_another_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    before = reading.parser()
    assert reading.parser() == before and len(before) == 16
    source = inspect.getsource
    changed = {answers: "def extract(): ...", reading: "def read(): ..."}
    for module, text in changed.items():
        monkeypatch.setattr(inspect, "getsource", lambda one, m=module, t=text: t if one is m else source(one))
        assert reading.parser() != before
