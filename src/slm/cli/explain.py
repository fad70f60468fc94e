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
    from slm.metrics.explain import Explanation

DESCRIPTION = (
    "Look inside a model that slm-train made: write a page that shows how likely it held each token of a text, what "
    "each of its layers would have said, and where attention looked. The text has at most 256 tokens, and at most "
    "max_seq_len."
)
_ALTERNATIVES = 3  # in the plain table


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
    for line in plain_table(found):
        print(line)
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


def plain_table(found: Explanation) -> list[str]:
    """The tokens of a text in lines that align, and what they add up to."""
    from slm.metrics.pages.explanation import percent, told_alternatives, visible

    def listed(pieces: Sequence[tuple[str, float]]) -> str:
        return "  ".join(
            f"{visible(piece)} {percent(value)}" for piece, value in told_alternatives(pieces)[:_ALTERNATIVES]
        )

    rows = [("token", "probability", "surprisal", "rank", "likeliest in its place")]
    for piece, probability, surprisal, rank, others in zip(
        found.tokens, found.probability, found.surprisal, found.rank, found.alternatives, strict=True
    ):
        if probability is None or surprisal is None or rank is None:
            rows.append((visible(piece), "-", "-", "-", "-"))
        else:
            rows.append((visible(piece), percent(probability), f"{surprisal:.2f}", f"{rank:,}", listed(others)))
    rows.append(("next", "", "", "", listed(found.following)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:4], strict=True)), row[4])
        )
        for row in rows
    ]
    sums = f"{found.total:.2f} nats in {found.num_predicted:,} predicted tokens"
    return [*(line.rstrip() for line in lines), "", f"{sums}: loss {found.loss:.4f}, perplexity {found.perplexity:.2f}"]
