"""The curves of runs as a matplotlib figure, laid over each other."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from slm.config import UserError
from slm.metrics.pages.charts import smoothed, thinned_points
from slm.metrics.recorded import Recorded, curve
from slm.task_config import CLASSIFICATION

_STYLES = ("-", "--", ":", "-.")  # runs differ by more than their colour
_MOST_RUNS = 12


def plot(runs: Sequence[Recorded]) -> Any:
    """A matplotlib Figure: training and validation loss over the steps, and over the seconds of training.

    A notebook shows it; `.savefig(path)` writes it. Raises UserError where a run has no record of its training.
    """
    from matplotlib.figure import Figure

    class Picture(Figure):  # type: ignore[misc, unused-ignore]
        """A figure that a notebook shows once, whether or not pyplot is in use."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=100)
            return file.getvalue()

    if not 1 <= len(runs) <= _MOST_RUNS:
        raise UserError(f"{len(runs)} runs: a picture takes from 1 to {_MOST_RUNS}.")
    for run in runs:
        if not run.logs and not run.evaluations:
            raise UserError(f"{run.name} has no record of a training: there is nothing to plot.")
    figure = Picture(figsize=(10, 4), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    names = _names(runs)
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        style = {"color": f"C{number % 10}", "linestyle": _STYLES[number % len(_STYLES)]}
        for axes, x in ((by_step, "step"), (by_second, "elapsed_seconds")):
            train = curve(run.logs, "train_loss", x)
            beside = {"color": "C1"} if len(runs) == 1 else {}
            axes.plot(*_columns(thinned_points(smoothed(train))), linewidth=1, alpha=0.7, **style | beside)
            val = curve(run.evaluations, "val_loss", x)
            axes.plot(*_columns(val), marker="o", markersize=3, label=name, **style)
            if other := curve(run.evaluations, "also_val_loss", x):
                other = [(0, run.before["also_val_loss"]), *other] if "also_val_loss" in run.before else other
                kept = {"marker": "x", "markersize": 4, "label": f"{name}, the other text"}
                axes.plot(*_columns(other), linewidth=1, **kept, **style)
    tasks = {run.task for run in runs}
    unit = "nats per label" if tasks == {CLASSIFICATION} else "nats" if CLASSIFICATION in tasks else "nats per token"
    by_step.set(xlabel="step", ylabel=f"loss, {unit}", title="val_loss (thin: train loss, smoothed)")
    by_second.set(xlabel="seconds of training", title="over the time")
    for axes in (by_step, by_second):
        axes.grid(alpha=0.3)
    _leave_out_beginning(by_step, runs)
    by_step.legend()
    return figure


def _names(runs: Sequence[Recorded]) -> list[str]:
    """A name for each, told apart by numbers where they are the same, as matplotlib shows it as it is."""
    names = [run.name for run in runs]
    told = [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    # A legend leaves out names that begin with _, and text between two $ would be a formula.
    return [f"{' ' * name.startswith('_')}{name}".replace("$", r"\$") for name in told]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _leave_out_beginning(axes: Any, runs: Sequence[Recorded]) -> None:
    """The first fall of the loss would make the rest look flat: the axis ends where all runs are soon after it."""
    later = [
        y
        for run in runs
        for x, y in (
            *smoothed(curve(run.logs, "train_loss")),
            *curve(run.evaluations, "val_loss"),
            *curve(run.evaluations, "also_val_loss"),
        )
        if x > 0.05 * run.step and math.isfinite(y)
    ]
    if len(later) > 4:
        low, high = min(later), max(later)
        room = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - room, high + room)
