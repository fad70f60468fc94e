"""A run as plain lines, for pipes and files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from slm.display.course import Course
from slm.display.words import CALM_SECONDS, clock, sample_line

_SAMPLE_WIDTH = 100


class Plain:
    """A consumer of records that writes every evaluation and sample, and progress every few seconds at most."""

    def __init__(self, course: Course, write: Callable[[str], None]) -> None:
        self.course, self.write = course, write
        self.last = -CALM_SECONDS

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Takes a record; writes a line or nothing."""
        kind, now = self.course.take(record), time.monotonic()
        if kind == "decision" and (line := self.course.decision_line(record)):
            self.write(line)
        elif kind == "evaluation":
            self.write(self.course.evaluation_line(record, " (best so far)" if self.course.is_best else ""))
        elif kind == "sample":
            line = "  " + "".join(sample_line(record))
            self.write(line if len(line) <= _SAMPLE_WIDTH else line[: _SAMPLE_WIDTH - 1] + "…")
        elif kind == "log" and now - self.last >= CALM_SECONDS:
            self.last = now
            left = self.course.left()
            told = [*self.course.numbers(), *([] if left is None else [f"{clock(left)} left"])]
            self.write(f"{self.course.place()}  {', '.join(told)}")
