"""A run in a terminal: two live lines, with evaluations and samples printed above them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slm.display.course import Course
from slm.display.words import clock, peak, sample_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_REFRESHES = 4  # a second: a sign of life during long evaluations
_SPINNER, _PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_BAR = 30  # characters at most
_LEAST_BAR = 5
# What a narrow terminal goes without, first to last.
_OF_EVALUATION = ("epoch", "perplexity", "accuracy", "bits per byte")
_OF_NUMBERS = ("peak", "tokens", "loss")


@contextmanager
def terminal(course: Course, console: Console | None = None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A context that gives the consumer of a run's records; the live lines are gone after it."""
    from rich.console import Console
    from rich.live import Live

    console = console or Console(highlight=False)
    with Live(Picture(course), console=console, refresh_per_second=_REFRESHES, transient=True):
        yield Terminal(course, console)


class Terminal:
    """A consumer of records that prints evaluations, decisions and samples."""

    def __init__(self, course: Course, console: Console) -> None:
        self.course, self.console = course, console

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Takes a record; most of them the live lines show at their next refresh."""
        from rich.text import Text

        kind = self.course.take(record)
        if kind == "decision" and (line := self.course.decision_line(record)):
            self.console.print(Text(line))
        elif kind == "evaluation":
            self.console.print(_evaluation(self.course, record, self.console.width))
        elif kind == "sample":
            for text in _sample(record, self.console):
                self.console.print(text)


def _evaluation(course: Course, record: Mapping[str, Any], width: int) -> Text:
    """The evaluation on one line, without what does not fit."""
    from rich.text import Text

    for count in range(len(_OF_EVALUATION) + 1):
        mark = " (best)" if count else " (best so far)"
        line = course.evaluation_line(record, mark if course.is_best else "", _OF_EVALUATION[:count])
        if len(line) + (0 if course.is_best else len(mark)) <= width:  # the lines of a run look alike
            break
    text = Text(line)
    if course.is_best:
        text.highlight_words([mark], "green")
    return text


def _sample(record: Mapping[str, Any], console: Console) -> list[Text]:
    """What the model wrote, on at most two lines."""
    from rich.text import Text

    def writable(text: str) -> str:
        return text.encode(console.encoding, "replace").decode(console.encoding)

    prompt, written = map(writable, sample_line(record))
    text, width = Text.assemble((prompt, "cyan dim"), (written, "dim")), max(console.width - 4, 1)
    first, *others = text.wrap(console, width, overflow="fold")
    if len(others) > 1:
        others[0].truncate(width - 1)
        others[0].append(writable("…"), "dim")
    return [Text("  ").append_text(first), *(Text("    ").append_text(other) for other in others[:1])]


class Picture:
    """The two live lines: how far the run is, and its numbers."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Renders the lines; called by rich."""
        from rich.text import Text

        width, is_ascii = options.max_width, options.ascii_only
        yield Text.assemble(*self._progress(width, is_ascii), no_wrap=True, overflow="crop")
        yield Text(self._numbers(width), no_wrap=True, overflow="crop")

    def _progress(self, width: int, is_ascii: bool) -> list[tuple[str, str]]:
        """Pieces of the first line, with their styles."""
        frames = _PLAIN_SPINNER if is_ascii else _SPINNER
        spinner = frames[int(_REFRESHES * time.monotonic()) % len(frames)]
        left, share = self.course.left(), self.course.share()
        place, end = f" {self.course.place()}", "" if left is None else f"  {clock(left)} left"
        room = min(_BAR, width - len(spinner + place + end) - 2)
        bar: list[tuple[str, str]] = []
        if share is not None and room >= _LEAST_BAR:
            done, rest = "=-" if is_ascii else "━─"  # that differ also without colours
            full = int(share * room)
            bar = [("  " + done * full, "cyan"), (rest * (room - full), "dim")]
        return [(spinner, "cyan"), (place, ""), *bar, (end, "")]

    def _numbers(self, width: int) -> str:
        """The second line."""
        course, log = self.course, self.course.log
        if not log:
            return "the first step is under way"
        told = {
            "loss": f"loss {_loss(log['train_loss'])}",
            "smoothed": f"smoothed {_loss(course.smoothed)}",
            "best": f"best val_loss {_loss(course.best)}" if math.isfinite(course.best) else "",
            "tokens": f"{_speed(log['tokens_per_second'])} tokens/s",
            "peak": peak(log),
        }
        for count in range(len(_OF_NUMBERS) + 1):
            line = "  ".join(text for name, text in told.items() if text and name not in _OF_NUMBERS[:count])
            if len(line) <= width:
                break
        return line


def _loss(value: float) -> str:
    return f"{value:.{3 if value < 10 else 2}f}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value < 999_999.5 else f"{value / 1e6:.2f} M"
