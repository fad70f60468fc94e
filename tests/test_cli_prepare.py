"""Laws of slm-prepare: what it prints, how it ends, and that it needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_text

import slm
from slm.cli import prepare
from slm.cli.arguments import OK, USER_ERROR
from slm.data import cache
from slm.data.shards import open_prepared
from slm.storage import cached


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(make_text(400))
    show = warnings.showwarning
    yield tmp_path
    warnings.showwarning = show  # a command sets it for its process


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that a command which ends well prints."""
    assert prepare.main(arguments) == OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which cannot do its work prints; it exits with 2."""
    try:
        code = prepare.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == USER_ERROR
    message = capsys.readouterr().err
    assert message.startswith("slm-prepare: error: ")
    assert message.count("\n") == 1
    return message


def test_a_text_is_prepared_into_the_cache_and_the_last_line_tells_where(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "--data", "text.txt", "--tokenizer", "char")
    text = make_text(400)
    path = lines[-1].removeprefix("prepared: ")
    prepared = open_prepared(path)
    assert prepared.tokenizer.decode(prepared.train[:].tolist() + prepared.val[:].tolist()) == text
    cut = int(len(text) * 0.9)
    assert lines[-4] == f"1 file, 1 document, {len(text) / 1000:.1f} KB"
    assert lines[-3] == f"the last 10 % of the text: {len(text) - cut:,} tokens to validate on, {cut:,} to train on"
    assert lines[-2] == f"vocabulary of {prepared.about['vocab_size']}, 1.00 bytes a token"
    assert told(capsys, "--data", "text.txt", "--tokenizer", "char")[-4:] == lines[-4:]


def test_out_names_the_folder_and_settings_may_have_dashes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "text.txt", "text.txt", "--out", "out", "--vocab-size", "270", "--val-fraction=0.2"]
    assert told(capsys, *arguments)[-1] == "prepared: out"
    assert open_prepared("out").tokenizer.vocab_size == 270
    assert open_prepared("out").about["settings"]["val_fraction"] == 0.2
    assert "nothing was changed" in refused(capsys, *arguments, "--tokenizer", "char")
    (here / "mine").mkdir()
    (here / "mine" / "file").touch()
    assert "mine is not empty" in refused(capsys, "--data", "text.txt", "--out", "mine")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--data", "text.txt", "--tokenizer", "char", "--quiet") == []
    assert len(cache.entries()) == 1


def test_the_cache_is_shown_and_cleared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--list") == [f"0 in {here / 'cache'}, 0.0 MB"]
    for tokenizer in ("char", "byte", "bpe"):
        told(capsys, "--data", "text.txt", "--tokenizer", tokenizer)
    *lines, last = told(capsys, "--list")
    keys = [line.split()[0] for line in lines]
    assert keys == [entry.key for entry in cache.entries()]
    assert all(line.endswith("text.txt") for line in lines)
    assert last.startswith(f"3 in {here / 'cache'}")
    assert "nothing-of-ours is not in the cache" in refused(capsys, "--clean", keys[0], "nothing-of-ours")
    assert len(cache.entries()) == 3
    assert told(capsys, "--clean", keys[1], keys[1])[0].startswith(f"removed {keys[1]}")
    assert [entry.key for entry in cache.entries()] == [keys[0], keys[2]]
    assert told(capsys, "--clean")[-1] == f"2 removed from {here / 'cache'}"
    assert cache.entries() == []
    assert told(capsys, "--clean") == [f"0 removed from {here / 'cache'}"]


def test_what_is_in_use_is_not_cleared_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "--data", "text.txt", "--tokenizer", "char")
    (entry,) = cache.entries()
    with cached.locked(entry.folder, lambda: None):
        lines = told(capsys, "--clean")
    assert lines[0].startswith(f"in use by another process, kept {entry.key}")
    assert lines[1].startswith("0 removed")
    assert cache.entries() == [entry]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tokenizer", "char"],
        ["--list", "--clean"],
        ["--data", "text.txt", "--list"],
        ["--data", "text.txt", "--clean"],
    ],
    ids=str,
)
def test_one_thing_is_done_at_a_time(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "give one of --data (what to prepare), --list and --clean" in refused(capsys, *arguments)


MISTAKES = {
    ("--data", "missing.txt"): "missing.txt",
    ("--data", "dummy"): "nothing to prepare",
    ("--data", "text.txt", "--vocab_size", "100"): "vocab_size = 100",
    ("--data", "text.txt", "--vocab_siz", "300"): "Did you mean --vocab_size?",
    ("--data", "text.txt", "--embed_dim", "300"): "--embed_dim is not a flag",
    ("--data", "text.txt", "--tokenizer", "missing.json"): "tokenizer = 'missing.json'",
    ("--data", "text.txt", "--val_data", "missing.txt"): "missing.txt",
    ("--data", "empty.txt"): "there is no text to learn from",
    ("--data", "ids.bin"): "holds token ids, not text",
    ("--data", "text.txt", "--out", "text.txt"): "text.txt",
    ("--data", "text.txt", "--out", "gs:/bucket/x"): "gs:",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    here: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty.txt").touch()
    (here / "ids.bin").write_bytes(b"\1\0" * 50)
    assert MISTAKES[arguments] in refused(capsys, *arguments)
    assert (here / "text.txt").read_text() == make_text(400)


def test_an_interruption_ends_as_shells_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slm.data import prepare as prepare_module

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "take_survey", interrupted)
    assert prepare.main(["--data", "text.txt"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_the_help_tells_of_its_flags_and_of_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    flags = ("--data", "--val_data", "--val_fraction", "--text_field", "--split_documents_on", "--tokenizer")
    assert all(flag in shown for flag in (*flags, "--vocab_size", "--recheck", "--out", "--list", "--clean"))
    assert not any(flag in shown for flag in ("--embed_dim", "--mask_documents", "--model_dir"))


def test_from_the_shell_it_prepares_what_training_takes_without_loading_torch(here: Path) -> None:
    call = "import sys; from slm.cli.prepare import main; code = main(); print('torch' in sys.modules); sys.exit(code)"
    arguments = ["--data", "text.txt", "--tokenizer", "char", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", call, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (OK, "")
    assert done.stdout.splitlines()[-2:] == ["prepared: out", "False"]
    assert slm.prepare("text.txt", tokenizer="char", out="out") == "out"
