"""The report of one run: what it learned, how good it is compared to what, what to try next, and all its numbers."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time

from slm.config import FIELDS, RunOptions
from slm.metrics.diagnosis import Finding, diagnose, next_step
from slm.metrics.pages import task_words, tasks, words
from slm.metrics.pages.charts import Line, line_chart, smoothed
from slm.metrics.pages.page import details, escaped, page, table, tiles, written
from slm.metrics.recorded import THIS_MODEL, YOU, Record, Recorded, curve
from slm.task_config import CLASSIFICATION

_SAMPLES_SHOWN = 5  # steps
_ROWS_SHOWN = 200  # evaluations, about
_OPTIONS = {field.name for field in dataclasses.fields(RunOptions)}
_FROM = {  # a layer of settings, in words
    "": "worked out by slm",
    "preset of the corpus": "preset of this corpus",
    "plan": "planned for the minutes",
}


_COLUMNS = (  # of evaluations: name, field, factor, digits, unit
    ("val_loss", "val_loss", 1, 4, ""),
    ("perplexity", "val_perplexity", 1, 2, ""),
    ("accuracy", "val_accuracy", 100, 2, " %"),
    ("bits per byte", "val_bits_per_byte", 1, 4, ""),
    ("other text: loss", "also_val_loss", 1, 4, ""),
    ("accuracy there", "also_val_accuracy", 100, 2, " %"),
)
_FINE = '<div class="panel finding good"><p>No trouble was found in these curves.</p></div>'


def report_page(run: Recorded) -> str:
    """The page, as HTML."""
    findings = diagnose(run)
    body = [
        f"<h1>{escaped(run.title)}</h1>",
        f'<p class="soft">{escaped(_subtitle(run))}</p>',
        _answers(run, findings),
        _tiles(run),
        tasks.task_section(run),
        "<h2>What the curves say</h2>",
        "" if any(one.is_trouble for one in findings) else _FINE,
        *map(_finding, findings),
        "<h2>Curves</h2>",
        curves(run),
        tasks.other_text(run),
        _yardsticks(run),
        _samples(run),
        "<h2>What was trained on what</h2>",
        _facts(run),
        _modules(run),
        "<h2>Settings</h2>",
        _settings(run),
        "<h2>Environment</h2>",
        table((), [(escaped(name), escaped(value)) for name, value in _environment(run)]),
        "<h2>How to use the model</h2>",
        f"<pre>{escaped(how_to_load(run, run.name))}</pre>",
        "<h2>Words</h2>",
        table((), [(f"<b>{escaped(word)}</b>", escaped(told)) for word, told in task_words.glossary(run).items()]),
        f"<footer><p>Written by slm {escaped(run.made_with.get('slm', ''))} on {time.strftime('%d %B %Y')}. "
        "The same numbers are in metrics.jsonl.</p></footer>",
    ]
    style = tasks.STYLE if run.task else ""
    return page(f"{run.title}: training report", "\n".join(filter(None, body)), style=style)


def _subtitle(run: Recorded) -> str:
    further = " further" if "base" in run.made_with else ""
    on = f", trained{further} on {run.made_with['data_name']}" if "data_name" in run.made_with else ""
    time = f" and {words.minutes(run.seconds)} of training" if run.seconds else ""
    return f"{task_words.described(run)}{on}: {words.ended(run)}{time}."


def _answers(run: Recorded, findings: list[Finding]) -> str:
    """The three questions that a reader has."""
    _, learned = task_words.learned(run)
    advice = findings[0] if findings else next_step(run)
    rows = [("Did it learn?", learned), ("How good is it?", task_words.compared(run)), ("What next?", advice.advice)]
    answers = "".join(f"<p><b>{question}</b> {escaped(answer)}</p>" for question, answer in rows)
    command = tasks.whole_flags(words.command(run, advice.flag))
    return f'<div class="panel">{answers}<pre>{command}</pre></div>'


def _tiles(run: Recorded) -> str:
    best = run.best
    if best is None:
        return ""
    numbers = tasks.task_tiles(run) if run.task else _text_tiles(best)
    numbers += [
        (f"{best['step']:,}", "step of the kept weights, the best"),
        (f"{run.seconds:,.0f} s" if run.seconds < 100 else f"{run.seconds / 60:,.1f} min", "of training"),
    ]
    return tiles(numbers)


def _text_tiles(best: Record) -> list[tuple[str, str]]:
    numbers = [(words.measure(best["val_loss"]), "val_loss, nats per token")]
    if "val_bits_per_byte" in best:
        numbers.append((words.measure(best["val_bits_per_byte"]), "bits per byte"))
    numbers.append((f"{100 * best['val_accuracy']:.1f} %", "accuracy of the next token"))
    numbers.append((words.measure(best["val_perplexity"], 2), "perplexity"))
    return numbers


def _finding(found: Finding) -> str:
    kind = "" if found.is_trouble else " room"
    name = "Trouble: " if found.is_trouble else "Room to learn more: "
    return (
        f'<div class="panel finding{kind}"><p><b>{name}{escaped(found.title[0].lower() + found.title[1:])}.</b> '
        f"{escaped(found.told)}</p>"
        f"<p>{escaped(found.advice)} <code>{escaped(found.flag)}</code></p></div>"
    )


def curves(run: Recorded) -> str:
    """The loss over the steps, then learning rate, gradient norm and speed, and a table of the evaluations."""
    train = curve(run.logs, "train_loss")
    lines = [
        Line("train", train, faint=True, series=2),
        Line("train loss", smoothed(train), series=2),
        Line("val_loss", curve(run.evaluations, "val_loss"), dots=True),
    ]
    best = run.best
    loss = line_chart(
        "Loss",
        lines,
        x_label="step",
        y_label="nats per label" if run.task == CLASSIFICATION else "nats per token",
        note="Lower is better. The train loss is a mean of steps before, so it lags while it falls (pale: without).",
        marks=[(best["step"], "best, kept")] if best and len(run.evaluations) > 1 else (),
        may_be_log=True,
    )
    limit = run.resolved.get("max_grad_norm") or 0
    clipped = (
        f"Beyond {limit:g} it is cut down to it, as in {_clipped(run)}; some of that is normal."
        if limit
        else "It had no limit."
    )
    speed = curve(run.logs, "tokens_per_second")
    mfu = [y for _, y in curve(run.logs, "mfu") if math.isfinite(y)]
    share = f"Share of this machine's peak: {100 * sorted(mfu)[len(mfu) // 2]:.0f} % (median)." if mfu else ""
    others = [
        tasks.accuracy_chart(run) if run.task == CLASSIFICATION else "",
        line_chart(
            "Learning rate", [Line("lr", curve(run.logs, "lr"))], x_label="step", y_label="", from_zero=True,
            note="How far a step moves the parameters.",
        ),
        line_chart(
            "Gradient norm", [Line("norm", curve(run.logs, "grad_norm"))], x_label="step", y_label="", from_zero=True,
            note=f"How strongly a batch pulls. {clipped}", may_be_log=True,
        ),
        line_chart(
            "Speed", [Line("tokens/s", speed)], x_label="step", y_label="", from_zero=True,
            note=f"Tokens per second of training. {share}",
        ),
    ]  # fmt: skip
    return f'<div class="charts">{loss}{"".join(others)}</div>{_evaluations(run)}'


def _clipped(run: Recorded) -> str:
    steps = max(run.step, 1)
    clipped = max((record.get("clipped_steps", 0) for record in run.logs), default=0)
    return f"{100 * clipped / steps:.0f} % of the steps"


def _evaluations(run: Recorded) -> str:
    """The table behind the loss curve."""
    known = {name for record in run.evaluations for name in record}
    columns = [column for column in _COLUMNS if column[1] in known]
    if run.task == CLASSIFICATION:  # among labels it tells no more than the loss
        columns = [column for column in columns if column[0] != "perplexity"]
    header = ["step", "epoch", *(name for name, *_ in columns)]
    rows, ours = [], None
    every = -(-len(run.evaluations) // _ROWS_SHOWN) or 1
    chosen = [one for n, one in enumerate(reversed(run.evaluations)) if n % every == 0 or one is run.best][::-1]
    for number, record in enumerate(chosen):
        mark = " (best)" if record is run.best else ""
        numbers = [words.measure(s * record.get(name, math.nan), digits, unit) for _, name, s, digits, unit in columns]
        rows.append([f"{record['step']:,}{mark}", str(record["epoch"]), *numbers])
        ours = number if record is run.best else ours
    name = "All evaluations as a table" if every == 1 else f"One evaluation of {every} as a table, and the best"
    return details(name, table(header, rows, numbers=range(len(header)), ours=ours)) if rows else ""


def _yardsticks(run: Recorded) -> str:
    order = run.ranked
    if not order:
        return ""
    columns = [("bits per byte", "bits_per_byte", 1, 3, ""), ("val_loss", "loss", 1, 4, "")]
    columns += [("accuracy", "accuracy", 100, 2, " %")]
    columns = [column for column in columns if any(one[column[1]] is not None for one in order)]
    rows = []
    for one in order:
        ours = one["name"] == THIS_MODEL
        told = "what was trained here" if ours else words.predictor_in_words(one["name"])
        told += f" ({one['told']})" if one["told"] else ""
        numbers = [
            "-" if one[key] is None else words.measure(scale * one[key], digits, unit)
            for _, key, scale, digits, unit in columns
        ]
        rows.append([escaped(one["name"]) + (" (kept)" if ours else ""), *numbers, escaped(told)])
    place = next(number for number, one in enumerate(order) if one["name"] == THIS_MODEL)
    header = ["predictor", *(name for name, *_ in columns), "what it is"]
    shown = table(
        header,
        rows,
        caption="On the same validation text, worst first; lower bits per byte and loss are better. What has no "
        "number there knows no tokens, or names no likeliest one.",
        numbers=range(1, len(columns) + 1),
        ours=place,
    )
    return f"<h2>Compared to simple predictors</h2><p>{escaped(words.compared(run))}</p>{shown}"


def _samples(run: Recorded) -> str:
    """What the model wrote as it learned: for each fixed prompt a few steps, evenly chosen, the last among them."""
    if not run.samples:
        return ""
    losses = {record["step"]: record["val_loss"] for record in run.evaluations}
    parts = ["<h2>What it wrote as it learned</h2>"]
    by_prompt = words.prompts(run.samples)
    fixed = {prompt: records for prompt, records in by_prompt.items() if prompt}
    given, end = ("source", "\n") if run.task else ("beginning", "")
    if fixed:
        of, rest = (
            ("examples", "wrote the rest, the likeliest token each time") if run.task else ("text", "wrote the rest")
        )
        parts.append(
            f"<p>The same {given}s, taken from the validation {of}, at several steps. The {given} is "
            f'<span class="prompt">in colour and bold</span>; the model {rest}.</p>'
        )
    for number, records in enumerate(fixed.values()):
        last, kept = len(records) - 1, run.best["step"] if run.best else -1
        chosen = {round(last * i / max(_SAMPLES_SHOWN - 1, 1)) for i in range(_SAMPLES_SHOWN)}
        chosen |= {i for i, record in enumerate(records) if record["step"] == kept}
        shown = []
        for record in (records[i] for i in sorted(chosen)):
            loss = f", val_loss {words.measure(losses[record['step']])}" if record["step"] in losses else ""
            loss += ", the best, kept" if record["step"] == kept else ""
            shown.append(f"<h3>step {record['step']:,}{loss}</h3>{written(record['prompt'] + end, record['sample'])}")
        parts.append(details(f"{given.capitalize()} {number + 1}", "".join(shown), is_open=number == 0))
    for record in by_prompt.get("", [])[-1:]:
        parts.append(f"<h3>The kept model (step {record['step']:,}), from nothing</h3>")
        parts.append(written("", record["sample"]))
    return "".join(parts)


def _facts(run: Recorded) -> str:
    rows = [(escaped(name), escaped(told)) for name, told in (*task_words.facts(run), *_model(run))]
    return table((), rows) if rows else "<p>A model and datasets that were given in Python.</p>"


def _model(run: Recorded) -> list[tuple[str, str]]:
    config, whole = run.model_config, task_words.parts(run)
    if config is None or whole is None:
        return []
    layers = f"{config.num_layers} layer{'s' * (config.num_layers > 1)} of width {config.embed_dim}"
    which = {"": f"the last {config.max_seq_len}", CLASSIFICATION: f"the first {config.max_seq_len}"}
    window = which.get(run.task, f"source and target together up to {config.max_seq_len}")
    return [
        ("model", f"{whole.num_parameters:,} parameters: {layers}, {config.num_heads} attention heads each"),
        ("reads", f"{window} tokens, of {config.vocab_size:,} different ones"),
        ("tokenizer", str(run.resolved.get("tokenizer", "none: it was trained on token ids"))),
    ]


def _modules(run: Recorded) -> str:
    whole = task_words.parts(run)
    return details("All parts of the model", f"<pre>{escaped(whole)}</pre>") if whole else ""


def _settings(run: Recorded) -> str:
    """What was set, then all the rest, each with where its value came from."""
    rows: dict[bool, list[list[str]]] = {True: [], False: []}
    for name, value in run.resolved.items():
        if name not in FIELDS or name in _OPTIONS or value is None:
            continue
        origin = run.origin(name)
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        cells = (shown, _FROM.get(origin, origin), FIELDS[name].metadata["help"])
        rows[origin == YOU].append([f"<code>{escaped(name)}</code>", *map(escaped, cells)])
    header = ("setting", "value", "from", "what it does")
    mine = table(header, rows[True]) if rows[True] else "<p>Nothing was set: all values are defaults or worked out.</p>"
    return mine + details("All other settings", table(header, rows[False]))


def _environment(run: Recorded) -> list[tuple[str, str]]:
    made, resolved = run.made_with, run.resolved
    threads = f"{resolved['threads']} threads" if resolved.get("threads") and resolved.get("device") == "cpu" else ""
    rows = {
        "hardware": made.get("hardware"),
        "computed on": ", ".join(filter(None, (resolved.get("device"), resolved.get("precision"), threads))),
        "versions": ", ".join(f"{name} {made[name]}" for name in ("slm", "torch", "python") if name in made),
        "system": made.get("platform"),
        "seed": resolved.get("seed"),
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]


def how_to_load(run: Recorded, folder: str) -> str:
    """Commands and Python that use the model of a run that lies in that folder."""
    name, shell = repr(folder), shlex.quote(folder)
    if run.model_config is None:
        weights = f"slm.storage.load_file({folder + '/model.pt'!r})"
        return f'import slm\n\nmodel.load_state_dict({weights}["model"])  # a module of the same class'
    if run.task:
        return f"{tasks.how_to_use(run, folder)}{_beside(run)}"
    if "tokenizer" not in run.resolved:
        return (
            f"import slm\n\nrun = slm.load({name})\n"
            "slm.generate_tokens(run.model, [[1, 2, 3]])  # token ids that go on from a beginning\n"
            "run.plot()                                   # the curves"
        )
    return (
        f"import slm\n\nrun = slm.load({name})\n"
        'print(run.generate("Once"))      # text that goes on from a beginning\n'
        "run.plot()                       # the curves\n"
        'slm.explain(run, "Once upon")    # what it expects at each token, and what it looks at\n\n'
        "# from a shell:\n"
        f'#   slm-generate --model_dir {shell} --prompt "Once"\n'
        f"#   slm-evaluate --model_dir {shell}{_beside(run)}"
    )


def _beside(run: Recorded) -> str:
    """What to know of a model that LoRA trained beside another one."""
    is_whole = run.resolved.get("trainable") != "lora" or run.made_with.get("merged")
    if "base" not in run.made_with or is_whole:
        return ""
    return (
        "\n\n# The folder holds what LoRA trained; the model beside it is read from where it was, or from another\n"
        "# place: slm.load(..., base=...). run.merge() and run.save(...) make one model of both."
    )
