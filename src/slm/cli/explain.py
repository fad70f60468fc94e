"""slm-explain: what a model made of a text, as a page: surprise, where attention looked, each layer's guess."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slm.cli.arguments import OK, Parser, check_replaceable, run_command
from slm.config import UserError

if TYPE_CHECKING:
    pass

DESCRIPTION = (
    "Look inside a model that slm-train made: write a page that shows how likely it held each token of a text, what "
    "each of its layers would have said, and where attention looked. The text has at most 256 tokens, and at most "
    "max_seq_len."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, and prints where it is and a table of the tokens."""
    parser = make_parser()
    values = parser.parse(sys.argv[1:] if arguments is None else arguments)
    return run_command(parser.prog, lambda: _explain(**values))


def make_parser() -> Parser:
    """The parser of slm-explain."""
    parser = Parser("slm-explain", DESCRIPTION)
    add = parser.add_argument_group("what").add_argument
    add("--model_dir", metavar="STR", help="Folder or URL of the run, or its model.pt. (.)")
    add(
        "--text",
        metavar="STR",
        help="The text. Without it, or with -, it is read from standard input, but for the line end at its end.",
    )
    add(
        "--out",
        metavar="STR",
        help="File or URL of the page, in place of a page that slm wrote there before. (explain.html)",
    )
    return parser


def _explain(model_dir: str = ".", text: str | None = None, out: str = "explain.html") -> int:
    from slm.storage import files

    check_replaceable(out)
    if text is None and sys.stdin.isatty():
        raise UserError("--text is missing: give the text, or pipe it in.")
    if text is None or text == "-":
        text = _standard_input()
    from slm.looking import explain
    from slm.metrics.pages.explanation import explanation_page

    found = explain(model_dir, text)
    files.write_bytes(out, explanation_page(found, f"{_name_of(model_dir)}: what it expected, token by token").encode())
    print(found)
    print(f"\n{out} has the page.")
    return OK


def _standard_input() -> str:
    """All of it, without the line end at its end."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    text = sys.stdin.read()
    return text.removesuffix("\n")


def _name_of(model_dir: str) -> str:
    """The last part of the path, or that of the folder around a model.pt."""
    path = os.path.abspath(model_dir)
    return os.path.basename(os.path.dirname(path) if path.endswith(".pt") else path) or model_dir
