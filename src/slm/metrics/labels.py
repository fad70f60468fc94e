"""How well predicted labels agree with the true ones: a table of counts, and what follows from it.

Shapes: N examples, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelScore:
    """How well one label is found, each share 0-1."""

    label: str
    precision: float  # of the examples that were given this label, the share that has it
    recall: float  # of the examples that have this label, the share that was given it
    f1: float  # the harmonic mean of the two
    support: int  # how many examples have this label


@dataclass(frozen=True)
class LabelScores:
    """How well all labels are found. A share of nothing counts as 0, as in scikit-learn with zero_division=0."""

    labels: tuple[str, ...]
    confusion: list[list[int]]  # (L, L): how many examples with the label of the row were given that of the column
    accuracy: float  # 0-1
    # The mean of f1 over the labels that some example has or was given, as scikit-learn takes it: a label that the
    # examples are free of, and that nobody gave, tells nothing about who gave the labels.
    macro_f1: float
    by_label: list[LabelScore]

    @property
    def num_examples(self) -> int:
        """N, how many examples were counted."""
        return sum(score.support for score in self.by_label)

    def as_record(self) -> dict[str, Any]:
        """The scores as what JSON can hold."""
        return {**asdict(self), "labels": list(self.labels)}


def score_labels(true: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> LabelScores:
    """The scores of predicted labels (N,) against true ones (N,), both as places in the list of labels.

    Raises ValueError for lists of different lengths, and for a number that is no place in the list of labels.
    """
    if len(true) != len(predicted):
        raise ValueError(f"{len(predicted):,} predicted labels for {len(true):,} examples: must be as many.")
    rows, columns = _places(true, len(labels)), _places(predicted, len(labels))
    counts = np.bincount(rows * len(labels) + columns, minlength=len(labels) ** 2)
    return _scores(tuple(labels), counts.reshape(len(labels), len(labels)))


def _places(numbers: Sequence[int], num_labels: int) -> Ints:
    places = np.asarray(numbers, dtype=np.int64).reshape(-1)
    wrong = places[(places < 0) | (places >= num_labels)]
    if len(wrong):
        raise ValueError(f"label {wrong[0]}: must be from 0 to {num_labels - 1}, one of {num_labels} labels.")
    return places


def _scores(labels: tuple[str, ...], confusion: Ints) -> LabelScores:
    """The scores that follow from counts (L, L)."""
    right, have, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = _share(right, given), _share(right, have), _share(2 * right, have + given)
    columns = (labels, precision.tolist(), recall.tolist(), f1.tolist(), have.tolist())
    return LabelScores(
        labels,
        confusion.tolist(),
        float(_share(right.sum(), have.sum())),
        float(_share(f1.sum(), np.count_nonzero(have + given))),
        [LabelScore(*values) for values in zip(*columns, strict=True)],
    )


def _share(part: Any, whole: Any) -> NDArray[np.float64]:
    """part / whole, and 0 where the whole is 0, which makes the part 0, too."""
    share: NDArray[np.float64] = part / np.maximum(whole, 1)
    return share
