"""From runs, or what lies in their folders, to pictures and pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from slm.config import DataConfig, UserError
from slm.evaluation import evaluate_all, no_progress
from slm.metrics.pages import pages_of
from slm.metrics.pages.comparison import LETTERS, comparison_page
from slm.metrics.pages.page import is_ours
from slm.metrics.plots import plot as plot_recorded
from slm.metrics.recorded import Recorded
from slm.metrics.scoring import compare_evaluations
from slm.run import Run
from slm.settings import read_config, read_table
from slm.storage import files
from slm.training.history import read_records
from slm.training.resume import CONFIG

RunOrPath = Run | str | os.PathLike[str]
Progress = Callable[[str, int, int | None], None]


def plot(*runs: RunOrPath) -> Any:
    """A matplotlib Figure with the loss curves of runs, or of what lies in their folders or at their URLs.

    A notebook shows it; `.savefig(path)` writes it. Raises UserError and OSError.
    """
    return plot_recorded([recorded_of(run) for run in runs])


def recorded_of(run: RunOrPath) -> Recorded:
    """What can be told about a run, or about the one in a folder or at a URL. Raises UserError and OSError."""
    if isinstance(run, Run):
        return run.recorded
    if not isinstance(run, str | os.PathLike):
        raise UserError(f"{run!r:.60} is no run: give a slm.Run, or the folder or URL of one.")
    folder = os.fspath(run)
    files.check_path(folder)
    try:
        resolved, made_with = (read_table(folder, name) for name in ("resolved", "made_with"))
        return Recorded(folder, read_records(folder), resolved, made_with, read_config(files.join(folder, CONFIG)))
    except files.MissingError as error:
        raise UserError(f"{folder} holds no run. {error} Name the --model_dir of a training.") from error


def report(folder: str) -> dict[str, str]:
    """The pages of the run in a folder or at a URL, by name, made anew, but for those there that slm did not write."""
    pages = pages_of(recorded_of(folder))
    places = {name: files.join(folder, name) for name in pages}
    kept = [name for name, place in places.items() if files.exists(place) and not is_ours(files.read_bytes(place))]
    return {name: text for name, text in pages.items() if name not in kept}


def comparison(folders: Sequence[str], on_progress: Progress = no_progress) -> tuple[str, list[str]]:
    """(A page with several runs on it; the verdicts in words.)

    Each run is judged against the best on the validation text of the first; where that cannot be done, the page and the
    words say why.
    """
    runs = [recorded_of(folder) for folder in folders]
    names = [f"{letter} ({folder})" for letter, folder in zip(LETTERS, folders, strict=False)]
    try:
        found = evaluate_all(
            folders, DataConfig(), stride=None, device="auto", with_yardsticks=False, on_progress=on_progress
        )
        numbers = [(one.bits_per_byte or one.loss).value for one in found]
        best = numbers.index(min(numbers))
        verdicts = [
            compare_evaluations(found[best], one).verdict(names[best], name)
            for number, (one, name) in enumerate(zip(found, names, strict=True))
            if number != best
        ]
        text = found[best].text.replace(os.path.join(os.getcwd(), ""), "")  # a name that is short where one works
        told = [f"Judged on {text}, unit by unit ({found[best].units_told}).", *verdicts]
    except (UserError, OSError) as error:
        way_out = "" if any(run.task for run in runs) else " On another text slm-evaluate --data tells which is better."
        told = [f"No paired verdict: {error}{way_out}"]
    return comparison_page(runs, told), told
