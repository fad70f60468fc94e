"""The clock of a training run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_LAPS = 3  # in a row, after which a run is told to be slow


class Clock:
    """Seconds of training, without those spent in evaluation."""

    def __init__(self, seconds: float = 0.0, tokens_seen: int = 0) -> None:
        """seconds, tokens_seen: of the run so far, where it is gone on with."""
        self._start = time.perf_counter() - seconds
        self._stopped_at: float | None = None
        self._last_seconds, self._last_tokens = seconds, tokens_seen

    def elapsed_seconds(self) -> float:
        """Seconds since the run began; the clock stands still while it is paused."""
        now = time.perf_counter() if self._stopped_at is None else self._stopped_at
        return now - self._start

    def lap(self, tokens_seen: int) -> tuple[float, int]:
        """The seconds (above 0) and tokens since the last lap."""
        now = self.elapsed_seconds()
        seconds, tokens = now - self._last_seconds, tokens_seen - self._last_tokens
        self._last_seconds, self._last_tokens = now, tokens_seen
        return max(seconds, 1e-9), tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose seconds do not count."""
        self._stopped_at = stopped_at = time.perf_counter()
        try:
            yield
        finally:
            self._stopped_at = None
            self._start += time.perf_counter() - stopped_at


class SpeedWatch:
    """Notices that a run has become much slower than it was."""

    def __init__(self) -> None:
        self._best, self._slow_laps, self._told = 0.0, 0, False

    def fell(self, tokens_per_second: float) -> float | None:
        """The speed that there was, once, when it has fallen to a third of that in several laps in a row."""
        self._best = max(self._best, tokens_per_second)
        self._slow_laps = self._slow_laps + 1 if tokens_per_second < self._best / 3 else 0
        if self._slow_laps < SLOW_LAPS or self._told:
            return None
        self._told = True
        return self._best
