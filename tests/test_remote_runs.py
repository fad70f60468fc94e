"""Laws of whole runs at URLs: whatever fails, a run finishes or says what is missing, and all that counts is whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from gcs_fake import FakeGCS, Fault
from google.cloud.storage import blob as client_blob

import slm
from slm.cli.train import main
from slm.storage import checkpoint, checkpoint_folder, files, fsspec_urls, gcs
from slm.training import background, loop
from slm.training.remote import RemoteRun

SETTINGS = {**SMALL, "log_every": 1, "eval_every": 4, "save_every": 3}
LAST = "checkpoints/step-00000012"
LEFT_OUT = {"elapsed_seconds", "tokens_per_second", "mfu", "asked"}
GS = "gs://bucket/runs/a [1]"
pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps")
# Processes to be killed: each is forked from one that has torch already.
CHILDREN = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":
    CHILDREN.set_forkserver_preload(
        [
            "slm.run",
            "torch._dynamo",
            "google.cloud.storage",
            "fsspec.implementations.local",
            "filelock",
            "hypothesis",
            "pytest",
        ]
    )


def hurry(set: Callable[[Any, str, Any], None]) -> None:
    """Nothing waits for the disk, passes of an upload follow at once, and a service is soon given up."""
    set(files, "flush", lambda path: None)
    for name, seconds in {"FIRST_WAIT": 0.002, "LONGEST_WAIT": 0.01}.items():
        set(background, f"{name}_SECONDS", seconds)
    for name, seconds in {"FIRST_WAIT": 0.01, "RETRY": 0.05, "CHECK_RETRY": 0.05}.items():
        set(gcs, f"{name}_SECONDS", seconds)


@pytest.fixture(autouse=True)
def _hurried(impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This in each test; afterwards signals are handled as before the command."""
    hurry(monkeypatch.setattr)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=["gs", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty place for a run, in each kind of storage."""
    if request.param == "gs":
        request.getfixturevalue("fake")
        return GS
    return f"memory://{tmp_path.name}/a [1]" if request.param == "memory" else (tmp_path / "there [1]").as_uri()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, text: str) -> str:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slm.train(folder / "text.txt", model_dir=folder / "run", **SETTINGS)
    return str(folder / "run")


@pytest.fixture
def text_file(unbroken: str) -> str:
    """The text of the unbroken run."""
    return str(Path(unbroken).parent / "text.txt")


def flags(text_file: str, url: str, *more: str) -> list[str]:
    """What slm-train is told."""
    settings = [f"--{name}={value}" for name, value in SETTINGS.items() if name != "quiet"]
    return ["--quiet", "--data", text_file, "--model_dir", url, *settings, *more]


def slm_train(text_file: str, url: str, *more: str) -> int:
    """The exit code of the command, whose warnings are printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return main(flags(text_file, url, *more))


def steps_at(url: str) -> list[int]:
    """The steps of the checkpoints at a URL that have a manifest, newest first, all of whose files verify."""
    parent, found = files.join(url, "checkpoints"), []
    for step in checkpoint_folder.steps_of(files.list_names(parent)):
        folder = files.join(parent, checkpoint_folder.name_of(step))
        if checkpoint_folder.MANIFEST in files.list_names(folder):
            manifest = json.loads(files.read_bytes(files.join(folder, checkpoint_folder.MANIFEST)))
            for name, told in manifest["files"].items():
                with files.replace_file(os.path.join(os.environ["SLM_CACHE"], "fetched")) as temporary:
                    files.download(files.join(folder, name), temporary)
                    assert files.fingerprint(temporary) == (told["size"], told["crc32c"]), name
            found.append(step)
    if found and "model.pt" in files.list_names(url):
        slm.load(url)
    return found


def plain(value: Any) -> Any:
    """A value that is equal to another only bit by bit; what clocks told and how settings were named is left out."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in LEFT_OUT}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def result(folder: str) -> dict[str, Any]:
    """All that a finished run left, by the name of the file."""
    names = ["metrics.jsonl", "model.pt"]
    names += [f"{LAST}/{name}" for name in files.list_names(files.join(folder, LAST)) if name != "manifest.json"]
    found: dict[str, Any] = {}
    for name in names:
        place = files.join(folder, name)
        if name.endswith(".pt"):
            found[name] = plain(checkpoint.load_file(place))
        else:
            found[name] = [plain(json.loads(line)) for line in files.read_bytes(place).splitlines()]
    return found


def assert_complete(url: str, unbroken: str) -> None:
    assert steps_at(url)[0] == 12
    assert result(url) == result(unbroken)


def once(
    calls: list[Any], call: Callable[[], Any], when: Callable[[Any], bool] = lambda _: True
) -> Callable[..., None]:
    """A callback that makes a call at the first time that it is wanted, and keeps what came of it."""

    def callback(record: Any = None) -> None:
        if not calls and when(record):
            calls.append(None)
            calls[0] = call()

    return callback


# Before the first step.


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("no bucket", r"no bucket 'none'.*gcloud storage buckets create gs://none"),
        ("no permission", r"refused permission \(403\).*roles/storage.objectAdmin"),
        ("no network", r"gs://bucket/run: there is no answer. Check the network"),
    ],
)
def test_what_is_wrong_before_the_first_step_is_told_and_nothing_is_written(
    fake: FakeGCS, text_file: str, machine: Any, trouble: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "gs://none/run" if trouble == "no bucket" else "gs://bucket/run"
    if trouble == "no permission":
        fake.fail(403, times=99)
    fake.lives = 1 if trouble == "no network" else None
    assert slm_train(text_file, place) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)
    assert fake.data("bucket") == {}
    assert not list(machine("first machine").rglob("*")), "not even a lock"


# A run that nothing disturbs.


def test_a_run_at_a_url_is_the_run_of_a_folder(url: str, text_file: str, unbroken: str, machine: Any) -> None:
    """It leaves no mirror, moves aside as a whole, and keeps as many checkpoints as it was told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?!only 12 steps)")
        assert main(flags(text_file, url)) == 0
    assert_complete(url, unbroken)
    assert len(steps_at(url)) <= 2
    assert not list(machine("first machine").glob("runs/*/*"))
    assert slm_train(text_file, url) == 2, "it has finished"
    assert slm_train(text_file, url, "--overwrite", "--keep_last=1") == 0
    assert_complete(url, unbroken)
    assert steps_at(url) == [12]
    aside = files.join(url, "previous-1")
    assert_complete(aside, unbroken)
    assert plain(slm.load(files.join(aside, LAST)).model.state_dict()) == plain(slm.load(url).model.state_dict())


def test_a_model_at_gs_is_downloaded_once_and_again_when_either_end_changed(
    fake: FakeGCS, text_file: str, machine: Any
) -> None:
    slm.train(text_file, model_dir=GS, **SETTINGS)
    machine("second machine")

    def downloads(path: str) -> tuple[int, float]:
        before = len(fake.requests)
        loss = slm.load(path).metrics["val_loss"]
        return sum("alt=media" in request for request in fake.requests[before:]), loss

    first, again = downloads(GS), downloads(f"{GS}/model.pt")
    assert (first[0], again[0]) == (1, 0)
    assert first[1] == again[1]
    assert downloads(f"{GS}/{LAST}")[0] == 1, "another object"
    (copy,) = [path for path in Path(os.environ["SLM_CACHE"]).rglob("model.pt") if downloads(GS)][:1]
    copy.write_bytes(b"rot" + copy.read_bytes()[3:])
    assert sum(downloads(path)[0] for path in (GS, f"{GS}/{LAST}")) == 1, "the damaged one"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slm.train(text_file, model_dir=GS, overwrite=True, seed=7, **SETTINGS)
    count, loss = downloads(GS)
    assert count == 1
    assert loss != first[1]


# The service fails while a run goes on.

KINDS = [503, 429, 500, 408, "reset", "lost", "cut_up", "short_up", "damage_up", "cut_down", "damage_down"]
LARGER = {"embed_dim": 96, "hidden_dim": 192}  # files of several chunks


@pytest.mark.parametrize("seed", range(4))
def test_with_faults_all_the_time_a_run_finishes_or_says_what_is_missing(
    fake: FakeGCS, text_file: str, machine: Any, seed: int
) -> None:
    draw = random.Random(seed)
    share = 0.1 * (seed + 1)
    fake.faults = [Fault(draw.choice(KINDS) if n > 8 and draw.random() < share else "") for n in range(600)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = slm.train(text_file, model_dir=GS, **SETTINGS | LARGER)
        fake.faults.clear()
        steps_at(GS)
        if run.upload_error:
            assert slm.load(run.upload_error.split(" is complete in ")[1].split(";")[0]).metrics == run.metrics
            with pytest.raises(slm.UserError, match="finished at step 12"):
                slm.train(text_file, model_dir=GS, **SETTINGS | LARGER)
    assert steps_at(GS)[0] == 12
    assert plain(slm.load(GS).model.state_dict()) == plain(run.model.state_dict())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> dict[bool, threading.Semaphore]:
    """One more for each pass of an upload that went well, and for each one that failed."""
    counts, push = {True: threading.Semaphore(0), False: threading.Semaphore(0)}, RemoteRun.push

    def noting(self: RemoteRun, *args: Any, **keys: Any) -> None:
        try:
            push(self, *args, **keys)
        except BaseException:
            counts[False].release()
            raise
        counts[True].release()

    monkeypatch.setattr(RemoteRun, "push", noting)
    return counts


def test_an_outage_that_passes_is_one_warning(
    fake: FakeGCS, text_file: str, unbroken: str, machine: Any, passes: dict[bool, threading.Semaphore]
) -> None:
    def on_log(record: dict[str, Any]) -> None:
        if record["step"] == 4 and "val_loss" in record:
            assert passes[True].acquire(timeout=10)
            fake.lives = 1
        if record["step"] == 10:
            for _ in range(2):  # by the second one the first is known to all
                assert passes[False].acquire(timeout=10)
        if record["step"] == 12:
            fake.lives = None

    with pytest.warns(UserWarning, match="there is no answer") as caught:
        run = slm.train(text_file, model_dir=GS, on_log=on_log, **SETTINGS)
    (told,) = [str(one.message) for one in caught if "only 12 steps" not in str(one.message)]
    assert "Training goes on; saving is tried again in the background." in told
    assert run.upload_error is None
    assert_complete(GS, unbroken)
    assert not list(machine("first machine").glob("runs/*/*"))


@pytest.mark.parametrize("requests", [14, 25, 40])
def test_an_outage_that_stays_ends_with_what_is_missing_and_where_it_is(
    fake: FakeGCS, text_file: str, unbroken: str, machine: Any, requests: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.lives = requests
    assert slm_train(text_file, GS) == 3
    told = capsys.readouterr().err
    (kept,) = machine("first machine").glob("runs/*/config.toml")
    assert str(kept.parent) in told
    assert "the same command sends what is missing" in told
    assert "Traceback" not in told
    assert_complete(str(kept.parent), unbroken)
    before = result(str(kept.parent))
    assert slm_train(text_file, GS) == 2, "while the service is out"
    assert "there is no answer" in capsys.readouterr().err
    assert result(str(kept.parent)) == before
    fake.lives = None
    assert 12 not in steps_at(GS)
    slm_train(text_file, GS)
    assert_complete(GS, unbroken)


# The process ends, by a kill or a signal.


def command(arguments: list[str], environment: dict[str, str], output: str, end: tuple[str, int] | None) -> None:
    """slm-train in this process. end: ("kill", at a use of the storage) or ("term", at a step), both counted from 1."""
    os.environ.update(environment)
    os.chdir(Path(output).parent)
    hurry(setattr)
    client_blob._MAX_MULTIPART_SIZE = 16 * 1024
    if end:
        uses = iter(range(1, end[1] + 1))
        number = signal.SIGKILL if end[0] == "kill" else signal.SIGTERM

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                if next(uses, None) == end[1]:
                    os.kill(os.getpid(), number)
                return original(*args, **options)

            return call

        if end[0] == "kill":
            fsspec_urls.filesystem = counted(fsspec_urls.filesystem)
            gcs._bucket = counted(gcs._bucket)
        else:
            loop.train_step = counted(loop.train_step)
    with open(output, "a", encoding="utf-8") as sys.stdout:
        sys.stderr = sys.stdout
        sys.exit(main(arguments))


class Machines:
    """Processes on machines that each have a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, name: str, arguments: list[str], end: tuple[str, int] | None = None) -> Any:
        environment = {key: os.environ[key] for key in ("STORAGE_EMULATOR_HOST",) if key in os.environ}
        environment["SLM_CACHE"] = str(self.folder / name)
        process = CHILDREN.Process(target=command, args=(arguments, environment, str(self.folder / "output"), end))
        process.start()
        return process

    def run(self, name: str, arguments: list[str], end: tuple[str, int] | None = None) -> int:
        """The exit code."""
        process = self.start(name, arguments, end)
        process.join(60)
        return int(process.exitcode)

    @property
    def output(self) -> str:
        """What they all said."""
        return (self.folder / "output").read_text(encoding="utf-8")


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


class Deadly(list[str]):
    """The requests of a service that kills a process at its n-th one from now on."""

    def __init__(self, requests: list[str], n: int) -> None:
        super().__init__(requests)
        self.end = len(requests) + n
        self.process: Any = None
        self.started = threading.Event()

    def append(self, request: str) -> None:
        super().append(request)
        if len(self) == self.end and self.started.wait(10):
            self.process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("kind", ["gs", "file"])
def test_a_run_that_is_killed_again_and_again_equals_the_unbroken_one(
    request: pytest.FixtureRequest, machines: Machines, text_file: str, unbroken: str, kind: str, elsewhere: bool
) -> None:
    """On one machine, and going from one to the next; on gs:// each other kill is in the middle of a request."""
    fake = request.getfixturevalue("fake") if kind == "gs" else None
    url, draw, codes = (GS if fake else (machines.folder / "there").as_uri()), random.Random(elsewhere), list[int]()
    for life in range(30):
        name = f"machine {life if elsewhere else 0}"
        if fake and life % 2:
            fake.requests = deadly = Deadly(fake.requests, draw.randrange(5, 15 + 10 * life))
            deadly.process = machines.start(name, flags(text_file, url))
            deadly.started.set()
            deadly.process.join(60)
            codes.append(deadly.process.exitcode)
            fake.requests = []
        else:
            codes.append(machines.run(name, flags(text_file, url), ("kill", draw.randrange(5, 15 + 10 * life))))
        steps_at(url)
        if codes[-1] != -signal.SIGKILL:
            break
    assert codes[-1] in (0, 2), machines.output
    assert len(codes) > 2, machines.output
    assert codes[-1] == 0 or "which finished at step 12" in machines.output
    assert "Traceback" not in machines.output
    assert_complete(url, unbroken)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize("kind", ["gs", "file"])
def test_a_run_that_is_told_to_stop_is_sent_and_goes_on_elsewhere(
    request: pytest.FixtureRequest, machines: Machines, text_file: str, unbroken: str, kind: str
) -> None:
    if kind == "gs":
        request.getfixturevalue("fake")
    url = GS if kind == "gs" else (machines.folder / "there").as_uri()
    assert machines.run("first", flags(text_file, url), ("term", 5)) == 143
    assert steps_at(url)[0] == 5
    assert not list(machines.folder.glob("first/runs/*/*")), "all was sent"
    assert machines.run("second", flags(text_file, url)) == 0, machines.output
    assert_complete(url, unbroken)


def test_a_run_that_is_told_to_stop_while_the_service_is_out_goes_on_where_it_was(
    fake: FakeGCS, machine: Any, text_file: str, unbroken: str
) -> None:
    """The mirror is ahead of the bucket; a machine that lacks it begins with what the bucket has."""
    calls = list[Any]()
    stops = once(calls, lambda: setattr(fake, "lives", 1), lambda record: record["step"] == 2)
    with pytest.warns(UserWarning, match="there is no answer"):
        run = slm.train(text_file, model_dir=GS, on_log=stops, should_stop=lambda: bool(calls), **SETTINGS)
    assert run.upload_error
    fake.lives = None
    assert steps_at(GS) == []
    assert slm.train(text_file, model_dir=GS, **SETTINGS).history.resumed_from == 2  # type: ignore[union-attr]
    assert_complete(GS, unbroken)


# Two that write.


def test_of_two_runs_begun_at_once_one_goes_on(
    fake: FakeGCS, machine: Any, text_file: str, unbroken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen an empty folder; the other one claims it first, with the same settings or with others."""
    claim = RemoteRun.claim
    for folder, settings in (("same", {}), ("other", {"seed": 7})):
        place, calls = f"{GS}/{folder}", list[Any]()

        def other(place: str = place) -> Any:
            machine("second machine")
            done = slm.train(text_file, model_dir=place, **SETTINGS)
            machine("first machine")
            return done

        first = once(calls, other)
        monkeypatch.setattr(RemoteRun, "claim", lambda self, first=first: (first(), claim(self)))
        with pytest.raises(files.StorageError, match="another process wrote this object; use one folder per run"):
            slm.train(text_file, model_dir=place, **SETTINGS | settings)
        assert_complete(place, unbroken)


def test_of_two_that_go_on_with_a_run_the_second_to_save_is_refused(
    fake: FakeGCS, machine: Any, text_file: str, unbroken: str
) -> None:
    stopped = list[Any]()
    first = slm.train(
        text_file, model_dir=GS, on_log=once(stopped, bool), should_stop=lambda: bool(stopped), **SETTINGS
    )
    assert first.history and first.history.status == "interrupted"

    def other() -> Any:
        machine("second machine")
        return slm.train(text_file, model_dir=GS, **SETTINGS)

    calls = list[Any]()
    with pytest.raises(files.StorageError, match="use one folder per run"):
        slm.train(text_file, model_dir=GS, on_log=once(calls, other), **SETTINGS)
    assert calls[0].upload_error is None
    assert_complete(GS, unbroken)


def test_a_run_that_is_overtaken_by_its_own_continuation_ends_its_uploads(
    fake: FakeGCS, machine: Any, text_file: str, unbroken: str, passes: dict[bool, threading.Semaphore]
) -> None:
    """It was taken for dead, but was alive."""

    def other() -> Any:
        assert passes[True].acquire(timeout=10)
        machine("second machine")
        done = slm.train(text_file, model_dir=GS, **SETTINGS)
        machine("first machine")
        return done

    calls = list[Any]()
    on_log = once(calls, other, lambda record: record["step"] == 5)
    with pytest.warns(UserWarning, match="use one folder per run"):
        run = slm.train(text_file, model_dir=GS, on_log=on_log, **SETTINGS)
    assert run.history and run.history.status == "finished"
    assert run.upload_error is not None
    assert calls[0].history.resumed_from in (3, 4)
    assert calls[0].upload_error is None
    assert_complete(GS, unbroken)


def test_two_runs_on_one_machine_are_told_apart_at_once(url: str, machine: Any, text_file: str, unbroken: str) -> None:
    def other() -> str:
        with pytest.raises(slm.UserError, match="another run is writing to") as caught:
            slm.train(text_file, model_dir=url, **SETTINGS)
        return str(caught.value)

    calls = list[Any]()
    slm.train(text_file, model_dir=url, on_log=once(calls, other), **SETTINGS)
    assert url in calls[0]
    assert_complete(url, unbroken)


@pytest.mark.parametrize("url", [GS, "memory://damaged/run"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    url: str, fake: FakeGCS, machine: Any, text_file: str, unbroken: str
) -> None:
    slm.train(text_file, model_dir=url, **SETTINGS)
    steps = steps_at(url)
    for step in steps:
        files.write_bytes(f"{url}/checkpoints/step-{step:08}/training.pt", b"rotten")
    machine("another machine")
    with pytest.raises(slm.UserError, match=r"no checkpoint that can be used: .*training\.pt") as caught:
        slm.train(text_file, model_dir=url, **SETTINGS | {"max_steps": 15})
    assert all(f"step-{step:08}" in str(caught.value) for step in steps)
    assert plain(slm.load(url).model.state_dict()) == plain(slm.load(unbroken).model.state_dict())
