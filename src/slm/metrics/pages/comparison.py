"""Several runs on one page: their curves over each other, their numbers, what they differ in, and which is best."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from slm.config import FIELDS
from slm.metrics.diagnosis import diagnose
from slm.metrics.pages import task_words, words
from slm.metrics.pages.charts import Line, exact, line_chart
from slm.metrics.pages.page import escaped, page, table, written
from slm.metrics.pages.tasks import cut
from slm.metrics.recorded import Record, Recorded, curve
from slm.metrics.task_evaluation import TITLES, told
from slm.task_config import CLASSIFICATION

FINGERPRINT = "data_fingerprint"
LETTERS = "ABCDEF"  # as many as there are colours that can be told apart
_SAME_EXAMPLES = ("data_name", "text_bytes", "train_examples", "val_examples", "split")  # whatever the tokenizer is
_SHOWN, _LONGEST = 3, 120  # answers of each run to examples, and their characters


def comparison_page(runs: Sequence[Recorded], verdicts: Sequence[str]) -> str:
    """The page, as HTML. verdicts: which is better and how sure that is, in words."""
    named = list(zip(LETTERS, runs, strict=False))
    best = _best(runs)
    differences = _differences(runs)
    names = "".join(
        f"<li><b>{letter}</b>: {escaped(run.name)}, {escaped(words.ended(run))}</li>" for letter, run in named
    )
    said = "".join(f"<p>{escaped(verdict)}</p>" for verdict in verdicts)
    unit = _unit(runs)
    body = [
        "<h1>Runs compared</h1>",
        f"<ul>{names}</ul>",
        f'<div class="panel"><p><b>Which is better?</b></p>{said}</div>',
        "<h2>Results</h2>",
        _results(named, best),
        _beside_counting(best),
        "<h2>Curves</h2>",
        '<div class="charts">',
        _chart(named, "Validation loss by step", "val_loss", "step", unit),
        _chart(named, "Validation loss by time", "val_loss", "elapsed_seconds", unit),
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
            (),
            [(f"<b>{escaped(word)}</b>", escaped(meant)) for word, meant in (_words(runs) | words.OF_SEVERAL).items()],
        ),
        f"<footer><p>Written by slm on {time.strftime('%d %B %Y')}.</p></footer>",
    ]
    return page("Runs compared: " + ", ".join(run.name for run in runs), "\n".join(filter(None, body)))


def _best(runs: Sequence[Recorded]) -> Recorded | None:
    """The best of runs on one text, or on one task's examples; None where they do not compare."""
    if len({run.task for run in runs}) > 1:
        return None
    if runs[0].task and all(run.task_scores for run in runs):
        same = len({tuple(run.made_with.get(name) for name in _SAME_EXAMPLES) for run in runs}) == 1
        same &= len({(run.task_metric, run.task_scores["num_examples"]) for run in runs}) == 1
        return max(runs, key=lambda run: float(run.task_scores["metrics"][run.task_metric])) if same else None
    same = len({run.made_with.get(FINGERPRINT) for run in runs}) == 1
    return min(runs, key=lambda run: run.best["val_loss"] if run.best else math.inf) if same else None


def _unit(runs: Sequence[Recorded]) -> str:
    """What val_loss is counted in."""
    tasks = {run.task for run in runs}
    return "nats per label" if tasks == {CLASSIFICATION} else "nats" if CLASSIFICATION in tasks else "nats per token"


def _words(runs: Sequence[Recorded]) -> dict[str, str]:
    """The words of all runs, those of language models above others."""
    found: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: run.task):
        found = task_words.glossary(run) | found
    return found


def _beside_counting(best: Recorded | None) -> str:
    """That the best run does not beat what only counts, where it does not."""
    if best and best.task and (simple := best.best_simple):
        name = best.task_metric
        if best.task_scores["metrics"][name] > simple.metrics.get(name, -math.inf):
            return ""
        return f"<p>None of them beats the yardstick {escaped(simple.name)}, which is no network.</p>"
    counting = best.best_counting if best else None
    if best is None or counting is None or best.model_as_yardstick["loss"] < counting["loss"]:
        return ""
    return f"<p>None of them beats the {escaped(counting['name'])}, which only counts.</p>"


def _results(named: Sequence[tuple[str, Recorded]], best: Recorded | None) -> str:
    columns = _columns([run for _, run in named])
    rows = []
    for letter, run in named:
        whole, found = task_words.parts(run), {**(run.best or {}), **run.task_scores.get("metrics", {})}
        rows.append(
            [
                escaped(letter + (" (best of these)" if run is best and run.best else "")),
                f"{whole.num_parameters:,}" if whole else "-",
                f"{run.step:,}",
                escaped(words.minutes(run.seconds)),
                words.measure(found["val_loss"], 4) if run.best else "none",
                *(_number(name, found) for name in columns),
            ]
        )
    header = ("run", "parameters", "steps", "training", "best val_loss", *columns.values())
    note = _note(best)
    if best and (beside := best.best_counting):
        numbers = {"val_bits_per_byte": beside["bits_per_byte"]}
        score = words.measure(beside["loss"], 4)
        others = (_number(name, numbers) for name in columns)
        rows.append([escaped(f"{beside['name']}, which only counts"), "-", "-", "-", score, *others])
    elif best and (simple := best.best_simple):
        others = (_number(name, simple.metrics) for name in columns)
        rows.append([escaped(f"{simple.name}, which is no network"), "-", "-", "-", "-", *others])
    ours = next((number for number, (_, run) in enumerate(named) if run is best and run.best), None)
    return table(header, rows, caption=note, numbers=range(1, len(header)), ours=ours)


def _columns(runs: Sequence[Recorded]) -> dict[str, str]:
    """The metrics that some run has, by field, with their titles."""
    found = {"val_bits_per_byte": "bits per byte"} if not all(run.task for run in runs) else {}
    scored = {name: TITLES[name] for run in runs for name in run.task_scores.get("metrics", {}) if name in TITLES}
    if not all(run.task_scores for run in runs):
        found["val_accuracy"] = "accuracy in training" if scored else "accuracy"
    also = any(run.best and "also_val_loss" in run.best for run in runs)
    return found | scored | ({"also_val_loss": "other text: loss"} if also else {})


def _number(name: str, found: Record) -> str:
    """A metric as a cell."""
    value = found.get(name)
    if value is None:
        return "-"
    if "val_" in name:
        return f"{100 * value:.2f} %" if name == "val_accuracy" else words.measure(value, 4)
    return told(name, value)


def _note(best: Recorded | None) -> str:
    """What the numbers are of, and whether they compare."""
    if best and best.task:
        return "All on the same validation examples, by which each chose its best weights."
    only = "Of models with different tokenizers only bits per byte compare."
    if best:
        return f"All on the same validation text, as far as each training read it. {only}"
    return (
        "Their validation texts or tokenizers differ, so these numbers do not compare; only the verdicts above do. "
        f"{only}"
    )


def _chart(named: Sequence[tuple[str, Recorded]], title: str, y: str, x: str, y_label: str) -> str:
    lines = []
    is_loss = y != "lr"
    for number, (letter, run) in enumerate(named):
        points = curve(run.evaluations if is_loss else run.logs, y, x)
        lowest = min((point for point in points if point[1] == point[1]), key=lambda point: point[1], default=None)
        end = f"best {exact(lowest[1])}" if lowest and is_loss else ""
        ring = lowest if is_loss else None
        lines.append(Line(letter, points, dots=is_loss, series=number + 1, told=end, ring=ring))
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
    for name in (
        FINGERPRINT,
        "train_tokens",
        "val_tokens",
        "train_examples",
        "val_examples",
        "hardware",
        "torch",
        "slm",
    ):
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
    examples = run.task_scores.get("examples", ())[-_SHOWN:]
    if examples:
        rows = [[escaped(cut(one[name], _LONGEST)) for name in ("given", "expected", "answered")] for one in examples]
        return f"<p><b>{letter}</b>:</p>{table(('given', 'expected', 'answered'), rows)}"
    if not run.samples:
        return f"<p><b>{letter}</b>: nothing was kept of what it wrote.</p>"
    last, end = run.samples[-1], "\n" if run.task else ""
    return f"<p><b>{letter}</b>, step {last['step']:,}:</p>{written(last['prompt'] + end, last['sample'])}"
