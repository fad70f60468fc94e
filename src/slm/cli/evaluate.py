"""slm-evaluate: how good a model is on a text, beside what simple predictors score, or which of several is best."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slm.cli.arguments import OK, Parser, add_fields, run_command
from slm.config import FIELDS, DataConfig

if TYPE_CHECKING:
    from slm.metrics.scoring import Estimate, Evaluation

DESCRIPTION = (
    "Tell how good a model that slm-train made is on a text, beside what simple predictors score. Without --data, on "
    "the run's own validation text. Of several models, tell which is better, and how sure that is."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates as the flags say, and prints the numbers."""
    parser = make_parser()
    values = parser.parse(sys.argv[1:] if arguments is None else arguments)
    return run_command(parser.prog, lambda: _evaluate(**values))


def make_parser() -> Parser:
    """The parser of slm-evaluate."""
    parser = Parser("slm-evaluate", DESCRIPTION)
    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add(
        "--model_dir",
        nargs="+",
        action="extend",
        metavar="STR",
        help="Folder or URL of a run, or its model.pt; or of several. (.)",
    )
    add(
        "--data",
        nargs="+",
        metavar="STR",
        help="The text: files, folders, globs, URLs. (the run's own validation text)",
    )
    add(
        "--stride",
        type=int,
        metavar="INT",
        help="Move each window on by so many tokens and score only its last ones, so that each token has context. By "
        "default windows stand side by side.",
    )
    add(
        "--no_yardsticks",
        action="store_const",
        const=True,
        help="Leave out what simple predictors score: they need the training text, which may take long to read again.",
    )
    add("--quiet", action="store_const", const=True, help="Print the numbers only, not what is being done.")
    add("--output", choices=("text", "json"), help="json: all numbers as one JSON object. (text)")
    add_fields(
        parser,
        [FIELDS[name] for name in ("text_field", "split_documents_on", "device")],
        everything=True,
    )
    return parser


def _evaluate(
    model_dir: Sequence[str] = (".",),
    output: str = "text",
    quiet: bool = False,
    stride: int | None = None,
    device: str = "auto",
    no_yardsticks: bool = False,
    **settings: Any,
) -> int:
    config = DataConfig(**settings)
    from slm.display import Display
    from slm.evaluation import evaluate_all
    from slm.metrics.scoring import compare_evaluations

    display = Display(quiet=output == "json")
    with Display(quiet=quiet or output == "json").working() as on_progress:
        found = evaluate_all(
            model_dir,
            config,
            stride=stride,
            device=device,
            with_yardsticks=not no_yardsticks,
            on_progress=on_progress,
        )
    comparisons = [compare_evaluations(found[0], other) for other in found[1:]]
    if output == "json":
        runs = [{"model_dir": name, **_as_json(one)} for name, one in zip(model_dir, found, strict=True)]
        told = [
            {"first": model_dir[0], "second": name, "difference": _number(one.difference), "unit": one.unit,
             "verdict": one.verdict(model_dir[0], name)}
            for name, one in zip(model_dir[1:], comparisons, strict=True)
        ]  # fmt: skip
        print(json.dumps({"evaluations": runs, "comparisons": told}))
        return OK
    for name, one in zip(model_dir, found, strict=True):
        display.evaluation(name, one)
    for name, comparison in zip(model_dir[1:], comparisons, strict=True):
        display.print(comparison.verdict(model_dir[0], name))
    return OK


def _as_json(found: Evaluation) -> dict[str, Any]:
    """All of an evaluation but the sums of its units, by the names that records of training have."""
    return {
        "text": found.text,
        "num_tokens": found.num_tokens,
        "num_bytes": found.num_bytes,
        "val_loss": _number(found.loss),
        "val_perplexity": _number(found.perplexity),
        "val_bits_per_byte": found.bits_per_byte and _number(found.bits_per_byte),
        "val_accuracy": _number(found.accuracy),
        "val_top5_accuracy": _number(found.top5_accuracy),
        "standard_errors_over": found.units_told,
        "loss_by_position": [one._asdict() for one in found.loss_by_position],
        "yardsticks": [dataclasses.asdict(one) for one in found.yardsticks],
        "yardsticks_missing": found.yardsticks_missing or None,
    }


def _number(estimate: Estimate) -> dict[str, float | None]:
    """JSON knows no infinity and no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in estimate._asdict().items()}
