"""Work before and after a run, such as reading: what is being done, how far it is, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slm.display.words import CALM_SECONDS, clock

_FEW = 100_000  # so few are no bytes, which would be done at once


class Rate:
    """Bytes done, per second, and the time left, in words, since one piece of work began; or things, where few."""

    def __init__(self) -> None:
        self.what, self.first, self.began = "", 0, 0.0

    def told(self, what: str, done: int, total: int | None) -> tuple[bool, str]:
        """Whether this is another piece of work than before, and how far it is."""
        new = what != self.what
        if new:
            self.what, self.first, self.began = what, done, time.monotonic()
        seconds = time.monotonic() - self.began
        if done <= self.first or seconds < 0.5:
            return new, ""
        rate = (done - self.first) / seconds
        of, left = "", ""
        if total and total >= done:
            of, left = f" of {total / 1e6:,.1f}", f", {clock((total - done) / rate)} left"
        if total and total < _FEW:
            return new, f"{done:,} of {total:,}{left}"
        return new, f"{done / 1e6:,.1f}{of} MB, {rate / 1e6:,.1f} MB/s{left}"


class PlainWork:
    """A line when a piece of work begins, and one every few seconds while it goes on."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.rate, self.last = write, Rate(), 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        new, told = self.rate.told(what, done, total)
        if new:
            self.write(f"{what} ...")
            self.last = time.monotonic()
        elif told and time.monotonic() - self.last >= CALM_SECONDS:
            self.write(f"{what}: {told}")
            self.last = time.monotonic()


@contextmanager
def terminal_work() -> Iterator[Callable[[str, int, int | None], None]]:
    """One live line with a bar, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        task, rate = progress.add_task("", total=None, told=""), Rate()

        def show(what: str, done: int, total: int | None) -> None:
            new, told = rate.told(what, done, total)
            if new or told:
                progress.update(task, description=what, completed=done, total=total, told=told)

        yield show
