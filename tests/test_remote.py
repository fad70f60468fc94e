"""Laws of a run at a URL: what counts there is whole, what is whole here is not lost, and one process writes it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from gcs_fake import FakeGCS

from slm.data import cache
from slm.metrics.pages.card import model_card
from slm.metrics.recorded import Recorded
from slm.storage import cached, checkpoint_folder, files, gcs
from slm.storage.checkpoint_folder import MANIFEST, name_of
from slm.storage.files import StorageError, TakenError
from slm.training import remote
from slm.training.remote import RemoteRun

STATES = {"model.pt": 700, "training.pt": 900, "metrics.jsonl": 30}  # bytes


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain


@pytest.fixture(params=["gs", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty place for a run, in each kind of storage."""
    if request.param == "gs":
        request.getfixturevalue("fake")
        return "gs://bucket/runs/a [1]"
    return f"memory://{tmp_path.name}/a [1]" if request.param == "memory" else (tmp_path / "there").as_uri()


@pytest.fixture
def run(url: str, tmp_path: Path) -> RemoteRun:
    return begun(url, tmp_path / "mirror")


def begun(url: str, mirror: Path, config: bytes = b"# a run\n") -> RemoteRun:
    """A run that has claimed its place."""
    run = RemoteRun(url, str(mirror))
    run.fetch()
    files.write_bytes(str(mirror / "config.toml"), config)
    run.claim()
    return run


def save(run: RemoteRun, step: int, life: int = 0, best: int | None = None) -> str:
    """The path of a new checkpoint in the mirror; best: the step of the best weights, this one unless given."""
    best = step if best is None else best
    sizes = STATES | ({"best.pt": 500} if best != step else {})

    def saver(name: str, size: int) -> Any:
        data = f"{name} {step} {life} ".encode() * size
        return lambda path: files.write_bytes(path, data[:size])

    contents = {name: saver(name, size) for name, size in sizes.items()}
    return checkpoint_folder.write(os.path.join(run.local, "checkpoints"), step, contents, {"best_step": best})


def pushed(run: RemoteRun, *steps: int, keep_last: int = 9) -> None:
    for step in steps:
        save(run, step)
        run.push(step, keep_last)


def steps_there(url: str) -> list[int]:
    return checkpoint_folder.steps_of(files.list_names(files.join(url, "checkpoints")))


def at(url: str, step: int, name: str) -> str:
    return files.join(url, f"checkpoints/{name_of(step)}/{name}")


def fetched(url: str, mirror: Path) -> tuple[int | None, list[str]]:
    """The step that a machine with this mirror goes on from, and what was passed over."""
    notes = RemoteRun(url, str(mirror)).fetch()
    path, manifest, _ = checkpoint_folder.newest(str(mirror / "checkpoints"))
    return (manifest["step"] if path else None), notes


def contents(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in os.listdir(folder)}


# There and back.


def test_another_machine_gets_the_newest_checkpoint_byte_by_byte(run: RemoteRun, url: str, tmp_path: Path) -> None:
    pushed(run, 10, 20)
    assert fetched(url, tmp_path / "other") == (20, [])
    for part in ("config.toml", *(f"checkpoints/{name_of(20)}/{name}" for name in (*STATES, MANIFEST))):
        ours, theirs = Path(run.local, part), tmp_path / "other" / part
        assert ours.read_bytes() == theirs.read_bytes() == files.read_bytes(files.join(url, part))
    assert os.listdir(tmp_path / "other" / "checkpoints") == [name_of(20)], "and nothing else"


def test_what_lies_at_the_top_is_of_the_checkpoint_not_of_training_that_went_on(run: RemoteRun, url: str) -> None:
    folder = save(run, 10)
    for name in ("metrics.jsonl", "model.pt"):
        Path(run.local, name).write_bytes(b"of a later step")
    run.push(10, 2)
    for name in ("metrics.jsonl", "model.pt"):
        assert files.read_bytes(files.join(url, name)) == Path(folder, name).read_bytes()


def test_the_model_at_the_top_is_the_best_so_far(run: RemoteRun, url: str) -> None:
    first = save(run, 10)
    run.push(10, 2)
    second = save(run, 20, best=10)
    run.push(20, 2)
    assert files.read_bytes(files.join(url, "model.pt")) == Path(second, "best.pt").read_bytes()
    checkpoint_folder.write(os.path.join(run.local, "checkpoints"), 30, {"metrics.jsonl": _touch}, {"best_step": None})
    run.push(30, 2)
    assert files.read_bytes(files.join(url, "model.pt")) == Path(second, "best.pt").read_bytes()
    assert Path(first, "model.pt").read_bytes() != Path(second, "best.pt").read_bytes()


def _touch(path: str) -> None:
    files.write_bytes(path, b"x")


def test_a_run_without_checkpoints_is_three_files(run: RemoteRun, url: str, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "model.pt"):
        files.write_bytes(os.path.join(run.local, name), name.encode())
    assert run.missing(None) == ["metrics.jsonl", "model.pt"]
    run.push(None, 2)
    assert files.list_names(url) == ["config.toml", "metrics.jsonl", "model.pt"]
    assert run.missing(None) == []
    assert fetched(url, tmp_path / "other") == (None, [])


def test_an_empty_place_holds_no_run(url: str, tmp_path: Path) -> None:
    assert fetched(url, tmp_path / "mirror") == (None, [])
    assert os.listdir(tmp_path / "mirror") == []


def test_a_last_pass_that_has_all_there_sends_no_file_again(
    run: RemoteRun, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 10)
    other = RemoteRun(url, str(tmp_path / "other"))
    other.fetch()
    sent = counted(monkeypatch)
    for one in (run, other):
        one.push(10, 2)
    assert not [name for name in sent if "checkpoints" in name and not name.endswith(MANIFEST)]
    assert run.missing(10) == other.missing(10) == []


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that files are really sent to from now on, in their order."""
    sent: list[str] = []
    send, upload = gcs._send, files.upload

    def note_gcs(blob: Any, *args: Any) -> int:
        sent.append(f"gs://{blob.bucket.name}/{blob.name}")
        return send(blob, *args)

    def note(local: str, url: str, **options: Any) -> int | None:
        if not url.startswith("gs:"):
            sent.append(url)
        return upload(local, url, **options)

    monkeypatch.setattr(gcs, "_send", note_gcs)
    monkeypatch.setattr(files, "upload", note)
    return sent


def test_the_manifest_goes_after_all_it_lists_and_the_model_last(
    run: RemoteRun, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    sent = counted(monkeypatch)
    run.push(10, 2)
    names = [name.removeprefix(f"{url}/") for name in sent]
    folder = f"checkpoints/{name_of(10)}"
    assert names[0] == "metrics.jsonl"
    assert set(names[1:4]) == {f"{folder}/{name}" for name in STATES}
    assert names[4:] == [f"{folder}/{MANIFEST}", "model.pt"]


def test_older_checkpoints_and_leftovers_go_and_newer_ones_stay(run: RemoteRun, url: str) -> None:
    files.write_bytes(at(url, 5, "model.pt"), b"left by a kill")
    files.write_bytes(at(url, 99, "model.pt"), b"of another life")
    pushed(run, 10, 20)
    files.write_bytes(at(url, 25, "model.pt"), b"left by a kill")
    pushed(run, 30, keep_last=2)
    assert steps_there(url) == [99, 30, 20]
    pushed(run, 40, keep_last=1)
    assert steps_there(url) == [99, 40]
    assert run.unpruned is None


def test_of_a_checkpoint_that_goes_the_manifest_goes_first(
    run: RemoteRun, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 10)
    save(run, 20)
    removed: list[str] = []
    remove = files.remove
    monkeypatch.setattr(files, "remove", lambda path: (removed.append(path), remove(path)))
    run.push(20, 1)
    removed = [path for path in removed if path.startswith(url)]
    assert removed[0] == at(url, 10, MANIFEST)
    assert set(removed[1:-1]) == {at(url, 10, name) for name in STATES}


def test_a_pass_that_may_not_remove_has_done_its_work(
    run: RemoteRun, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 10)

    def refuse(path: str) -> None:
        raise files.DeniedError("retention policy")

    save(run, 20)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", refuse)
        run.push(20, 1)
    assert "retention policy" in str(run.unpruned)
    assert run.missing(20) == []
    pushed(run, 30, keep_last=1)
    assert run.unpruned is None
    assert steps_there(url) == [30]


# What does not count.


def _cut(url: str) -> None:
    files.write_bytes(at(url, 20, "model.pt"), b"half")


def _flip(url: str) -> None:
    data = bytearray(files.read_bytes(at(url, 20, "model.pt")))
    data[7] ^= 1
    files.write_bytes(at(url, 20, "model.pt"), bytes(data))


def _change_manifest(**changes: Any) -> Any:
    def change(url: str) -> None:
        manifest = json.loads(files.read_bytes(at(url, 20, MANIFEST)))
        files.write_bytes(at(url, 20, MANIFEST), json.dumps(manifest | changes).encode())

    return change


DAMAGES = {
    "no manifest": (lambda url: files.remove(at(url, 20, MANIFEST)), "was never completed"),
    "no file": (lambda url: files.remove(at(url, 20, "training.pt")), "training.pt is missing"),
    "cut file": (_cut, "model.pt has 4 bytes, and had 700"),
    "flipped bit": (_flip, "model.pt is damaged"),
    "cut manifest": (lambda url: files.write_bytes(at(url, 20, MANIFEST), b'{"format'), "is damaged"),
    "long manifest": (lambda url: files.write_bytes(at(url, 20, MANIFEST), b" " * (2**20 + 1)), "is damaged"),
    "step of another": (_change_manifest(step=10), "it is of step 10"),
    "leads out": (_change_manifest(files={"../../evil": {"size": 1, "crc32c": ""}}), "is damaged"),
    "endless": (_change_manifest(files={"model.pt": {"size": 2**60, "crc32c": ""}}), "and had 1152921504606846976"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run: RemoteRun, url: str, tmp_path: Path, damage: str
) -> None:
    pushed(run, 10, 20)
    spoil, words = DAMAGES[damage]
    spoil(url)
    step, (note,) = fetched(url, tmp_path / "other")
    assert step == 10
    assert words in note
    assert name_of(20) in note
    assert not (tmp_path / "evil").exists()
    assert os.listdir(tmp_path / "other" / "checkpoints") == [name_of(10)], "nothing half-fetched stays"


def test_a_file_of_the_wrong_size_is_not_downloaded(
    run: RemoteRun, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 20)
    _cut(url)
    monkeypatch.setattr(files, "download", lambda *_: pytest.fail("downloaded"))
    assert fetched(url, tmp_path / "other")[0] is None


def test_a_damaged_checkpoint_here_does_not_replace_a_good_one_there(run: RemoteRun, url: str) -> None:
    pushed(run, 10)
    Path(save(run, 20), "model.pt").write_bytes(b"rot")
    with pytest.raises(StorageError, match=r"model.pt has 3 bytes.*not sent"):
        run.push(20, 1)
    assert steps_there(url) == [10]


# The mirror.


@pytest.mark.parametrize("begun", [False, True])
def test_a_newer_checkpoint_of_the_same_run_stays_in_the_mirror(run: RemoteRun, url: str, begun: bool) -> None:
    pushed(run, 10)
    folder = save(run, 20)
    checkpoint_folder.prune(os.path.dirname(folder), {20})
    before = contents(folder)
    if begun:
        files.write_bytes(at(url, 20, "model.pt"), b"as far as the upload came")
    assert fetched(url, Path(run.local)) == (20, [])
    assert contents(folder) == before
    assert os.listdir(os.path.dirname(folder)) == [name_of(20)], "the older one is not needed"
    again = RemoteRun(url, run.local)
    again.fetch()
    again.push(20, 1)
    assert steps_there(url) == [20]


def test_a_newer_checkpoint_there_comes_beside_an_older_one_here(run: RemoteRun, url: str, tmp_path: Path) -> None:
    pushed(run, 10)
    assert fetched(url, tmp_path / "other") == (10, [])
    pushed(run, 20)
    assert fetched(url, tmp_path / "other") == (20, [])


def test_of_two_checkpoints_of_a_step_the_one_at_the_url_counts(run: RemoteRun, url: str) -> None:
    pushed(run, 10)
    theirs = contents(os.path.join(run.local, "checkpoints", name_of(10)))
    folder = save(run, 10, life=1)
    assert contents(folder) != theirs
    assert fetched(url, Path(run.local)) == (10, [])
    assert contents(folder) == theirs


@pytest.mark.parametrize("there", [None, b"# another run\n"])
def test_the_mirror_of_another_run_is_removed(run: RemoteRun, url: str, there: bytes | None) -> None:
    pushed(run, 10)
    save(run, 20)
    files.remove(at(url, 10, MANIFEST))
    files.remove(files.join(url, "config.toml"))
    if there:
        files.write_bytes(files.join(url, "config.toml"), there)
    assert fetched(url, Path(run.local))[0] is None
    assert contents(run.local) == ({"config.toml": there} if there else {})


def test_what_is_right_in_the_mirror_is_not_fetched_again(
    run: RemoteRun, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 10)
    Path(run.local, "checkpoints", name_of(10), "model.pt").write_bytes(b"rot")
    download, remote_ones = files.download, []

    def note(source: str, target: str) -> None:
        remote_ones.extend([source] * files.is_remote(source))
        download(source, target)

    monkeypatch.setattr(files, "download", note)
    assert fetched(url, Path(run.local)) == (10, [])
    assert remote_ones == [at(url, 10, "model.pt")]
    assert fetched(url, Path(run.local)) == (10, [])
    assert len(remote_ones) == 1


def test_a_fetch_that_breaks_off_is_an_error_and_never_no_run(
    run: RemoteRun, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its questions stays without an answer."""
    pushed(run, 10)
    save(run, 20)
    before, broken = contents(os.path.join(run.local, "checkpoints", name_of(20))), 0
    originals = {name: getattr(files, name) for name in ("look", "list_names", "read_bytes", "download")}

    def breaking_at(n: int) -> None:
        asked: list[str] = []
        for name, original in originals.items():

            def ask(path: str, *rest: Any, original: Any = original) -> Any:
                asked.extend([path] * files.is_remote(path))
                if files.is_remote(path) and len(asked) == n:
                    raise StorageError("no answer")
                return original(path, *rest)

            monkeypatch.setattr(files, name, ask)

    for n in range(1, 100):
        breaking_at(n)
        try:
            passed_over = RemoteRun(url, str(tmp_path / f"other-{n}")).fetch()
        except StorageError:
            broken += 1
        else:
            assert passed_over == []
            break
        breaking_at(n)
        with contextlib.suppress(StorageError):  # there is less to ask where the checkpoint is in the mirror
            RemoteRun(url, run.local).fetch()
        assert contents(os.path.join(run.local, "checkpoints", name_of(20))) == before
    assert broken >= 10


# What comes after the last checkpoint.

PAGES = ("report.html", "MODEL_CARD.md")
OURS = model_card(Recorded("run", [])).splitlines()[-1].encode()  # a card that nobody has edited ends so


def ended(run: RemoteRun, step: int, status: str = "finished", pages: tuple[str, ...] = PAGES) -> bytes:
    """The lines of a run that has ended in the mirror after a checkpoint; its pages lie beside them."""
    lines = Path(run.local, "checkpoints", name_of(step), "metrics.jsonl").read_bytes()
    lines += json.dumps({"step": step, "status": status}).encode() + b"\n"
    for name in PAGES:
        files.remove(os.path.join(run.local, name))
    for name in pages:
        files.write_bytes(os.path.join(run.local, name), f"{name} {step} {status}".encode() + OURS)
    files.write_bytes(os.path.join(run.local, "metrics.jsonl"), lines)
    return lines


def pages_at(url: str) -> set[bytes]:
    found = {files.read_bytes(files.join(url, name)) for name in PAGES if name in files.list_names(url)}
    return {page.removesuffix(OURS) for page in found}


def lines_at(url: str) -> bytes:
    return files.read_bytes(files.join(url, "metrics.jsonl"))


def test_pages_and_the_last_lines_arrive(run: RemoteRun, url: str) -> None:
    pushed(run, 10)
    lines = ended(run, 10)
    run.push_last()
    assert lines_at(url) == lines
    assert pages_at(url) == {b"report.html 10 finished", b"MODEL_CARD.md 10 finished"}


@pytest.mark.parametrize("page", PAGES)
def test_without_both_pages_the_last_lines_stay_here(run: RemoteRun, url: str, page: str) -> None:
    """They would tell that the pages are there."""
    pushed(run, 10)
    ended(run, 10, "interrupted")
    run.push_last()
    before = lines_at(url)
    ended(run, 10, "finished", (page,))
    run.push_last()
    assert lines_at(url) == before
    assert f"{page} 10 finished".encode() in pages_at(url)


def test_a_run_that_went_down_sends_what_it_had_left_once(
    run: RemoteRun, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(run, 10)
    save(run, 20)
    lines = ended(run, 20)
    for number in range(2):
        again = RemoteRun(url, run.local)
        again.fetch()
        sent = counted(monkeypatch)
        again.push_left(20, 9)
        assert (lines_at(url), pages_at(url)) == (lines, {b"report.html 20 finished", b"MODEL_CARD.md 20 finished"})
        assert any("report.html" in one for one in sent) == (number == 0)
    assert steps_there(url) == [20, 10]


def test_lines_at_the_url_are_not_shortened_where_they_go_on_from_the_checkpoint(
    run: RemoteRun, url: str, tmp_path: Path
) -> None:
    pushed(run, 10)
    lines = ended(run, 10)
    run.push_last()
    other = RemoteRun(url, str(tmp_path / "other"))
    other.fetch()
    other.push_left(10, 9)
    assert lines_at(url) == lines


def test_longer_lines_of_an_earlier_end_are_replaced(run: RemoteRun, url: str) -> None:
    """A run that has ended, with much to say, goes on for a step and goes down."""
    pushed(run, 10)
    ended(run, 10, "finished" * 100)
    run.push_last()
    here = save(run, 20)
    again = RemoteRun(url, run.local)
    again.fetch()
    again.push_left(20, 9)
    assert lines_at(url) == Path(here, "metrics.jsonl").read_bytes()
    assert pages_at(url) == {f"{name} 10 {'finished' * 100}".encode() for name in PAGES}


def test_pages_of_an_earlier_end_in_the_mirror_replace_none_of_a_later_end(
    run: RemoteRun, url: str, tmp_path: Path
) -> None:
    pushed(run, 10)
    ended(run, 10, "interrupted")  # which never arrived
    other = RemoteRun(url, str(tmp_path / "other"))
    other.fetch()
    pushed(other, 20)
    lines = ended(other, 20)
    other.push_last()
    again = RemoteRun(url, run.local)
    again.fetch()
    again.push_left(20, 9)
    assert lines_at(url) == lines
    assert pages_at(url) == {b"report.html 20 finished", b"MODEL_CARD.md 20 finished"}


def test_a_second_writer_replaces_no_page(fake: FakeGCS, tmp_path: Path) -> None:
    url = "gs://bucket/run"
    first = begun(url, tmp_path / "first")
    pushed(first, 10)
    second = RemoteRun(url, str(tmp_path / "second"))
    second.fetch()
    ended(second, 10, "interrupted")
    pushed(first, 20)
    ended(first, 20)
    first.push_last()
    before = fake.data("bucket")
    with pytest.raises(TakenError, match=r"run/metrics\.jsonl: another process"):
        second.push_last()
    assert fake.data("bucket") == before


def test_a_lost_answer_to_the_last_lines_is_not_a_second_writer(fake: FakeGCS, tmp_path: Path) -> None:
    run = begun("gs://bucket/run", tmp_path / "mirror")
    pushed(run, 10)
    lines = ended(run, 10)
    version = run._versions["metrics.jsonl"]
    run.push_last()
    run._versions["metrics.jsonl"] = version  # as if the answer had not come
    run.push_last()
    assert lines_at("gs://bucket/run") == lines


# One writer.


def test_of_two_runs_begun_at_once_the_second_is_refused(fake: FakeGCS, tmp_path: Path) -> None:
    first, second = (RemoteRun("gs://bucket/run", str(tmp_path / name)) for name in "ab")
    for run, config in ((first, b"# first"), (second, b"# second")):
        run.fetch()
        files.write_bytes(os.path.join(run.local, "config.toml"), config)
    first.claim()
    first.claim()
    with pytest.raises(TakenError, match="one folder per run"):
        second.claim()
    assert fake.data("bucket") == {"run/config.toml": b"# first"}


def test_a_claim_without_a_fetch_expects_an_empty_place(fake: FakeGCS, tmp_path: Path) -> None:
    fake.put("bucket", "run/config.toml", b"theirs")
    run = RemoteRun("gs://bucket/run", str(tmp_path))
    files.write_bytes(str(tmp_path / "config.toml"), b"ours")
    with pytest.raises(TakenError):
        run.claim()
    run = RemoteRun("gs://bucket/new", str(tmp_path))
    run.claim()
    assert fake.data("bucket") == {"run/config.toml": b"theirs", "new/config.toml": b"ours"}


def test_a_second_writer_is_refused_before_it_replaced_anything(fake: FakeGCS, tmp_path: Path) -> None:
    url = "gs://bucket/run"
    first = begun(url, tmp_path / "first")
    pushed(first, 10)
    second = RemoteRun(url, str(tmp_path / "second"))
    assert second.fetch() == []
    pushed(first, 20)
    before = fake.data("bucket")
    save(second, 20, life=1)
    for _ in range(2):
        with pytest.raises(TakenError, match=r"run/metrics\.jsonl: another process"):
            second.push(20, 1)
    assert fake.data("bucket") == before
    pushed(first, 30)


def test_a_pass_whose_answer_was_lost_is_not_another_writer(fake: FakeGCS, tmp_path: Path) -> None:
    """The bytes of metrics.jsonl arrive, the answer does not, and by the next pass there are more lines."""
    run = begun("gs://bucket/run", tmp_path / "mirror")
    pushed(run, 10)
    save(run, 20)
    requests = len(fake.requests)
    fake.fail("", "GET", "metrics.jsonl")
    fake.fail("lost", "POST", "upload")
    fake.fail(403, "GET", "metrics.jsonl")
    with pytest.raises(StorageError, match="403"):
        run.push(20, 2)
    assert any("POST" in request for request in fake.requests[requests:])
    assert fake.data("bucket")["run/metrics.jsonl"].startswith(b"metrics.jsonl 20")
    fake.faults.clear()
    pushed(run, 30)
    assert steps_there("gs://bucket/run") == [30, 10]


def test_uploads_run_at_most_some_at_once_and_stop_at_the_first_failure() -> None:
    running, most, done = 0, 0, []
    together, lock = threading.Barrier(remote.MAX_AT_ONCE, timeout=10), threading.Lock()

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
            done.append(1)

    remote._at_once([job] * (3 * remote.MAX_AT_ONCE))
    assert len(done) == 3 * remote.MAX_AT_ONCE
    assert most == remote.MAX_AT_ONCE

    begun_jobs: list[int] = []

    def refused() -> None:
        begun_jobs.append(1)
        together.wait()
        raise TakenError("theirs") if len(begun_jobs) == remote.MAX_AT_ONCE else StorageError("busy")

    with pytest.raises(StorageError):
        remote._at_once([refused] * 20)
    assert len(begun_jobs) == remote.MAX_AT_ONCE


# A machine or a network that goes down for good at any request.


@pytest.fixture
def hasty(fake: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> FakeGCS:
    """A service that is given up at once, and large files in two chunks."""
    for name in ("RETRY", "CHECK_RETRY"):
        monkeypatch.setattr(gcs, f"{name}_SECONDS", 0.01)
    monkeypatch.setitem(STATES, "model.pt", 400_000)
    return fake


@pytest.mark.parametrize(("fault", "stride"), [("lost", 1), ("cut_up", 3)])
def test_whenever_an_upload_is_cut_off_the_url_has_one_of_two_whole_checkpoints(
    hasty: FakeGCS, tmp_path: Path, fault: str, stride: int
) -> None:
    """After request n nothing comes any more, for every n: to the service, a kill and an outage look alike.

    What is cut off in the middle of a request leaves no more than what is cut off before it, so a part will do.
    """
    url, found = "gs://bucket/run", []
    run = begun(url, tmp_path / "mirror")
    pushed(run, 10)
    wholes = {10: contents(os.path.join(run.local, "checkpoints", name_of(10))), 20: contents(save(run, 20))}
    before = hasty.buckets["bucket"].copy()
    for n in range(1, 200, stride):
        hasty.buckets["bucket"] = before.copy()
        this = copy.deepcopy(run)
        hasty.lives, hasty.last_words = n, fault
        try:
            this.push(20, 1)
            all_done = this.unpruned is None
        except StorageError:
            all_done = False
        hasty.lives = None
        found.append(_whole(url, tmp_path / f"other-{n}", wholes))
        this.push(20, 1)  # and when the network is back, all arrives
        assert _is_right(hasty.data("bucket"), wholes[20])
        if all_done:
            break
    assert set(found) == {10, 20}
    assert found[0] == 10
    assert found[-1] == 20
    assert len(found) > 20 / stride


def test_whenever_the_last_upload_is_cut_off_new_lines_are_never_beside_old_pages(
    hasty: FakeGCS, tmp_path: Path
) -> None:
    url, found = "gs://bucket/run", []
    run = begun(url, tmp_path / "mirror")
    pushed(run, 10)
    ended(run, 10, "interrupted")
    run.push_last()
    lines, new = ended(run, 10), {b"report.html 10 finished", b"MODEL_CARD.md 10 finished"}
    before = hasty.buckets["bucket"].copy()
    for n in range(1, 50):
        hasty.buckets["bucket"] = before.copy()
        this = copy.deepcopy(run)
        hasty.lives, hasty.last_words = n, "lost"
        try:
            this.push_last()
            all_done = True
        except StorageError:
            all_done = False
        hasty.lives = None
        found.append(lines_at(url) == lines)
        assert pages_at(url) == new or not found[-1]
        this.push_last()  # and when the network is back, all arrives
        assert (lines_at(url), pages_at(url)) == (lines, new)
        if all_done:
            break
    assert found[0] is False
    assert all_done
    assert len(found) > 5


def _is_right(data: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    """True when a bucket holds this checkpoint of step 20, no other one, and its model and metrics at the top."""
    expected = {f"run/checkpoints/{name_of(20)}/{name}": content for name, content in whole.items()}
    expected |= {f"run/{name}": whole[name] for name in ("model.pt", "metrics.jsonl")}
    return data == expected | {"run/config.toml": b"# a run\n"}


def _whole(url: str, mirror: Path, wholes: dict[int, dict[str, bytes]]) -> int:
    """The step of the checkpoint that comes from the URL, which is byte by byte one of these."""
    step, _ = fetched(url, mirror)
    assert step is not None
    assert contents(str(mirror / "checkpoints" / name_of(step))) == wholes[step]
    return step


# Copies of single files.


def test_a_copy_is_used_again_while_the_object_is_the_same(fake: FakeGCS) -> None:
    url = "gs://bucket/copies/model.pt"
    fake.put("bucket", "copies/model.pt", b"first")
    local = cached.cached_copy(url)
    assert Path(local).read_bytes() == b"first"
    assert cached.cached_copy(url) == local
    assert sum("alt=media" in request for request in fake.requests) == 1
    fake.put("bucket", "copies/model.pt", b"other")
    assert Path(cached.cached_copy(url)).read_bytes() == b"other"
    Path(local).write_bytes(b"rotte")
    assert Path(cached.cached_copy(url)).read_bytes() == b"other"
    fake.buckets["bucket"].clear()
    with pytest.raises(FileNotFoundError, match=url):
        cached.cached_copy(url)


def test_a_copy_without_a_checksum_to_compare_is_fetched_each_time(tmp_path: Path) -> None:
    url = (tmp_path / "model.pt").as_uri()
    for data in (b"1", b"2"):
        (tmp_path / "model.pt").write_bytes(data)
        assert Path(cached.cached_copy(url)).read_bytes() == data
    assert cached.cached_copy(str(tmp_path / "model.pt")) == str(tmp_path / "model.pt")


def test_copies_are_listed_and_cleaned_with_the_rest_of_the_cache(fake: FakeGCS) -> None:
    url = "gs://bucket/listed/model.pt"
    fake.put("bucket", "listed/model.pt", b"x")
    local = cached.cached_copy(url)
    (entry,) = [entry for entry in cache.entries() if entry.name == url]
    assert cache.remove(entry)
    assert not os.path.exists(local)


def test_a_copy_wanted_twice_at_once_is_fetched_once(fake: FakeGCS) -> None:
    fake.put("bucket", "twice", b"x" * 1000)
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(Path(cached.cached_copy("gs://bucket/twice")).read_bytes()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"x" * 1000] * 2
    assert sum("alt=media" in request for request in fake.requests) == 1
