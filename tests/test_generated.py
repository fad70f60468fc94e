"""The files that are made from `config.py`, and the promises that two files make together."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generated_files_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, make in module.GENERATED.items():
        assert path.read_text(encoding="utf-8") == make(), f"run python docs/generate.py, which writes {path.name}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if line.endswith("&& pytest"))
    for name in (".ci/run", ".github/workflows/ci.yml", "CONTRIBUTING.md"):
        assert command in (ROOT / name).read_text(encoding="utf-8"), name
