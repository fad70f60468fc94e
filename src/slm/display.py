"""What a run shows: a live line in a terminal, calm plain lines elsewhere. Fed with the records of `on_log`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.metrics.scoring import Estimate, Evaluation, PositionLoss
    from slm.metrics.yardsticks import Yardstick
    from slm.training.loop import History

_CALM_SECONDS = 10.0  # between plain progress lines


class Display:
    """Prints a run to standard output; with quiet, nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def print(self, text: str) -> None:
        """One line, at once."""
        if self.quiet:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # nobody reads any more (`slm-train | head`); the run goes on, unseen
            self.quiet = True
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives

    @contextmanager
    def working(self) -> Iterator[Callable[[str, int, int | None], None]]:
        """A context that gives the consumer of what is being done, the bytes done, and the bytes in all if known."""
        if self.quiet:
            yield lambda what, done, total: None
        elif sys.stdout.isatty():
            with _terminal_work() as show:
                yield show
        else:
            yield _PlainWork(self.print)

    def header(self, rows: Mapping[str, str]) -> None:
        """What was chosen and why; the lines of a value stand below each other."""
        width = max(map(len, rows))
        for name, value in rows.items():
            value = value.replace("\n", "\n" + " " * (width + 2))
            self.print(f"{name:<{width}}  {value}")
        self.print("")

    def sample(self, text: str) -> None:
        """A piece of text that the model wrote."""
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        self.print(f"\nsample:\n{shown}\n")

    def summary(
        self, metrics: Mapping[str, Any], history: History, path: str | None, source_bits_per_byte: float | None
    ) -> None:
        """How the run ended, beside the best that is possible where that is known, and where its model is."""
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
        self.print(f"{ended} after step {last:,}{of}{which}: {_evaluation(metrics)}{best}")
        if history.skipped_steps:
            self.print(f"{history.skipped_steps:,} steps changed nothing: their loss or gradient was no finite number")
        if path:
            self.print(f"model: {path}{resumable}")

    def evaluation(self, name: str, found: Evaluation) -> None:
        """All numbers of a model on a text."""
        size = "" if found.num_bytes is None else f" of {found.num_bytes:,} bytes"
        rows = {
            "model": name,
            "text": f"{found.text}: {found.num_tokens:,} tokens{size}",
            "val_loss": f"{_estimate(found.loss, 4)} nats per token",
            "perplexity": _estimate(found.perplexity, 2),
            "bits per byte": _estimate(found.bits_per_byte, 4) if found.bits_per_byte else "unknown",
            "accuracy": f"{_estimate(found.accuracy, 2, 100)} %",
            "top-5 accuracy": f"{_estimate(found.top5_accuracy, 2, 100)} %",
            "+-": f"standard errors, over {found.units_told}",
            "by context": ", ".join(f"{_range(one)}: {one.loss:.3f}" for one in found.loss_by_position)
            + " (val_loss after so many tokens of the window)",
        }
        self.header(rows)
        self.yardsticks(found.yardsticks, found.as_yardstick)
        if found.yardsticks_missing:
            self.print(f"no yardsticks, which learn from the training text: {found.yardsticks_missing}")
        self.print("")

    def yardsticks(self, found: Sequence[Yardstick], model: Yardstick) -> None:
        """What simple predictors score on the same text, with the model among them, worst first."""
        for line in yardstick_lines(found, model):
            self.print(line)

    @contextmanager
    def live(self, total_steps: int, seconds: float | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A context that gives the consumer of a run's records; seconds: that the run may still take, where known."""
        eta = _Eta(total_steps, seconds)
        if self.quiet:
            yield lambda record: None
        elif sys.stdout.isatty():
            with _terminal(eta) as show:
                yield show
        else:
            yield _Plain(eta, self.print)


def _estimate(found: Estimate, digits: int, scale: float = 1) -> str:
    """Such as 2.3871 +- 0.0123."""
    value, error = (scale * number for number in found)
    return f"{value:,.{digits}f}" + (f" +- {error:,.{digits}f}" if error == error else "")  # else not a number


def _range(found: PositionLoss) -> str:
    return f"{found.fewest}" if found.fewest == found.most else f"{found.fewest}-{found.most}"


def yardstick_lines(found: Sequence[Yardstick], model: Yardstick) -> list[str]:
    """A table of yardsticks with the model among them, worst first, and whether it beats those that count tokens."""
    columns = {title: tell for title, tell in _COLUMNS.items() if tell(model)}
    scores = {one.name: one.bits_per_byte if model.bits_per_byte is not None else one.loss for one in (*found, model)}
    shown = [one for one in (*found, model) if scores[one.name] is not None]
    counting = [one for one in shown if one.loss is not None and one is not model]
    if not counting:
        return []
    shown.sort(key=lambda one: scores[one.name], reverse=True)  # type: ignore[arg-type, return-value]
    width = max(len(one.name) for one in shown)
    lines = [f"{'on the same text':<{width + 2}}" + "".join(f"{title:>15}" for title in columns)]
    for one in shown:
        told = f"   {one.told}" if one.told else ""
        line = f"  {one.name:<{width}}" + "".join(f"{tell(one):>15}" for tell in columns.values()) + told
        lines.append(line.rstrip())
    best = min(counting, key=lambda one: scores[one.name])  # type: ignore[arg-type, return-value]
    is_better = scores[model.name] < scores[best.name]  # type: ignore[operator]
    why = "" if is_better else f", which {'knows nothing' if best.name == 'uniform' else 'only counts'}"
    return [*lines, f"{model.name} is {'better' if is_better else 'not better'} than the {best.name}{why}"]


def _told(number: float | None, digits: int, unit: str = "") -> str:
    return "" if number is None else f"{number:,.{digits}f}{unit}"


# The columns of the table, each with what it tells of a predictor, or nothing.
_COLUMNS: dict[str, Callable[[Yardstick], str]] = {
    "bits per byte": lambda one: _told(one.bits_per_byte, 3),
    "val_loss": lambda one: _told(one.loss, 4),
    "perplexity": lambda one: _told(None if one.loss is None else math.exp(min(one.loss, 700)), 2),
    "accuracy": lambda one: _told(None if one.accuracy is None else 100 * one.accuracy, 2, " %"),
    "top-5": lambda one: _told(None if one.top5_accuracy is None else 100 * one.top5_accuracy, 2, " %"),
}


def _evaluation(record: Mapping[str, Any]) -> str:
    text = (
        f"val_loss {record['val_loss']:.4f}, perplexity {record['val_perplexity']:,.2f}, "
        f"accuracy {100 * record['val_accuracy']:.2f} %"
    )
    if "val_bits_per_byte" in record:
        text += f", {record['val_bits_per_byte']:.3f} bits per byte"
    return text


def _evaluation_line(record: Mapping[str, Any], eta: _Eta) -> str:
    return f"{eta.place(record['step'])}  epoch {record['epoch']}  {_evaluation(record)}"


def _decision_line(record: Mapping[str, Any], eta: _Eta) -> str:
    return f"{eta.place(record['step'])}  the learning rate falls from here on, for {record['decay_steps']:,} steps"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Eta:
    """The time left: what may be spent, or from the pace since the first record (the first step is slow)."""

    def __init__(self, total_steps: int, seconds: float | None) -> None:
        self.total_steps = total_steps  # 0 as long as the end is open
        self.end = None if seconds is None else time.monotonic() + seconds
        self.first: tuple[int, float] | None = None  # step and time

    def place(self, step: int) -> str:
        """Such as "step 20/300"."""
        return f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}" if self.total_steps else f"step {step}"

    def left(self, step: int) -> str:
        """ ", 1:23 left", or nothing as long as there is no pace."""
        now = time.monotonic()
        self.first = self.first or (step, now)
        if self.end is not None:
            return f", {_clock(max(self.end - now, 0))} left"
        first_step, then = self.first
        if step <= first_step:
            return ""
        return f", {_clock((now - then) / (step - first_step) * (self.total_steps - step))} left"


class _Rate:
    """Bytes done, per second, and the time left, in words, since one piece of work began."""

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
            of, left = f" of {total / 1e6:,.1f}", f", {_clock((total - done) / rate)} left"
        return new, f"{done / 1e6:,.1f}{of} MB, {rate / 1e6:,.1f} MB/s{left}"


class _PlainWork:
    """A line when a piece of work begins, and one every few seconds while it goes on."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.rate, self.last = write, _Rate(), 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        new, told = self.rate.told(what, done, total)
        if new:
            self.write(f"{what} ...")
            self.last = time.monotonic()
        elif told and time.monotonic() - self.last >= _CALM_SECONDS:
            self.write(f"{what}: {told}")
            self.last = time.monotonic()


@contextmanager
def _terminal_work() -> Iterator[Callable[[str, int, int | None], None]]:
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
        task, rate = progress.add_task("", total=None, told=""), _Rate()

        def show(what: str, done: int, total: int | None) -> None:
            new, told = rate.told(what, done, total)
            if new or told:
                progress.update(task, description=what, completed=done, total=total, told=told)

        yield show


class _Plain:
    """Plain lines: every evaluation, and progress every few seconds at most."""

    def __init__(self, eta: _Eta, write: Callable[[str], None]) -> None:
        self.eta, self.write = eta, write
        self.last = -_CALM_SECONDS

    def __call__(self, record: Mapping[str, Any]) -> None:
        if "max_steps" in record:
            self.eta.total_steps = record["max_steps"]
            if "decay_steps" in record:  # else the run was cut off, which its end tells
                self.write(_decision_line(record, self.eta))
            return
        if "val_loss" in record:
            self.write(_evaluation_line(record, self.eta))
            return
        left = self.eta.left(record["step"])
        if time.monotonic() - self.last >= _CALM_SECONDS:
            self.last = time.monotonic()
            self.write(f"{self.eta.place(record['step'])}  {_progress(record)}{left}")


def _progress(record: Mapping[str, Any]) -> str:
    return f"loss {record['train_loss']:.4f}, {record['tokens_per_second']:,.0f} tokens/s"


@contextmanager
def _terminal(eta: _Eta) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """One live line, with evaluations printed above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),  # a sign of life during long evaluations
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        task = progress.add_task("", total=eta.total_steps or None, told="")

        def show(record: Mapping[str, Any]) -> None:
            if "max_steps" in record:
                eta.total_steps = record["max_steps"]
                progress.update(task, total=eta.total_steps)
                if "decay_steps" in record:
                    progress.console.print(_decision_line(record, eta), markup=False)
            elif "val_loss" in record:
                progress.console.print(_evaluation_line(record, eta), markup=False)
            else:
                told = _progress(record) + eta.left(record["step"])
                progress.update(task, completed=record["step"], told=told)

        yield show
