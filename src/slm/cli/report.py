"""slm-report: the report of a run made anew, or several runs on one page with the verdict which is better."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from slm.cli.arguments import OK, Parser, check_replaceable, run_command
from slm.config import UserError

DESCRIPTION = (
    "Write the report.html and MODEL_CARD.md of a run anew, also of one that was killed. Of several runs, lay them "
    "over each other on one page, and tell which is better on the validation text of the first, and how sure that is."
)
_MOST_RUNS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages, and prints where they are."""
    parser = make_parser()
    values = parser.parse(sys.argv[1:] if arguments is None else arguments)
    return run_command(parser.prog, lambda: _report(**values))


def make_parser() -> Parser:
    """The parser of slm-report."""
    parser = Parser("slm-report", DESCRIPTION)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder or URL of a run; or of several. (.)")
    add = parser.add_argument_group("report").add_argument
    add("--out", metavar="STR", help="File or URL of the page about several runs. (comparison.html)")
    add("--quiet", action="store_const", const=True, help="Print only where the pages are.")
    return parser


def _report(runs: Sequence[str] = (), out: str | None = None, quiet: bool = False) -> int:
    runs = list(runs) or ["."]
    if len(runs) > _MOST_RUNS:
        raise UserError(f"{len(runs)} runs: a page takes {_MOST_RUNS} at most, so that they can be told apart.")
    if len(runs) == 1 and out is not None:
        raise UserError(f"--out = {out!r}: the report of a single run goes into its own folder. Leave --out out.")
    from slm.display import Display
    from slm.reporting import comparison, report
    from slm.storage import files
    from slm.training.resume import PAGES

    if len(runs) == 1:
        pages = report(runs[0])
        for name, text in pages.items():
            files.write_bytes(files.join(runs[0], name), text.encode(errors="replace"))
            print(files.join(runs[0], name))
        for name in sorted(set(PAGES) - set(pages)):
            print(f"{files.join(runs[0], name)} stays as it is: slm did not write it, or somebody has edited it.")
        return OK
    out = out or "comparison.html"
    check_replaceable(out)
    with Display(quiet=quiet).working() as on_progress:
        page, verdicts = comparison(runs, on_progress)
    files.write_bytes(out, page.encode(errors="replace"))
    for verdict in () if quiet else verdicts:
        print(verdict)
    print(out)
    return OK
