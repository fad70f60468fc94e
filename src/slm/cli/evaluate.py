"""slm-evaluate: how good a model is on a text, beside what simple predictors score, or which of several is best."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slm.cli.arguments import OK, Parser, add_fields, run_command
from slm.config import FIELDS, DataConfig, UserError
from slm.task_config import OF_EVALUATION

if TYPE_CHECKING:
    from slm.evaluation import Progress
    from slm.metrics.scoring import Comparison, Estimate, Evaluation
    from slm.run import Run

_OF_TEXT = ("text_field", "split_documents_on")
DESCRIPTION = (
    "Tell how good a model that slm-train made is on a text, beside what simple predictors score. Without --data, on "
    "the run's own validation text. Of several models, tell which is better, and how sure that is. Of a model with a "
    "task, its scores on examples."
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
        [FIELDS[name] for name in (*_OF_TEXT, "device", *OF_EVALUATION)],
        everything=True,
    )
    return parser


def _evaluate(
    model_dir: Sequence[str] = (".",),
    output: str = "text",
    quiet: bool = False,
    **settings: Any,
) -> int:
    DataConfig(**{name: value for name, value in settings.items() if name in ("data", *_OF_TEXT)})  # told before torch
    from slm.display import Display
    from slm.run import load

    runs = [load(name) for name in model_dir]
    with Display(quiet=quiet or output == "json").working() as on_progress:
        if len(runs) == 1 and runs[0].task:
            told = _task_told(runs[0], output, on_progress, **settings)
        else:
            told = _text_told(runs, model_dir, output, on_progress, **settings)
    told()
    return OK


def _task_told(run: Run, output: str, on_progress: Progress, **settings: Any) -> Callable[[], None]:
    """What prints the scores of a run of a task on examples."""
    from slm.display import Display
    from slm.task_scores import evaluate_task

    if "stride" in settings:
        raise UserError(f"stride = {settings['stride']} is for running text, and this run learned another task.")
    names, device = tuple(settings.pop("data", ())), settings.pop("device", "auto")
    with_yardsticks = not settings.pop("no_yardsticks", False)
    found = evaluate_task(
        run, names, None, settings, device=device, with_yardsticks=with_yardsticks, on_progress=on_progress
    )
    if output == "json":
        return lambda: print(json.dumps({"model_dir": run.path, **found.as_record()}))
    return lambda: Display(quiet=False).print(f"{found}\n")


def _text_told(
    runs: list[Run],
    names: Sequence[str],
    output: str,
    on_progress: Progress,
    stride: int | None = None,
    device: str = "auto",
    no_yardsticks: bool = False,
    **settings: Any,
) -> Callable[[], None]:
    """What prints the numbers of runs on a text, and how they compare."""
    from slm.evaluation import evaluate_all
    from slm.metrics.scoring import compare_evaluations

    for name in OF_EVALUATION:
        if name in settings:
            raise UserError(f"{name} = {settings[name]!r} is of a task, and the run in {names[0]} goes on with text.")
    found = evaluate_all(
        runs,
        DataConfig(**settings),
        stride=stride,
        device=device,
        with_yardsticks=not no_yardsticks,
        on_progress=on_progress,
    )
    comparisons = [compare_evaluations(found[0], other) for other in found[1:]]
    return lambda: _print(found, comparisons, names, output)


def _print(found: list[Evaluation], comparisons: list[Comparison], names: Sequence[str], output: str) -> None:
    from slm.display import Display

    if output == "json":
        runs = [{"model_dir": name, **_as_json(one)} for name, one in zip(names, found, strict=True)]
        told = [
            {"first": names[0], "second": name, "difference": _number(one.difference), "unit": one.unit,
             "verdict": one.verdict(names[0], name)}
            for name, one in zip(names[1:], comparisons, strict=True)
        ]  # fmt: skip
        print(json.dumps({"evaluations": runs, "comparisons": told}))
        return
    display = Display(quiet=False)
    for name, one in zip(names, found, strict=True):
        display.evaluation(name, one)
    for name, comparison in zip(names[1:], comparisons, strict=True):
        display.print(comparison.verdict(names[0], name))


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
