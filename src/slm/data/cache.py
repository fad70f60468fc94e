"""Where prepared data is kept between runs: one folder each, named by a key of sources, tokenizer and settings."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slm.config import UserError
from slm.data.manifest import MANIFEST, TOKENIZER, clear, is_ours, read_json, read_manifest, read_mark
from slm.data.shards import WAY_OUT, is_whole, missing, write_manifest
from slm.storage import files
from slm.storage.cached import KEY_LETTERS, SOURCE, cache_folder, key_of, lock_path, locked
from slm.storage.listing import FileInfo

_KEY = re.compile(f"[0-9a-f]{{{KEY_LETTERS}}}")


def local_copy(file: FileInfo, on_wait: Callable[[], None]) -> str:
    """The path of a file's bytes on this machine: its own, or that of a verified download kept in the cache."""
    if not files.is_remote(file.path):
        return file.path
    folder = os.path.join(cache_folder(), key_of([file.path, file.size, file.stamp]))
    path = os.path.join(folder, file.name)
    with locked(folder, on_wait):
        if not file.stamp or not os.path.exists(path):  # without a stamp there may be other bytes by now
            files.write_bytes(os.path.join(folder, SOURCE), json.dumps({"name": file.path}).encode())
            files.download(file.path, path)
    return path


def local_folder(url: str, manifest: dict[str, Any], *, recheck: bool, on_wait: Callable[[], None]) -> str:
    """The folder on this machine with the prepared data of a URL, downloaded and verified by its checksums.

    What an interrupted call fetched is not fetched again. recheck: verifies also what was verified before.
    """
    folder = os.path.join(cache_folder(), key_of(manifest))
    with locked(folder, on_wait):
        if (found := read_manifest(folder)) is not None and not missing(folder, found) and not recheck:
            return folder
        files.remove(files.join(folder, MANIFEST))
        files.download(files.join(url, TOKENIZER), files.join(folder, TOKENIZER))
        for shard in manifest["shards"]:
            if is_whole(folder, shard):
                continue
            there, here = (files.join(place, shard["name"]) for place in (url, folder))
            files.download(there, here)
            if not is_whole(folder, shard):
                files.remove(here)
                raise UserError(f"{there} is damaged: its checksum is not that of the manifest. {WAY_OUT}")
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
    found: list[Entry] = []
    for key in files.list_names(root):
        folder = os.path.join(root, key)
        if not _KEY.fullmatch(key) or not os.path.isdir(folder) or not _is_ours(folder):
            continue
        complete = read_json(folder, MANIFEST).get("name") or read_json(folder, SOURCE).get("name")
        told = complete or f"unfinished: {read_mark(folder).get('name', 'no tokens yet')}"
        num_bytes = sum(_size(os.path.join(folder, name)) for name in files.list_names(folder))
        found.append(Entry(key, folder, str(told), num_bytes))
    return sorted(found, key=lambda entry: (entry.name, entry.key))


def _is_ours(folder: str) -> bool:
    """True for prepared data, for a downloaded file, and for what a process left that was killed at once."""
    left = (name for name in files.list_names(folder) if not name.startswith(".slm-"))
    return is_ours(folder) or bool(read_json(folder, SOURCE)) or next(left, None) is None


def _size(path: str) -> int:
    with suppress(FileNotFoundError):  # another process may have removed it, or given it its name
        return os.path.getsize(path)
    return 0


def remove(entry: Entry) -> bool:
    """Afterwards the entry is no more; False, and it stays, where a process is working on it."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path(entry.folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        with files.explaining(entry.folder, "remove"):
            clear(entry.folder)  # the manifest first, so that nothing takes it for complete meanwhile
            with suppress(FileNotFoundError):  # another process was as quick
                shutil.rmtree(entry.folder)
    finally:
        lock.release()
    return True
