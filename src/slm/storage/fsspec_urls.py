"""Every URL but gs://, through fsspec; what each function promises is told in slm.storage.files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from slm.storage.files import TEMPORARY_SUFFIX, StorageError, explaining, replace_file


@contextlib.contextmanager
def filesystem(path: str, doing: str) -> Iterator[Any]:
    """Yields the fsspec file system of a URL; whatever it raises in the block becomes a StorageError."""
    from fsspec.core import url_to_fs

    with explaining(path, doing):
        try:
            yield url_to_fs(path, **({"auto_mkdir": True} if path.startswith("file:") else {}))[0]
        except OSError:
            raise
        except Exception as error:  # each package behind fsspec has its own family of exceptions
            raise OSError(f"{type(error).__name__}: {error}") from error


def exists(path: str) -> bool:
    """True when a file or a folder of that name is there."""
    with filesystem(path, "look at") as system:
        return bool(system.exists(path))


def is_folder(path: str) -> bool:
    """True when it is a folder; in an object store: when some name begins with it and a slash."""
    with filesystem(path, "look at") as system:
        return bool(system.isdir(path))


def list_names(path: str) -> list[str]:
    """The names directly under a folder, or [] when there is no such folder."""
    with filesystem(path, "list") as system:
        found = system.ls(path, detail=False, refresh=True) if system.isdir(path) else []
        return [name.rstrip("/").rpartition("/")[2] for name in found]


@contextlib.contextmanager
def open_read(path: str) -> Iterator[BinaryIO]:
    """A stream over a file; seekable unless a web server sends files only whole."""
    with filesystem(path, "read") as system:
        stream = system.open(path, "rb")
        if path.startswith("http") and stream.seekable():
            try:
                stream.seek(-1, os.SEEK_END)
                stream.read(1)
                stream.seek(0)
            except ValueError:  # this server sends a file only whole: from the beginning to the end, once
                stream = system.open(path, "rb", block_size=0)
    with stream, explaining(path, "read"):
        yield stream


def upload(local_path: str, path: str, *, overwrite: bool) -> None:
    """Afterwards the URL holds what the local file holds, compared by size."""
    temporary = f"{path}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
    with filesystem(path, "write") as system:
        # Under a temporary name first: few of these systems promise whole-or-absent.
        try:
            system.put_file(local_path, temporary)
            _compare(system, temporary, local_path)
            system.mv(temporary, path)
        except BaseException:
            if system.exists(temporary):
                system.rm_file(temporary)
            raise


def _compare(system: Any, path: str, local_path: str) -> None:
    here, there = os.path.getsize(local_path), system.info(path).get("size")
    if there not in (None, here):
        raise StorageError(f"{path!r} has {there} bytes, its copy {local_path!r} has {here}: copy again.")


def download(path: str, local_path: str) -> None:
    """Afterwards the local file holds what the URL holds, compared by size; after a failure, what it held before."""
    with replace_file(local_path) as temporary, filesystem(path, "read") as system:
        system.get_file(path, temporary)
        _compare(system, path, temporary)


def move(source: str, target: str) -> None:
    """Afterwards the file has the other name."""
    with filesystem(source, "move") as system:
        system.mv(source, target)


def remove(path: str) -> None:
    """Afterwards no file has this name."""
    with filesystem(path, "remove") as system:
        if system.exists(path):
            system.rm_file(path)
