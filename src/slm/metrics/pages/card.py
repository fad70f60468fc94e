"""The model card of a run, in the format of the Hugging Face hub: a YAML head for machines, Markdown for people."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from slm.metrics.advice import learned_from
from slm.metrics.diagnosis import diagnose
from slm.metrics.pages import task_words, words
from slm.metrics.pages.page import CARD_MARKER
from slm.metrics.pages.report import how_to_load
from slm.metrics.recorded import Recorded
from slm.metrics.task_evaluation import TITLES, told
from slm.task_config import CLASSIFICATION, PAIRS

_KINDS = {"": "text-generation", CLASSIFICATION: "text-classification", PAIRS: "text2text-generation"}  # on the hub
_METRICS = {"macro_f1": ("f1", "macro F1")}  # and the others as they are: type on the hub, name
_LIMITS = {
    "": "It continues text like the text it was trained on, and knows nothing else. What it writes may be false, and "
    "may repeat the training text word for word.",
    CLASSIFICATION: "It gives one of its labels to each text, also to one that none of them fits. How sure it says it "
    "is proves nothing, least of all for texts unlike its training examples.",
    PAIRS: "It writes a target for each source, also for one unlike its training examples. What it writes may be "
    "false, and may repeat the training examples word for word.",
}


def model_card(run: Recorded) -> str:
    """The text of MODEL_CARD.md. What only its owner knows (license, language, uses) is left open, and said to be."""
    _, learned = task_words.learned(run)
    parts = [
        _head(run),
        f"# {_plain(run.title)}",
        f"{_kind(run)} with `slm` {run.made_with.get('slm', '')}: {words.ended(run)}. {learned}",
        "## How to use it",
        f"```python\n{how_to_load(run, 'path/to/this/folder')}\n```",
        "## Training examples" if run.task else "## Training text",
        _rows([(name, _without_folders(fact, run)) for name, fact in task_words.facts(run)])
        or "Token ids or datasets given in Python.",
        "## Results",
        _results(run),
        _plain(_without_folders(task_words.compared(run), run)),
        *_notes(run),
        "## Training",
        _rows(
            [
                (setting, _without_folders(str(run.resolved[setting]), run))
                for setting in _SETTINGS
                if run.resolved.get(setting) is not None
            ]
        ),
        _rows(
            [(what, str(run.made_with[what])) for what in ("hardware", "torch", "platform") if what in run.made_with]
        ),
        "## What its curves say",
        "\n".join(f"- {one.title}. {one.told}" for one in diagnose(run)) or "No trouble was found.",
        "## Uses and limits",
        f"{_LIMITS.get(run.task, _LIMITS[''])} Intended uses, the license of the model and the rights on its training "
        f"{learned_from(run)} are for its owner to add here.",
        CARD_MARKER,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _kind(run: Recorded) -> str:
    """What kind of model was trained, and from what."""
    does = {CLASSIFICATION: f"model that tells which of {len(run.labels):,} labels a text has and"}
    kind = does.get(run.task, "model that writes a target for a source and" if run.task else "language model that")
    if "base" in run.made_with:
        return f"A small {kind} started from another model, and was trained"
    return f"A small {kind} was trained from scratch"


def _notes(run: Recorded) -> list[str]:
    """What to know of the scores of a task."""
    if not run.task_scores:
        return []
    chance = task_words.chance(run) if run.task == CLASSIFICATION else ""
    told_ = f"{task_words.TOO_GOOD} `slm-evaluate --model_dir path/to/this/folder {task_words.other_examples(run)}`"
    return [*map(_plain, task_words.missing(run)), told_, chance]


_SETTINGS = (
    "embed_dim",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "max_seq_len",
    "vocab_size",
    "tokenizer",
    "recipe",
    "optimizer",
    "learning_rate",
    "batch_size",
    "max_steps",
    "max_minutes",
    "precision",
    "seed",
)


def _head(run: Recorded) -> str:
    """The YAML between two lines of dashes. JSON's strings, lists and numbers are YAML's, too."""
    kind = _KINDS.get(run.task, _KINDS[""])
    lines = ["---", "library_name: slm", f"pipeline_tag: {kind}", "tags:", "- slm", f"- {kind}"]
    if metrics := _metrics(run):
        text = _without_folders(str(run.made_with.get("data_name", "text")), run)
        lines += [
            "model-index:",
            f"- name: {_yaml(run.title)}",
            "  results:",
            "  - task:",
            f"      type: {kind}",
            "    dataset:",
            f"      name: {_yaml(f'the validation part of {text}')}",
            f"      type: {_yaml(text)}",
            "    metrics:",
        ]
        for name, value in metrics:
            kind, *title = _METRICS.get(name, (name,))
            lines.append(f"    - type: {kind}")
            lines += [f"      name: {one}" for one in title]
            lines.append(f"      value: {value:.6f}")  # YAML reads 1e-05 as text
    return "\n".join([*lines, "---"])


def _metrics(run: Recorded) -> list[tuple[str, float]]:
    best, scores = run.best or {}, run.task_scores.get("metrics", {})
    names = {"loss": "val_loss"}
    if not run.task:
        names |= {"perplexity": "val_perplexity", "bits_per_byte": "val_bits_per_byte"}
    if run.task != PAIRS and "accuracy" not in scores:
        names["accuracy"] = "val_accuracy"
    found = [*scores.items(), *((kind, best.get(name)) for kind, name in names.items())]
    return [(kind, value) for kind, value in found if value is not None and math.isfinite(value)]


def _yaml(text: str) -> str:
    # JSON writes a letter such as an emoji in two halves, which YAML does not join.
    return json.dumps(_printable(text), ensure_ascii=False)


def _results(run: Recorded) -> str:
    if run.task_ranked:
        return _scores(run)
    order = run.ranked
    if not order:
        return _rows([(kind, f"{value:g}") for kind, value in _metrics(run)])
    lines = ["| predictor | bits per byte | loss, nats per token | accuracy |", "|---|---|---|---|"]
    for one in order:
        bits, loss, right = (one[key] for key in ("bits_per_byte", "loss", "accuracy"))
        cells = (_number(bits, 3), _number(loss, 4), "" if right is None else f"{100 * right:.2f} %")
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(run: Recorded) -> str:
    """How well the task is done, beside simple methods."""
    found = run.task_scores
    names = [name for name in found["metrics"] if name in TITLES]
    of = _plain(_without_folders(str(found["text"]), run))
    lines = [f"On {found['num_examples']:,} validation examples of {of}, worst first:", ""]
    lines += [f"| method | {' | '.join(TITLES[name] for name in names)} |", f"|---|{'---|' * len(names)}"]
    for one in run.task_ranked:
        cells = (told(name, one.metrics[name]) if name in one.metrics else "" for name in names)
        lines.append(f"| {_plain(one.name)} | {' | '.join(cells)} |")
    if by_label := (found["scores"] or {}).get("by_label"):
        lines += ["", "| label | precision | recall | F1 | examples |", "|---|---|---|---|---|"]
        for one in by_label:
            shares = " | ".join(f"{100 * one[name]:.2f} %" for name in ("precision", "recall", "f1"))
            lines.append(f"| {_plain(one['label'])} | {shares} | {one['support']:,} |")
    return "\n".join(lines)


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _rows(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {f'{name}: ' if name else ''}{_plain(fact)}" for name, fact in rows)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~$" else c for c in _printable(text))


def _printable(text: str) -> str:
    """On one line, without characters that control what comes after them."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())


_PATHS = ("data", "val_data", "tokenizer", "init_from", "also_evaluate", "target_file")


def _without_folders(text: str, run: Recorded) -> str:
    """Without the folders of this machine in which the text and the tokenizer lie."""
    named = [run.resolved.get(name) for name in _PATHS]
    paths = [path for one in named for path in ([one] if isinstance(one, str) else one or ())]
    paths += [os.path.dirname(path) for path in paths if os.path.basename(path) == "model.pt"]
    paths = sorted(filter(os.path.isabs, paths), key=len, reverse=True)
    for path in paths:
        folder, name = os.path.split(path)
        text = text.replace(path, name).replace(os.path.join(folder, ""), "" if len(folder) > 1 else folder)
        for cut in range(1, len(folder) + 1):  # of a long name only its end is told
            text = text.replace(f"...{path[cut:]}", name)
    return text
