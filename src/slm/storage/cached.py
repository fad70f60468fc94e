"""The cache on this machine: where it is, whose turn it is in a folder of it, and copies of single remote files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slm.storage import files
from slm.storage.listing import file_name

SOURCE = "source.json"  # beside a downloaded file: where it came from
KEY_LETTERS = 16


def cache_folder() -> str:
    """The folder of all that slm keeps between runs: $SLM_CACHE, or slm in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(os.environ.get("SLM_CACHE") or os.path.join(caches, "slm"))


def key_of(identity: Any) -> str:
    """A short name for whatever decides the content, given as plain lists, dicts, strings and numbers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:KEY_LETTERS]


@contextmanager
def locked(folder: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """A context in which no other process prepares the same folder; on_wait is called where one does now.

    The operating system lets go of the lock when the process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    root = cache_folder()
    with files.explaining(root, "keep files (SLM_CACHE can name another folder) in"):
        os.makedirs(root, exist_ok=True)
        lock = FileLock(lock_path(folder))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_path(folder: str) -> str:
    """The file that processes lock before they change a folder of the cache."""
    return os.path.join(cache_folder(), f"{key_of(os.path.realpath(folder))}.lock")


def cached_copy(path: str) -> str:
    """The path on this machine of a file's bytes: its own, or that of a verified download kept in the cache.

    The download is used again only if its size and checksum are those that the storage tells now; where it tells no
    checksum, as all but gs://, the file is fetched each time. Raises StorageError.
    """
    if not files.is_remote(path):
        return path
    folder = os.path.join(cache_folder(), key_of(["file", path]))
    local = os.path.join(folder, file_name(path))
    with locked(folder, on_wait=lambda: None):
        seen = files.look(path)
        told = (seen.size, seen.crc32c) if seen else (None, None)
        if not os.path.isfile(local) or files.fingerprint(local) != told:
            files.write_bytes(os.path.join(folder, SOURCE), json.dumps({"name": path}).encode())
            files.download(path, local)
    return local
