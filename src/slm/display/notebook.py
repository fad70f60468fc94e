"""A run in a notebook: one output of a cell with curves, evaluations and samples, replaced as the run goes on."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from slm.display.course import Course
from slm.display.words import clock
from slm.metrics.pages.charts import Line, line_chart
from slm.metrics.pages.page import escaped, fragment, table, written

_CALM_SECONDS = 0.5  # between updates that show no evaluation or sample
# What updates may take: seconds at the beginning, and a share of the run's time, less of it where only a loss is new.
_ALLOWANCE, _SHARE, _CALM_SHARE = 0.1, 0.005, 0.002
_MOST_POINTS = 200  # of a curve
_MOST_DOTS = 40
_MOST_ROWS = 8  # of the table, beside the best
_SAMPLE_CHARACTERS = 600
_COLUMNS = ("step", "epoch", "val_loss", "perplexity", "accuracy", "bits per byte", "")


@contextmanager
def notebook(course: Course, so_far: Sequence[Mapping[str, Any]] = ()) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A context that gives the consumer of a run's records; the last picture stays in the cell.

    so_far: earlier records, which the course knows already.
    """
    cell = Cell(course, so_far)
    try:
        yield cell
    finally:
        cell.end()


class Shown:
    """What a notebook shows as HTML, and a front end without HTML as a line."""

    def __init__(self, body: str, line: str) -> None:
        self.html, self.line = fragment(body), line

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.line


class Points:
    """Points of a curve, of which only every so many-th is kept where they are many, and the newest."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, float]] = []
        self._newest: list[tuple[float, float]] = []  # where it is not kept
        self._every, self._seen = 1, 0

    def add(self, x: float, y: float) -> None:
        """Takes a point; one that is no number is left out."""
        if not math.isfinite(y):
            return
        is_kept = self._seen % self._every == 0
        self._seen += 1
        self._newest = [] if is_kept else [(x, y)]
        if is_kept:
            self._kept.append((x, y))
        if len(self._kept) == _MOST_POINTS:
            self._newest = self._kept[-1:]
            self._kept, self._every = self._kept[::2], 2 * self._every

    def all(self) -> list[tuple[float, float]]:
        """The points in order, at most 200."""
        return self._kept + self._newest


class Cell:
    """A consumer of records that keeps one output of a cell up to date, at little cost."""

    def __init__(self, course: Course, so_far: Sequence[Mapping[str, Any]] = ()) -> None:
        self.course = course
        self.losses, self.smoothed, self.val_losses = Points(), Points(), Points()
        self.evaluations: list[Mapping[str, Any]] = []  # the newest
        self.best_evaluation: Mapping[str, Any] = {}
        self.samples: list[Mapping[str, Any]] = []  # of the newest step
        self._began = self._last = time.monotonic()
        self._spent, self._is_stale = 0.0, False  # stale: without an evaluation or a sample
        earlier = Course(0, None)
        for record in so_far:
            self._take(record, earlier)
        self._handle = importlib.import_module("IPython.display").display(self._shown(), display_id=True)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Takes a record; updates the output where it is time to."""
        if not self._take(record, self.course):
            return
        now = time.monotonic()
        if self._is_due(now):
            self._handle.update(self._shown())
            self._last, self._is_stale = now, False
            self._spent += time.monotonic() - now

    def _take(self, record: Mapping[str, Any], course: Course) -> bool:
        """Whether the record is one that is shown."""
        kind = course.take(record)
        if kind == "log":
            self.losses.add(course.step, record["train_loss"])
            self.smoothed.add(course.step, course.smoothed)
        elif kind == "evaluation":
            self.val_losses.add(course.step, record["val_loss"])
            self.evaluations = [*self.evaluations[1 - _MOST_ROWS :], record]
            self.best_evaluation = record if course.is_best else self.best_evaluation
        elif kind == "sample":
            self.samples = [*(one for one in self.samples if one["step"] == record["step"]), record]
        self._is_stale |= kind in ("evaluation", "sample")
        return kind is not None

    def end(self) -> None:
        """Shows the last state, which stays."""
        self._handle.update(self._shown(is_over=True))

    def _is_due(self, now: float) -> bool:
        share = _SHARE if self._is_stale else _CALM_SHARE
        is_time = self._is_stale or now - self._last >= _CALM_SECONDS
        return is_time and self._spent <= _ALLOWANCE + share * (now - self._began)

    def _shown(self, is_over: bool = False) -> Shown:
        line, numbers = self._place(is_over), self._numbers()
        curves = [
            Line("train", self.losses.all(), faint=True, series=2),
            Line("train loss", self.smoothed.all(), series=2),
            Line("val_loss", val_losses := self.val_losses.all(), dots=len(val_losses) <= _MOST_DOTS),
        ]
        note = "Lower is better. The train loss is smoothed; the pale line is without that."
        chart = line_chart("Loss", curves, x_label="step", y_label="nats per token", note=note)
        body = f"<p><b>{escaped(line)}</b><br>{escaped(numbers)}</p>{chart}{self._table()}{_written(self.samples)}"
        return Shown(body, f"{line}: {numbers}" if numbers else line)

    def _place(self, is_over: bool) -> str:
        """How far the run is, in words."""
        course, left = self.course, self.course.left()
        if not course.log:
            return "no step was recorded" if is_over else "the first step is under way"
        told = [course.place(), f"epoch {course.log['epoch']}"]
        if is_over:
            told.append(f"{clock(course.log['elapsed_seconds'])} of training")
        elif left is not None:
            told.append(f"{clock(left)} left")
        return ", ".join(told)

    def _numbers(self) -> str:
        """The newest numbers, in words; nothing before the first."""
        best = [f"best val_loss {self.course.best:.4f}"] if math.isfinite(self.course.best) else []
        return ", ".join([*self.course.numbers(), *best])

    def _table(self) -> str:
        """The newest evaluations and the best; nothing before the first."""
        shown = self.evaluations
        if not shown:
            return ""
        best = self.best_evaluation
        if best and all(one is not best for one in shown):
            shown = [best, *shown]
        place = next((row for row, one in enumerate(shown) if one is best), None)
        return table(_COLUMNS, [_row(one, one is best) for one in shown], numbers=range(6), ours=place)


def _row(record: Mapping[str, Any], is_best: bool) -> list[str]:
    bits = record.get("val_bits_per_byte")
    return [
        f"{record['step']:,}",
        f"{record['epoch']:,}",
        f"{record['val_loss']:.4f}",
        f"{record['val_perplexity']:,.2f}",
        f"{100 * record['val_accuracy']:.2f} %",
        "" if bits is None else f"{bits:.3f}",
        "best" if is_best else "",
    ]


def _written(samples: Sequence[Mapping[str, Any]]) -> str:
    """What the model wrote at a step. Notebooks typeset no formulas inside <pre>."""
    if not samples:
        return ""
    told = f'<p class="soft">what the model writes after the coloured words, at step {samples[0]["step"]:,}</p>'
    for record in samples:
        prompt, text = record["prompt"], record["sample"]
        prompt = prompt if len(prompt) <= _SAMPLE_CHARACTERS else "…" + prompt[1 - _SAMPLE_CHARACTERS :]
        text = text if len(text) <= _SAMPLE_CHARACTERS else text[: _SAMPLE_CHARACTERS - 1] + "…"
        told += written(prompt, text)
    return told
