"""The model card of a run, in the format of the Hugging Face hub: a YAML head for machines, Markdown for people."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from slm.metrics.diagnosis import diagnose
from slm.metrics.pages import words
from slm.metrics.pages.page import CARD_MARKER
from slm.metrics.pages.report import how_to_load
from slm.metrics.recorded import Recorded


def model_card(run: Recorded) -> str:
    """The text of MODEL_CARD.md. What only its owner knows (license, language, uses) is left open, and said to be."""
    _, learned = words.learned(run)
    parts = [
        _head(run),
        f"# {_plain(run.title)}",
        f"A small language model that was trained from scratch with `slm` {run.made_with.get('slm', '')}: "
        f"{words.ended(run)}. {learned}",
        "## How to use it",
        f"```python\n{how_to_load(run, 'path/to/this/folder')}\n```",
        "## Training text",
        _rows([(name, _without_folders(told, run)) for name, told in words.facts(run)])
        or "Token ids or datasets given in Python.",
        "## Results",
        _results(run),
        words.compared(run),
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
        "It continues text like the text it was trained on, and knows nothing else. What it writes may be false, and "
        "may repeat the training text word for word. Intended uses, the license of the model and the rights on its "
        "training text are for its owner to add here.",
        CARD_MARKER,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


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
    lines = ["---", "library_name: slm", "pipeline_tag: text-generation", "tags:", "- slm", "- text-generation"]
    if metrics := _metrics(run):
        text = _without_folders(str(run.made_with.get("data_name", "text")), run)
        lines += [
            "model-index:",
            f"- name: {_yaml(run.title)}",
            "  results:",
            "  - task:",
            "      type: text-generation",
            "    dataset:",
            f"      name: {_yaml(f'the validation part of {text}')}",
            f"      type: {_yaml(text)}",
            "    metrics:",
        ]
        for kind, value in metrics:
            lines += [f"    - type: {kind}", f"      value: {value:.6f}"]  # YAML reads 1e-05 as text
    return "\n".join([*lines, "---"])


def _metrics(run: Recorded) -> list[tuple[str, float]]:
    best = run.best or {}
    names = {"loss": "val_loss", "perplexity": "val_perplexity", "bits_per_byte": "val_bits_per_byte"}
    names["accuracy"] = "val_accuracy"
    found = [(kind, best.get(name)) for kind, name in names.items()]
    return [(kind, value) for kind, value in found if value is not None and math.isfinite(value)]


def _yaml(text: str) -> str:
    # JSON writes a letter such as an emoji in two halves, which YAML does not join.
    return json.dumps(_printable(text), ensure_ascii=False)


def _results(run: Recorded) -> str:
    order = run.ranked
    if not order:
        return _rows([(kind, f"{value:g}") for kind, value in _metrics(run)])
    lines = ["| predictor | bits per byte | loss, nats per token | accuracy |", "|---|---|---|---|"]
    for one in order:
        bits, loss, right = (one[key] for key in ("bits_per_byte", "loss", "accuracy"))
        cells = (_number(bits, 3), _number(loss, 4), "" if right is None else f"{100 * right:.2f} %")
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _rows(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {f'{name}: ' if name else ''}{_plain(told)}" for name, told in rows)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~$" else c for c in _printable(text))


def _printable(text: str) -> str:
    """On one line, without characters that control what comes after them."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())


def _without_folders(text: str, run: Recorded) -> str:
    """Without the folders of this machine in which the text and the tokenizer lie."""
    named = [run.resolved.get(name) for name in ("data", "val_data", "tokenizer")]
    paths = [path for one in named for path in ([one] if isinstance(one, str) else one or ())]
    paths = sorted(filter(os.path.isabs, paths), key=len, reverse=True)
    for path in paths:
        folder, name = os.path.split(path)
        text = text.replace(path, name).replace(os.path.join(folder, ""), "" if len(folder) > 1 else folder)
        for cut in range(1, len(folder) + 1):  # of a long name only its end is told
            text = text.replace(f"...{path[cut:]}", name)
    return text
