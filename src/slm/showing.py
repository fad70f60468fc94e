"""What is made fit to be shown: noisy numbers as curves that the eye can follow, any text as harmless text."""

from __future__ import annotations

import math
import unicodedata
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


_JOINERS = "\u200c\u200d"  # without which Persian, Hindi and some emoji fall apart


def harmless(text: str) -> str:
    """The text with a sign in place of each character that could do something to a screen or a page."""
    return "".join(c if c.isprintable() or c in "\n\t" or _is_space(c) else "\ufffd" for c in text)


def _is_space(c: str) -> bool:
    return c in _JOINERS or unicodedata.category(c) == "Zs"
