"""slm-generate: let a trained model write."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slm.cli.arguments import OK, USER_ERROR, Parser, add_fields, run_command
from slm.config import FIELDS, UserError
from slm.sampling import NAMES as SAMPLING
from slm.sampling import Sampling

if TYPE_CHECKING:
    from slm.run import Run
    from slm.writing import Sample

DESCRIPTION = (
    "Let a model that slm-train made continue a prompt, write the target of a source, or tell the label of a text, as "
    "it has learned. Without --prompt it answers each line that you type, until the end of the input (Ctrl-D)."
)
SEARCH = ("num_beams", "length_penalty")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the prompt and its continuation to standard output, piece by piece."""
    parser = make_parser()
    values = parser.parse(sys.argv[1:] if arguments is None else arguments)
    if "prompt" in values and "prompt_file" in values:
        parser.error("--prompt and --prompt_file both name the prompt: give one of them.")
    if values.get("num_samples", 1) < 1:
        parser.error(f"num_samples = {values['num_samples']}: must be at least 1.")
    sampling = {name: values.pop(name) for name in (*SAMPLING, *SEARCH) if name in values}
    return run_command(parser.prog, lambda: _generate(sampling, **values))


def make_parser() -> Parser:
    """The parser of slm-generate."""
    parser = Parser("slm-generate", DESCRIPTION)
    group = parser.add_argument_group("what")
    group.add_argument("--model_dir", metavar="STR", help="Folder or URL of the run, or its model.pt. (.)")
    group.add_argument("--prompt", metavar="STR", help="Text to continue.")
    group.add_argument("--prompt_file", metavar="STR", help="File or URL whose text is the prompt.")
    group.add_argument("--num_samples", type=int, metavar="INT", help="Continuations to write. (1)")
    group.add_argument(
        "--output",
        choices=("text", "json"),
        help="json: a line of JSON for each continuation, with its tokens and their log-probabilities. (text)",
    )
    add_fields(parser, dataclasses.fields(Sampling), everything=True)
    add_fields(parser, [FIELDS[name] for name in SEARCH], everything=True)
    return parser


def _generate(
    settings: dict[str, Any],
    model_dir: str = ".",
    prompt: str | None = None,
    prompt_file: str | None = None,
    num_samples: int = 1,
    output: str = "text",
) -> int:
    from slm.storage import files

    Sampling.from_names({name: value for name, value in settings.items() if name in SAMPLING})  # told before torch
    if prompt_file is not None:
        files.check_path(prompt_file)
        prompt = files.read_bytes(prompt_file).decode("utf-8", "replace")
    from slm.run import load

    run = load(model_dir)
    _check_settings(run, settings, num_samples)
    if prompt is not None:
        _write(run, prompt, num_samples, output, settings)
        return OK
    if isinstance(sys.stdin, io.TextIOWrapper):  # as of a prompt_file, whatever is no text of this terminal
        sys.stdin.reconfigure(errors="replace")
    shows_prompts, code = sys.stdin.isatty(), OK
    while (line := _line(shows_prompts)) is not None:
        try:
            _write(run, line, num_samples, output, settings)
        except UserError as error:  # of this text, not of the whole
            print(f"slm-generate: error: {error}", file=sys.stderr)
            code = USER_ERROR
        except KeyboardInterrupt:  # of this text, not of the whole
            if not shows_prompts:
                raise
            print()
    return code


def _line(shows_prompt: bool) -> str | None:
    """The next line of the input without its end; None after the last."""
    if shows_prompt:
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    if not line and shows_prompt:
        print()
    return line.rstrip("\r\n") if line else None


def _write(run: Run, prompt: str, num_samples: int, output: str, settings: dict[str, Any]) -> None:
    """The continuations of one prompt, on standard output."""
    from slm.writing import samples, stream

    if run.task and not set(settings) & _OF_CHANCE:
        _answer(run, prompt, output, settings)
        return
    shown = "" if run.task else prompt
    if output == "text" and num_samples == 1:
        pieces = stream(run, prompt, **settings)
        print(shown, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        return
    made = samples(run, prompt, num_samples=num_samples, log_probabilities=output == "json", **settings)
    for number, sample in enumerate(made, 1):
        told = (
            _json(sample)
            if output == "json"
            else f"--- {number} of {len(made)}\n{sample.prompt if shown else ''}{sample.text}"
        )
        print(told, flush=True)  # a program at the other end of a pipe may wait for it


# With one of these a target is drawn at random, as text is, and not searched for.
_OF_CHANCE = set(SAMPLING) - {"max_new_tokens"}


def _check_settings(run: Run, settings: dict[str, Any], num_samples: int) -> None:
    """Raises UserError for settings that the run's task has no use for."""
    searches, draws = sorted(set(settings) & set(SEARCH)), sorted(set(settings) & _OF_CHANCE)
    if searches and (run.task is None or run.task.labels):
        raise UserError(f"{searches[0]} is for models trained with --task pairs, and this one is none. Leave it out.")
    if num_samples > 1 and run.task and not draws:
        raise UserError("num_samples: there is one best answer. Leave it out, or draw targets with --temperature.")
    if searches and draws:
        raise UserError(f"{searches[0]} searches for the best target and {draws[0]} draws one: leave one of them out.")
    if settings and run.task and run.task.labels:
        raise UserError(f"{sorted(settings)[0]} is for models that write, and this one tells labels. Leave it out.")


def _answer(run: Run, prompt: str, output: str, settings: dict[str, Any]) -> None:
    """The best target of a source, or the label of a text, on standard output."""
    assert run.task
    if run.task.labels:
        (found,) = run.classify(prompt)
        values, told = dataclasses.asdict(found), f"{found.label} ({100 * found.probability:.1f} %)"
    else:
        told = run.complete(prompt, **settings)
        values = {"text": told}
    line = json.dumps({"prompt": prompt, **values}, ensure_ascii=False) if output == "json" else told
    print(line, flush=True)


def _json(sample: Sample) -> str:
    return json.dumps(dataclasses.asdict(sample), ensure_ascii=False)
