"""slm-train: train a small language model on a text."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from slm.cli.arguments import OK, UPLOAD_MISSING, USER_ERROR, Interruption, Parser, add_fields, run_command
from slm.config import FIELDS
from slm.settings import RECIPE, TASK, Settings, flat, layered
from slm.storage import files
from slm.task_config import FINE_TUNING, TASKS

DESCRIPTION = "Train a small language model from scratch on your own text. Without --data, on random tokens."


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the flags say; the exit code tells how it ended (docs: exit codes)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(everything=_has_flag(arguments, "--help_all"), task=_task_of(arguments))
    keys = parser.parse(arguments)
    return run_command(parser.prog, lambda: _train(layered(keys, "flag")))


def _has_flag(arguments: Sequence[str], flag: str) -> bool:
    return any(argument.replace("-", "_") == flag.replace("-", "_") for argument in arguments)


def _task_of(arguments: Sequence[str]) -> str | None:
    """The task that is named among the arguments, whose settings the help is to show."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.split("=")[0] == "--task":
            return argument.partition("=")[2] or following
    return None


def make_parser(*, everything: bool, task: str | None = None) -> Parser:
    """The parser of slm-train; its help lists all flags with `everything`, else the everyday ones and the task's."""
    parser = Parser("slm-train", DESCRIPTION)
    parser.add_argument("--help_all", action="help", help="Show every flag, not only the everyday ones.")
    groups = () if task is None else (task, FINE_TUNING)
    settings = layered({"task": task}, "flag") if task in TASKS else layered({}, "flag")
    values = flat(settings.data, settings.task, settings.model, settings.train)
    preset = {name: values[name] for name, layer in settings.origins.items() if layer in (RECIPE, TASK)}
    if TASK in settings.origins.values():
        preset["max_seq_len"] = "what the examples need"
    add_fields(parser, FIELDS.values(), everything=everything, groups=groups, preset=preset)
    return parser


def _train(settings: Settings) -> int:
    from slm.data.manifest import MANIFEST
    from slm.data.sources import BUILT_IN, find_files

    data, val_data = settings.data.data or (), (*(settings.data.val_data or ()), *(settings.task.target_file or ()))
    prepared = len(data) == 1 and not files.is_remote(data[0]) and os.path.exists(os.path.join(data[0], MANIFEST))
    for path in (*data, *(() if prepared else val_data)):
        # Told before torch is loaded, which takes two seconds.
        if path.partition(":")[0] not in BUILT_IN and not files.is_remote(path):
            find_files(path)
    interruption = Interruption()
    from slm.run import train_run

    run = train_run(settings, should_stop=interruption.should_stop)
    interruption.end()
    status = run.history.status if run.history else "finished"
    if status == "diverged" or run.save_error:
        return USER_ERROR
    if status == "interrupted":
        return interruption.exit_code
    return UPLOAD_MISSING if run.upload_error else OK
