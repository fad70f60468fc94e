"""What a run shows: a live line in a terminal, calm plain lines elsewhere. Fed with the records of `on_log`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.training.loop import History

_CALM_SECONDS = 10.0  # between plain progress lines


class Display:
    """Prints a run to standard output; with quiet, nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def print(self, text: str) -> None:
        """One line, at once."""
        if not self.quiet:
            print(text, flush=True)

    def status(self, text: str) -> None:
        """What is being done now, when it may take long."""
        self.print(f"{text} ...")

    def header(self, rows: Mapping[str, str]) -> None:
        """What was chosen and why."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.print(f"{name:<{width}}  {value}")
        self.print("")

    def sample(self, text: str) -> None:
        """A piece of text that the model wrote."""
        self.print(f"\nsample:\n{text}\n")

    def summary(self, metrics: Mapping[str, Any], history: History, path: str | None) -> None:
        """How the run ended and where its model is."""
        if not metrics:
            self.print("No model was kept: no evaluation gave a finite loss.")
            return
        last = history.records[-1]["step"]
        ended = {"finished": "finished", "interrupted": "stopped", "diverged": "stopped early"}[history.status]
        which = "" if metrics["step"] == last else f"; the best, of step {metrics['step']}, is kept"
        self.print(f"{ended} after step {last:,} of {history.total_steps:,}{which}: {_evaluation(metrics)}")
        if path:
            self.print(f"model: {path}")

    @contextmanager
    def live(self, total_steps: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A context that gives the consumer of a run's records."""
        if self.quiet:
            yield lambda record: None
        elif sys.stdout.isatty():
            with _terminal(total_steps) as show:
                yield show
        else:
            yield _Plain(total_steps, self.print)


def _evaluation(record: Mapping[str, Any]) -> str:
    text = (
        f"val_loss {record['val_loss']:.4f}, perplexity {record['val_perplexity']:,.2f}, "
        f"accuracy {100 * record['val_accuracy']:.2f} %"
    )
    if "val_bits_per_byte" in record:
        text += f", {record['val_bits_per_byte']:.3f} bits per byte"
    return text


def _evaluation_line(record: Mapping[str, Any], total_steps: int) -> str:
    return (
        f"step {record['step']:>{len(str(total_steps))}}/{total_steps}  epoch {record['epoch']}  {_evaluation(record)}"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Eta:
    """The time left, from the pace of the whole run so far, evaluations included."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps, self.start = total_steps, time.monotonic()

    def left(self, step: int) -> str:
        return _clock((time.monotonic() - self.start) / max(step, 1) * (self.total_steps - step))


class _Plain:
    """Plain lines: every evaluation, and progress every few seconds at most."""

    def __init__(self, total_steps: int, write: Callable[[str], None]) -> None:
        self.total_steps, self.write, self.eta = total_steps, write, _Eta(total_steps)
        self.last = -_CALM_SECONDS

    def __call__(self, record: Mapping[str, Any]) -> None:
        if "val_loss" in record:
            self.write(_evaluation_line(record, self.total_steps))
        elif time.monotonic() - self.last >= _CALM_SECONDS:
            self.last = time.monotonic()
            width = len(str(self.total_steps))
            self.write(
                f"step {record['step']:>{width}}/{self.total_steps}  loss {record['train_loss']:.4f}, "
                f"{record['tokens_per_second']:,.0f} tokens/s, {self.eta.left(record['step'])} left"
            )


@contextmanager
def _terminal(total_steps: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """One live line, with evaluations printed above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    eta = _Eta(total_steps)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        task = progress.add_task("", total=total_steps, told="")

        def show(record: Mapping[str, Any]) -> None:
            if "val_loss" in record:
                progress.console.print(_evaluation_line(record, total_steps), markup=False)
            else:
                told = f"loss {record['train_loss']:.4f}  {record['tokens_per_second']:,.0f} tokens/s"
                progress.update(task, completed=record["step"], told=f"{told}  {eta.left(record['step'])} left")

        yield show
