"""Laws of slm.plot: its lines are the records, it leaves pyplot alone, and a notebook can show it."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from conftest import SMALL, make_text
from matplotlib import image
from matplotlib.cbook import is_math_text

import slm
from slm.metrics.pages.charts import smoothed
from slm.metrics.plots import plot
from slm.metrics.recorded import Recorded

FAST = SMALL | {"log_every": 2, "eval_every": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A run in memory, one in a folder, and the folder's name."""
    folder = str(tmp_path_factory.mktemp("run"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield {
            "memory": slm.train([make_text()], **FAST),
            "folder": slm.train([make_text()], model_dir=folder, **FAST | {"seed": 1}),
            "path": folder,
        }


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def expected(records: list[dict[str, Any]], x: str) -> list[tuple[list[float], list[float]]]:
    train = smoothed([(one[x], one["train_loss"]) for one in records if "train_loss" in one])
    val = [(one[x], one["val_loss"]) for one in records if "val_loss" in one]
    return [([x for x, _ in points], [y for _, y in points]) for points in (train, val)]


def test_the_lines_of_a_figure_are_the_records_of_its_runs(runs: dict[str, Any]) -> None:
    first, second = runs["memory"], runs["folder"]
    records = [first.history.records, second.history.records]
    for figure, told in (
        (first.plot(), records[:1]),
        (slm.plot(first), records[:1]),
        (slm.plot(first, second), records),
        (slm.plot(first, runs["path"]), records),
        (slm.plot(Path(runs["path"])), records[1:]),
        (slm.load(runs["path"]).plot(), records[1:]),
    ):
        assert isinstance(figure, matplotlib.figure.Figure)
        by_step, by_second = figure.axes
        for axes, x in ((by_step, "step"), (by_second, "elapsed_seconds")):
            assert lines(axes) == [line for one in told for line in expected(one, x)]
        names = [text.get_text() for text in by_step.get_legend().get_texts()]
        assert len(set(names)) == len(names) == len(told)
        assert by_step.get_xlabel() == "step" and "loss" in by_step.get_ylabel()
        looks = {(line.get_color(), line.get_linestyle(), line.get_label()) for line in by_step.get_lines()}
        assert len(looks) == 2 * len(told)


def test_pyplot_is_left_alone(runs: dict[str, Any]) -> None:
    code = (
        "import sys, slm; figure = slm.plot(sys.argv[1], sys.argv[1]); figure.savefig(sys.argv[2]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    picture = Path(runs["path"], "picture.svg")
    subprocess.run([sys.executable, "-c", code, runs["path"], str(picture)], check=True)
    assert "<svg" in picture.read_text()
    picture.unlink()


def test_a_notebook_gets_a_picture_with_something_on_it(runs: dict[str, Any]) -> None:
    png = slm.plot(runs["memory"])._repr_png_()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    import io

    pixels = image.imread(io.BytesIO(png))
    assert pixels.shape[0] >= 300 and pixels.shape[1] >= 800
    assert np.ptp(pixels[..., :3]) > 0.5


def test_what_cannot_be_plotted_is_told(runs: dict[str, Any], tmp_path: Path) -> None:
    for none in ([], [Recorded("empty", [])], [Recorded("r", [{"step": 1, "status": "finished", "message": ""}])]):
        with pytest.raises(slm.UserError):
            plot(none)
    with pytest.raises(slm.UserError, match="13 runs"):
        slm.plot(*[runs["memory"]] * 13)
    slm.plot(*[runs["memory"]] * 12)
    with pytest.raises(slm.UserError, match="holds no run"):
        slm.plot(tmp_path)
    with pytest.raises(slm.UserError):
        slm.plot()


def made_up(name: str, *losses: float) -> Recorded:
    records: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        records.append({"step": step, "train_loss": loss, "elapsed_seconds": step / 2})
        records.append({"step": step, "val_loss": loss, "elapsed_seconds": step / 2})
    return Recorded(name, records)


@pytest.mark.parametrize("name", ["_hidden", "$x$", "a_b^c$", r"$\frac{$", "run <b>", "漢"])
def test_a_run_stands_in_the_legend_by_its_name_as_it_is(name: str) -> None:
    figure = plot([made_up(name, 3.0, 2.0, 1.0), made_up("other", 3.0, 2.0)])
    texts = figure.axes[0].get_legend().get_texts()
    assert texts[0].get_text().strip().replace(r"\$", "$") == name
    assert not is_math_text(texts[0].get_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font need not have every letter
        assert figure._repr_png_()


def test_runs_of_one_name_are_told_apart() -> None:
    figure = plot([made_up("run", 3.0, 2.0), made_up("run", 3.0, 1.0), made_up("other", 3.0, 1.0)])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["run (1)", "run (2)", "other"]


def test_a_long_first_fall_does_not_flatten_the_rest() -> None:
    losses = [100.0, *(2 - step / 1000 for step in range(100))]
    low, high = plot([made_up("run", *losses)]).axes[0].get_ylim()
    assert low < 1.9 and 2.0 < high < 60


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_passed_over(odd: float) -> None:
    figure = plot([made_up("run", 3.0, odd, 2.0, odd, 1.5, 1.2, odd)])
    assert figure._repr_png_()
    assert all(map(math.isfinite, figure.axes[0].get_ylim()))
    assert plot([made_up("run", odd, odd)])._repr_png_()


@pytest.mark.parametrize("wrong", [None, 5, [1]])
def test_what_is_no_run_is_told_so(wrong: Any) -> None:
    with pytest.raises(slm.UserError, match="is no run: give a slm"):
        slm.plot(wrong)
    with pytest.raises(slm.UserError, match="is no run: give a slm"):
        slm.explain(wrong, "text")
