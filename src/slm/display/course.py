"""Where a run stands: what all live displays know of it, from its records."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal

from slm.display import words
from slm.showing import Smoothed

Kind = Literal["log", "evaluation", "decision", "sample"]


class Course:
    """The newest log record, the smoothed loss, the best val_loss so far and the time left."""

    def __init__(self, total_steps: int, seconds: float | None) -> None:
        """seconds: that the run may still take, where known."""
        self.total_steps = total_steps  # 0 as long as the end is open
        self.step = 0
        self.log: Mapping[str, Any] = {}
        self.best = math.inf  # val_loss
        self.is_best = False  # whether the last evaluation was better than all before
        self.before: Mapping[str, Any] = {}  # the metrics of the model that the run started from
        self._losses = Smoothed()
        self._began, self._seconds = time.monotonic(), seconds
        self._first: tuple[int, float] | None = None  # step and time: the first step is slow
        self._left: float | None = None

    @property
    def smoothed(self) -> float:
        """The smoothed training loss; not a number before the first."""
        return self._losses.mean

    def take(self, record: Mapping[str, Any]) -> Kind | None:
        """What kind of record this is; None for one that live displays do not show."""
        kind = _kind(record)
        self.before = record.get("before", self.before)
        if kind is not None:
            self.step = record["step"]
        if kind == "log":
            self._take_log(record)
        elif kind == "evaluation":
            self.is_best = record["val_loss"] < self.best  # never where it is NaN
            self.best = record["val_loss"] if self.is_best else self.best
        elif kind == "decision":
            self.total_steps = record["max_steps"]
        return kind

    def _take_log(self, record: Mapping[str, Any]) -> None:
        self.log = record
        self._losses.add(record["train_loss"])
        now = time.monotonic()
        self._first = self._first or (self.step, now)
        first_step, then = self._first
        if self.step > first_step and self.total_steps:
            self._left = (now - then) / (self.step - first_step) * (self.total_steps - self.step)

    def begin(self) -> None:
        """Marks that the steps begin now: the pace counts from here."""
        self._began, self._first, self._left = time.monotonic(), None, None

    def left(self) -> float | None:
        """The seconds left: of what may be spent, or from the pace since the first record; None without either."""
        if self._seconds is None:
            return self._left
        return max(self._began + self._seconds - time.monotonic(), 0)

    def share(self) -> float | None:
        """The share 0-1 of the run that is done, in steps, or in time as long as their number is open."""
        if self.total_steps:
            return min(self.step / self.total_steps, 1)
        return min((time.monotonic() - self._began) / self._seconds, 1) if self._seconds else None

    def place(self) -> str:
        """Such as "step 20/300"."""
        width = len(str(self.total_steps))
        return f"step {self.step:>{width}}/{self.total_steps}" if self.total_steps else f"step {self.step}"

    def numbers(self) -> list[str]:
        """The losses and the speed of the newest log record; nothing before the first."""
        log = self.log
        if not log:
            return []
        speed = f"{log['tokens_per_second']:,.0f} tokens/s"
        told = [f"loss {log['train_loss']:.4f}", f"smoothed {self.smoothed:.4f}", speed, words.peak(log)]
        return [one for one in told if one]

    def evaluation_line(self, record: Mapping[str, Any], mark: str = "", without: Collection[str] = ()) -> str:
        """The evaluation that was taken last. mark: what to say of its val_loss. without: names to leave out."""
        epoch = "" if "epoch" in without else f"  epoch {record['epoch']}"
        return f"{self.place()}{epoch}  {words.evaluation(record, mark, without)}{self._also(record)}"

    def _also(self, record: Mapping[str, Any]) -> str:
        """What the evaluation tells of another text, and how that was before the run."""
        if "also_val_loss" not in record:
            return ""
        before = f" ({self.before['also_val_loss']:.4f} before the run)" if "also_val_loss" in self.before else ""
        return f"; on the other text {record['also_val_loss']:.4f}{before}"

    def decision_line(self, record: Mapping[str, Any]) -> str:
        """The decision that was taken last; nothing where a run was cut off, which its end tells."""
        if "decay_steps" not in record:
            return ""
        return f"{self.place()}  the learning rate falls from here on, for {record['decay_steps']:,} steps"


def _kind(record: Mapping[str, Any]) -> Kind | None:
    if "yardsticks" in record or "status" in record:
        return None
    if "max_steps" in record:
        return "decision"
    if "val_loss" in record:
        return "evaluation"
    if "sample" in record:
        return "sample"
    return "log" if "train_loss" in record else None
