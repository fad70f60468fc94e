"""What a run or a command shows on standard output, or in the output of a notebook's cell."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slm.display import words
from slm.display.course import Course
from slm.display.plain import Plain
from slm.display.tables import evaluation_rows, yardstick_lines
from slm.display.terminal import terminal
from slm.display.work import PlainWork, terminal_work
from slm.showing import harmless

if TYPE_CHECKING:
    from slm.metrics.scoring import Evaluation
    from slm.metrics.yardsticks import Yardstick
    from slm.training.loop import History


class Display:
    """Prints a run to standard output; with quiet, nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def print(self, text: str) -> None:
        """One line, at once."""
        if self.quiet:
            return
        try:
            try:
                print(text, flush=True)
            except UnicodeEncodeError:  # a sample may hold what the encoding of a pipe does not know
                print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding), flush=True)
        except BrokenPipeError:  # nobody reads any more (`slm-train | head`); the run goes on, unseen
            self.quiet = True
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives

    @contextmanager
    def working(self) -> Iterator[Callable[[str, int, int | None], None]]:
        """A context that gives the consumer of what is being done, the bytes done, and the bytes in all if known."""
        if self.quiet:
            yield lambda what, done, total: None
        elif sys.stdout.isatty():
            with terminal_work() as show:
                yield show
        else:
            yield PlainWork(self.print)

    def header(self, rows: Mapping[str, str]) -> None:
        """What was chosen and why; the lines of a value stand below each other, in a terminal broken between words."""
        width = max(map(len, rows))
        for name, value in rows.items():
            lines = value.split("\n")
            if sys.stdout.isatty():
                room = max(20, shutil.get_terminal_size().columns - width - 3)
                lines = [part for line in lines for part in textwrap.wrap(line, room) or [""]]
            self.print(f"{name:<{width}}  " + ("\n" + " " * (width + 2)).join(lines))
        self.print("")

    def sample(self, text: str) -> None:
        """A piece of text that the model wrote."""
        self.print(f"\nsample:\n{harmless(text)}\n")

    def summary(
        self,
        metrics: Mapping[str, Any],
        history: History,
        path: str | None,
        source_bits_per_byte: float | None,
        *,
        report: str | None = None,
        diagnosis: Sequence[str] = (),
    ) -> None:
        """How the run ended, beside the best that is possible where that is known, what its curves say, where it is.

        path: of the model. report: of the page. diagnosis: each finding in words.
        """
        for finding in diagnosis:
            self.print(finding)
        if not metrics:
            why = "no evaluation gave a finite loss" if history.records else "no step was done"
            self.print(f"No model was kept: {why}.")
            return
        last = history.step
        ended = {"finished": "finished", "interrupted": "stopped", "diverged": "stopped early"}[history.status]
        which = "" if metrics["step"] == last else f"; the best, of step {metrics['step']}, is kept"
        resumable = f"; the same command goes on from step {last:,}" if ended == "stopped" and path else ""
        best = f"; the source's entropy is {source_bits_per_byte:.3f}" if source_bits_per_byte else ""
        of = f" of {history.total_steps:,}" if history.total_steps else ""
        self.print(f"{ended} after step {last:,}{of}{which}: {words.evaluation(metrics)}{best}")
        if history.skipped_steps:
            self.print(f"{history.skipped_steps:,} steps changed nothing: their loss or gradient was no finite number")
        if path:
            self.print(f"model: {path}; report: {report}{resumable}")

    def evaluation(self, name: str, found: Evaluation) -> None:
        """All numbers of a model on a text."""
        self.header(evaluation_rows(name, found))
        self.yardsticks(found.yardsticks, found.as_yardstick)
        if found.yardsticks_missing:
            self.print(f"no yardsticks, which learn from the training text: {found.yardsticks_missing}")
        self.print("")

    def yardsticks(self, found: Sequence[Yardstick], model: Yardstick) -> None:
        """What simple predictors score on the same text, with the model among them, worst first."""
        for line in yardstick_lines(found, model):
            self.print(line)

    @contextmanager
    def live(
        self, total_steps: int, seconds: float | None, so_far: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A context that gives the consumer of a run's records.

        seconds: that the run may still take, where known. so_far: the records of a run that is gone on with.
        """
        course = Course(total_steps, seconds)
        for record in so_far:
            course.take(record)
        course.begin()
        if self.quiet:
            yield lambda record: None
        elif sys.stdout.isatty():
            with terminal(course) as show:
                yield show
        elif _is_notebook():
            from slm.display.notebook import notebook

            with notebook(course, so_far) as show:
                yield show
        else:
            yield Plain(course, self.print)


def _is_notebook() -> bool:
    """Whether this is the kernel of a notebook, which has IPython imported."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
