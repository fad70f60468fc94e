"""Flags made from the fields of `config.py`, and what every command shares: errors, exit codes, signals."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from slm._version import __version__
from slm.config import UserError, kind_of
from slm.settings import nearest

TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
OK, USER_ERROR, UPLOAD_MISSING = 0, 2, 3


class Parser(argparse.ArgumentParser):
    """An argparse parser that takes `-` for `_` in flags, gives only what was set, and names the nearest flag."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=110),
        )
        self.add_argument("--version", action="version", version=f"slm {__version__}", help="Print the version.")

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The settings that the arguments set; exits with 2 and one message where they cannot be understood."""
        known, unknown = self.parse_known_args([_with_underscores(argument) for argument in arguments])
        for argument in unknown:
            name = argument.split("=")[0]
            if name.startswith("-"):
                flags = (flag for action in self._actions for flag in action.option_strings)
                self.error(f"{name} is not a flag.{nearest(name, flags)} See {self.prog} --help.")
            self.error(f"{argument!r} is not understood: every value follows a flag, as in --data {argument}.")
        return vars(known)

    def error(self, message: str) -> NoReturn:
        """Prints one line to standard error and exits with 2."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def add_fields(
    parser: Parser,
    fields: Iterable[dataclasses.Field[Any]],
    *,
    everything: bool,
    groups: Sequence[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> None:
    """Adds a flag for each field, by group.

    Those that are not everyday show in the help only with `everything`, or where their group is one of the groups.
    preset: what the help tells as a default instead of the field's own.
    """
    made: dict[str, Any] = {}
    for field in fields:
        name = field.name
        name_of_group = field.metadata["group"]
        if name_of_group not in made:
            made[name_of_group] = parser.add_argument_group(name_of_group)
        group = made[name_of_group]
        is_shown = everything or field.metadata["everyday"] or name_of_group in groups
        default = (preset or {}).get(name, field.default)
        help = field_help(field, default) if is_shown else argparse.SUPPRESS
        if kind_of(field) == "bool":
            group.add_argument(f"--{name}", action="store_const", const=True, help=help)
            group.add_argument(f"--no_{name}", dest=name, action="store_const", const=False, help=argparse.SUPPRESS)
        else:
            kind = kind_of(field)
            choices = field.metadata["choices"] or None
            several = {"nargs": "+"} if kind == "strs" else {}
            kind = kind.removesuffix("s") if several else kind
            metavar = None if choices else kind.upper()
            read = _or_word(TYPES[kind], field.metadata["word"])
            group.add_argument(f"--{name}", type=read, choices=choices, metavar=metavar, help=help, **several)


def _or_word(read: Callable[[str], Any], word: str | None) -> Callable[[str], Any]:
    """`read`, but for the word, which stands for itself."""
    if word is None:
        return read

    def read_or_word(text: str) -> Any:
        return text if text == word else read(text)

    read_or_word.__name__ = getattr(read, "__name__", "value")  # which argparse names in its message
    return read_or_word


def field_help(field: dataclasses.Field[Any], default: Any) -> str:
    """A field's help with a default."""
    text = str(field.metadata["help"])
    if default is True:
        text += f" On by default; --no_{field.name} turns it off."
    elif field.metadata["word"] and default is None:
        text += f" ({field.metadata['word']})"
    elif default is not None and default is not False:
        text += f" ({default})"
    return text.replace("%", "%%")


class Interruption:
    """Ctrl-C and SIGTERM turned into a request to stop after the current step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._in_steps = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells count."""
        return 128 + (self.signal or 0)

    def should_stop(self) -> bool:
        """True once a signal has come; asked before each step, and while answers are scored."""
        self._in_steps = True
        return self.signal is not None

    def end(self) -> None:
        """All is done and saved: from here on a signal ends the process as it would end any other."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def _receive(self, number: int, frame: object) -> None:
        at_once = self.signal is not None or not self._in_steps
        self.signal = number
        if at_once:
            told = "at once; the same command goes on from the newest checkpoint, or begins anew where there is none"
            if not self._in_steps:
                told = "before the first step; the same command goes on with what it has prepared so far"
            print(f"\nstopped {told}.", file=sys.stderr)
            raise SystemExit(self.exit_code)
        print(
            "\nstopping as soon as what is under way is done and saved; once more to stop at once.",
            file=sys.stderr,
        )


def check_replaceable(out: str) -> None:
    """Raises UserError for what names no file, and where a file is there that is no page of ours."""
    from slm.metrics.pages.page import is_ours
    from slm.storage import files

    files.check_path(out)
    if out.endswith(("/", os.sep)) or files.is_folder(out):
        raise UserError(f"--out = {out!r} is a folder: name a file in it.")
    if not files.exists(out):
        return
    with files.open_read(out) as file:
        if is_ours(file.readline(1000)):
            return
    raise UserError(f"--out = {out!r} is there and is no page of slm, so it is not replaced: name another file.")


def run_command(prog: str, command: Callable[[], int]) -> int:
    """The exit code of a command; a person's mistakes are printed in one line, without a traceback."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter must not end a run
            stream.reconfigure(errors="replace")
    try:
        return command()
    except BrokenPipeError:  # the reader of our output went away, as `head` does: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:  # a second signal; Python's own way out would abort in a thread that still writes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except (UserError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        # torch tells of memory by RuntimeError only; any other one is a bug of ours.
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        way_out = " Lower --micro_batch_size or the model's sizes." if prog == "slm-train" else ""
        print(f"{prog}: error: the memory is full.{way_out}", file=sys.stderr)
        return USER_ERROR


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
