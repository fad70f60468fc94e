"""Several runs on one page: their curves over each other, their numbers, what they differ in, and which is best."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from slm.config import FIELDS
from slm.metrics.diagnosis import diagnose
from slm.metrics.pages import words
from slm.metrics.pages.charts import Line, exact, line_chart
from slm.metrics.pages.page import escaped, page, table, written
from slm.metrics.recorded import Recorded, curve

FINGERPRINT = "data_fingerprint"
LETTERS = "ABCDEF"  # as many as there are colours that can be told apart


def comparison_page(runs: Sequence[Recorded], verdicts: Sequence[str]) -> str:
    """The page, as HTML. verdicts: which is better and how sure that is, in words."""
    named = list(zip(LETTERS, runs, strict=False))
    same_text = len({run.made_with.get(FINGERPRINT) for run in runs}) == 1
    best = min(runs, key=lambda run: run.best["val_loss"] if run.best else math.inf) if same_text else None
    differences = _differences(runs)
    names = "".join(
        f"<li><b>{letter}</b>: {escaped(run.name)}, {escaped(words.ended(run))}</li>" for letter, run in named
    )
    told = "".join(f"<p>{escaped(verdict)}</p>" for verdict in verdicts)
    body = [
        "<h1>Runs compared</h1>",
        f"<ul>{names}</ul>",
        f'<div class="panel"><p><b>Which is better?</b></p>{told}</div>',
        "<h2>Results</h2>",
        _results(named, best),
        _beside_counting(best),
        "<h2>Curves</h2>",
        '<div class="charts">',
        _chart(named, "Validation loss by step", "val_loss", "step", "nats per token"),
        _chart(named, "Validation loss by time", "val_loss", "elapsed_seconds", "nats per token"),
        _chart(named, "Bits per byte by time", "val_bits_per_byte", "elapsed_seconds", "bits"),
        _chart(named, "Learning rate", "lr", "step", ""),
        "</div>",
        "<h2>What they differ in</h2>",
        table(("setting", *LETTERS[: len(runs)]), differences)
        if differences
        else "<p>Their settings are the same.</p>",
        "<h2>What the curves say of each</h2>",
        *(_findings(letter, run) for letter, run in named),
        "<h2>What each wrote</h2>",
        *(_sample(letter, run) for letter, run in named),
        "<h2>Words</h2>",
        table(
            (), [(f"<b>{escaped(word)}</b>", escaped(told)) for word, told in (words.WORDS | words.OF_SEVERAL).items()]
        ),
        f"<footer><p>Written by slm on {time.strftime('%d %B %Y')}.</p></footer>",
    ]
    return page("Runs compared: " + ", ".join(run.name for run in runs), "\n".join(filter(None, body)))


def _beside_counting(best: Recorded | None) -> str:
    """That the best run does not beat what only counts, where it does not."""
    counting = best.best_counting if best else None
    if best is None or counting is None or best.model_as_yardstick["loss"] < counting["loss"]:
        return ""
    return f"<p>None of them beats the {escaped(counting['name'])}, which only counts.</p>"


def _results(named: Sequence[tuple[str, Recorded]], best: Recorded | None) -> str:
    rows = []
    for letter, run in named:
        config, found = run.model_config, run.best or {}
        bits = found.get("val_bits_per_byte")
        rows.append(
            [
                escaped(letter + (" (best of these)" if run is best and run.best else "")),
                f"{config.num_parameters:,}" if config else "-",
                f"{run.step:,}",
                escaped(words.minutes(run.seconds)),
                words.measure(found["val_loss"], 4) if found else "none",
                "-" if bits is None else words.measure(bits, 4),
                f"{100 * found['val_accuracy']:.2f} %" if found else "-",
            ]
        )
    header = ("run", "parameters", "steps", "training", "best val_loss", "bits per byte", "accuracy")
    told = "All on the same validation text, as far as each training read it. "
    if best is None:
        told = (
            "Their validation texts or tokenizers differ, so these numbers do not compare; only the verdicts above do. "
        )
    elif counting := best.best_counting:
        score, bits = words.measure(counting["loss"], 4), counting["bits_per_byte"]
        shown = "-" if bits is None else words.measure(bits, 4)
        rows.append([escaped(f"{counting['name']}, which only counts"), "-", "-", "-", score, shown, "-"])
    told += "Of models with different tokenizers only bits per byte compare."
    ours = next((number for number, (_, run) in enumerate(named) if run is best and run.best), None)
    return table(header, rows, caption=told, numbers=range(1, 7), ours=ours)


def _chart(named: Sequence[tuple[str, Recorded]], title: str, y: str, x: str, y_label: str) -> str:
    lines = []
    is_loss = y != "lr"
    for number, (letter, run) in enumerate(named):
        points = curve(run.evaluations if is_loss else run.logs, y, x)
        lowest = min((point for point in points if point[1] == point[1]), key=lambda point: point[1], default=None)
        told = f"best {exact(lowest[1])}" if lowest and is_loss else ""
        ring = lowest if is_loss else None
        lines.append(Line(letter, points, dots=is_loss, series=number + 1, told=told, ring=ring))
    x_label = "step" if x == "step" else "seconds of training"
    note = "A ring marks the best, which was kept." if is_loss else ""
    return line_chart(
        title, lines, x_label=x_label, y_label=y_label, note=note, from_zero=not is_loss, may_be_log=is_loss
    )


def _differences(runs: Sequence[Recorded]) -> list[list[str]]:
    """A row for each setting, fact about the text or machine in which not all are alike."""
    rows = []
    names = [name for name in FIELDS if any(name in run.resolved for run in runs)]
    for name in names:
        values = [run.resolved.get(name) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([f"<code>{escaped(name)}</code>", *(escaped(_shown(value)) for value in values)])
    for name in (FINGERPRINT, "train_tokens", "val_tokens", "hardware", "torch", "slm"):
        values, most = [run.made_with.get(name) for run in runs], 12 if name == FINGERPRINT else 80
        if any(value != values[0] for value in values):
            rows.append([escaped(name), *(escaped(f"{_shown(value):.{most}}") for value in values)])
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _findings(letter: str, run: Recorded) -> str:
    found = diagnose(run)
    if not found:
        return f"<p><b>{letter}</b>: no trouble was found.</p>"
    return "".join(f"<p><b>{letter}</b>: {escaped(one.title)}. {escaped(one.told)}</p>" for one in found)


def _sample(letter: str, run: Recorded) -> str:
    if not run.samples:
        return f"<p><b>{letter}</b>: nothing was kept of what it wrote.</p>"
    last = run.samples[-1]
    return f"<p><b>{letter}</b>, step {last['step']:,}:</p>{written(last['prompt'], last['sample'])}"
