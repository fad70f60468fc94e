"""A noisy number, such as the loss of training, as a curve that the eye can follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHARE, _MOST = 5, 20


@dataclass
class Smoothed:
    """An exponential mean over about the last fifth of all numbers so far, 20 of them at most."""

    mean: float = math.nan
    count: int = 0

    def add(self, number: float) -> float:
        """The mean after one more number; one that is not finite is passed over."""
        if math.isfinite(number):
            self.count += 1
            span = min(_MOST, max(1.0, self.count / _SHARE))
            self.mean = number if self.count == 1 else self.mean + 2 / (span + 1) * (number - self.mean)
        return self.mean
