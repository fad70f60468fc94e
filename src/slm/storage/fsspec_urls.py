"""Every URL but gs://, through fsspec; what each function promises is told in slm.storage.files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from slm.storage.files import TEMPORARY_SUFFIX, Seen, StorageError, explaining, replace_file


@contextlib.contextmanager
def filesystem(path: str, doing: str) -> Iterator[Any]:
    """Yields the fsspec file system of a URL; whatever it raises in the block becomes a StorageError."""
    from fsspec.core import url_to_fs

    with explaining(path, doing):
        try:
            yield url_to_fs(path, **({"auto_mkdir": True} if path.startswith("file:") else {}))[0]
        except OSError as error:
            if cause := _unreachable(error):
                raise cause from error
            raise
        except Exception as error:  # each package behind fsspec has its own family of exceptions
            raise OSError(f"{type(error).__name__}: {error}") from error


def _unreachable(error: OSError) -> OSError | None:
    """What kept a server from answering, which fsspec's web files tell as the absence of a file; else None."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or isinstance(cause, FileNotFoundError):
        return None
    return cause if isinstance(cause, OSError) else None


def _told(path: str) -> dict[str, Any] | None:
    """What the storage tells of a file or folder now, or None where there is neither."""
    with filesystem(path, "look at") as system:
        # Not system.exists: that takes a network that does not answer for an absence.
        system.invalidate_cache()
        try:
            return dict(system.info(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if _unreachable(error):
                raise
    return None


def exists(path: str) -> bool:
    """True when a file or a folder of that name is there."""
    return _told(path) is not None


def is_folder(path: str) -> bool:
    """True when it is a folder; in an object store: when some name begins with it and a slash."""
    told = _told(path)
    return told is not None and told["type"] == "directory"


def look(path: str) -> Seen | None:
    """The size of a file, or None where there is none."""
    told = _told(path)
    return None if told is None or told["type"] == "directory" else Seen(told.get("size"), None, None)


def list_names(path: str) -> list[str]:
    """The names directly under a folder, or [] when there is no such folder."""
    if not is_folder(path):
        return []
    with filesystem(path, "list") as system:
        found = system.ls(path, detail=False, refresh=True)
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


def upload(local_path: str, path: str, *, overwrite: bool, version: int | None) -> None:
    """Afterwards the URL holds what the local file holds, compared by size."""
    temporary = f"{path}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
    with filesystem(path, "write") as system:
        # Under a temporary name first: few of these systems promise whole-or-absent.
        try:
            system.put_file(local_path, temporary)
            _compare(system, temporary, local_path)
            _rename(system, temporary, path)
        except BaseException:
            if system.exists(temporary):
                system.rm_file(temporary)
            raise


def _rename(system: Any, old: str, new: str) -> None:
    """Gives a file another name, of any characters: most systems' mv takes `[`, `*` and `?` for wildcards."""
    from fsspec import AbstractFileSystem

    if type(system).mv is not AbstractFileSystem.mv:  # a true rename, by names as they are
        system.mv(old, new)
        return
    system.cp_file(old, new)
    system.rm_file(old)


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
        _rename(system, source, target)


def remove(path: str) -> None:
    """Afterwards no file and no empty folder has this name."""
    if (told := _told(path)) is None:
        return
    with filesystem(path, "remove") as system:
        if told["type"] == "directory":
            system.rmdir(path)
        else:
            system.rm_file(path)
