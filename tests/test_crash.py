"""Laws of a run that is killed, stopped or out of space: it ends as if nothing had happened, and no file is cut."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL

import slm
from slm.cli import train
from slm.storage import checkpoint_folder, files
from slm.training.background import Worker
from slm.verify import first_difference, kept_by

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, Any] = {
    **SMALL,
    "max_steps": 13,
    "dropout": 0.1,
    "learning_rate": 0.03,
    "eval_every": 3,
    "log_every": 1,
    "save_every": 2,
}
REASONS = {"ENOSPC": "the disk is full", "EDQUOT": "quota", "EROFS": "the disk is read-only", "EIO": "check the place"}
BAD_STEPS = range(5, 9)


class Disk:
    """Counts what changes a folder, and lets it fail where `fails` says so of its number and path."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.number, self.error = f"{folder}{os.sep}", 0, errno.ENOSPC
        self.fails: Callable[[int, str], bool] = lambda number, path: False
        for name in ("mkdir", "remove"):
            patch.setattr(os, name, self.watched(getattr(os, name)))
        for name in ("replace", "rename"):
            patch.setattr(os, name, self.watched(getattr(os, name), target=1))
        patch.setattr(files, "flush", self.watched(lambda path: None))  # waits for the disk, here in vain
        open_now = builtins.open
        open_watched = self.watched(open_now)

        def open_file(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            return (open_now if mode.startswith("r") else open_watched)(file, mode, *others, **named)

        patch.setattr(builtins, "open", open_file)
        patch.setattr(Worker, "do", lambda worker, job: job())  # at once, so that each number is the same each time

    def watched(self, function: Callable[..., Any], target: int = 0) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            path = str(arguments[target])
            if path.startswith(self.folder):
                self.number += 1
                if self.fails(self.number, path):
                    raise OSError(self.error, os.strerror(self.error), path)
            return function(*arguments, **named)

        return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Disk:
    return Disk(monkeypatch, folder)


@pytest.fixture(scope="module")
def text_path(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, text_path: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    run_in(folder, text_path)
    return kept_by(str(folder))


def run_in(folder: Path, text_path: Path, on_log: Callable[[dict[str, Any]], None] | None = None) -> list[str]:
    """What a run warns of that trains in the folder, or goes on in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slm.train(text_path, model_dir=folder, on_log=on_log, **SETTINGS)
    return [str(warning.message) for warning in caught if not str(warning.message).startswith("only ")]


def at_bad_steps(change: Callable[[bool], None]) -> Callable[[dict[str, Any]], None]:
    """An on_log that changes something before some steps, and back before a later one."""

    def on_log(record: dict[str, Any]) -> None:
        if "train_loss" in record and record["step"] in (BAD_STEPS.start, BAD_STEPS.stop):
            change(record["step"] == BAD_STEPS.start)

    return on_log


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of each file of a checkpoint."""
    return {str(path): path.read_bytes() for path in folder.glob("checkpoints/step-*/*")}


def check_whole(folder: Path) -> None:
    """Nothing has a final name that does not load, and nothing else was left."""
    for path in folder.glob("checkpoints/*"):
        checkpoint_folder.verify(str(path))
    if (folder / "model.pt").exists():
        slm.load(folder)
    assert not list(folder.rglob(".slm-*.part"))


@pytest.mark.parametrize("name", REASONS)
def test_a_disk_that_fails_for_some_steps_is_one_warning_each_and_changes_nothing(
    name: str, disk: Disk, folder: Path, text_path: Path, unbroken: dict[str, Any]
) -> None:
    disk.error = getattr(errno, name)
    before: dict[str, bytes] = {}

    def change(is_bad: bool) -> None:
        disk.fails = lambda number, path: is_bad
        if is_bad:
            before.update(files_in(folder))
        assert before == files_in(folder)
        check_whole(folder)

    told = run_in(folder, text_path, at_bad_steps(change))
    # The checkpoints, the best model and metrics.jsonl.
    assert 1 <= len(told) <= 3
    assert len(set(told)) == len(told)
    assert all(REASONS[name] in one and "Training goes on" in one for one in told)
    assert first_difference(unbroken, kept_by(str(folder))) is None
    check_whole(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_writes_that_break_off_in_the_middle_leave_nothing_behind(
    disk: Disk, folder: Path, text_path: Path, unbroken: dict[str, Any]
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def change(is_bad: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000 if is_bad else soft, hard))
        check_whole(folder)

    try:
        told = run_in(folder, text_path, at_bad_steps(change))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("checkpoints" in one and "Training goes on" in one for one in told)
    assert first_difference(unbroken, kept_by(str(folder))) is None
    check_whole(folder)


def test_whatever_fails_once_the_same_command_ends_as_if_nothing_had(
    disk: Disk, folder: Path, text_path: Path, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    begun: list[int] = []
    run_in(folder, text_path, lambda record: begun.append(disk.number))
    assert first_difference(unbroken, kept_by(str(folder))) is None
    for failing in range(begun[0] + 1, disk.number + 1, 11):
        folder.rename(tmp_path / f"before-{failing}")
        disk.number, disk.fails = 0, lambda number, path, failing=failing: number == failing
        told = run_in(folder, text_path)
        check_whole(folder)
        if told and "its last checkpoint is not" in told[-1]:
            assert not run_in(folder, text_path)
        assert first_difference(unbroken, kept_by(str(folder))) is None, failing


@pytest.mark.parametrize("lost", ["checkpoints", "model.pt", "metrics.jsonl", ""])
def test_a_run_without_space_to_its_end_exits_with_2_and_can_be_gone_on_with(
    lost: str,
    disk: Disk,
    folder: Path,
    text_path: Path,
    unbroken: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether all that is written is lost, or only a part of it."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    flags = [part for name, value in SETTINGS.items() if name != "quiet" for part in (f"--{name}", str(value))]

    def main() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            return train.main([*flags, "--quiet", "--data", str(text_path), "--model_dir", str(folder)])

    is_full = False

    def fails(number: int, path: str) -> bool:
        nonlocal is_full
        is_full = is_full or (folder / "checkpoints" / "step-00000004").exists()
        return is_full and path.startswith(str(folder / lost))

    disk.fails = fails
    # A run whose model is there has all that was asked for.
    assert main() == (0 if lost == "checkpoints" else 2)
    assert "the disk is full" in capsys.readouterr().err
    check_whole(folder)
    disk.fails = lambda number, path: False
    assert main() == 0
    assert first_difference(unbroken, kept_by(str(folder))) is None


def test_a_folder_that_takes_no_files_is_refused_before_the_first_step(
    disk: Disk, folder: Path, text_path: Path
) -> None:
    disk.fails, disk.error = lambda number, path: True, errno.EROFS
    with pytest.raises(OSError, match="the disk is read-only; choose another folder"):
        run_in(folder, text_path, lambda record: pytest.fail("it trains"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it kills processes that it has forked")
def test_a_run_that_is_killed_or_stopped_at_random_moments_equals_the_unbroken_one(tmp_path: Path) -> None:
    """A small version of the benchmark."""
    command = [sys.executable, str(ROOT / "benchmarks" / "crash_test.py"), "--kills", "5"]
    command += ["--stops", "1", "--full_disks", "0", "--jobs", "1"]
    surroundings = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 failures" in done.stdout
    assert {path.name.split("_")[0] for path in tmp_path.iterdir()} <= {"torchinductor"}  # torch's own cache
