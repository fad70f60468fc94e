"""Laws of slm-report: it writes the pages anew from what lies in a folder, replaces nothing of others, ends as told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, make_text
from test_report import answers, check_harmless, check_well_formed

import slm
from slm.cli import report
from slm.cli.arguments import OK, USER_ERROR
from slm.metrics.pages.page import MARKER, page
from slm.reporting import comparison
from slm.storage import files

FAST = SMALL | {"max_steps": 20, "eval_every": 5, "log_every": 5, "val_fraction": 0.4}
PAGES = ["report.html", "MODEL_CARD.md"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and two runs; nobody changes them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(make_text(3000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, rate in (("a", 1e-3), ("b", 1e-2)):
            slm.train(folder / "text.txt", model_dir=folder / name, **FAST | {"learning_rate": rate})
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copies of the runs, in the folder that we are in."""
    for name in ("a", "b"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    show = warnings.showwarning
    yield tmp_path
    warnings.showwarning = show  # a command sets it for its process


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that a command which ends well prints."""
    assert report.main(arguments) == OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that cannot do its work; it exits with 2, and nothing has changed."""
    before = contents(Path())
    try:
        code = report.main(arguments)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    assert code == USER_ERROR
    output = capsys.readouterr()
    assert output.err.startswith("slm-report: error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert contents(Path()) == before
    return output.err


def as_made(made: Path, name: str, page: str) -> str:
    """A page of the run as its training wrote it, but for its folder."""
    return (made / name / page).read_text(encoding="utf-8").replace(str(made / name), name)


@pytest.mark.parametrize("arguments", [("a",), ("--quiet", "a")])
def test_the_pages_of_a_run_are_written_anew_as_they_were(
    capsys: pytest.CaptureFixture[str], made: Path, arguments: tuple[str, ...]
) -> None:
    report = Path("a", "report.html")
    report.write_text(report.read_text(encoding="utf-8").splitlines()[0] + "\nold")
    card = Path("a", "MODEL_CARD.md")
    card.write_text("old\n" + card.read_text(encoding="utf-8").splitlines()[-1])
    before = contents(Path())
    assert told(capsys, *arguments) == [files.join("a", name) for name in PAGES]
    after = contents(Path())
    assert {name for name in after if after[name] != before.get(name)} == {str(Path("a", name)) for name in PAGES}
    for name in PAGES:
        assert Path("a", name).read_text(encoding="utf-8") == as_made(made, "a", name)


def test_a_card_that_somebody_edited_stays(capsys: pytest.CaptureFixture[str], made: Path) -> None:
    Path("a", "MODEL_CARD.md").write_text("mine")
    written, stays = told(capsys, "a")
    assert written == files.join("a", "report.html")
    assert stays.startswith(f"{files.join('a', 'MODEL_CARD.md')} stays as it is")
    Path("a", "report.html").write_text("mine, too")
    assert len(told(capsys, "a")) == 2
    assert Path("a", "MODEL_CARD.md").read_text() == "mine"
    assert Path("a", "report.html").read_text() == "mine, too"


def test_the_folder_we_are_in_is_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("b")
    for name in PAGES:
        Path(name).unlink()
    assert told(capsys) == [files.join(".", name) for name in PAGES]
    check_well_formed(Path("report.html").read_text(encoding="utf-8"))


def test_a_run_that_was_killed_gets_its_pages(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path("b", "metrics.jsonl").read_bytes().splitlines(keepends=True)
    evaluated = next(number for number, line in enumerate(lines) if b"val_loss" in line)
    for whole, rest in ((0, 0), (0, 9), (1, 20), (evaluated + 1, 30), (len(lines) - 2, 40)):
        Path("b", "metrics.jsonl").write_bytes(b"".join(lines[:whole]) + lines[whole][:rest])
        for name in PAGES:
            Path("b", name).unlink(missing_ok=True)
        told(capsys, "b")
        text = Path("b", "report.html").read_text(encoding="utf-8")
        check_harmless(text)
        assert "not ended" in text
        assert answers(text)["Did it learn?"].startswith("No" if whole <= evaluated else "Yes")
        assert "not ended" in Path("b", "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_run_at_a_url_is_read_and_written_there(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://{uuid.uuid4().hex}/run"
    for name in ("config.toml", "metrics.jsonl", "model.pt"):
        files.upload(os.path.join("a", name), files.join(url, name))
    before = contents(Path())
    assert told(capsys, url) == [files.join(url, name) for name in PAGES]
    text = files.read_bytes(files.join(url, "report.html")).decode()
    check_well_formed(text)
    assert f"slm.load('{url}')" in text.replace("&#x27;", "'")
    assert contents(Path()) == before
    out = files.join(url.rsplit("/", 1)[0], "both.html")
    assert told(capsys, "a", url, "--out", out)[-1] == out
    assert MARKER in files.read_bytes(out).decode().splitlines()[0]


def test_several_runs_are_told_on_one_page_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "a", "b")
    page_of_both, verdicts = comparison(["a", "b"])
    assert lines[-1] == "comparison.html"
    assert lines[-1 - len(verdicts) : -1] == verdicts
    assert Path("comparison.html").read_text(encoding="utf-8") == page_of_both
    assert verdicts[1].startswith("B (b) is better than A (a)")
    assert told(capsys, "--quiet", "b", "a", "--out=other.html") == ["other.html"]
    assert Path("other.html").read_text(encoding="utf-8") == comparison(["b", "a"])[0]


def test_a_page_of_ours_is_replaced_and_nothing_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ours.html").write_text(page("old", "<h1>old</h1>"))
    told(capsys, "--quiet", "a", "b", "--out", "ours.html")
    assert "Runs compared" in Path("ours.html").read_text()
    Path("mine.html").write_text("<!doctype html>\n<p>mine</p>")
    Path("empty.html").write_text("")
    Path("quoting.html").write_text(f"<!doctype html>\n{MARKER}\n")
    Path("folder").mkdir()
    for name in ("mine.html", "empty.html", "quoting.html", "a/metrics.jsonl"):
        message = refused(capsys, "a", "b", "--out", name)
        assert name in message and "not replaced" in message
    for name in ("folder", "missing/"):
        assert f"--out = '{name}' is a folder: name a file in it" in refused(capsys, "a", "b", "--out", name)
    shutil.copy("mine.html", "comparison.html")
    assert "comparison.html" in refused(capsys, "a", "b")


def test_what_is_no_run_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("void").mkdir()
    for arguments in (("nowhere",), ("void",), ("a", "nowhere"), ("void", "b"), ("memory://nowhere/run",)):
        message = refused(capsys, *arguments)
        assert "holds no run" in message
        assert next(one for one in arguments if one not in ("a", "b")) in message
    Path("void", "metrics.jsonl").write_text("{}\n")
    assert "void holds no run. Cannot read 'void/config.toml'" in refused(capsys, "void")
    assert "holds no run" not in refused(capsys, "https://127.0.0.1:9/run")  # nobody answers, which is something else
    Path("void", "config.toml").write_text("[tool]\nx = 1\n")
    assert "void" in refused(capsys, "void")
    Path("void", "config.toml").write_text("no toml")
    assert "not a valid TOML file" in refused(capsys, "void")


@pytest.mark.parametrize("line", ["{broken\n", "3\n", "[]\n", "\n"])
def test_records_that_are_damaged_are_told(capsys: pytest.CaptureFixture[str], line: str) -> None:
    path = Path("a", "metrics.jsonl")
    path.write_text(line + path.read_text())
    assert "metrics.jsonl is damaged" in refused(capsys, "a")


def test_arguments_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "7 runs" in refused(capsys, *(["a"] * 7))
    assert "--out" in refused(capsys, "a", "--out", "x.html")
    assert "--out" in refused(capsys, "--out", "x.html")
    assert "Did you mean --quiet?" in refused(capsys, "a", "--quit")


def test_help_and_mistakes_load_no_torch() -> None:
    code = (
        "import sys\nfrom slm.cli.report import main\n"
        "for arguments in (['--help'], ['a'] * 7):\n"
        "    try:\n        main(arguments)\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch'\nassert 'matplotlib' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert re.search(r"usage: slm-report .*\[RUN ...\]", output.stdout)
    assert "--out" in output.stdout
