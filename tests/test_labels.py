"""Laws of slm.metrics.labels: scikit-learn finds the same, 0/0 is 0, and a record holds everything."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from slm.metrics.labels import LabelScore, LabelScores, score_labels

laws = settings(deadline=None, max_examples=60)
Case = tuple[list[int], list[int], list[str]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(true labels, predicted labels, names): as a rule some names that no example has, or was given."""
    names = [f"label {place}" for place in range(draw(st.integers(2, 7)))]
    place = st.integers(0, len(names) - 1)
    pairs = draw(st.lists(st.tuples(place, place), min_size=1, max_size=40))
    return [true for true, _ in pairs], [predicted for _, predicted in pairs], names


@laws
@given(cases())
def test_scores_are_those_of_scikit_learn(case: Case) -> None:
    true, predicted, names = case
    found = score_labels(true, predicted, names)
    places = list(range(len(names)))
    assert found.labels == tuple(names)
    assert found.num_examples == len(true)
    assert found.confusion == confusion_matrix(true, predicted, labels=places).tolist()
    assert found.accuracy == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0), abs=1e-12)
    columns = precision_recall_fscore_support(true, predicted, labels=places, zero_division=0)
    for score, name, *values in zip(found.by_label, names, *columns, strict=True):
        assert (score.label, score.support) == (name, values.pop())
        assert (score.precision, score.recall, score.f1) == pytest.approx(values, abs=1e-12)


@laws
@given(cases())
def test_a_record_is_what_json_can_hold(case: Case) -> None:
    found = score_labels(*case)
    record = found.as_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert LabelScores(**{**record, "labels": found.labels, "by_label": found.by_label}) == found
    assert [LabelScore(**one) for one in record["by_label"]] == found.by_label


def test_scores_by_hand() -> None:
    """Two of three cats are found and one dog is called a cat. No bird is seen or guessed, and none counts."""
    found = score_labels([0, 0, 0, 1, 1], [0, 0, 1, 0, 1], ["cat", "dog", "bird"])
    assert found.confusion == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    cat, dog, bird = found.by_label
    assert (cat.precision, cat.recall, cat.f1, cat.support) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert (dog.precision, dog.recall, dog.f1, dog.support) == pytest.approx((1 / 2, 1 / 2, 1 / 2, 2))
    assert bird == LabelScore("bird", 0.0, 0.0, 0.0, 0)
    assert (found.accuracy, found.macro_f1) == pytest.approx((3 / 5, (2 / 3 + 1 / 2) / 2))


def test_a_label_that_is_only_guessed_counts_in_the_mean() -> None:
    assert score_labels([0, 0], [0, 1], ["a", "b", "c"]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "b"]])
def test_scores_of_nothing_are_0(labels: list[str]) -> None:
    found = score_labels([], [], labels)
    assert (found.num_examples, found.accuracy, found.macro_f1) == (0, 0.0, 0.0)
    assert [score.support for score in found.by_label] == [0] * len(labels)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0, 1], [0], "1 predicted labels for 2 examples"),
        ([0, 2], [0, 1], "label 2: must be from 0 to 1"),
        ([0, 1], [0, -1], "label -1: must be from 0 to 1"),
    ],
)
def test_what_is_no_label_is_refused(true: Sequence[int], predicted: Sequence[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_labels(true, predicted, ["a", "b"])
