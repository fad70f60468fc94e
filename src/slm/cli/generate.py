"""slm-generate: let a trained model write."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from slm.cli.arguments import OK, Parser, run_command

DESCRIPTION = "Let a model that slm-train made continue a prompt."


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the prompt and its continuation to standard output, piece by piece."""
    parser = make_parser()
    values = {
        "model_dir": ".",
        "prompt": "",
        **parser.parse(sys.argv[1:] if arguments is None else arguments),
    }
    return run_command(parser.prog, lambda: _generate(**values))


def make_parser() -> Parser:
    """The parser of slm-generate."""
    parser = Parser("slm-generate", DESCRIPTION)
    add = parser.add_argument
    add("--model_dir", metavar="STR", help="Folder or URL of the run, or its model.pt. (.)")
    add("--prompt", metavar="STR", help="Text to continue.")
    add("--max_new_tokens", type=int, metavar="INT", help="Tokens to write. (200)")
    add(
        "--temperature",
        type=float,
        metavar="FLOAT",
        help="0 takes the likeliest token, higher is wilder. (0.8)",
    )
    add("--top_k", type=int, metavar="INT", help="Choose among so many likeliest tokens. (50)")
    add("--seed", type=int, metavar="INT", help="The same seed gives the same text.")
    return parser


def _generate(model_dir: str, prompt: str, **sampling: Any) -> int:
    from slm.run import load, stream

    run = load(model_dir)
    pieces = stream(run, prompt, **sampling)
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return OK
