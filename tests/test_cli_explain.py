"""Laws of slm-explain: the page and table that it makes, what it never replaces, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, make_text

import slm
from slm.cli import explain
from slm.cli.arguments import OK, USER_ERROR
from slm.metrics.pages.explanation import explanation_page, percent
from slm.metrics.pages.page import MARKER

pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps")
TEXT = "the old dog"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tokenizer and one without; nobody changes them."""
    folder = tmp_path_factory.mktemp("runs")
    slm.train([make_text(1000)], model_dir=folder / "words", **SMALL)
    slm.train([1, 2, 3] * 500, model_dir=folder / "ids", **{k: v for k, v in SMALL.items() if k != "tokenizer"})
    return folder


@pytest.fixture(autouse=True)
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    show = warnings.showwarning
    yield
    warnings.showwarning = show  # a command sets it for its process


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which cannot do its work prints; it exits with 2."""
    try:
        code = explain.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == USER_ERROR
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("slm-explain: error: ")
    assert output.err.count("\n") == 1
    return output.err


def test_the_page_is_written_and_the_numbers_are_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(runs / "words")
    assert explain.main(["--model_dir", folder, "--text", TEXT]) == OK
    output = capsys.readouterr()
    found = slm.explain(folder, TEXT)
    page = Path("explain.html").read_text(encoding="utf-8")
    assert page == explanation_page(found, "words: what it expected, token by token")
    assert page.splitlines()[0].endswith(MARKER)
    lines = output.out.splitlines()
    assert output.err == ""
    assert lines[-1] == "explain.html has the page."
    assert lines[-3] == (
        f"{found.total:.2f} nats in 10 predicted tokens: loss {found.loss:.4f}, perplexity {found.perplexity:.2f}"
    )
    rows = lines[: lines.index("")]
    assert rows[0].split()[:4] == ["token", "probability", "surprisal", "rank"]
    assert [row.split()[0] for row in rows[1:]] == [*TEXT.replace(" ", "·"), "next"]
    assert rows[1].split() == ["t", "-", "-", "-", "-"]
    for place in range(1, len(TEXT)):
        probability, surprisal, rank = found.probability[place], found.surprisal[place], found.rank[place]
        assert probability is not None
        begin = f"{percent(probability)}{surprisal:.2f}{rank}".replace(" ", "")
        assert rows[1 + place].replace(" ", "")[1:].startswith(begin)
        assert found.alternatives[place][0][0].replace(" ", "·").replace("\n", "↵") in rows[1 + place]


@pytest.mark.parametrize("arguments", [[], ["--text", "-"], ["--text=-"]])
def test_a_text_is_read_from_a_pipe(
    runs: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(runs / "words")
    assert explain.main(["--model_dir", folder, "--text", "the\ndog", "--out", "one.html"]) == OK
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the\ndog\n")))
    assert explain.main(["--model_dir", folder, *arguments, "--out", "two.html"]) == OK
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes()


def test_without_a_text_a_terminal_is_told_to_give_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.StringIO("")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert "--text is missing" in refused(capsys, "--model_dir", str(runs / "words"))
    assert not Path("explain.html").exists()


def test_a_page_is_replaced_and_any_other_file_is_not(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model_dir", str(runs / "words"), "--out", "out.html", "--text"]
    for text in ("the", "dog"):
        assert explain.main([*arguments, text]) == OK
    assert Path("out.html").read_text(encoding="utf-8") == explanation_page(
        slm.explain(runs / "words", "dog"), "words: what it expected, token by token"
    )
    capsys.readouterr()
    for content in ("", "<!doctype html>\n<p>my diary</p>\n", f"my notes\n{MARKER}\n"):
        Path("out.html").write_text(content)
        assert "--out = 'out.html'" in refused(capsys, *arguments, "the")
        assert Path("out.html").read_text() == content
    Path("folder").mkdir()
    assert "--out = 'folder'" in refused(capsys, *arguments[:3], "folder", "--text", "the")


def test_what_cannot_be_explained_leaves_no_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = str(runs / "words")
    assert "17 tokens: must be at most 16" in refused(capsys, "--model_dir", words, "--text", "t" * 17)
    assert "empty" in refused(capsys, "--model_dir", words, "--text", "")
    assert "no tokenizer" in refused(capsys, "--model_dir", str(runs / "ids"), "--text", "the")
    assert "nowhere" in refused(capsys, "--model_dir", "nowhere", "--text", "the")
    assert "--txt is not a flag. Did you mean --text?" in refused(capsys, "--txt", "the")
    assert list(Path().iterdir()) == []


def test_a_model_file_is_named_after_its_folder(runs: Path) -> None:
    for place, name in ((runs / "words" / "model.pt", "words"), (runs / "words", "words")):
        assert explain.main(["--model_dir", str(place), "--text", "the"]) == OK
        assert f"<title>{name}: what it expected, token by token</title>" in Path("explain.html").read_text(
            encoding="utf-8"
        )


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from slm.cli.explain import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--model_dir", "--text", "--out"):
        assert flag in done.stdout


def test_one_token_with_nothing_before_it_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = slm.load(runs / "words")
    assert run.tokenizer is not None
    one = run.tokenizer.decode(run.tokenizer.encode("the")[:1])
    alone = dataclasses.replace(run, made_with={**run.made_with, "many_documents": False})
    with pytest.raises(slm.UserError, match="has one token, and nothing stands before it"):
        slm.explain(alone, one)
    begun = dataclasses.replace(run, made_with={**run.made_with, "many_documents": True})
    assert slm.explain(begun, one).num_predicted == 1
