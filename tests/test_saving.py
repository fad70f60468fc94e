"""Laws of a run's folder while it trains: one run at a time, nothing pruned too early, NaN is never best."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, make_text

import slm
from slm.storage import checkpoint_folder, files
from slm.training import evaluating, saving
from slm.training.saving import RunFolder

SETTINGS = SMALL | {"save_every": 3, "log_every": 1}
BEGINNING = {"asked": {}, "resolved": {"max_steps": 9, "epochs": 1}, "made_with": {}}
pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps")


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training waits for each save, which otherwise puts off the next one."""
    monkeypatch.setattr(RunFolder, "busy", property(lambda folder: folder._writer.wait()))


def steps_in(folder: Path) -> list[int]:
    return checkpoint_folder.steps_of(os.listdir(folder / "checkpoints"))


def test_a_second_run_in_a_folder_is_refused_while_the_first_one_trains(tmp_path: Path, text: str) -> None:
    refused: list[str] = []

    def begin_another(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            for others in ({}, {"overwrite": True}):
                with pytest.raises(slm.UserError, match="another run is writing to") as caught:
                    slm.train([text], model_dir=tmp_path / "run", **SETTINGS, **others)
                refused.append(str(caught.value))

    run = slm.train([text], model_dir=tmp_path / "run", on_log=begin_another, **SETTINGS)
    assert len(refused) == 2
    assert slm.load(tmp_path / "run").metrics == run.metrics
    assert not (tmp_path / "run" / "previous-1").exists()


def test_of_two_runs_that_looked_at_an_empty_folder_the_second_to_begin_is_refused(tmp_path: Path) -> None:
    first, second, third = (RunFolder(str(tmp_path / "run")) for _ in range(3))
    first.begin(**BEGINNING)
    with pytest.raises(slm.UserError, match="another run is writing to"):
        second.begin(**BEGINNING)
    first.close()
    with pytest.raises(slm.UserError, match=r"another run was made in .* meanwhile"):
        third.begin(**BEGINNING)
    third.close()


@pytest.mark.usefixtures("in_step")
def test_an_error_in_a_run_lets_go_of_its_folder(tmp_path: Path, text: str) -> None:
    def break_down(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        slm.train([text], model_dir=tmp_path / "run", on_log=break_down, **SETTINGS)
    run = slm.train([text], model_dir=tmp_path / "run", **SETTINGS)
    assert run.history is not None
    assert run.history.resumed_from == 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_lets_go_of_the_lock_and_what_it_left_is_swept(tmp_path: Path) -> None:
    script = f"""
import os, signal
from slm.training.saving import RunFolder
folder = RunFolder({str(tmp_path / "run")!r})
folder.begin({{}}, {{"max_steps": 9, "epochs": 1}}, {{}})
for name in (".slm-1.part", "checkpoints/.slm-2.part/model.pt"):
    path = os.path.join(folder.local, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".slm.lock").exists()
    folder = RunFolder(str(tmp_path / "run"))
    folder.begin(**BEGINNING)
    folder.close()
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_command_that_is_refused_leaves_nothing_in_a_folder(tmp_path: Path, text: str) -> None:
    with pytest.raises(slm.UserError, match="no run to go on with"):
        slm.train([text], model_dir=tmp_path, resume="must", **SETTINGS)
    with pytest.raises(slm.UserError, match="leave one of them out"):
        slm.train([text], model_dir=tmp_path, resume="must", overwrite=True, **SETTINGS)
    with pytest.raises(slm.UserError, match="no model_dir to go on from"):
        slm.train([text], resume="must", **SETTINGS)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("in_step")
@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_newest_checkpoints_stay(tmp_path: Path, text: str, keep_last: int) -> None:
    slm.train([text], model_dir=tmp_path / "run", keep_last=keep_last, **SETTINGS)
    # The first evaluation, at step 6, falls on a step at which one is saved anyway.
    assert steps_in(tmp_path / "run") == [12, 9, 6, 3][:keep_last]


@pytest.mark.usefixtures("in_step")
def test_a_checkpoint_is_pruned_only_after_a_newer_one_was_read_back(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    verify, remove = checkpoint_folder.verify, files.remove

    def verified(path: str) -> dict[str, Any]:
        events.append(f"verified {os.path.basename(path)}")
        return verify(path)

    def removed(path: str) -> None:
        if path.endswith("manifest.json") and os.path.exists(path):
            events.append(f"removed {os.path.basename(os.path.dirname(path))}")
            assert len(os.listdir(os.path.dirname(path))) > 1, "the manifest goes first"
        remove(path)

    monkeypatch.setattr(checkpoint_folder, "verify", verified)
    monkeypatch.setattr(files, "remove", removed)
    slm.train([text], model_dir=tmp_path / "run", keep_last=1, **SETTINGS)
    expected = ["verified step-00000003"]
    for step in (6, 9, 12):
        expected += [f"verified step-{step:08}", f"removed step-{step - 3:08}"]
    assert events == expected


@pytest.mark.usefixtures("in_step")
def test_a_new_checkpoint_that_does_not_read_back_prunes_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_folder.write

    def badly(*args: Any) -> str:
        path = write(*args)
        if path.endswith("12"):
            (Path(path) / "training.pt").write_bytes(b"rotten")
        return path

    monkeypatch.setattr(checkpoint_folder, "write", badly)
    with pytest.warns(UserWarning, match=r"training\.pt has 6 bytes.*The model is saved, its last checkpoint is not"):
        slm.train([text], model_dir=tmp_path / "run", keep_last=1, **SETTINGS)
    path, _, passed_over = checkpoint_folder.newest(str(tmp_path / "run" / "checkpoints"))
    assert path == str(tmp_path / "run" / "checkpoints" / "step-00000009")
    assert len(passed_over) == 1
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"passed over a newer checkpoint: .*training\.pt has 6 bytes"):
        run = slm.train([text], model_dir=tmp_path / "run", keep_last=1, **SETTINGS)
    assert run.history is not None
    assert run.history.resumed_from == 9
    assert steps_in(tmp_path / "run") == [12]


def test_training_does_not_wait_for_the_disk(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write ends only when training has come to its last step."""
    at_the_end, write = threading.Event(), checkpoint_folder.write

    def slowly(*args: Any) -> str:
        assert at_the_end.wait(30)
        return write(*args)

    def log(record: dict[str, Any]) -> None:
        if record["step"] == 12:
            at_the_end.set()

    monkeypatch.setattr(checkpoint_folder, "write", slowly)
    slm.train([text], model_dir=tmp_path / "run", on_log=log, **SETTINGS)
    assert steps_in(tmp_path / "run") == [12, 3]


@pytest.mark.usefixtures("in_step")
def test_a_checkpoint_comes_every_few_minutes_without_being_asked_for(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 60 <= saving.SAVE_SECONDS <= 300
    settings = {name: value for name, value in SETTINGS.items() if name != "save_every"} | {"keep_last": 99}
    slm.train([text], model_dir=tmp_path / "few", **settings)
    assert steps_in(tmp_path / "few") == [12, 6]  # with the first model.pt, and at the end
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    slm.train([text], model_dir=tmp_path / "many", **settings)
    assert steps_in(tmp_path / "many") == list(range(12, 0, -1))


@pytest.mark.parametrize(
    ("losses", "best", "last"),
    [
        ([math.nan, 3.0, math.nan, 2.0], 2.0, 12),
        ([3.0, math.nan, math.nan, 2.0], 3.0, 9),  # two in a row without a better one, of which both are NaN
        ([math.nan, math.nan, 3.0, 2.0], None, 6),
        ([3.0, 3.0, 2.0, 2.0], 2.0, 12),  # equal is not better
        ([3.0, math.inf, 4.0, 2.0], 3.0, 9),
    ],
)
def test_nan_is_never_best_and_patience_counts_it(
    tmp_path: Path,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    best: float | None,
    last: int,
) -> None:
    evaluate, left = evaluating.evaluate, iter(losses)
    monkeypatch.setattr(
        evaluating, "evaluate", lambda *args, **others: evaluate(*args, **others) | {"val_loss": next(left)}
    )
    settings = SMALL | {"eval_every": 3, "patience": 2}
    if last < 12:
        with pytest.warns(UserWarning, match=r"stopped early.*for 2 evaluations"):
            run = slm.train([text], model_dir=tmp_path / "run", **settings)
    else:
        run = slm.train([text], model_dir=tmp_path / "run", **settings)
    assert run.history is not None
    assert (run.metrics.get("val_loss"), run.history.step, run.history.status) == (best, last, "finished")
    assert (tmp_path / "run" / "model.pt").exists() is (best is not None)


def test_a_saved_run_has_no_checkpoints_and_is_not_gone_on_with(tmp_path: Path, text: str) -> None:
    run = slm.train([text], **SMALL)
    run.save(tmp_path / "run")
    with pytest.raises(slm.UserError, match="already holds a run, without checkpoints"):
        slm.train([text], model_dir=tmp_path / "run", **SMALL)
    with pytest.raises(slm.UserError, match="already holds a run"):
        run.save(tmp_path / "run")
    run.save(tmp_path / "run", overwrite=True)
    assert slm.load(tmp_path / "run" / "previous-1").metrics == run.metrics


def test_the_weights_of_each_checkpoint_can_be_loaded(tmp_path: Path) -> None:
    run = slm.train([make_text()], model_dir=tmp_path / "run", **SETTINGS)
    for step in steps_in(tmp_path / "run"):
        assert slm.load(tmp_path / "run" / "checkpoints" / checkpoint_folder.name_of(step)).step == step
    assert run.step in (6, 12)


def test_metrics_hold_each_line_once_whatever_a_full_disk_or_a_kill_left_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):  # the first run ends before its first checkpoint
        folder = RunFolder(str(tmp_path))
        folder.begin(**BEGINNING)
        folder.log({"step": 1})
        with open(path, "a") as file:
            file.write('{"st')
        folder.log({"step": 2, "train_loss": math.nan})
        folder.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "train_loss": null}\n'


@pytest.mark.usefixtures("in_step")
def test_a_model_that_could_not_be_written_is_written_with_the_next_checkpoint(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, tries, save_file = threading.Event(), [], saving.checkpoint.save_file

    def fail_once(path: str, content: dict[str, Any]) -> None:
        if path == str(tmp_path / "run" / "model.pt"):
            tries.append(path)
            if len(tries) == 1:
                raise files.StorageError("the disk is full.")
            written.set()
        save_file(path, content)

    def log(record: dict[str, Any]) -> None:
        if record["step"] == 11:
            assert written.wait(30)

    monkeypatch.setattr(saving.checkpoint, "save_file", fail_once)
    with pytest.warns(UserWarning, match="the disk is full. Training goes on; saving is tried again at the next save"):
        run = slm.train([text], model_dir=tmp_path / "run", on_log=log, **SETTINGS)
    assert run.save_error is None
    assert slm.load(tmp_path / "run").metrics == run.metrics


def test_a_number_that_json_lacks_becomes_null_however_deep_it_stands(tmp_path: Path) -> None:
    folder = saving.RunFolder(str(tmp_path / "run"))
    folder.begin({}, {}, {})
    folder.log({"step": 1, "before": {"val_loss": math.nan, "all": [1.0, math.inf, (2, -math.inf)]}})
    folder.close()
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "before": {"val_loss": None, "all": [1.0, None, [2, None]]}}
