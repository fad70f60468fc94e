"""Laws of what comes after the last step: records, pages and uploads are there in the end, whatever cut a run off."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, make_text
from gcs_fake import FakeGCS

import slm
from slm import ending as ending_module
from slm.cli.train import main
from slm.config import ModelConfig, TrainConfig
from slm.data.dataset import TextDataset
from slm.model.transformer import LanguageModel
from slm.reporting import report as slm_report
from slm.settings import read_table, read_toml, write_config
from slm.storage import checkpoint, checkpoint_folder, files, gcs
from slm.training import background, samples
from slm.training.history import has_ended
from slm.training.loop import History, train_and_evaluate
from slm.training.remote import RemoteRun
from slm.training.saving import RunFolder

SETTINGS = {**SMALL, "log_every": 1, "eval_every": 3, "save_every": 4, "sample_every": 1, "dropout": 0.1}
TIMING = {"tokens_per_second", "elapsed_seconds", "mfu"}
PAGES = ("report.html", "MODEL_CARD.md")
GS = "gs://bucket/runs/a [1]"
ENDS: dict[str, dict[str, Any]] = {
    "finished": {},
    "patience": {"patience": 1, "learning_rate": 3.0, "max_steps": 40},
    "diverged": {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0, "max_steps": 40},
}
REFUSED = {"finished": "which finished at step 12", "patience": "its patience ended", "diverged": "no finite number"}
pytestmark = pytest.mark.filterwarnings("ignore:only [0-9]+ steps", "ignore:stopped early", "ignore:The loss or grad")


class Killed(BaseException):
    """Stands for the end of a process, which nothing handles."""


@pytest.fixture(autouse=True)
def _hurried(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk, and a service is soon given up."""
    monkeypatch.setattr(files, "flush", lambda path: None)
    for name, seconds in {"FIRST_WAIT": 0.002, "LONGEST_WAIT": 0.01}.items():
        monkeypatch.setattr(background, f"{name}_SECONDS", seconds)
    for name, seconds in {"FIRST_WAIT": 0.01, "RETRY": 0.05, "CHECK_RETRY": 0.05}.items():
        monkeypatch.setattr(gcs, f"{name}_SECONDS", seconds)


@pytest.fixture(params=["folder", "memory", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run may write: nothing is there yet."""
    if request.param == "gs":
        request.getfixturevalue("fake")
        return GS
    return f"memory://{tmp_path.name}/a [1]" if request.param == "memory" else str(tmp_path / "run")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(500))
    return str(path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, text_file: str) -> dict[str, str]:
    """A folder for each way to end, with a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, changes in ENDS.items():
            train(text_file, str(folder / name), **changes)
    return {name: str(folder / name) for name in ENDS}


def stop_after(steps: int) -> Callable[[], bool]:
    calls = itertools.count()
    return lambda: next(calls) >= steps


def train(text_file: str, place: str, **keys: Any) -> slm.Run:
    return slm.train(text_file, model_dir=place, **{**SETTINGS, **keys})


def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records that are equal to others bit by bit, times left out; what is no number is None, as in JSON."""

    def value(one: Any) -> Any:
        return None if isinstance(one, float) and not math.isfinite(one) else one

    return [{k: value(v) for k, v in record.items() if k not in TIMING} for record in records]


def records_at(place: str) -> list[dict[str, Any]]:
    text = files.read_bytes(files.join(place, "metrics.jsonl")).decode()
    return plain([json.loads(line) for line in text.splitlines()])


def files_at(place: str) -> dict[str, bytes]:
    """What lies at the top of a run."""
    names = {*files.list_names(place)} & {"metrics.jsonl", "config.toml", "model.pt", *PAGES}
    return {name: files.read_bytes(files.join(place, name)) for name in names}


def weights_at(place: str) -> dict[str, bytes] | None:
    """The bytes of the weights of model.pt, None where there is none."""
    if "model.pt" not in files.list_names(place):
        return None
    return {name: value.numpy().tobytes() for name, value in slm.load(place).model.state_dict().items()}


def report_at(place: str) -> str:
    return files.read_bytes(files.join(place, "report.html")).decode()


def assert_complete(place: str, expected: str) -> None:
    """A run is as the unbroken one, with pages that tell of its end."""
    assert records_at(place) == records_at(expected)
    assert weights_at(place) == weights_at(expected)
    assert {*files.list_names(place)} >= {"metrics.jsonl", "config.toml", *PAGES}
    how = {"finished": "finished after", "diverged": "broke down after"}[records_at(expected)[-1]["status"]]
    for name in PAGES:
        assert how in files.read_bytes(files.join(place, name)).decode(), name


def goes_on_without_a_step(text_file: str, place: str, **changes: Any) -> slm.Run:
    """What the same command does for a run that had made all its steps."""
    told = list[dict[str, Any]]()
    run = train(text_file, place, on_log=told.append, **changes)
    assert run.history is not None
    assert run.history.resumed_from == run.history.step
    assert not [record for record in told if "lr" in record or "val_loss" in record]
    assert told[-1] == run.history.records[-1]
    return run


def dying(*_: Any, **__: Any) -> None:
    raise Killed


def die_in(patch: pytest.MonkeyPatch, where: str) -> None:
    if where == "yardsticks":
        patch.setattr(ending_module, "yardsticks", dying)
    else:
        patch.setattr(RunFolder if where == "write_pages" else RemoteRun, where, dying)


# Records.


def test_what_comes_after_the_last_step_stands_at_the_end_of_all_records(tmp_path: Path, text_file: str) -> None:
    told = list[dict[str, Any]]()
    run = train(text_file, str(tmp_path / "run"), on_log=told.append, quiet=False)
    assert run.history is not None
    assert plain(told) == plain(run.history.records) == records_at(str(tmp_path / "run"))
    sample, yardsticks, ending = told[-3:]
    assert sample == {"step": run.step, "prompt": "", "sample": run.generate("\n", max_new_tokens=120, seed=0).strip()}
    assert set(yardsticks) == {"step", "yardsticks"}
    assert {one["name"] for one in yardsticks["yardsticks"]} > {"uniform", "unigram"}
    assert ending == {"step": 12, "status": "finished", "message": ""}
    assert [record for record in told if "status" in record or "yardsticks" in record] == told[-2:]
    assert run.recorded.status == "finished"
    assert slm.load(tmp_path / "run").recorded.yardsticks == yardsticks["yardsticks"]


def test_a_run_in_memory_has_them_too(text_file: str) -> None:
    run = slm.train(text_file, **SETTINGS)
    assert run.history is not None
    assert run.history.records[-1] == {"step": 12, "status": "finished", "message": ""}


@pytest.mark.parametrize("quiet", [True, False])
def test_a_run_in_parts_holds_what_comes_after_the_last_step_once(tmp_path: Path, text_file: str, quiet: bool) -> None:
    whole = train(text_file, str(tmp_path / "whole"), quiet=quiet)
    for steps in (5, 3, 0):
        part = train(text_file, str(tmp_path / "parts"), quiet=quiet, should_stop=stop_after(steps))
        last = records_at(str(tmp_path / "parts"))[-1]
        assert last == {"step": part.history.step, "status": "interrupted", "message": ""}  # type: ignore[union-attr]
        assert "stopped after" in report_at(str(tmp_path / "parts"))
    run = train(text_file, str(tmp_path / "parts"), quiet=quiet)
    assert run.history is not None
    assert whole.history is not None
    assert plain(run.history.records) == plain(whole.history.records)
    assert records_at(str(tmp_path / "parts")) == records_at(str(tmp_path / "whole"))
    assert "finished after" in report_at(str(tmp_path / "parts"))


def test_the_stop_button_in_the_last_sample_returns_the_run(text_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slm.Run, "generate", pressed)
        run = slm.train(text_file, **{**SETTINGS, "quiet": False, "max_steps": 2})
    assert run.history is not None
    assert run.history.records[-1]["status"] == "finished"
    assert run.generate("the", max_new_tokens=3)


# Modules and datasets of one's own.

TINY = ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, hidden_dim=16, max_seq_len=8)


def train_tiny(folder: Path, on_log: Any = None, should_stop: Any = None, **settings: Any) -> History:
    torch.manual_seed(0)
    data = TextDataset(torch.arange(300) % 7, 8)
    base = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 4, "max_steps": 12, "log_every": 1}
    config = TrainConfig(**(base | settings))
    others = {"model_dir": folder, "on_log": on_log, "should_stop": should_stop}
    return train_and_evaluate(LanguageModel(TINY), data, data, config, **others)


@pytest.mark.parametrize("name", ["finished", "patience", "diverged", "interrupted", "stop button"])
def test_a_run_of_ones_own_leaves_pages_that_tell_how_it_ended(tmp_path: Path, name: str) -> None:
    told = list[dict[str, Any]]()

    def on_log(record: dict[str, Any]) -> None:
        told.append(record)
        if name == "stop button" and "lr" in record and record["step"] == 6:  # within a step
            raise KeyboardInterrupt

    stop = stop_after(4) if name == "interrupted" else None
    history = train_tiny(tmp_path, on_log, stop, **ENDS.get(name, {}), eval_every=2)
    status = {"patience": "finished", "stop button": "interrupted"}.get(name, name)
    assert told[-1] == {"step": history.step, "status": status, "message": history.message}
    assert plain(told) == plain(history.records)
    assert records_at(str(tmp_path))[-1] == told[-1]
    assert (told[-1]["message"] != "") == (name in ("patience", "diverged"))
    how = {"finished": "finished after", "interrupted": "stopped after", "diverged": "broke down after"}[status]
    for page in PAGES:
        assert how in (tmp_path / page).read_text(), page


# A run that is cut off between its last checkpoint and its end.


@pytest.mark.parametrize("where", ["yardsticks", "write_pages"])
@pytest.mark.parametrize("name", ENDS)
def test_a_run_cut_off_after_its_last_step_is_completed_by_the_same_command(
    tmp_path: Path, text_file: str, unbroken: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    folder = str(tmp_path / "run")
    killed = where == "write_pages" or weights_at(unbroken[name]) is not None  # without a model nothing is compared
    with monkeypatch.context() as patch:
        die_in(patch, where)
        for _ in range(2):  # and the second time it is as the first
            if killed:
                with pytest.raises(Killed):
                    train(text_file, folder, **ENDS[name])
                assert not {*PAGES} & {*os.listdir(folder)}
    if killed:
        goes_on_without_a_step(text_file, folder, **ENDS[name])
        assert_complete(folder, unbroken[name])
        with pytest.raises(slm.UserError, match=REFUSED[name]):
            train(text_file, folder, **ENDS[name])
        assert_complete(folder, unbroken[name])


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("where", ["write_pages", "push_last"])
@pytest.mark.parametrize("place", ["memory", "gs"], indirect=True)
def test_a_run_at_a_url_cut_off_after_its_last_step_is_completed_by_the_same_command(
    place: str, text_file: str, unbroken: dict[str, str], machine: Any, monkeypatch: pytest.MonkeyPatch,
    where: str, elsewhere: bool,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        die_in(patch, where)
        with pytest.raises(Killed):
            train(text_file, place)
    assert not {*PAGES} & {*files.list_names(place)}
    machine("second machine" if elsewhere else "first machine")
    if where == "push_last" and not elsewhere:  # all of it is here: it only has to be sent
        with pytest.raises(slm.UserError, match="which finished at step 12"):
            train(text_file, place)
    else:
        assert goes_on_without_a_step(text_file, place).upload_error is None
    assert_complete(place, unbroken["finished"])
    machine("third machine")
    before = files_at(place)
    with pytest.raises(slm.UserError, match="which finished at step 12"):
        train(text_file, place)
    assert files_at(place) == before


@pytest.mark.parametrize("first", ["interrupted", "shorter"])
@pytest.mark.parametrize(
    ("place", "elsewhere"), [("folder", False), ("memory", True), ("gs", False), ("gs", True)], indirect=["place"]
)
def test_pages_of_an_earlier_end_do_not_pass_for_those_of_the_last(
    place: str, text_file: str, machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str,
    elsewhere: bool,
) -> None:  # fmt: skip
    """They are there when a run is cut off after its last step and the records of its yardsticks."""
    keys = {"max_steps": 10 if first == "shorter" else 11}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "max_steps was 10")
        for folder in (str(tmp_path / "expected"), place):
            train(text_file, folder, should_stop=stop_after(5) if first == "interrupted" else None, **keys)
            if folder != place:
                train(text_file, folder, max_steps=11)
        earlier = report_at(place)
        machine("second machine" if elsewhere else "first machine")
        with monkeypatch.context() as patch:
            die_in(patch, "write_pages")
            with pytest.raises(Killed):
                train(text_file, place, max_steps=11)
        if place.startswith(("gs:", "memory:")):
            assert report_at(place) == earlier
        machine("third machine" if elsewhere else "first machine")
        goes_on_without_a_step(text_file, place, max_steps=11)
    assert_complete(place, str(tmp_path / "expected"))
    assert "finished after 11 steps" in report_at(place)
    with pytest.raises(slm.UserError, match="which finished at step 11"):
        train(text_file, place, max_steps=11)


@pytest.mark.parametrize(
    ("place", "page"), [("folder", PAGES[0]), ("folder", PAGES[1]), ("gs", PAGES[0])], indirect=["place"]
)
def test_a_disk_that_is_full_at_the_pages_costs_a_page_which_the_same_command_writes(
    place: str, text_file: str, unbroken: dict[str, str], machine: Any, monkeypatch: pytest.MonkeyPatch, page: str,
) -> None:  # fmt: skip
    train(text_file, place, should_stop=stop_after(5))  # pages of an earlier end are there
    write = files.write_bytes

    def full(path: str, data: bytes) -> None:
        if path.endswith(page):
            with files.explaining(path, "write"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.warns(UserWarning, match=rf"the disk is full.* The model is saved, {page} is not") as caught:
            run = train(text_file, place)
    assert len([one for one in caught if "full" in str(one.message)]) == 1
    assert (run.save_error, run.upload_error) == (None, None)
    assert weights_at(place) == weights_at(unbroken["finished"])
    goes_on_without_a_step(text_file, place)
    assert_complete(place, unbroken["finished"])
    with pytest.raises(slm.UserError, match="which finished at step 12"):
        train(text_file, place)


def test_a_cut_for_time_is_no_step_to_be_made_after_the_last_checkpoint(tmp_path: Path) -> None:
    """A run whose decay had become too slow ended before the step that was once decided."""
    from slm.training import deadline

    # Half of the way there the machine slows down, or rather the clock runs.
    clock = [0.0]

    def tick(record: dict[str, Any]) -> None:
        if "lr" in record:
            clock[0] += 40.0 if "decay" in told else 0.5
        if "decay_steps" in record:
            told.append("decay")

    told = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadline, "time", type("Fake", (), {"monotonic": staticmethod(lambda: clock[0])}))
        patch.setattr(RunFolder, "write_pages", dying)
        settings = {"max_minutes": 0.5, "max_steps": None, "schedule": "wsd", "eval_every": 100}
        with pytest.warns(UserWarning, match="time is up"), pytest.raises(Killed):
            train_tiny(tmp_path, tick, **settings)
        patch.undo()
        manifest = checkpoint_folder.newest(str(tmp_path / "checkpoints"))[1]
        more = list[dict[str, Any]]()
        with pytest.warns(UserWarning, match=f"time is up.*step {manifest['step']} is the last"):
            history = train_tiny(tmp_path, more.append, **settings)
    assert told == ["decay"]
    assert history.step == history.total_steps == history.resumed_from == manifest["step"]
    assert [set(record) for record in more] == [{"step", "status", "message"}]
    assert "time is up" in more[0]["message"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"step": 1}\n{"step": 2}\n{"step": 2, "status": "finished"}\n', True),
        (b'{"step": 1}\n{"step": 2, "status": "diverged"}\n', True),
        (b'{"step": 1}\n', False),
        (b'{"step": 1}\n{"step": 2, "yardsticks": []}\n', False),
        (b'{"step": 1}\n{"step": 2, "status": "finished"}', False),
        (b'{"step": 1}\n{"step": 2, "status": "fin', False),
        (b'{"step": 1}\n{"step": 2, "status": "finished"}\n{"step": 3}\n', False),
        (b'{"step": 0}\n{"step": 2, "status": "finished"}\n', False),
        (b'{"step": 1, "loss": 0.123}\n{"step": 2, "status": "finished"}\n', False),
        (b'{"step": 1}\n3\n', False),
        (b'{"step": 1}\nnull\n', False),
        (b'{"step": 1}\n\xff\n', False),
        (b"", False),
    ],
    ids=str,
)
def test_a_run_has_ended_where_its_lines_go_on_from_the_checkpoint_and_say_so(text: bytes, expected: bool) -> None:
    assert has_ended(text, b'{"step": 1}\n') is expected


# Runs that earlier versions left.


NEW_FACTS = {"hardware", "data_name", "found", "split", "text_bytes", "train_tokens", "val_tokens", "origins"}


def as_before(folder: Path) -> None:
    """Makes a run that of a version without pages, and without the counts that came with them."""
    path, manifest, _ = checkpoint_folder.newest(str(folder / "checkpoints"))
    assert path is not None
    for page in PAGES:
        (folder / page).unlink()
    state = checkpoint.load_file(f"{path}/training.pt")
    del state["clipped_steps"]
    checkpoint.save_file(f"{path}/training.pt", state)
    size, crc32c = files.fingerprint(f"{path}/training.pt")
    manifest["files"]["training.pt"] = {"size": size, "crc32c": crc32c}
    del manifest["message"]
    (Path(path) / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_bytes((Path(path) / "metrics.jsonl").read_bytes())
    tables = {name: read_table(str(folder), name) for name in ("resolved", "made_with")}
    asked = {k: v for k, v in read_toml(str(folder / "config.toml")).items() if not isinstance(v, dict)}
    kept = {k: v for k, v in tables["made_with"].items() if k not in NEW_FACTS}
    assert len(tables["made_with"]) - len(kept) == len(NEW_FACTS)
    (folder / "config.toml").write_bytes(write_config(asked, tables["resolved"], kept))


def test_runs_of_the_version_before_are_gone_on_with_and_get_their_pages_once(
    tmp_path: Path, text_file: str, unbroken: dict[str, str]
) -> None:
    train(text_file, str(tmp_path / "interrupted"), should_stop=stop_after(5))
    as_before(tmp_path / "interrupted")
    run = train(text_file, str(tmp_path / "interrupted"))
    assert run.history is not None
    assert run.history.resumed_from == 5
    assert weights_at(str(tmp_path / "interrupted")) == weights_at(unbroken["finished"])
    # What was clipped before is not known: the count begins with 0.
    counts = [record["clipped_steps"] for record in run.history.records if "lr" in record]
    assert counts[5] - counts[4] in (-counts[4], 1 - counts[4])
    train(text_file, str(tmp_path / "finished"))
    as_before(tmp_path / "finished")
    goes_on_without_a_step(text_file, str(tmp_path / "finished"))
    for name in ("interrupted", "finished"):
        assert "finished after 12 steps" in report_at(str(tmp_path / name))
        with pytest.raises(slm.UserError, match="which finished at step 12"):
            train(text_file, str(tmp_path / name))


# At a URL.


@pytest.fixture
def slm_train(text_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, which gives its exit code and what it said."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    settings = [f"--{name}={value}" for name, value in SETTINGS.items() if name != "quiet"]

    def call(place: str, *more: str) -> tuple[int, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = main(["--quiet", "--data", text_file, "--model_dir", place, *settings, *more])
        return code, capsys.readouterr().err

    return call


def test_pages_and_all_records_arrive_and_move_aside_with_the_run(
    place: str, machine: Any, unbroken: dict[str, str], slm_train: Any
) -> None:
    assert slm_train(place)[0] == 0
    assert_complete(place, unbroken["finished"])
    assert not list(machine("first machine").glob("runs/*/*"))
    before = files_at(place)
    assert set(before) == {"metrics.jsonl", "config.toml", "model.pt", *PAGES}
    for name in ("first machine", "second machine"):
        machine(name)
        code, told = slm_train(place)
        assert (code, "which finished at step 12" in told) == (2, True)
        assert files_at(place) == before
    assert slm_train(place, "--overwrite", "--max_steps=5")[0] == 0
    assert files_at(files.join(place, "previous-1")) == before
    assert "finished after 5 steps" in report_at(place)
    assert records_at(place)[-1] == {"step": 5, "status": "finished", "message": ""}


def fails_at_push_last(patch: pytest.MonkeyPatch, fake: FakeGCS) -> None:
    """From there on nothing answers any more."""
    push_last = RemoteRun.push_last

    def changed(self: RemoteRun) -> None:
        fake.lives = 1
        push_last(self)

    patch.setattr(RemoteRun, "push_last", changed)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_network_that_fails_at_the_pages_is_told_and_the_same_command_sends_them(
    fake: FakeGCS, machine: Any, unbroken: dict[str, str], slm_train: Any, monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        fails_at_push_last(patch, fake)
        code, told = slm_train(GS)
    (mirror,) = machine("first machine").glob("runs/*/config.toml")
    assert code == 3
    assert f"The run is complete in {mirror.parent}; the same command sends what is missing." in told
    fake.lives = None
    assert not {*PAGES} & {*files.list_names(GS)}
    machine("second machine" if elsewhere else "first machine")
    here = files_at(str(mirror.parent))
    code, told = slm_train(GS)
    # On the same machine all is there, and only has to be sent; elsewhere the end is made once more.
    assert (code, "which finished at step 12" in told) == ((0, False) if elsewhere else (2, True))
    assert_complete(GS, unbroken["finished"])
    if not elsewhere:
        assert files_at(GS) == here


def test_of_an_end_whose_lines_could_not_be_written_nothing_is_sent(
    place: str, text_file: str, unbroken: dict[str, str], machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_last(self: RunFolder) -> None:
        if self.step == 12:
            raise files.StorageError("the disk is full.")
        write(self)

    write = RunFolder._write_lines
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_write_lines", fails_at_last)
        with pytest.warns(UserWarning, match=r"the disk is full\. The same command goes on from step 12"):
            assert train(text_file, place).save_error
    if place != GS and "://" not in place:
        assert {*PAGES} <= {*files.list_names(place)}  # they are there, and tell of lines that are not
    else:
        assert not {*PAGES} & {*files.list_names(place)}
    goes_on_without_a_step(text_file, place)
    assert_complete(place, unbroken["finished"])


def test_the_mirror_of_an_earlier_end_replaces_nothing_of_a_run_that_another_machine_completed(
    fake: FakeGCS, machine: Any, text_file: str, unbroken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fails_at_push_last(patch, fake)
        with pytest.warns(UserWarning, match="there is no answer"):
            assert train(text_file, GS, should_stop=stop_after(5)).upload_error
    fake.lives = None
    machine("second machine")
    assert train(text_file, GS).upload_error is None
    before = files_at(GS)
    assert list(machine("first machine").glob("runs/*/report.html"))
    with pytest.raises(slm.UserError, match="which finished at step 12"):
        train(text_file, GS)
    assert files_at(GS) == before
    assert_complete(GS, unbroken["finished"])


# Files of others.


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_no_run_wrote_is_refused_before_the_first_step_and_left_alone(
    place: str, machine: Any, text_file: str, page: str
) -> None:
    files.write_bytes(files.join(place, page), b"mine")
    for keys in ({}, {"overwrite": True}):
        with pytest.raises(slm.UserError, match=rf"{page} exists and no run of slm wrote it") as caught:
            train(text_file, place, on_log=lambda _: pytest.fail("it trains"), **keys)
        assert "\n" not in str(caught.value)
    assert files_at(place) == {page: b"mine"}
    assert files.list_names(place) == [page]


@pytest.mark.filterwarnings("ignore:max_steps was")
def test_a_card_that_somebody_made_their_own_stays(place: str, text_file: str, machine: Any) -> None:
    card = files.join(place, "MODEL_CARD.md")
    train(text_file, place)
    made = files.read_bytes(card).decode()
    assert made.rstrip().endswith("-->")
    train(text_file, place, max_steps=14)
    assert files.read_bytes(card).decode() != made  # nobody had
    mine = made.rsplit("<!--", 1)[0] + "Licensed to everybody.\n"
    files.write_bytes(card, mine.encode())
    report = files.read_bytes(files.join(place, "report.html"))
    train(text_file, place, max_steps=16)
    assert files.read_bytes(card).decode() == mine
    assert files.read_bytes(files.join(place, "report.html")) != report
    assert set(slm_report(place)) == {"report.html"}
    with pytest.raises(slm.UserError, match="which finished at step 16"):
        train(text_file, place, max_steps=16)


def test_a_run_that_is_loaded_and_saved_tells_all_that_it_told(place: str, text_file: str, tmp_path: Path) -> None:
    train(text_file, place)
    copy = tmp_path / "copy"
    slm.load(place).save(copy)
    assert (copy / "metrics.jsonl").read_bytes() == files.read_bytes(files.join(place, "metrics.jsonl"))
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "finished after 12 steps" in page
    files.download(files.join(place, "model.pt"), str(tmp_path / "alone.pt"))
    slm.load(tmp_path / "alone.pt").save(tmp_path / "of one file")
    (only,) = (tmp_path / "of one file" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(only)["val_loss"] > 0


def test_the_stop_button_in_the_last_sample_leaves_a_finished_run(
    place: str, text_file: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, step = samples.stream_tokens, 0

    def stopped(*arguments: Any) -> Any:
        if step == 12:
            raise KeyboardInterrupt
        return write(*arguments)

    def on_log(record: dict[str, Any]) -> None:
        nonlocal step
        step = record["step"]

    with monkeypatch.context() as patch:
        patch.setattr(samples, "stream_tokens", stopped)
        run = train(text_file, place, on_log=on_log)
    assert [r for r in run.history.records if "sample" in r and r["step"] == 12] == []  # type: ignore[union-attr]
    assert run.history is not None
    assert run.history.status == "finished"
    assert any("yardsticks" in record for record in run.history.records)
    assert "finished after 12 steps" in files.read_bytes(files.join(place, "report.html")).decode()
    with pytest.raises(slm.UserError, match="which finished at step 12"):
        train(text_file, place)
