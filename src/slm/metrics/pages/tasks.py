"""What the report of a run shows of its task, and of another text beside it: numbers, tables and examples."""

from __future__ import annotations

import shlex
from typing import Any

from slm.metrics.pages import task_words, words
from slm.metrics.pages.charts import Line, line_chart
from slm.metrics.pages.page import details, escaped, table
from slm.metrics.recorded import Record, Recorded, curve
from slm.metrics.task_evaluation import MOST_LABELS_SHOWN, THIS_MODEL, TITLES, told
from slm.task_config import CLASSIFICATION

_SHADES = 10
_DEEPEST = 0.5  # opacity of the deepest shade, on which text can still be read
_LONGEST_TEXT, _LONGEST_LABEL = 240, 24  # characters that are shown
_NAMED_COLUMNS = 8  # labels up to which the columns of a confusion matrix have their names, else their numbers

_SHADE_STYLES = "".join(
    f".slm .matrix .h{shade} {{ background: rgba(var(--heat), {_DEEPEST * shade / _SHADES:g}); }}\n"
    for shade in range(1, _SHADES + 1)
)
STYLE = f"""
.slm .matrix td.number {{ padding: 0 .15rem 0 0; }}
.slm .matrix .share {{ display: block; padding: .3rem .6rem; min-width: 3rem; text-align: right; }}
.slm .matrix .right {{ font-weight: 700; }}
.slm .matrix table.roomy {{ min-width: 0; }}
.slm p.signature {{ overflow-wrap: anywhere; }}
.slm .matrix .none {{ color: var(--soft); }}
.slm .matrix th.number {{ padding-right: .75rem; }}
.slm .matrix tbody th {{ white-space: nowrap; }}
.slm .matrix.numbered .share {{ padding: .15rem .35rem; min-width: 0; }}
.slm .matrix.numbered th.number {{ padding-right: .5rem; }}
.slm .examples tbody th, .slm .examples.pairs td {{ overflow-wrap: anywhere; }}
{_SHADE_STYLES}"""
_OF_LABELS = {"accuracy": "accuracy of the label", "macro_f1": "macro F1, the mean over the labels"}


def whole_flags(command: str) -> str:
    """A command as HTML, each of its flags with its value on one line where there is room."""
    first, *others = command.split(" --")
    parts = [first, *(f"--{part}" for part in others)]
    return " ".join(f'<span class="whole">{escaped(part)}</span>' for part in parts)


def task_tiles(run: Recorded) -> list[tuple[str, str]]:
    """The numbers of a task and of its best evaluation, each with what it is."""
    best, metrics = run.best or {}, run.task_scores.get("metrics", {})
    if run.task == CLASSIFICATION:
        metrics = metrics or {"accuracy": best["val_accuracy"]}
        found = [(told(name, value), _OF_LABELS.get(name, name)) for name, value in metrics.items()]
        return [*found, (words.measure(best["val_loss"]), "val_loss, nats per label")]
    found = [(told(name, value), TITLES.get(name, name)) for name, value in metrics.items()]
    if "bleu" not in metrics:
        found.append((f"{100 * best['val_accuracy']:.1f} %", "accuracy of the next token"))
    return [*found, (words.measure(best["val_loss"]), "val_loss, nats per token")]


def task_section(run: Recorded) -> str:
    """How well the model does its task: its scores beside those of simple methods, label by label, with examples."""
    found = run.task_scores
    if not run.task or not found:
        return ""
    command = f"slm-evaluate --model_dir {shlex.quote(run.name)} {task_words.other_examples(run)}"
    parts = [
        "<h2>How well it does the task</h2>",
        _scores(run),
        *(f"<p>{escaped(note)}</p>" for note in task_words.missing(run)),
        f"<p>{escaped(task_words.TOO_GOOD)}</p><pre>{whole_flags(command)}</pre>",
        f"<p>{escaped(chance)}</p>" if (chance := task_words.chance(run)) else "",
    ]
    if run.task == CLASSIFICATION:
        parts += [_labels(run), _labelled(found["examples"])]
    else:
        parts += [_signature(found["scores"]), _pairs(found["examples"])]
    return "".join(parts)


def _scores(run: Recorded) -> str:
    """The model among the simple methods, worst first."""
    found, order = run.task_scores, run.task_ranked
    names = [name for name in found["metrics"] if name in TITLES]
    rows = []
    for one in order:
        numbers = [told(name, one.metrics[name]) if name in one.metrics else "-" for name in names]
        what = task_words.yardstick_in_words(one.name) + (f" ({one.told})" if one.told else "")
        rows.append([escaped(one.name), *numbers, escaped(what)])
    return table(
        ("method", *(TITLES[name] for name in names), "what it is"),
        rows,
        caption=f"On validation examples of {found['text']}, {found['num_examples']:,} in all, worst first; higher is "
        "better.",
        numbers=range(1, len(names) + 1),
        ours=next(number for number, one in enumerate(order) if one.name == THIS_MODEL),
    )


def _labels(run: Recorded) -> str:
    """Which label is taken for which, and how well each is found."""
    scores = run.task_scores["scores"]
    if not scores:
        return (
            f"<p>There are {len(run.labels):,} labels: only up to {MOST_LABELS_SHOWN} are shown one by one. "
            "slm-evaluate --output json tells the scores of all.</p>"
        )
    rows = [
        [
            escaped(cut(one["label"], _LONGEST_LABEL)),
            *(f"{100 * one[name]:.1f} %" for name in ("precision", "recall", "f1")),
            f"{one['support']:,}",
        ]
        for one in scores["by_label"]
    ]
    by_label = table(
        ("label", "precision", "recall", "F1", "examples"),
        rows,
        caption="Precision: of the examples that were given the label, the share that has it. Recall: of the examples "
        "that have it, the share that was given it. F1 is low as soon as one of them is.",
        numbers=range(1, 5),
    )
    return f"<h3>Which label is taken for which</h3>{_confusion(scores)}<h3>How well each label is found</h3>{by_label}"


def _confusion(scores: Record) -> str:
    labels = [cut(label, _LONGEST_LABEL) for label in scores["labels"]]
    named = len(labels) <= _NAMED_COLUMNS
    columns = labels if named else [str(number) for number in range(1, len(labels) + 1)]
    rows = []
    for place, counts in enumerate(scores["confusion"]):
        name = labels[place] if named else f"{place + 1} {labels[place]}"
        whole = max(sum(counts), 1)
        cells = [_share(count, count / whole, is_right=column == place) for column, count in enumerate(counts)]
        rows.append([escaped(name), *cells])
    shown = table(
        ("true label", *columns),
        rows,
        caption="A row for each true label, a column for each answer: how many examples with the label of the row were "
        "given that of the column. The darker, or in a dark page the lighter, the larger its share of the row. Bold: "
        "right." + ("" if named else " The columns have the numbers of the labels."),
        numbers=range(1, len(columns) + 1),
    )
    return f'<div class="matrix{"" if named else " numbered"}">{shown}</div>'


def _share(count: int, share: float, *, is_right: bool) -> str:
    shade = f"h{max(round(_SHADES * share), 1)}" if count else "none"
    return f'<span class="share {shade}{" right" if is_right else ""}">{count:,}</span>'


def _labelled(examples: list[Record]) -> str:
    """Some texts with a wrong label, and, folded, some with the right one."""
    right, wrong = ([one for one in examples if _is_right(one) == is_right] for is_right in (True, False))

    def shown(some: list[Record]) -> str:
        rows = [
            [
                escaped(cut(one["given"])),
                *(escaped(cut(one[key], _LONGEST_LABEL)) for key in ("expected", "answered")),
            ]
            for one in some
        ]
        return f'<div class="examples">{table(("text", "true label", "answered"), rows)}</div>'

    parts = ["<h3>Some that it got wrong</h3>", shown(wrong)] if wrong else []
    if right:
        parts.append(details("Some that it got right", shown(right), is_open=not wrong))
    return "".join(parts)


def _pairs(examples: list[Record]) -> str:
    """Some sources with the expected target and what the model wrote."""
    rows = []
    for one in examples:
        is_right = _is_right(one)
        answered = escaped(cut(one["answered"]))
        rows.append(
            [
                escaped(cut(one["given"])),
                escaped(cut(one["expected"])),
                f"<b>{answered}</b>" if is_right else answered,
                "yes" if is_right else "-",
            ]
        )
    if not rows:
        return ""
    shown = table(
        ("source", "expected", "written", "the same"),
        rows,
        caption="What the model wrote for some sources; bold where it is the expected text, letter for letter. Half of "
        "them are others, where there are so many, and need not be wrong.",
    )
    return f'<h3>Some examples</h3><div class="examples pairs">{shown}</div>'


def _signature(scores: Record) -> str:
    signature = scores.get("signature", "")
    return f'<p class="soft signature">As sacrebleu counts: {escaped(signature)}.</p>' if signature else ""


def _is_right(example: Record) -> bool:
    return bool(example["answered"].strip() == example["expected"].strip())


def cut(text: Any, most: int = _LONGEST_TEXT) -> str:
    """The beginning of a text on one line, as long as it may be."""
    shown = " ".join(str(text).split()) or "(nothing)"
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def how_to_use(run: Recorded, folder: str) -> str:
    """Commands and Python that let the model of a task, which lies in that folder, do it."""
    if run.task == CLASSIFICATION:
        python = (
            'for found in run.classify(["a text", "another text"]):\n'
            "    print(found.label, found.probability)  # the label of each text, and how sure the model is (0-1)\n"
        )
    else:
        python = 'print(run.complete("a source"))  # the target that the model finds; a list of sources gives a list\n'
    given = "a text" if run.task == CLASSIFICATION else "a source"
    shell = shlex.quote(folder)
    return (
        f"import slm\n\nrun = slm.load({folder!r})\n{python}"
        "run.plot()  # the curves\n\n"
        "# from a shell:\n"
        f'#   slm-generate --model_dir {shell} --prompt "{given}"\n'
        f"#   slm-evaluate --model_dir {shell} {task_words.other_examples(run)}   # how good it is on other examples"
    )


def accuracy_chart(run: Recorded) -> str:
    """The share of right labels over the steps."""
    return line_chart(
        "Accuracy",
        [Line("right labels", [(x, 100 * y) for x, y in curve(run.evaluations, "val_accuracy")], dots=True)],
        x_label="step",
        y_label="%",
        note="Of the validation examples, the share that gets its right label. Higher is better.",
    )


def other_text(run: Recorded) -> str:
    """What became of another text while this one was learned: loss and accuracy over the steps, and those of before."""
    if not curve(run.evaluations, "also_val_loss"):
        return ""
    advice = ""
    if task_words.has_forgotten(run):
        advice = (
            "<p>To forget less: a lower learning rate, fewer epochs, small matrices beside the model "
            "(<code>--trainable lora</code>), or some of the old text among the new.</p>"
        )
    said = f"<p>{escaped(task_words.forgetting(run))}</p>" if run.best else ""
    note = "Lower is better. Above the line of before, something was forgotten."
    loss = _beside_before(run, "Loss on the other text", "also_val_loss", 1, "nats per token", note)
    note = "How often the likeliest token is the right one there. Higher is better."
    accuracy = _beside_before(run, "Accuracy on the other text", "also_val_accuracy", 100, "%", note)
    return f'<h2>The other text</h2>{said}{advice}<div class="charts">{loss}{accuracy}</div>'


def _beside_before(run: Recorded, title: str, name: str, factor: float, unit: str, note: str) -> str:
    """A metric of the other text over the steps, from that of before on."""
    points, lines, before = curve(run.evaluations, name), [], run.before.get(name)
    if before is not None and points:
        lines.append(Line("before", [(0, factor * before), (points[-1][0], factor * before)], series=3))
        points = [(0, before), *points]
    lines.append(Line("now", [(x, factor * y) for x, y in points], dots=True))
    best = run.best
    marks = [(best["step"], "best, kept")] if best and len(run.evaluations) > 1 else ()
    return line_chart(title, lines, x_label="step", y_label=unit, note=note, marks=marks, may_be_log=factor == 1)
