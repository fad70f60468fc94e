"""Laws of checkpoint folders: whole or absent, whatever fails; the newest that verifies is found; the right ones go."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import UserError
from slm.storage import checkpoint_folder, files
from slm.storage.checkpoint_folder import (
    MANIFEST,
    name_of,
    newest,
    prune,
    read_manifest,
    steps_of,
    sweep,
    verify,
    write,
)

CONTENT = {"model.pt": b"weights" * 99, "training.pt": b"moments" * 50}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain


def savers(content: dict[str, bytes] = CONTENT) -> dict[str, Callable[[str], None]]:
    return {name: lambda path, data=data: files.write_bytes(path, data) for name, data in content.items()}


def saved(parent: Path, *steps: int) -> list[Path]:
    return [Path(write(str(parent), step, savers(), {"status": "running"})) for step in steps]


def test_what_is_written_verifies_and_tells_what_it_was_told(tmp_path: Path) -> None:
    (path,) = saved(tmp_path / "checkpoints", 7)
    assert path.name == "step-00000007"
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST} == CONTENT
    manifest = verify(str(path))
    assert (manifest["step"], manifest["status"], set(manifest["files"])) == (7, "running", set(CONTENT))


@given(st.lists(st.integers(0, 10**15), max_size=8, unique=True))
def test_names_tell_their_steps_newest_first(steps: list[int]) -> None:
    others = ["step-1", "step-0000000x", "notes", "step-00000001.part", ".slm-aa.part", "xstep-00000001"]
    assert steps_of([*others, *map(name_of, steps)]) == sorted(steps, reverse=True)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The changes to a disk that follow, in order: what and of which name."""
    calls: list[tuple[str, ...]] = []

    def spy(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append((name, *(os.path.basename(str(argument)) for argument in arguments)))
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "rename"), (os, "replace"), (os, "remove"), (shutil, "rmtree"), (files, "flush")):
        spy(owner, name)
    return calls


def test_the_manifest_is_last_and_the_name_comes_after_all_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(monkeypatch)
    saved(tmp_path, 3)
    flushed_or_named = [call for call in calls if call[0] in ("replace", "rename", "flush")]
    named = [call[2] for call in flushed_or_named if call[0] == "replace"]
    assert named == [*CONTENT, MANIFEST]
    assert flushed_or_named[-3][0] == "flush"  # the folder, then its name, then the folder above
    assert flushed_or_named[-2][::2] == ("rename", name_of(3))
    assert flushed_or_named[-1] == ("flush", tmp_path.name)
    for number, call in enumerate(flushed_or_named):
        if call[0] == "replace":  # each file was flushed under its temporary name
            assert ("flush", call[1]) in flushed_or_named[:number]


def test_a_checkpoint_that_goes_loses_its_manifest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 3, 4)
    calls = calls_of(monkeypatch)
    prune(str(tmp_path), {4})
    assert [call for call in calls if call[0] in ("remove", "rmtree")][:2] == [
        ("remove", MANIFEST),
        ("rmtree", name_of(3)),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [name_of(4)]


OPERATIONS = [(os, "mkdir"), (os, "makedirs"), (os, "rename"), (os, "replace"), (os, "remove"), (shutil, "rmtree")]
CODES = [errno.ENOSPC, errno.EIO]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(("owner", "name"), [*OPERATIONS, (files, "flush"), (files, "fingerprint")], ids=str)
def test_whatever_fails_leaves_the_checkpoints_before_and_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, code: int
) -> None:
    saved(tmp_path, 1, 2)
    before = {path.name: verify(str(path)) for path in tmp_path.iterdir()}
    real, calls = getattr(owner, name), iter(range(99))

    def fail(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == number:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with contextlib.suppress(files.StorageError):  # and no other error
            if name in ("remove", "rmtree"):
                prune(str(tmp_path), {2})
            else:
                saved(tmp_path, 3)
    if name in ("remove", "rmtree"):
        assert newest(str(tmp_path))[1] == before[name_of(2)]
        return
    names = {path.name for path in tmp_path.iterdir()} - {name_of(3)}
    assert names == set(before)  # nothing unfinished is left either
    assert {name: verify(str(tmp_path / name)) for name in names} == before
    if (tmp_path / name_of(3)).exists():  # whole, even if the flush of the folder above it failed
        assert verify(str(tmp_path / name_of(3)))["step"] == 3
    saved(tmp_path, 3)
    assert verify(str(tmp_path / name_of(3)))["step"] == 3


def test_a_failure_of_any_other_kind_leaves_nothing_either(tmp_path: Path) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(str(tmp_path), 5, savers() | {"last": interrupted}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    write(str(tmp_path), 5, savers({"other": b"1"}), {})
    assert sorted(path.name for path in (tmp_path / name_of(5)).iterdir()) == [MANIFEST, "other"]


def _described(**values: Any) -> Callable[[Path], object]:
    return lambda path: (path / MANIFEST).write_text(json.dumps(json.loads((path / MANIFEST).read_text()) | values))


def _manifest(text: str) -> Callable[[Path], object]:
    return lambda path: (path / MANIFEST).write_text(text)


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    ("was never completed", lambda path: (path / MANIFEST).unlink()),
    ("model.pt is missing", lambda path: (path / "model.pt").unlink()),
    ("model.pt has 100 bytes, and had 693", lambda path: os.truncate(path / "model.pt", 100)),
    ("checksum is not that", lambda path: (path / "model.pt").write_bytes(b"W" + CONTENT["model.pt"][1:])),
    ("is no JSON", lambda path: os.truncate(path / MANIFEST, 50)),
    ("is no JSON", _manifest("[" * 100_000)),
    ("not the manifest of a checkpoint", _manifest("[]")),
    ("a manifest is not that long", _manifest(" " * (2**20 + 1))),
    ("upgrade slm", _described(format_version=2)),
    ("it is of step 8", _described(step=8)),
    ("does not describe its files", _described(step="9")),
    ("does not describe its files", _described(files={})),
    ("does not describe its files", _described(files={"../x": {"size": 1, "crc32c": ""}})),
    ("does not describe its files", _described(files={"model.pt": {"size": True, "crc32c": "x"}})),
]


@pytest.mark.parametrize(("words", "damage"), DAMAGES)
def test_the_newest_that_verifies_is_found_and_others_are_named(
    tmp_path: Path, words: str, damage: Callable[[Path], object]
) -> None:
    paths = saved(tmp_path, 7, 8, 9)
    damage(paths[2])
    found, manifest, passed_over = newest(str(tmp_path))
    assert (found, manifest["step"]) == (str(paths[1]), 8)
    assert len(passed_over) == 1
    assert words in passed_over[0]
    assert str(paths[2]) in passed_over[0]


@settings(max_examples=40)
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "changed"
    shutil.rmtree(path, ignore_errors=True)
    (checkpoint,) = saved(path, 4)
    file = checkpoint / data.draw(st.sampled_from(sorted(CONTENT)))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        verify(str(checkpoint))
    assert newest(str(path))[0] is None


@settings(max_examples=50)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(["format", "format_version", "step", "files", "a"]), inner,
    max_size=5)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="the/manifest"):
        read_manifest(data, "the/manifest")


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest(str(tmp_path / "absent")) == (None, {}, [])


@settings(max_examples=30)
@given(keep=st.sets(st.integers(1, 6), min_size=1))
def test_pruning_keeps_what_it_is_told_and_all_that_is_newer(
    tmp_path_factory: pytest.TempPathFactory, keep: set[int]
) -> None:
    parent = tmp_path_factory.getbasetemp() / "pruned"
    shutil.rmtree(parent, ignore_errors=True)
    for step in range(1, 7):
        (parent / name_of(step)).mkdir(parents=True)
    (parent / "notes.txt").write_text("mine")
    prune(str(parent), keep)
    assert steps_of(os.listdir(parent)) == sorted({*keep, *range(max(keep), 7)}, reverse=True)
    assert (parent / "notes.txt").exists()


def test_a_sweep_removes_only_what_kills_left(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for name in (".slm-00ff.part", ".mine.part", "a.part", ".slm-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    sweep(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {name_of(1), ".mine.part", "a.part", ".slm-x"}
    sweep(str(tmp_path / "absent"))


def test_a_disk_that_cannot_be_read_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def fail(path: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint_folder.os.path, "getsize", fail)
    with pytest.raises(files.StorageError, match="Cannot read"):
        newest(str(tmp_path))


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_a_checkpoint_replaces_another_leaves_one_of_the_two(renames: int, tmp_path: Path) -> None:
    script = f"""
import os, signal
from slm.storage import checkpoint_folder, files
rename, done = os.rename, []
def killing(source, target):
    rename(source, target)
    done.append(target)
    if len(done) == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
def write(text):
    checkpoint_folder.write({str(tmp_path)!r}, 3, {{"a": lambda path: files.write_bytes(path, text)}}, {{}})
write(b"old")
os.rename = killing
write(b"new")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    checkpoint_folder.sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["step-00000003"]
    checkpoint_folder.verify(str(tmp_path / "step-00000003"))
    assert (tmp_path / "step-00000003" / "a").read_bytes() == (b"old" if renames == 1 else b"new")
