"""How well a model does its task, beside what trivial predictors score on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slm.data.counts import many
from slm.metrics.labels import LabelScores
from slm.metrics.translations import TextScores

THIS_MODEL = "this model"
MOST_LABELS_SHOWN = 30  # beyond which a confusion matrix is no picture


@dataclass(frozen=True)
class Example:
    """One validation example and what the model made of it."""

    given: str
    expected: str
    answered: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one, but for white space around it."""
        return self.answered.strip() == self.expected.strip()


@dataclass(frozen=True)
class Beside:
    """What a trivial predictor scores."""

    name: str
    metrics: dict[str, float]
    told: str = ""  # of which part of the examples it was made; "" where that is all of them


@dataclass(frozen=True)
class TaskEvaluation:
    """The scores of a model on examples of its task."""

    task: str
    text: str  # the examples, in words
    num_examples: int
    scores: LabelScores | TextScores
    yardsticks: list[Beside] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)  # some of them
    missing: tuple[str, ...] = ()  # what could not be measured, and why

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name: accuracy, macro_f1 and exact_match from 0 to 1, bleu and chrf from 0 to 100."""
        return metrics_of(self.scores)

    def lines(self) -> list[str]:
        """A table of the model and the yardsticks, worst first, then the labels one by one, where there are labels."""
        record = {**self.as_record(), "scores": self.scores.as_record()}
        return [*table(record, self.yardsticks), *self._by_label(), *self.missing]

    def _by_label(self) -> list[str]:
        if isinstance(self.scores, TextScores) or len(self.scores.labels) > MOST_LABELS_SHOWN:
            return []
        width = max(len("label"), *(len(one.label) for one in self.scores.by_label))
        lines = [f"  {'label':<{width}}{'precision':>12}{'recall':>12}{'F1':>12}{'examples':>12}"]
        for one in self.scores.by_label:
            numbers = "".join(f"{100 * value:>10.2f} %" for value in (one.precision, one.recall, one.f1))
            lines.append(f"  {one.label:<{width}}{numbers}{one.support:>12,}")
        return lines

    def __str__(self) -> str:
        return "\n".join((f"{self.text}: {many(self.num_examples, 'example')}", *self.lines()))

    def as_record(self) -> dict[str, Any]:
        """Plain values for a line of metrics.jsonl."""
        return {
            "task": self.task,
            "text": self.text,
            "num_examples": self.num_examples,
            "metrics": self.metrics,
            "scores": self.scores.as_record() if self._is_small else {},
            "yardsticks": [asdict(one) for one in self.yardsticks],
            "examples": [asdict(one) for one in self.examples],
            "missing": list(self.missing),
        }

    @property
    def _is_small(self) -> bool:
        return isinstance(self.scores, TextScores) or len(self.scores.labels) <= MOST_LABELS_SHOWN


def metrics_of(scores: LabelScores | TextScores) -> dict[str, float]:
    """The numbers of scores by name, without what could not be measured."""
    if isinstance(scores, LabelScores):
        return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1}
    found = {"bleu": scores.bleu, "chrf": scores.chrf, "exact_match": scores.exact_match}
    return {name: value for name, value in found.items() if value is not None}


TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match"}


def told(name: str, value: float) -> str:
    """A number in words: shares in per cent, BLEU and chrF as they are."""
    return f"{value:.2f}" if name in ("bleu", "chrf") else f"{100 * value:.2f} %"


def ranked(metrics: Mapping[str, float], yardsticks: Sequence[Beside]) -> list[Beside]:
    """The yardsticks with the model among them, worst first, by the last metric of labels or the first of texts."""
    key = "macro_f1" if "macro_f1" in metrics else next(iter(metrics), "")
    # Among equals the model comes first: as good as a yardstick is not better.
    return sorted((Beside(THIS_MODEL, dict(metrics)), *yardsticks), key=lambda one: one.metrics.get(key, 0.0))


def standard_error(share: float, num_examples: int) -> float:
    """By how much a share of so many examples is off, as chance drew them (0-1)."""
    return math.sqrt(share * (1 - share) / max(num_examples, 1))


def may_be_chance(record: Mapping[str, Any], other: Beside) -> bool:
    """Whether macro F1, or exact match where it is all there is, differs by less than two standard errors.

    record: of the model's scores. Of BLEU nothing is known. About: the F1 of each label is taken as a share of its
    examples, one of them more right and one more wrong, so that few examples without a mistake prove little; and the
    other's errors as large as the model's.
    """
    if next(iter(record["metrics"]), "") == "exact_match" and "exact_match" in other.metrics:  # without sacrebleu
        share, number = record["metrics"]["exact_match"], record["num_examples"]
        error = standard_error((share * number + 1) / (number + 2), number)
        return bool(abs(share - other.metrics["exact_match"]) <= 2 * math.sqrt(2) * error)
    labels = [one for one in (record["scores"] or {}).get("by_label", ()) if one["support"]]
    if not labels or "macro_f1" not in other.metrics:
        return False
    numbers = [(one["f1"], one["support"]) for one in labels]
    errors = [standard_error((f1 * number + 1) / (number + 2), number) for f1, number in numbers]
    difference = abs(record["metrics"]["macro_f1"] - other.metrics["macro_f1"])
    return bool(difference <= 2 * math.sqrt(2) * math.hypot(*errors) / len(labels))


def table(record: Mapping[str, Any], yardsticks: Sequence[Beside]) -> list[str]:
    """Lines with a column for each metric. record: of the model's scores."""
    metrics = record["metrics"]
    rows = ranked(metrics, yardsticks)
    width = max(len(row.name) for row in rows)
    heading = f"on the same {many(record['num_examples'], 'example')}"
    lines = [f"{heading:<{width + 2}}" + "".join(f"{TITLES[name]:>13}" for name in metrics)]
    for row in rows:
        numbers = "".join(f"{told(name, row.metrics[name]):>13}" for name in metrics if name in row.metrics)
        lines.append(f"  {row.name:<{max(width, 18)}}{numbers}" + (f"   {row.told}" if row.told else ""))
    return [*lines, _verdict(record, rows)] if yardsticks else lines


def _verdict(record: Mapping[str, Any], rows: Sequence[Beside]) -> str:
    """Whether the model, which is one of the rows, beats the best of the others."""
    best = [row for row in rows if row.name != THIS_MODEL][-1]
    is_better = rows[-1].name == THIS_MODEL
    if record["metrics"] != best.metrics and may_be_chance(record, best):
        return f"{THIS_MODEL} is about as good as the best yardstick, {best.name}: the difference may be chance"
    return f"{THIS_MODEL} is {'better' if is_better else 'not better'} than the best yardstick, {best.name}"
