"""Laws of the cache: a text is read once for all runs, and known by all that decides its tokens."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import make_text
from filelock import FileLock

from slm.config import UserError
from slm.data import cache, shards
from slm.data import prepare as prepare_module
from slm.data.manifest import MANIFEST, TOKENIZER
from slm.data.prepare import Job, prepare
from slm.data.shards import Prepared
from slm.data.tokenizer import Tokenizer, char_tokenizer
from slm.settings import as_settings, layered
from slm.storage import cached, files, listing

TEXT = make_text(300)
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the text, where even small texts are kept in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", 0)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "val.txt").write_text(TEXT[:400])
    return tmp_path


def made(data: Any = "text.txt", on_progress: Any = lambda *_: None, **keys: Any) -> Prepared:
    """The prepared data as training gets it."""
    keys, texts, val_texts = as_settings(data, {"tokenizer": "char", **keys})
    settings = layered(keys, "keyword")
    return Job(
        settings.data,
        texts,
        val_texts,
        vocab_size=settings.model.vocab_size,
        recheck=settings.options.recheck,
        on_progress=on_progress,
    ).run()


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no text may be read."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr(prepare_module, "take_survey", fail)


def keys_in_cache() -> list[str]:
    return [entry.key for entry in cache.entries()]


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_second_preparation_reads_no_text_and_changes_nothing(here: Path, request: pytest.FixtureRequest) -> None:
    first = made()
    before = states(here)
    request.getfixturevalue("unread")
    second = made(str(here / "text.txt"))
    assert second.fingerprint == first.fingerprint
    assert second.train[:].tolist() == first.train[:].tolist()
    assert states(here) == before


def test_a_small_text_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", len(TEXT))
    assert made().folder is None
    assert not (here / "cache").exists()
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", len(TEXT) - 1)
    assert made().folder is not None


def test_what_slm_prepare_left_is_found_by_training_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", 10**6)
    for data in ("text.txt", [TEXT]):
        folder = prepare(data, tokenizer="char")
        assert made(data).folder == folder


CHANGES: list[dict[str, Any]] = [
    {},
    {"tokenizer": "byte"},
    {"tokenizer": "bpe"},
    {"tokenizer": "bpe", "vocab_size": 300},
    {"tokenizer": "tokenizer.json"},
    {"val_fraction": 0.2},
    {"text_field": "content"},
    {"split_documents_on": "\n"},
    {"val_data": "val.txt"},
    {"data": "val.txt"},
    {"data": "copy.txt"},
]


def test_the_key_changes_with_everything_that_decides_the_tokens(here: Path) -> None:
    (here / "copy.txt").write_text(TEXT)
    (here / "tokenizer.json").write_text(char_tokenizer(["abcdefgh"]).to_json())
    keys = [made(**change).about["key"] for change in CHANGES]
    (here / "tokenizer.json").write_text(char_tokenizer(["abcdefghi"]).to_json())
    keys.append(made(tokenizer="tokenizer.json").about["key"])
    stat = os.stat("val.txt")
    os.utime("val.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**6))  # a millisecond
    keys += [made("val.txt").about["key"], made(val_data="val.txt").about["key"]]
    (here / "text.txt").write_text(TEXT + "a")
    keys.append(made().about["key"])
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(keys_in_cache())


def test_the_key_stays_where_the_tokens_do(here: Path) -> None:
    key = made().about["key"]
    assert made(vocab_size=300).about["key"] == key  # a bound for bpe alone
    assert made("./text.txt").about["key"] == key
    assert made(Path(here / "text.txt")).about["key"] == key
    assert made(["the text"]).about["key"] != key


def test_a_changed_text_of_equal_size_and_date_is_found_when_it_is_looked_for() -> None:
    before, stat = made(), os.stat("text.txt")
    Path("text.txt").write_text(TEXT.replace("cat", "cow"))
    os.utime("text.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made().fingerprint == before.fingerprint
    again = made(recheck=True)
    assert again.fingerprint != before.fingerprint
    assert "cow" in again.tokenizer.decode(again.train[:].tolist())
    assert made().fingerprint == again.fingerprint
    assert len(keys_in_cache()) == 1


def test_a_damaged_shard_is_made_anew_once_it_is_noticed_and_a_good_one_stays(here: Path) -> None:
    folder = made().folder
    assert folder
    before = states(Path(folder))
    made(recheck=True)
    assert states(Path(folder)) == before
    shard = next(Path(folder).glob("train-*.bin"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    made()
    assert shard.read_bytes() == data
    made(recheck=True)
    assert shard.read_bytes() == before[shard.name][1]
    shard.write_bytes(data[:-2])
    made()
    assert shard.read_bytes() == before[shard.name][1]


def test_texts_from_python_are_known_by_their_content(encoded_pieces: list[int]) -> None:
    texts = TEXT.splitlines()
    first = made(texts)
    encoded_pieces.clear()
    assert made(line for line in texts).folder == first.folder
    assert not encoded_pieces
    assert made(texts[1:]).folder != first.folder
    assert made([TEXT]).folder != first.folder
    assert made(texts, val_fraction=0.2).folder != first.folder
    assert made(texts, val_data="val.txt").folder != first.folder


@pytest.fixture
def encoded_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever something is encoded."""
    seen: list[int] = []
    encode = Tokenizer.encode_pieces

    def spy(self: Tokenizer, pieces: list[str]) -> Any:
        seen.append(len(pieces))
        return encode(self, pieces)

    monkeypatch.setattr(Tokenizer, "encode_pieces", spy)
    return seen


def test_what_is_not_finished_is_not_trusted_but_finished(here: Path) -> None:
    whole = made()
    expected = whole.train[:].tolist()
    folder = Path(str(whole.folder))
    (folder / MANIFEST).unlink()
    for shard in folder.glob("*.bin"):
        shard.write_bytes(b"\1\0" * 5)
    again = made()
    assert again.folder == str(folder)
    assert again.train[:].tolist() == expected


def test_of_two_preparers_the_second_waits_and_takes_the_work_of_the_first(
    encoded_pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, told = threading.Event(), []
    results: list[Prepared] = []

    def on_progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("waiting"):
            waiting.set()

    second = threading.Thread(target=lambda: results.append(made(on_progress=on_progress)))

    def first(what: str, done: int, total: int | None) -> None:
        told.append(what)
        if what == "tokenizing" and not second.ident:
            second.start()
            assert waiting.wait(20)

    results.append(made(on_progress=first))
    second.join(20)
    assert [result.folder for result in results] == [results[0].folder] * 2
    assert len(encoded_pieces) == 1
    assert not any(what.startswith("waiting") for what in told)


def test_a_lock_that_nobody_holds_any_more_stops_nobody(here: Path) -> None:
    made()
    (lock,) = (here / "cache").glob("*.lock")
    cache.remove(cache.entries()[0])
    told: list[str] = []
    made(on_progress=lambda what, done, total: told.append(what))
    assert not any(what.startswith("waiting") for what in told)
    with FileLock(lock).acquire(timeout=0):
        cache.remove(cache.entries()[0])


def test_a_cache_that_cannot_be_written_names_the_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_CACHE", str(here / "text.txt" / "cache"))
    with pytest.raises(files.StorageError, match="SLM_CACHE"):
        made()


def test_the_folder_is_that_of_the_variables_or_of_the_user(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_CACHE", "cache")
    assert cached.cache_folder() == str(here / "cache")
    monkeypatch.delenv("SLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "caches"))
    assert cached.cache_folder() == str(here / "caches" / "slm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    assert cached.cache_folder() == str(here / ".cache" / "slm")


def test_entries_tell_what_is_kept_and_go_when_they_are_removed(here: Path) -> None:
    assert cache.entries() == []
    folders = {made().folder, made("val.txt").folder}
    with pytest.raises(KeyboardInterrupt):
        made(tokenizer="byte", on_progress=_die_when_tokenizing)
    entries = cache.entries()
    assert [entry.name for entry in entries] == ["text.txt", "unfinished: text.txt", "val.txt"]
    assert {entry.folder for entry in entries} > folders
    for entry in entries:
        paths = Path(entry.folder).iterdir()
        assert entry.num_bytes == sum(path.stat().st_size for path in paths) > 0
    cache.remove(entries[0])
    assert cache.entries() == entries[1:]
    assert not os.path.exists(entries[0].folder)


def _die_when_tokenizing(what: str, done: int, total: int | None) -> None:
    if what == "tokenizing":
        raise KeyboardInterrupt


def test_a_copy_from_afar_that_lost_a_shard_is_fetched_anew(here: Path) -> None:
    url = "memory://cache-lost/prepared"
    manifest = _uploaded(here, url)
    local = Path(cache.local_folder(url, manifest, recheck=False, on_wait=_never))
    (local / manifest["shards"][0]["name"]).unlink()
    cache.local_folder(url, manifest, recheck=False, on_wait=_never)
    assert all(shards.is_whole(str(local), shard) for shard in manifest["shards"])


def test_two_names_of_a_folder_are_one_lock(here: Path) -> None:
    (here / "out").mkdir()
    (here / "link").symlink_to("out")
    with cached.locked("out", _never), cached.locked("elsewhere", _never):
        assert cached.lock_path("link") == cached.lock_path("out") != cached.lock_path("elsewhere")


def test_what_is_not_ours_is_no_entry(here: Path) -> None:
    (here / "cache" / "fedcba9876543210").mkdir(parents=True)
    (here / "cache" / "fedcba9876543210" / "thesis.txt").write_text("mine")
    for name in ("holiday-pictures", "0123456789abcde", "0123456789ABCDEF", "x"):
        (here / "cache" / name).mkdir(parents=True)
    (here / "cache" / "0123456789abcdef").touch()
    assert cache.entries() == []


@pytest.mark.parametrize("stamp", ["1", "2"])
def test_a_file_from_afar_is_fetched_once_for_each_state_of_it(here: Path, stamp: str) -> None:
    url = f"memory://cache-{stamp}/train.bin"
    files.write_bytes(url, b"\1\0\2\0")
    told = listing.find(url)[0]
    info = listing.FileInfo(url, told.size, stamp)
    path = cache.local_copy(info, lambda: None)
    assert Path(path).name == "train.bin"
    files.write_bytes(url, b"\3\0\4\0")
    assert Path(cache.local_copy(info, lambda: None)).read_bytes() == b"\1\0\2\0"
    newer = listing.FileInfo(url, told.size, f"{stamp} later")
    assert Path(cache.local_copy(newer, lambda: None)).read_bytes() == b"\3\0\4\0"
    assert [entry.name for entry in cache.entries()] == [url, url]
    assert cache.local_copy(listing.FileInfo("text.txt", 1, ""), lambda: None) == "text.txt"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are downloaded from now on."""
    names: list[str] = []
    download = files.download

    def spy(url: str, path: str) -> None:
        names.append(url.rpartition("/")[2])
        download(url, path)

    monkeypatch.setattr(files, "download", spy)
    return names


def _uploaded(here: Path, url: str) -> dict[str, Any]:
    """The manifest of the text's tokens, in several shards, at a URL."""
    folder = Path(prepare("text.txt", tokenizer="char", out=here / "out"))
    for path in folder.iterdir():
        files.upload(str(path), files.join(url, path.name))
    manifest = shards.read_manifest(url)
    assert manifest
    return manifest


def test_a_folder_from_afar_is_taken_only_whole(here: Path) -> None:
    url = "memory://cache-folder/prepared"
    manifest = _uploaded(here, url)
    shard = manifest["shards"][0]["name"]
    good = files.read_bytes(files.join(url, shard))
    files.write_bytes(files.join(url, shard), b"\7" + good[1:])
    with pytest.raises(UserError, match=f"{shard} is damaged"):
        cache.local_folder(url, manifest, recheck=False, on_wait=_never)
    files.write_bytes(files.join(url, shard), good)
    local = Path(cache.local_folder(url, manifest, recheck=False, on_wait=_never))
    assert {path.name for path in local.iterdir()} == {path.name for path in (here / "out").iterdir()}
    assert hashlib.sha256((local / shard).read_bytes()).hexdigest() == manifest["shards"][0]["sha256"]
    assert json.loads((local / MANIFEST).read_text()) == manifest
    files.remove(files.join(url, shard))
    assert cache.local_folder(url, manifest, recheck=False, on_wait=_never) == str(local)


def _never() -> None:
    raise AssertionError("nobody else is there")


def test_what_of_a_folder_from_afar_is_here_is_not_fetched_again(here: Path, fetched: list[str]) -> None:
    url = "memory://cache-resume/prepared"
    manifest = _uploaded(here, url)
    first, last = (manifest["shards"][number]["name"] for number in (0, -1))
    there = files.read_bytes(files.join(url, last))
    files.remove(files.join(url, last))
    with pytest.raises(files.MissingError):
        cache.local_folder(url, manifest, recheck=False, on_wait=_never)
    files.write_bytes(files.join(url, last), there)
    fetched.clear()
    local = Path(cache.local_folder(url, manifest, recheck=False, on_wait=_never))
    assert fetched == [TOKENIZER, last]
    (local / first).write_bytes(b"\7" + (local / first).read_bytes()[1:])
    cache.local_folder(url, manifest, recheck=False, on_wait=_never)
    assert fetched == [TOKENIZER, last]
    cache.local_folder(url, manifest, recheck=True, on_wait=_never)
    assert fetched == [TOKENIZER, last, TOKENIZER, first]
    assert all(shards.is_whole(str(local), shard) for shard in manifest["shards"])


def test_a_file_from_afar_without_a_stamp_is_fetched_each_time(here: Path) -> None:
    info = listing.FileInfo("memory://cache-no-stamp/train.bin", 4, "")
    for content in (b"\1\0\2\0", b"\3\0\4\0"):
        files.write_bytes(info.path, content)
        assert Path(cache.local_copy(info, _never)).read_bytes() == content


def test_what_a_process_is_working_on_is_not_removed(here: Path) -> None:
    made()
    (entry,) = cache.entries()
    with cached.locked(entry.folder, _never):
        assert not cache.remove(entry)
        assert made().folder == entry.folder
    assert cache.remove(entry)
    assert not cache.entries()


def test_shards_that_went_while_others_were_made_leave_no_manifest(here: Path) -> None:
    def on_progress(what: str, done: int, total: int | None) -> None:
        if what == "tokenizing" and done == total:
            cache.clear(cache.entries()[0].folder)

    with pytest.raises((UserError, files.StorageError)):
        made(on_progress=on_progress)
    assert not any((here / "cache").rglob(MANIFEST))
    assert made().train[:].tolist()


def test_the_cache_is_shown_and_cleared_whatever_a_newer_version_left(here: Path) -> None:
    folder = Path(str(made().folder))
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="newer slm"):
        made()
    (entry,) = cache.entries()
    assert entry.name == "text.txt"
    assert cache.remove(entry)


def test_a_file_that_goes_while_the_cache_is_shown_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    names = files.list_names
    monkeypatch.setattr(files, "list_names", lambda folder: [*names(folder), "0123456789abcdef", "gone.part"])
    assert [entry.name for entry in cache.entries()] == ["text.txt"]


def test_a_small_text_that_changed_unseen_replaces_what_is_kept_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", 10**6)
    prepare("text.txt", tokenizer="char")
    stat = os.stat("text.txt")
    Path("text.txt").write_text(TEXT.replace("cat", "cow"))
    os.utime("text.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    rechecked = made(recheck=True)
    assert "cow" in rechecked.tokenizer.decode(rechecked.train[:].tolist())
    assert made().fingerprint == rechecked.fingerprint


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_text_that_changes_while_it_is_read_is_told_and_not_kept(
    here: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", 10**6 * in_memory)
    survey = prepare_module.take_survey

    def and_then(*arguments: Any, **keys: Any) -> Any:
        found = survey(*arguments, **keys)
        with open("text.txt", "a") as file:
            file.write("the cat")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "take_survey", and_then)
        with pytest.raises(UserError, match=r"text\.txt changed while it was read"):
            made()
    assert not any((here / "cache").rglob(MANIFEST))
    assert made().train[:].tolist()
