"""Laws of what a run shows: the same records as live lines, as one output of a notebook's cell, and as plain lines."""

from __future__ import annotations

import html
import io
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slm.display import Display, notebook, plain, screen, words
from slm.display.course import Course
from slm.display.terminal import Picture, Terminal, terminal
from slm.display.work import PlainWork
from slm.metrics.pages.charts import smoothed
from slm.showing import harmless

Record = dict[str, Any]
EVIL = (
    "[red]mark[/red] [link=https://a.b]x[/link] :smile: <script>alert('1')</script> &amp; $x$ \x1b[31mred\x07\u202e\x9b"
)
MINUTE = 60.0


def log(step: int, loss: float = 2.5, **more: Any) -> Record:
    return {
        "step": step, "epoch": 1, "train_loss": loss, "lr": 1e-3, "grad_norm": 1.0, "skipped_steps": 0,
        "clipped_steps": 0, "tokens_seen": 10 * step, "tokens_per_second": 12_345.6,
        "elapsed_seconds": 0.1 * step, **more,
    }  # fmt: skip


def evaluation(step: int, loss: float = 2.25, **more: Any) -> Record:
    return {
        "step": step, "epoch": 1, "val_loss": loss, "val_accuracy": 0.25, "val_perplexity": math.exp(loss),
        "tokens_seen": 10 * step, "elapsed_seconds": 0.1 * step, **more,
    }  # fmt: skip


def sample(step: int, prompt: str = "Once", text: str = " upon a time") -> Record:
    return {"step": step, "prompt": prompt, "sample": text}


UNKNOWN: list[Record] = [
    {"step": 9, "yardsticks": [], "val_loss": 0.001, "val_accuracy": 1.0, "val_perplexity": 1.0, "epoch": 1},
    {"step": 9, "status": "finished", "message": "", "max_steps": 77},
    {"step": 9, "something": "else"},
    {},
]


def a_minute(steps: int = 2000, evaluations: int = 20) -> Iterator[Record]:
    """The records of a run of a minute."""
    noise = random.Random(0)
    for step in range(1, steps + 1):
        loss = 1.5 + 6 * math.exp(-5 * step / steps)
        yield log(step, loss + noise.gauss(0, 0.1), mfu=0.634)
        if step % (steps // evaluations) == 0:
            yield evaluation(step, loss, val_bits_per_byte=1.5)
            yield sample(step, "ROMEO:\n", "What say you?\n" * 10)
            yield sample(step, "Once", EVIL)


class Clock:
    """Stands for time.monotonic; a test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


class Kernel:
    """Stands for IPython in a kernel: what was displayed, and each update of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
        self.displayed: list[tuple[Any, dict[str, Any]]] = []
        self.updates: list[Any] = []
        shell = types.SimpleNamespace(kernel=kernel)
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=self.display))  # type: ignore[arg-type]

    def display(self, shown: Any, **settings: Any) -> Any:
        self.displayed.append((shown, settings))
        return types.SimpleNamespace(update=self.updates.append)

    @property
    def last(self) -> str:
        return str(self.updates[-1]._repr_html_())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch, object())


class Text(HTMLParser):
    """The text and the tags of a piece of HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += "" if self.tags[-1:] == ["style"] else data


def plain_lines(records: Iterable[Record], course: Course | None = None) -> list[str]:
    lines: list[str] = []
    show = plain.Plain(course or Course(100, None), lines.append)
    for record in records:
        show(record)
    return lines


def console(width: int = 80, **settings: Any) -> Console:
    return Console(width=width, force_terminal=True, file=io.StringIO(), highlight=True, markup=True, **settings)


def printed(records: Iterable[Record], width: int = 80, **settings: Any) -> list[str]:
    """What a terminal shows for good, above the live lines."""
    target = console(width, **({"color_system": None} | settings))
    show = Terminal(Course(100, None), target)
    for record in records:
        show(record)
    return target.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def picture(course: Course, width: int = 80) -> list[str]:
    """The live lines."""
    target = console(width, color_system=None)
    target.print(Picture(course))
    return target.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def cell_html(records: Iterable[Record], kernel: Kernel) -> str:
    """The last state of a notebook's cell."""
    with notebook.notebook(Course(100, None)) as show:
        for record in records:
            show(record)
    return kernel.last


def table_of(source: str) -> list[tuple[int, bool]]:
    """The step of each evaluation in a cell's table, and whether it is marked as the best."""
    rows = re.findall(r"<tr.*?</tr>", source.partition("<tbody>")[2])
    return [(int(re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)[0]), ">best<" in row) for row in rows]


# What other people wrote.


def test_text_arrives_in_a_terminal_as_it_is_without_what_could_act_on_it() -> None:
    (line,) = printed([sample(1, EVIL[:11], EVIL)], width=300)
    shown = (
        EVIL.replace("\x1b", "\ufffd").replace("\x07", "\ufffd").replace("\u202e", "\ufffd").replace("\x9b", "\ufffd")
    )
    assert line == f'  "{EVIL[:11]}" → {shown}'


def test_text_arrives_in_plain_lines_as_it_is_without_what_could_act_on_it() -> None:
    (line,) = plain_lines([sample(1, "[b]<i>\x1b", "[red]<b>\x07\n\n x")])
    assert line == '  "[b]<i>\ufffd" → [red]<b>\ufffd↵x'


def test_text_arrives_in_a_notebook_as_text(kernel: Kernel) -> None:
    without = Text(cell_html([sample(1, "one", "two")], kernel))
    found = Text(cell_html([sample(1, EVIL, EVIL)], kernel))
    shown = "".join(c if c.isprintable() else "\ufffd" for c in EVIL)
    assert shown + shown in found.text
    assert found.tags == without.tags


def test_a_notebook_typesets_no_formula_in_a_text(kernel: Kernel) -> None:
    source = cell_html([sample(1, "$a$", "$b$")], kernel)
    assert "$" not in re.sub(r"<pre>.*?</pre>", "", source, flags=re.DOTALL)


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("text", ["word " * 100, "x" * 500, "日本語" * 100, "\n" * 300, "e\u0301" * 300, ""])
def test_a_sample_takes_two_lines_of_a_terminal_at_most(width: int, text: str) -> None:
    lines = printed([sample(1, "Once upon", text)], width)
    assert len(lines) <= 2
    assert all(console(width).render_str(line).cell_len <= width for line in lines)


def test_what_is_cut_off_is_seen_to_be() -> None:
    for lines in (printed([sample(1, "Once", "x" * 500)]), plain_lines([sample(1, "Once", "x" * 500)])):
        assert "".join(lines).count("…") == 1
        assert lines[-1].endswith("x…")
    for lines in (printed([sample(1, "p" * 500 + "end", "x")]), plain_lines([sample(1, "p" * 500 + "end", "x")])):
        assert re.fullmatch(r'  "…p+end" → x', lines[0])


def test_a_prompt_can_be_told_from_what_was_written_also_without_colours() -> None:
    for (line,) in (printed([sample(1)]), plain_lines([sample(1)])):
        assert line == '  "Once" →  upon a time'
    for (line,) in (printed([sample(1, "")]), plain_lines([sample(1, "")])):
        assert line == "  →  upon a time"


def test_white_space_is_collapsed_and_the_end_of_a_line_is_seen() -> None:
    assert words.one_line("a\t  b \r\n\n  c\u2028d\u00a0e\x85\x1c") == "a b↵c↵d e\ufffd\ufffd"


def test_an_encoding_that_lacks_a_sign_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):
        pipe = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors, newline="\n")
        monkeypatch.setattr(sys, "stdout", pipe)
        with Display(quiet=False).live(100, None) as show:
            show(sample(1, "ä\ud800", "日本"))
        pipe.seek(0)
        assert pipe.read() == '  "??" ? ??\n'
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    course, target = Course(100, None), Console(file=raw, force_terminal=True, width=80)
    with terminal(course, target) as show:
        show(log(1))
        show(sample(1, "ä", "日本 " * 100))
    raw.seek(0)
    assert "?? ?? ??" in raw.read()


# Plain lines.


def test_plain_lines_hold_no_control_codes() -> None:
    lines = plain_lines([*a_minute(200, 4), {"step": 7, "max_steps": 9, "decay_steps": 2}])
    assert len(lines) == 1 + 4 * 3 + 1
    assert all(line.isprintable() for line in lines)
    assert max(len(line) for line in lines if "→" in line) <= 100


def test_plain_progress_comes_every_ten_seconds_at_most_and_evaluations_always(clock: Clock) -> None:
    times: list[float] = []
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if " loss " in line:
            times.append(clock.now)

    show = plain.Plain(Course(2000, None), write)
    for record in a_minute():
        clock.now += MINUTE / 2000 if "train_loss" in record else 0
        show(record)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert 5 <= len(times) <= 7
    assert min(gaps) >= 10
    assert sum("val_loss" in line for line in lines) == 20


def test_a_plain_progress_line_tells_losses_speed_share_and_time_left(clock: Clock) -> None:
    course = Course(300, None)
    lines = plain_lines([log(1, 3.0, mfu=0.631)], course)
    clock.now += 20
    lines += plain_lines([log(101, 2.0)], course)
    mean = smoothed([(1, 3.0), (101, 2.0)])[-1][1]
    assert lines == [
        "step   1/300  loss 3.0000, smoothed 3.0000, 12,346 tokens/s, 63 % of peak",
        f"step 101/300  loss 2.0000, smoothed {mean:.4f}, 12,346 tokens/s, 0:40 left",
    ]


def test_the_time_left_is_that_of_the_deadline_where_there_is_one(clock: Clock) -> None:
    course = Course(0, 90.0)
    clock.now += 30
    course.take(log(5))
    assert course.left() == pytest.approx(60)
    assert course.share() == pytest.approx(1 / 3)
    course.take({"step": 5, "max_steps": 10, "decay_steps": 5})
    assert course.share() == 0.5


# What is told of losses.


def test_the_smoothed_loss_is_an_exponential_mean_over_the_last_fifth_and_20_at_most() -> None:
    losses = [random.Random(step).gauss(3, 1) for step in range(170)]
    losses[4] = losses[30] = math.nan
    course = Course(200, None)
    assert math.isnan(course.smoothed)
    weights: list[float] = []
    for step, loss in enumerate(losses, 1):
        course.take(log(step, loss))
        seen = [one for one in losses[:step] if one == one]
        if loss == loss:
            new = 1.0 if len(seen) == 1 else 2 / (min(20, max(1, len(seen) / 5)) + 1)
            weights = [*(weight * (1 - new) for weight in weights), new]
        assert sum(weights) == pytest.approx(1)
        assert course.smoothed == pytest.approx(sum(w * one for w, one in zip(weights, seen, strict=True)))
    assert course.smoothed == pytest.approx(smoothed(list(enumerate(losses)))[-1][1])


def test_what_is_best_so_far_is_marked_and_nothing_else(kernel: Kernel) -> None:
    nan = math.nan
    losses = [nan, 3.0, 3.0, 2.5, nan, 2.75, math.inf, 2.25, 2.25, 2.4]
    best = [False, True, False, True, False, False, False, True, False, False]
    records = [evaluation(step, loss) for step, loss in enumerate(losses, 1)]
    for lines, mark in (
        (plain_lines(records), "(best so far)"),
        (printed(records, 120), "(best so far)"),
        (printed(records, 60), "(best)"),
        (printed(records, 40), "(best)"),
    ):
        assert [mark in line for line in lines] == best
        assert [line.count("best") for line in lines] == [int(one) for one in best]
    assert [step for step, is_best in table_of(cell_html(records, kernel)) if is_best] == [8]


def test_the_best_evaluation_stays_in_the_table_of_a_notebook(kernel: Kernel) -> None:
    source = cell_html([evaluation(step, 1.0 + step / 10) for step in range(1, 31)], kernel)
    assert table_of(source) == [(1, True), *((step, False) for step in range(23, 31))]


# A run that is gone on with.

SO_FAR = [log(10), evaluation(10, 2.0), log(20), evaluation(20, 2.5), sample(20), *UNKNOWN]
FURTHER = [log(30), evaluation(30, 2.25), log(40), evaluation(40, 1.75), evaluation(50, 1.9)]


def live(so_far: Iterable[Record], records: Iterable[Record], seconds: float | None = None) -> None:
    """What Display.live makes of these records on whatever it finds: a terminal, a notebook or a pipe."""
    with Display(quiet=False).live(100, seconds, list(so_far)) as show:
        for record in records:
            show(record)


def test_the_best_so_far_is_that_of_the_whole_run_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for so_far, expected in ((SO_FAR, [False, True, False]), ([], [True, True, False])):
        live(so_far, FURTHER)
        lines = [line for line in capsys.readouterr().out.splitlines() if "val_loss" in line]
        assert ["best so far" in line for line in lines] == expected  # and what was told before is not told again


def test_the_best_so_far_is_that_of_the_whole_run_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    for so_far, expected in ((SO_FAR, [False, True, False]), ([], [True, True, False])):
        live(so_far, FURTHER)
        lines = [line for line in capsys.readouterr().out.splitlines() if "perplexity" in line]
        assert ["best so far" in line for line in lines] == expected
    course = Course(100, None)
    for record in SO_FAR:
        course.take(record)
    assert "best val_loss 2.000" in picture(course, 120)[1]


def test_a_notebook_goes_on_with_the_curves_and_the_best_of_the_whole_run(
    kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    live(SO_FAR, FURTHER[:2])
    assert table_of(kernel.last) == [(10, True), (20, False), (30, False)]
    assert "best val_loss 2.0000" in Text(kernel.last).text
    assert " upon a time" in Text(kernel.last).text  # the newest sample so far
    live(SO_FAR, FURTHER)
    assert [step for step, is_best in table_of(kernel.last) if is_best] == [40]
    # The whole of it equals that of a run in one piece, but for the time.
    live([], [*SO_FAR, *FURTHER])
    in_one = kernel.last
    live(SO_FAR, FURTHER)
    assert re.sub(r"[0-9:]+ left", "", kernel.last) == re.sub(r"[0-9:]+ left", "", in_one)


def test_the_pace_counts_from_the_resumption(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """At half a second for a step 100 - 52 of them are left, whatever the steps before took."""
    clock.now += 1000.0
    with Display(quiet=False).live(100, None, SO_FAR) as show:
        for step in (50, 52):
            clock.now += plain.CALM_SECONDS if step == 50 else 1.0
            show(log(step))
            clock.now += plain.CALM_SECONDS
        show(log(72))
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[0]  # nothing is known before two records
    # From step 50 to 72 there were 2 * 10 + 1 seconds: 28 steps take 28 * 21 / 22.
    assert lines[-1].endswith("0:27 left")
    with Display(quiet=False).live(100, 60.0, SO_FAR) as show:
        clock.now += 20.0
        show(log(50))
    assert capsys.readouterr().out.splitlines()[-1].endswith("0:40 left")


def test_a_run_without_a_finite_evaluation_shows_no_best(kernel: Kernel) -> None:
    records = [log(1), log(2, math.nan), evaluation(2, math.nan), log(3, math.nan)]
    course = Course(100, None)
    for record in records:
        course.take(record)
    assert "best" not in "".join([*plain_lines(records), *printed(records), *picture(course)])
    assert "best" not in Text(cell_html(records, kernel)).text


def test_the_live_lines_tell_all_there_is_to_tell_in_80_columns() -> None:
    course = Course(20_000, 3600 * 11.0)
    for record in (log(11_999, mfu=0.5, train_loss=10.5), evaluation(12_000, 2.25)):
        course.take(record)
    course.take(log(12_000, 2.125, mfu=1.0, tokens_per_second=12_345_678.0))
    first, second = picture(course)
    assert "step 12000/20000" in first
    assert "left" in first
    assert "━" in first
    assert second.split("  ") == [
        "loss 2.125", f"smoothed {course.smoothed:.3f}", "best val_loss 2.250", "12.35 M tokens/s", "100 % of peak"
    ]  # fmt: skip


@pytest.mark.parametrize("width", [10, 40, 80, 200])
@pytest.mark.parametrize(("total_steps", "seconds"), [(0, None), (0, 60.0), (2000, None), (2000, 60.0)])
def test_live_lines_fit_any_width_and_any_end(width: int, total_steps: int, seconds: float | None) -> None:
    course = Course(total_steps, seconds)
    target = console(width)
    with terminal(course, target) as show:
        for record in itertools.chain(
            itertools.islice(a_minute(), 350), [log(351, math.nan), evaluation(351, math.nan)]
        ):
            show(record)
            if record["step"] % 100 == 0:
                lines = picture(course, width)
                assert len(lines) == 2
                assert max(map(len, lines)) <= width
    if width == 40:
        assert lines[1].startswith("smoothed ")
        assert "best val_loss" in lines[1]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_evaluations_of_a_run_look_alike_and_take_a_line_each(width: int) -> None:
    records = [evaluation(10 * step, loss, val_bits_per_byte=loss / 2) for step, loss in enumerate((3.0, 2.0, 2.5), 1)]
    lines = printed(records, width)
    assert len(lines) == 3
    assert len({line.replace(" (best so far)", "").replace(" (best)", "").count(",") for line in lines}) == 1
    assert all("val_loss" in line and "step" in line for line in lines)


def test_live_lines_need_no_more_than_ascii() -> None:
    course = Course(100, None)
    course.take(log(50))
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=raw, force_terminal=True, width=80).print(Picture(course))
    raw.seek(0)
    assert "=====" in raw.read()


# What is not for live displays.


def test_unknown_records_are_ignored_by_all(kernel: Kernel, clock: Clock) -> None:
    records = [log(1), evaluation(2), sample(2)]
    mixed = [*UNKNOWN, *itertools.chain.from_iterable([record, *UNKNOWN] for record in records)]
    assert plain_lines(mixed) == plain_lines(records)
    assert printed(mixed) == printed(records)
    assert cell_html(mixed, kernel) == cell_html(records, kernel)
    one, other = Course(100, None), Course(100, None)
    for course, some in ((one, mixed), (other, records)):
        for record in some:
            course.take(record)
    assert vars(one) == vars(other)


# The notebook.


def test_a_notebook_shows_one_output_that_is_updated(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=False).live(2000, 60.0) as show:
        assert len(kernel.displayed) == 1
        for record in a_minute():
            show(record)
    assert len(kernel.displayed) == 1
    assert kernel.displayed[0][1] == {"display_id": True}
    assert len(kernel.updates) > 20
    assert capsys.readouterr() == ("", "")
    found = Text(kernel.last)
    assert "step 2000/2000" in found.text
    assert "63 % of peak" in found.text
    assert {"svg", "table", "pre"} <= set(found.tags)
    assert repr(kernel.updates[-1]).isprintable()


def test_the_last_state_stays_also_where_a_run_breaks_off(kernel: Kernel) -> None:
    with pytest.raises(KeyboardInterrupt), Display(quiet=False).live(100, None) as show:  # noqa: PT012
        show(log(1))
        show(log(2))
        raise KeyboardInterrupt
    assert "step   2/100" in Text(kernel.last).text
    assert "left" not in Text(kernel.last).text


def test_updates_come_twice_a_second_at_most_but_for_evaluations_and_samples(kernel: Kernel, clock: Clock) -> None:
    with notebook.notebook(Course(2000, None)) as show:
        for step in range(1, 2001):
            clock.now += MINUTE / 2000
            show(log(step))
        quiet = len(kernel.updates)
        for step in range(2001, 2021):
            show(evaluation(step))
            show(sample(step))
    assert MINUTE <= quiet <= 2 * MINUTE
    assert len(kernel.updates) == quiet + 40 + 1


def test_updates_that_are_slow_become_fewer(kernel: Kernel, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: notebook.Cell, is_over: bool = False) -> notebook.Shown:
        clock.now += 0.2
        return notebook.Shown("", "")

    monkeypatch.setattr(notebook.Cell, "_shown", update)
    with notebook.notebook(Course(2000, None)) as show:
        for record in a_minute():
            clock.now += MINUTE / 2000 if "train_loss" in record else 0
            show(record)
    assert 1 <= len(kernel.updates) <= 4


def test_curves_are_thinned_and_keep_their_ends() -> None:
    points = notebook.Points()
    for step in range(1, 5001):
        points.add(step, math.nan if step % 7 == 0 else 1 / step)
        kept = points.all()
        xs = [x for x, _ in kept]
        assert len(kept) <= 200
        assert xs[0] == 1
        assert xs[-1] == (step if step % 7 else step - 1)
        assert xs == sorted(set(xs))
        if step < 200:
            assert len(kept) == step - step // 7
    assert len(points.all()) >= 100


@pytest.mark.parametrize("kernel_of_shell", [None, object()])
def test_a_notebook_is_a_shell_with_a_kernel(monkeypatch: pytest.MonkeyPatch, kernel_of_shell: object) -> None:
    Kernel(monkeypatch, kernel_of_shell)
    assert screen._is_notebook() == (kernel_of_shell is not None)
    with Display(quiet=False).live(100, None) as show:
        assert isinstance(show, plain.Plain if kernel_of_shell is None else notebook.Cell)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))  # half imported
    assert not screen._is_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not screen._is_notebook()


def test_a_terminal_comes_before_a_notebook_and_quiet_before_all(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(quiet=True).live(100, None) as show:
        for record in [*a_minute(100, 4), *UNKNOWN]:
            show(record)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Display(quiet=False).live(100, None) as show:
        assert isinstance(show, Terminal)
    assert kernel.displayed == []


def test_ipython_is_never_imported_outside_a_notebook() -> None:
    code = (
        "import sys; from slm.display import Display\n"
        "with Display(quiet=False).live(9, None) as show: show({'step': 1, 'prompt': 'a', 'sample': 'b'})\n"
        "assert not [name for name in sys.modules if name.startswith('IPython')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_real_ipython_publishes_one_display_and_updates_of_it(tmp_path: Path) -> None:
    """In a process of its own, since a shell of IPython stays."""
    script = tmp_path / "shell.py"
    script.write_text(
        "import json, math, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from IPython.core.displaypub import CapturingDisplayPublisher\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(history_load_length=0)\n"
        "shell.kernel, shell.display_pub = object(), CapturingDisplayPublisher()\n"
        "from slm.display import Display\n"
        "from test_display import a_minute\n"
        "with Display(quiet=False).live(100, None) as show:\n"
        "    for record in a_minute(100, 4):\n"
        "        show(record)\n"
        "print(json.dumps(shell.display_pub.outputs))\n"
    )
    environment = {"IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, encoding="utf-8",
                          env=os.environ | environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    outputs = json.loads(line)
    assert [output["update"] for output in outputs] == [False] + [True] * (len(outputs) - 1)
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    for output in outputs:
        assert set(output["data"]) == {"text/html", "text/plain"}
    assert html.escape("<script>") in outputs[-1]["data"]["text/html"]


# What displays cost.


@pytest.mark.parametrize("which", ["plain", "terminal", "notebook"])
def test_a_minute_of_records_costs_far_less_than_a_hundredth_of_it(which: str, kernel: Kernel, clock: Clock) -> None:
    records = list(a_minute())
    course = Course(2000, None)
    if which == "notebook":
        show: Any = notebook.Cell(course)
    else:
        show = Terminal(course, console()) if which == "terminal" else plain.Plain(course, lambda line: None)
    began = time.process_time()
    for record in records:
        clock.now += MINUTE / 2000 if "train_loss" in record else 0
        show(record)
    assert time.process_time() - began < 0.01 * MINUTE


def test_what_other_scripts_need_is_harmless_and_what_moves_a_cursor_is_not() -> None:
    fine = "d\u00e9j\u00e0\u00a0vu \u202f: \u5168\u3000\u7a7a, \u0645\u06cc\u200c\u062e, \U0001f469\u200d\U0001f680\n\t"
    assert harmless(fine) == fine
    assert harmless("a\x1b[2Jb\u202ec\x07\ud800") == "a\ufffd[2Jb\ufffdc\ufffd\ufffd"


def test_plain_work_tells_bytes_in_megabytes_and_few_things_one_by_one(clock: Clock) -> None:
    written: list[str] = []
    work = PlainWork(written.append)
    work("reading", 0, 40_000_000)
    clock.now += 20
    work("reading", 10_000_000, 40_000_000)
    work("scoring", 0, None)
    clock.now += 20
    work("scoring", 250, 1000)
    clock.now += 1
    work("scoring", 260, 1000)
    assert written == [
        "reading ...",
        "reading: 10.0 of 40.0 MB, 0.5 MB/s, 1:00 left",
        "scoring ...",
        "scoring: 250 of 1,000, 1:00 left",
    ]
