"""A run that ends on time: it stays at its peak learning rate until the time left is just enough for the decay."""

from __future__ import annotations

import time

DECAY_SHARE = 0.6  # of the training time
_MARKS = 50
_LATE, _LATE_SECONDS = 0.03, 1.5  # of the time asked, or so many, after which a decay that became slow is cut off


class Deadline:
    """The seconds of work that a run may take; what it does not run it does not spend."""

    def __init__(self, seconds: float, left: float | None = None) -> None:
        """seconds: of the whole run. left: of them, where it is gone on with."""
        self.seconds = seconds
        self._end = time.monotonic() + (seconds if left is None else left)
        self._marks: list[tuple[float, int]] = []  # times, without evaluations, and steps, for the pace
        self._evaluating = 0.0  # seconds of all evaluations
        self._evaluation: float | None = None  # of the last one

    def begin(self, step: int) -> None:
        """Marks that the steps begin now, after this one."""
        self._marks = [(time.monotonic() - self._evaluating, step)]

    def left(self) -> float:
        """Seconds until the end, below 0 when it has passed."""
        return self._end - time.monotonic()

    @property
    def has_passed(self) -> bool:
        """True when the run will be late, with the evaluation that is still to come."""
        return self.left() - (self._evaluation or 0.0) < -max(_LATE * self.seconds, _LATE_SECONDS)

    def evaluated(self, seconds: float) -> None:
        """Takes what an evaluation took."""
        self._evaluation = seconds
        self._evaluating += seconds

    def decay_steps(self, step: int, *, reserve: float, eval_every: int, evaluation_steps: float) -> int | None:
        """How many steps the decay that begins after this step can have; None while it is not time for it.

        reserve: seconds to keep for what comes after all. eval_every: steps between the evaluations that are still to
        come, besides that of the end. evaluation_steps: how many steps take as long as one, as long as none was made.
        To be called after each step since `begin`. The pace is that of the later half of the steps so far, for machines
        drift.
        """
        evaluation = self._evaluation or 0.0
        now, left = time.monotonic() - self._evaluating, self.left() - reserve
        if now - self._marks[-1][0] > self.seconds / _MARKS:
            self._marks.append((now, step))
        began = self._marks[0][0]
        since, first = next(mark for mark in reversed(self._marks) if mark[0] <= (began + now) / 2)
        if left <= evaluation:
            return 1
        if left - evaluation > DECAY_SHARE * self.seconds or step == first or now == since:
            return None
        pace = (now - since) / (step - first)
        if step - first < 2 and pace < left / 3:
            return None
        if self._evaluation is None:
            evaluation = evaluation_steps * pace

        def too_long(steps: int) -> float:
            last = step + steps
            evaluations = last // eval_every - (step - 1) // eval_every + (last % eval_every > 0)
            return steps * pace + evaluations * evaluation - left

        steps = max(1, round(left / pace))
        while steps > 1 and too_long(steps) > pace / 2:
            steps = max(1, steps - max(1, int(too_long(steps) / (pace + evaluation / eval_every))))
        return steps
