"""A run that ends on time: it stays at its peak learning rate until the time left is just enough for the decay."""

from __future__ import annotations

import time

DECAY_SHARE = 0.6  # of the training time
_MARKS = 50
_LATE, _LATE_SECONDS = 0.02, 1.0  # of the time asked, or so many, after which a decay that became slow is cut off


class Deadline:
    """The seconds of work that a run may take; what it does not run it does not spend."""

    def __init__(self, seconds: float, left: float | None = None) -> None:
        """seconds: of the whole run. left: of them, where it is gone on with."""
        self.seconds = seconds
        self._end = time.monotonic() + (seconds if left is None else left)
        self._marks: list[tuple[float, int]] = []  # times and steps, for the pace

    def left(self) -> float:
        """Seconds until the end, below 0 when it has passed."""
        return self._end - time.monotonic()

    @property
    def has_passed(self) -> bool:
        """True when the run is late."""
        return self.left() < -max(_LATE * self.seconds, _LATE_SECONDS)

    def decay_steps(self, step: int, reserve: float) -> int | None:
        """How many steps the decay that begins after this step can have; None while it is not time for it.

        reserve: seconds to keep for what comes after the last step. To be called after each step. The pace is that of
        the later half of the steps so far, evaluations included, for machines drift.
        """
        now, left = time.monotonic(), self.left() - reserve
        if not self._marks or now - self._marks[-1][0] > self.seconds / _MARKS:
            self._marks.append((now, step))
        began = self._marks[0][0]
        since, first = next(mark for mark in reversed(self._marks) if mark[0] <= (began + now) / 2)
        if left <= 0:
            return 1
        if left > DECAY_SHARE * (self.seconds - reserve) or step - first < 2 or now == since:
            return None
        return max(1, round(left * (step - first) / (now - since)))
