"""Where prepared data is kept between runs: one folder each, named by a key of sources, tokenizer and settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slm.data.shards import MANIFEST, PROGRESS, TOKENIZER, check_shards, read_json, read_manifest, write_manifest
from slm.storage import files
from slm.storage.listing import FileInfo

_SOURCE = "source.json"  # beside a downloaded file: where it came from
_KEY_LETTERS = 16
_KEY = re.compile(f"[0-9a-f]{{{_KEY_LETTERS}}}")


def cache_folder() -> str:
    """The folder of all prepared data: $SLM_CACHE, or slm in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(os.environ.get("SLM_CACHE") or os.path.join(caches, "slm"))


def key_of(identity: Any) -> str:
    """A short name for whatever decides the tokens, given as plain lists, dicts, strings and numbers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_KEY_LETTERS]


@contextmanager
def locked(folder: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """A context in which no other process prepares the same folder; on_wait is called where one does now.

    The operating system lets go of the lock when the process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    root = cache_folder()
    with files.explaining(root, "keep prepared data (SLM_CACHE can name another folder) in"):
        os.makedirs(root, exist_ok=True)
        lock = FileLock(os.path.join(root, f"{key_of(os.path.abspath(folder))}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def local_copy(file: FileInfo, on_wait: Callable[[], None]) -> str:
    """The path of a file's bytes on this machine: its own, or that of a verified download kept in the cache."""
    if not files.is_remote(file.path):
        return file.path
    folder = os.path.join(cache_folder(), key_of([file.path, file.size, file.stamp]))
    path = os.path.join(folder, file.name)
    with locked(folder, on_wait):
        if not os.path.exists(path):
            files.write_bytes(os.path.join(folder, _SOURCE), json.dumps({"name": file.path}).encode())
            files.download(file.path, path)
    return path


def local_folder(url: str, manifest: dict[str, Any], on_wait: Callable[[], None]) -> str:
    """The folder on this machine with the prepared data of a URL, downloaded and verified by its checksums."""
    folder = os.path.join(cache_folder(), key_of(manifest))
    with locked(folder, on_wait):
        if read_manifest(folder) is None:
            for name in [TOKENIZER, *(shard["name"] for shard in manifest["shards"])]:
                files.download(files.join(url, name), files.join(folder, name))
            check_shards(folder, manifest)
            write_manifest(folder, manifest)
    return folder


@dataclass(frozen=True)
class Entry:
    """One folder of the cache."""

    key: str
    folder: str
    name: str  # of the data, in words; "unfinished" where it is not complete
    num_bytes: int  # on disk


def entries() -> list[Entry]:
    """Everything in the cache, complete or not, by name."""
    root = cache_folder()
    found = []
    for key in files.list_names(root):
        folder = os.path.join(root, key)
        if not _KEY.fullmatch(key) or not os.path.isdir(folder):  # a lock, or not ours
            continue
        manifest = read_manifest(folder)
        copy, unfinished = read_json(folder, _SOURCE), read_json(folder, PROGRESS)
        name = (
            manifest["name"]
            if manifest
            else copy.get("name") or f"unfinished: {unfinished.get('name', 'no tokens yet')}"
        )
        sizes = (os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
        found.append(Entry(key, folder, str(name), sum(sizes)))
    return sorted(found, key=lambda entry: (entry.name, entry.key))


def remove(entry: Entry) -> None:
    """Afterwards the entry is no more; the manifest goes first, so that nothing takes it for complete meanwhile."""
    clear(entry.folder)
    with files.explaining(entry.folder, "remove"):
        shutil.rmtree(entry.folder, ignore_errors=False)


def clear(folder: str) -> None:
    """Afterwards the folder holds no prepared data, neither complete nor in part."""
    # The manifest first, for without the shards it would lie; last what tells that the folder is ours.
    for name in sorted(files.list_names(folder), key=lambda name: (name != MANIFEST, name == PROGRESS)):
        files.remove(files.join(folder, name))
