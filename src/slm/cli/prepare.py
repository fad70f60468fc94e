"""slm-prepare: turn text into token files once, for many runs; show and clear what is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from slm.cli.arguments import OK, Parser, add_fields, run_command
from slm.config import FIELDS
from slm.settings import layered

DESCRIPTION = "Turn text into token files that slm-train reads by memory map. Without --out they go to the cache."


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares data, or shows or clears the cache, as the flags say."""
    parser = make_parser()
    values = parser.parse(sys.argv[1:] if arguments is None else arguments)
    chosen = [name for name in ("data", "list", "clean") if name in values]
    if len(chosen) != 1:
        parser.error("give one of --data (what to prepare), --list and --clean. See slm-prepare --help.")
    commands: dict[str, Callable[..., int]] = {"data": _prepare, "list": _list, "clean": _clean}
    command = commands[chosen[0]]
    return run_command(parser.prog, lambda: command(**values))


def make_parser() -> Parser:
    """The parser of slm-prepare: the settings of slm-train that decide the tokens, and its own."""
    parser = Parser("slm-prepare", DESCRIPTION)
    group_of = {name: field.metadata["group"] for name, field in FIELDS.items()}
    names = [name for name, group in group_of.items() if group == "data" and name != "mask_documents"]
    add_fields(parser, [FIELDS[name] for name in (*names, "vocab_size", "recheck", "quiet")], everything=True)
    group = parser.add_argument_group("where")
    group.add_argument("--out", metavar="STR", help="New folder or URL for the token files; give it to --data later.")
    group.add_argument("--list", action="store_const", const=True, help="Show what the cache holds.")
    group.add_argument(
        "--clean", nargs="*", metavar="KEY", help="Clear the cache, or those entries of it that --list shows."
    )
    return parser


def _prepare(out: str | None = None, **keys: Any) -> int:
    from slm.data.manifest import read_manifest
    from slm.data.prepare import prepare_settings
    from slm.display import Display

    settings = layered(keys, "flag")
    display = Display(quiet=settings.options.quiet)
    try:
        with display.working() as on_progress:
            path = prepare_settings(settings, out=out, on_progress=on_progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what it has prepared so far.", file=sys.stderr)
        raise
    about = read_manifest(path) or {}
    for line in about["found"]:
        display.print(line)
    (train, val), total = about["tokens"], sum(about["tokens"])
    display.print(f"{about['split']}: {val:,} tokens to validate on, {train:,} to train on")
    display.print(f"vocabulary of {about['vocab_size']:,}, {about['num_bytes'] / max(total, 1):.2f} bytes a token")
    display.print(f"prepared: {path}")
    return OK


def _list(**_: Any) -> int:
    from slm.data import cache
    from slm.storage.cached import cache_folder

    entries = cache.entries()
    for entry in entries:
        print(f"{entry.key}  {entry.num_bytes / 1e6:10,.1f} MB  {entry.name}")
    print(f"{len(entries)} in {cache_folder()}, {sum(entry.num_bytes for entry in entries) / 1e6:,.1f} MB")
    return OK


def _clean(clean: list[str], **_: Any) -> int:
    from slm.config import UserError
    from slm.data import cache
    from slm.storage.cached import cache_folder

    entries = {entry.key: entry for entry in cache.entries()}
    if unknown := sorted(set(clean) - set(entries)):
        raise UserError(f"{unknown[0]} is not in the cache {cache_folder()}: slm-prepare --list shows what is.")
    chosen = [entries[key] for key in dict.fromkeys(clean)] if clean else list(entries.values())
    removed = 0
    for entry in chosen:
        gone = cache.remove(entry)
        removed += gone
        what = "removed" if gone else "in use by another process, kept"
        print(f"{what} {entry.key}  {entry.num_bytes / 1e6:,.1f} MB  {entry.name}")
    print(f"{removed} removed from {cache_folder()}")
    return OK
