"""Laws of the commands: exit codes, one message for each mistake, signals, and a calm screen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL

import slm
from slm.cli import generate, train
from slm.cli.arguments import Interruption
from slm.storage import checkpoint_folder, files
from slm.training import background
from slm.training.remote import RemoteRun

SIZES = [f"--{name}={value}" for name, value in SMALL.items() if name not in ("quiet", "max_steps")]
CONTROL_CODES = re.compile(r"[\x00-\x08\x0b-\x1f]")
pytestmark = pytest.mark.filterwarnings("ignore:only . step")


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Commands set signal handlers and the look of warnings for their whole process; tests share one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    show = warnings.showwarning
    yield
    warnings.showwarning = show
    for number, handler in handlers.items():
        signal.signal(number, handler)


def environment() -> dict[str, str]:
    """What a command runs in, with the cache of the tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(module: str, *arguments: str) -> list[str]:
    call = f"import sys; from slm.cli.{module} import main; sys.exit(main())"
    return [sys.executable, "-c", call, *arguments]


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


def test_without_any_flag_the_dummy_run_of_the_original_happens(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    done = run("train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "which nobody can learn" in done.stdout
    assert "ln(10000) = 9.210" in done.stdout
    assert not CONTROL_CODES.search(done.stdout + done.stderr)
    loaded = slm.load(tmp_path)
    assert loaded.model.config == slm.ModelConfig()
    assert loaded.resolved["epochs"] == 5
    assert loaded.metrics["val_loss"] == pytest.approx(9.21, abs=0.1)
    assert (tmp_path / "README.md").read_text() == "mine"
    again = run("train", cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr


def test_a_trained_model_continues_a_prompt(tmp_path: Path, text_file: str) -> None:
    trained = run("train", "--data", text_file, "--model-dir=run", "--max_steps=12", *SIZES, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "sample:" in trained.stdout
    assert trained.stdout.splitlines()[-1].startswith(f"model: {os.path.join('run', 'model.pt')}; report: ")
    flags = ("--model_dir", "run", "--prompt", "the", "--seed", "1", "--max_new_tokens", "30")
    first, second = (run("generate", *flags, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the")
    assert first.stdout == second.stdout
    assert first.stdout == slm.load(tmp_path / "run").generate("the", seed=1, max_new_tokens=30) + "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_saves_and_tells(
    tmp_path: Path, text_file: str, number: signal.Signals, code: int
) -> None:
    flags = ["--data", text_file, "--model_dir", "run", "--max_steps", "1000000", "--eval_every", "1000000", *SIZES]
    with subprocess.Popen(
        command("train", *flags),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "loss" not in process.stdout.readline():
            pass
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "stopped after step" in output
    assert "Traceback" not in errors
    loaded = slm.load(tmp_path / "run")
    assert 0 < loaded.step < 1000000
    assert f"stopped after step {loaded.step:,} of" in output or f"the best, of step {loaded.step}," in output


@pytest.mark.filterwarnings("ignore:only 12 steps")
def test_a_second_signal_waits_for_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, handlers = threading.Event(), dict[int, Callable[..., None]]()
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(checkpoint_folder, "write", lambda *_: disk.wait(60))
    interruption = Interruption()

    def press_twice(record: dict[str, Any]) -> None:
        if record["step"] == 10:
            for _ in range(2):
                handlers[signal.SIGINT](signal.SIGINT, None)

    try:
        with pytest.raises(SystemExit) as caught:
            slm.train([text], model_dir=tmp_path, should_stop=interruption.should_stop, on_log=press_twice, **SMALL)
        assert caught.value.code == 130
        assert "goes on from the newest checkpoint" in capsys.readouterr().err
    finally:
        disk.set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
def test_a_second_signal_ends_the_process_cleanly_while_a_checkpoint_is_written(tmp_path: Path, text_file: str) -> None:
    # The writing thread is deep in torch when the process ends: Python's shutdown would abort it there.
    script = """
import io, os, signal, sys, threading, torch
from slm.cli.train import main
from slm.storage import checkpoint_folder

def write(*_):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    for _ in range(8):
        threading.Thread(target=save_for_ever, daemon=True).start()
    save_for_ever()

def save_for_ever():
    while True:
        torch.save(torch.zeros(100_000), io.BytesIO())

checkpoint_folder.write = write
sys.exit(main())
"""
    flags = ["--data", text_file, "--model_dir", "run", "--save_every", "1", "--max_steps", "1000000", *SIZES]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode in (130, 143), done.stderr
    assert done.stderr.rstrip().endswith("checkpoint, or begins anew where there is none.")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal")
def test_a_terminal_sees_a_live_line_and_a_pipe_sees_plain_ones(tmp_path: Path, text_file: str) -> None:
    import pty

    flags = ["--data", text_file, "--max_steps", "12", *SIZES]
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(
        command("train", *flags, "--model_dir", "live"), cwd=tmp_path, env=environment() | {"TERM": "xterm"},
        stdout=other_end, stderr=subprocess.PIPE, stdin=other_end,
    )  # fmt: skip
    os.close(other_end)
    live = b""
    while True:
        try:
            block = os.read(main_end, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        live += block
    os.close(main_end)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert b"\x1b[" in live
    assert b"tokens/s" in live
    assert b"val_loss" in live
    piped = run("train", *flags, "--model_dir", "piped", cwd=tmp_path)
    assert "tokens/s" in piped.stdout
    assert not CONTROL_CODES.search(piped.stdout)


def test_quiet_prints_nothing(tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quiet", "--data", text_file, "--max_steps", "100", "--model_dir", str(tmp_path / "run"), *SIZES]
    assert train.main(arguments) == 0
    assert capsys.readouterr() == ("", "")


def test_several_sources_in_any_encoding_are_read_and_what_was_replaced_is_told(
    tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "utf16.txt").write_bytes("naïve 漢字 ".encode("utf-16"))
    (folder / "latin1.txt").write_bytes("café ".encode("latin-1") * 3)
    (folder / "below" / "windows.txt").write_bytes(b"one\r\ntwo\r\n")
    arguments = ["--data", text_file, str(folder), "--max_steps=2", f"--model_dir={tmp_path / 'run'}", *SIZES]
    assert train.main(arguments) == 0
    output = capsys.readouterr()
    told = next(line for line in output.out.splitlines() if line.startswith("data "))
    for words in (
        *("2 sources: ", "4 files, 4 documents", "1 file with Windows line ends", "1 byte order mark"),
        "3 bytes were not UTF-8 and became U+FFFD (first in latin1.txt)",
    ):
        assert words in told
    tokenizer = slm.load(tmp_path / "run").tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("naïve caf\ufffd")) == "naïve caf\ufffd"
    assert tokenizer.encode("漢") != tokenizer.encode("字")
    assert tokenizer.encode("\r") == tokenizer.encode("\ufffd")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The single line with which slm-train refuses the arguments."""
    try:
        code = train.main(arguments)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    output = capsys.readouterr()
    assert code == 2
    assert output.err.count("\n") == 1
    return output.err


def test_every_mistake_gets_one_line_and_exit_code_2(
    tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zeros.txt").write_bytes(bytes(100))
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    (tmp_path / "unknown.toml").write_text("epoch = 3")
    (tmp_path / "file").write_text("a file")
    for arguments, words in {
        ("--data", "missing.txt"): "There is no file or folder 'missing.txt'",
        ("--data", text_file, "missing.txt"): "There is no file or folder 'missing.txt'",
        ("--data", "*.json"): "No file fits the pattern '*.json'",
        ("--data", "void"): "no files in the folder 'void'",
        ("--data", "zeros.txt"): "zeros.txt",
        ("--data", "empty.txt"): "empty",
        ("--data", text_file, "dummy"): "random tokens, not text",
        ("--data", "stories:5"): "stories:50MB",
        ("--data", text_file, "--text_field"): "--text_field",
        ("--data", text_file, "--val_data", "missing.txt"): "There is no file or folder 'missing.txt'",
        ("--mask_documents",): "no token between documents",
        ("--document_start", "10000"): "below vocab_size = 10000",
        ("--embed_dim", "130"): "Try embed_dim = 128 or 132",
        ("--epochs", "0"): "at least 1",
        ("--learning_rate", "nan"): "finite",
        ("--learning_rate", "-1"): "above 0",
        ("--device", "cuda:99"): "this machine has cpu",
        ("--device", "tpu"): "this machine has cpu",
        ("--config", "bad.toml"): "not a valid TOML file",
        ("--config", "unknown.toml"): "Did you mean epochs?",
        ("--config", "missing.toml"): "missing.toml",
        ("--model_dir", "file"): "a file, not a folder",
        ("--model_dir", "gs:/bucket/run"): "two slashes",
        ("--model_dir", "gs://B/run"): "bucket",
        ("--model_dir", "nosuch://place/run"): "nosuch",
        ("--repeat", "nowhere"): "nowhere",
        ("--tokenizer", "missing.json", "--data", text_file): "must be bpe, char, byte or the path",
        ("--tokenizer", "bad.toml", "--data", text_file): "not a Hugging Face tokenizer.json",
        ("--vocab_size", "100", "--data", text_file): "at least 257",
        ("--val_data", "file"): "set data too",
    }.items():
        assert words in refused(capsys, *arguments), arguments
    assert {path.name for path in tmp_path.iterdir()} == {
        "zeros.txt", "void", "empty.txt", "bad.toml", "unknown.toml", "file", "text.txt"
    }  # fmt: skip


@pytest.mark.usefixtures("service")
def test_a_bucket_that_is_not_there_is_told_before_training(capsys: pytest.CaptureFixture[str], text_file: str) -> None:
    message = refused(capsys, "--data", text_file, "--model_dir", "gs://no-such-bucket/run", *SIZES)
    assert "gs://no-such-bucket" in message


@pytest.mark.filterwarnings("always")
def test_a_missing_upload_is_exit_code_3(
    text_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise files.StorageError("the bucket burns.")

    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(RemoteRun, "push", fail)
    arguments = ["--data", text_file, "--model_dir", "memory://burning/again", "--max_steps", "2", *SIZES]
    assert train.main(arguments) == 3
    assert "the bucket burns. The run is complete in" in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_a_run_that_diverges_is_exit_code_2_with_advice(
    tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", text_file, "--model_dir", str(tmp_path / "run"), "--max_steps", "200", *SIZES]
    assert train.main([*arguments, "--learning_rate=1e30", "--max_grad_norm=0"]) == 2
    output = capsys.readouterr()
    assert "Lower learning_rate" in output.err
    assert "No model was kept" in output.out


def test_generating_from_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--model_dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:only 12 steps")
def test_prepared_data_needs_its_validation_text_no_more(tmp_path: Path, text_file: str) -> None:
    val = tmp_path / "val.txt"
    val.write_text("the cat sees the dog\n" * 20)
    prepared, run = str(tmp_path / "prepared"), str(tmp_path / "run")
    slm.prepare(text_file, val_data=val, tokenizer="byte", out=prepared)
    val.unlink()
    small = [f"--{name}={value}" for name, value in SMALL.items() if name not in ("quiet", "tokenizer")]
    assert train.main(["--data", prepared, "--model_dir", run, "--quiet", *small]) == 0
    assert train.main(["--repeat", run, "--model_dir", str(tmp_path / "again"), "--quiet"]) == 0
