"""Writes what is made from `config.py`: docs/flags.md and src/slm/__init__.pyi. Run it after changing a setting.

    python docs/generate.py

A test compares the files with what this script would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import slm
from slm.config import FIELDS, kind_of
from slm.sampling import Sampling

ROOT = Path(__file__).parent.parent
FILES = "str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]] | None"
TEXTS, EXAMPLES = "Iterable[str] | Iterable[int]", "Iterable[tuple[object, object]] | Iterable[Mapping[str, object]]"
DATA = f"str | os.PathLike[str] | {TEXTS} | Sequence[os.PathLike[str]] | {EXAMPLES} | None"
KINDS = {"strs": "one or several str"}
SAMPLING = "sampling"  # the group of the settings of generation
PATHS = {"model_dir", "tokenizer", "config", "repeat", "init_from"}
NO_TEXTS = {"target_file", "also_evaluate"}


def flags_page() -> str:
    """The table of every flag, group by group."""
    lines = [
        "# Every setting",
        "",
        "One name serves everywhere: as a flag of `slm-train` (`--embed_dim 256`; `-` and `_` are alike), as a keyword",
        "of `slm.train` (`embed_dim=256`), and as a key of a TOML file given with `--config` (`embed_dim = 256`).",
        "A switch is turned on by its flag and off by `--no_` and its name. This page is made from `config.py` and",
        "`sampling.py` by `python docs/generate.py`.",
    ]
    groups: dict[str, list[str]] = {}
    for field in (*FIELDS.values(), *dataclasses.fields(Sampling)):
        text = field.metadata["help"].replace("|", "\\|")
        if field.metadata["choices"]:
            text += f" One of {', '.join(f'`{choice}`' for choice in field.metadata['choices'])}."
        if field.metadata["rule"]:
            text += f" Must be {field.metadata['rule']}."
        row = f"| `--{field.name}` | {KINDS.get(kind_of(field), kind_of(field))} | {_default(field.default)} | {text} |"
        groups.setdefault(field.metadata["group"], []).append(row)
    for group, rows in groups.items():
        lines += ["", f"## {group.capitalize()}", ""]
        if group == SAMPLING:
            lines += [
                "Of `slm-generate`, `run.generate`, `slm.stream`, `slm.samples` and, but for `stop`,",
                "`slm.generate_tokens`. The filters apply in this order, each to what those before it leave.",
                "",
            ]
        lines += [
            "| Flag | Type | Default | What it does |",
            "|---|---|---|---|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(parameter: inspect.Parameter) -> str:
    """The annotation, with choices as a Literal and paths as str or path objects."""
    if choices := FIELDS[parameter.name].metadata["choices"]:
        return f"Literal[{', '.join(json.dumps(choice) for choice in choices)}]"
    kind = str(parameter.annotation)
    if kind_of(FIELDS[parameter.name]) == "strs":
        return FILES if parameter.name in NO_TEXTS else DATA
    return kind.replace("str", "str | os.PathLike[str]") if parameter.name in PATHS else kind


def stub() -> str:
    """The public names for editors and type checkers, with every setting as a keyword of `train`."""
    homes: dict[str, list[str]] = {}
    for name, home in slm._HOMES.items():
        if name != "train":
            homes.setdefault(home, []).append(name)
    imports = [
        f"from {home} import " + ", ".join(f"{name} as {name}" for name in sorted(names))
        for home, names in sorted(homes.items())
    ]
    signature = inspect.signature(slm.train)
    settings = [parameter for name, parameter in signature.parameters.items() if name in FIELDS and name != "data"]
    keywords = [
        f"    {p.name}: {_type(p)} = {json.dumps(p.default) if p.default.__class__ is str else p.default},"
        for p in settings
    ]
    return "\n".join(
        [
            '"""The public names of slm. Made by docs/generate.py; do not edit."""',
            "",
            "import os",
            "from collections.abc import Callable, Iterable, Mapping, Sequence",
            "from typing import Literal",
            "",
            "from slm._version import __version__ as __version__",
            *imports,
            "from slm.training.loop import Record",
            "",
            "def train(",
            f"    data: {DATA} = None,",
            "    *,",
            "    on_log: Callable[[Record], None] | None = None,",
            "    should_stop: Callable[[], bool] | None = None,",
            *keywords,
            ") -> Run: ...",
            "",
        ]
    )


GENERATED = {ROOT / "docs" / "flags.md": flags_page, ROOT / "src" / "slm" / "__init__.pyi": stub}

if __name__ == "__main__":
    for path, make in GENERATED.items():
        path.write_text(make(), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
