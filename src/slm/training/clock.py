"""The clock of a training run."""

from __future__ import annotations

import time
import warnings
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
    """Warns, once, when a CPU with several threads has become much slower than it was."""

    def __init__(self, threads: int) -> None:
        """threads: 1 where there is nothing to warn of."""
        self.threads = threads
        self._best, self._slow_laps, self._told = 0.0, 0, threads == 1

    def see(self, tokens_per_second: float) -> None:
        """Takes the speed of a lap."""
        self._best = max(self._best, tokens_per_second)
        self._slow_laps = self._slow_laps + 1 if tokens_per_second < self._best / 3 else 0
        if self._slow_laps >= SLOW_LAPS and not self._told:
            self._told = True
            warnings.warn(
                f"{tokens_per_second:,.0f} tokens/s, less than a third of the {self._best:,.0f} that there were: "
                f"something else keeps this machine's cores busy, and {self.threads} threads wait for each other. Stop "
                "it, or stop this run and go on with --threads 1.",
                stacklevel=2,
            )
