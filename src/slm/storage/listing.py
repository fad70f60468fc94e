"""Which files a path means: one file, all of a folder, or the matches of a glob, in any storage."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from slm.config import UserError
from slm.storage import files
from slm.storage.files import MissingError, StorageError
from slm.storage.fsspec_urls import filesystem

_MAGIC = re.compile(r"[*?\[]")
_LEFT_OUT = "Names that begin with a dot and __pycache__ are left out."
# The first of these that a storage tells is what changes when the content does.
_STAMPS = (
    *("etag", "generation", "blob_id", "md5", "content-md5", "md5hash", "checksum", "sha"),
    *("mtime", "last-modified", "last_modified", "lastmodified", "modificationtime", "modify", "last_write_time"),
    "created",
)


@dataclass(frozen=True)
class FileInfo:
    """A file: its path as files.open_read takes it, its bytes as stored, and what changes when its content does."""

    path: str
    size: int | None
    stamp: str

    @property
    def name(self) -> str:
        """The last part of the path, of a web address without what follows `?` or `#`."""
        return file_name(self.path)


class _Entry(NamedTuple):
    """One name in a folder; info is None for a folder."""

    name: str
    info: FileInfo | None


class _Storage(Protocol):
    """What a kind of storage can tell."""

    def look(self, path: str) -> FileInfo | str | None:
        """The file of that name, "folder", or None."""

    def entries(self, folder: str) -> Iterator[_Entry]:
        """The files and folders directly under a folder."""

    def identity(self, folder: str) -> str:
        """The same for two names of one folder."""


def find(source: str) -> list[FileInfo]:
    """The files that a path, a URL or a glob means, sorted by path; links are followed.

    A folder stands for all files below it. `*`, `?`, `[` and `**` are wildcards where no file has that very name.
    Raises MissingError where nothing is found, UserError for a malformed path and StorageError where looking fails.
    """
    storage = _storage_of(source)
    if isinstance(storage, _Web):
        _check_one_file(source)
    seen = storage.look(source)
    if isinstance(seen, FileInfo):
        return [seen]
    folder, patterns = (source, []) if seen else _split_glob(source)
    if not seen and (not patterns or isinstance(storage, _Web)):
        raise MissingError(f"There is no file or folder {source!r}; check the spelling.")
    found = sorted(_search(storage, folder, patterns), key=lambda file: file.path)
    if not found and seen:
        raise MissingError(f"There are no files in the folder {source!r}. {_LEFT_OUT}")
    if not found:
        raise MissingError(
            f"No file fits the pattern {source!r}; check it, and the folder {folder or '.'!r}. {_LEFT_OUT}"
        )
    return found


def is_folder(source: str) -> bool:
    """True for a folder. A web address is none, and is not fetched to find out."""
    storage = _storage_of(source)
    return not isinstance(storage, _Web) and storage.look(source) == "folder"


def is_single(source: str, found: list[FileInfo]) -> bool:
    """True when `source` named one file itself, not a folder or a glob."""
    return len(found) == 1 and found[0].path == source


def file_name(path: str) -> str:
    """The last part of a path, of a web address without what follows `?` or `#`."""
    if _is_web(path):
        path = _before_query(path)
    return re.split(r"[/\\]" if os.sep == "\\" else "/", path.rstrip("/"))[-1]


def _check_one_file(address: str) -> None:
    """Raises UserError for a web address that can mean no single file: a host, a folder or a glob."""
    before = _before_query(address)
    path = before.partition("://")[2].partition("/")[2]  # the brackets of an IPv6 host are no wildcard
    folder = path.endswith("/") and not address.startswith("?", len(before))  # /get/?file=7 asks for a file
    if not path.strip("/") or folder or re.search(r"[*\[]", path):
        raise UserError(
            f"{address!r} names no file. A web address means one file: there are no folders or globs on the web. "
            "Name each file."
        )


def _before_query(address: str) -> str:
    return re.split(r"[?#]", address, maxsplit=1)[0]


def _split_glob(source: str) -> tuple[str, list[str]]:
    """(the folder before the first wildcard, the patterns of the names below it); no patterns without a wildcard."""
    scheme, colon, rest = source.partition("://") if files.is_remote(source) else ("", "", source)
    parts = re.split(r"[/\\]" if os.sep == "\\" and not scheme else "/", rest)
    first = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    folder = "/".join(parts[:first])
    if first and not folder:
        folder = "/"
    return f"{scheme}{colon}{folder}", [part for part in parts[first:] if part]


def _search(storage: _Storage, folder: str, patterns: list[str]) -> Iterator[FileInfo]:
    """The files below a folder whose names fit the patterns one by one; what lies in a folder that fits, too."""
    pending, done = [(folder, patterns)], set()
    found = set()
    while pending:
        folder, patterns = pending.pop()
        state = (storage.identity(folder), len(patterns))
        if state in done:  # a link that leads back up
            continue
        done.add(state)
        anything = not patterns or patterns[0] == "**"
        if patterns and anything:
            pending.append((folder, patterns[1:]))
        for name, info in storage.entries(folder):
            if name.startswith(".") or name == "__pycache__":
                continue
            if not anything and not fnmatch.fnmatchcase(name, patterns[0]):
                continue
            below = patterns if anything else patterns[1:]
            if info is None:
                pending.append((files.join(folder, name), below))
            elif not below and info.path not in found:
                found.add(info.path)
                yield info


def _storage_of(path: str) -> _Storage:
    """What answers for `path`; raises UserError for a malformed one."""
    files.check_path(path)
    if not files.is_remote(path):
        return _Local()
    scheme = path.partition("://")[0].lower()
    if scheme == "gs":
        return _Bucket()
    if scheme == "file":
        return _Local()
    return _Web() if _is_web(path) else _Fsspec()


def _is_web(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def _place(path: str) -> str:
    """The name that the operating system knows a local path or a file:// URL by."""
    if not files.is_remote(path):
        return path or "."
    from fsspec.implementations.local import LocalFileSystem

    return str(LocalFileSystem._strip_protocol(path))


class _Local:
    """Paths of this machine, with or without file:// before them."""

    def look(self, path: str) -> FileInfo | str | None:
        with files.explaining(path, "look at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            told = os.stat(_place(path))
            if stat.S_ISDIR(told.st_mode):
                return "folder"
            if not stat.S_ISREG(told.st_mode):
                raise UserError(f"{path!r} is no regular file but a pipe or device: write its content to a file first.")
            return self._told(path, told)
        return None

    def entries(self, folder: str) -> Iterator[_Entry]:
        place = _place(folder)
        with files.explaining(folder, "list"):
            for name in os.listdir(place):
                try:
                    told = os.stat(os.path.join(place, name))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    continue  # a link that leads nowhere
                if stat.S_ISDIR(told.st_mode):
                    yield _Entry(name, None)
                elif stat.S_ISREG(told.st_mode):
                    yield _Entry(name, self._told(files.join(folder, name), told))

    def identity(self, folder: str) -> str:
        return os.path.realpath(_place(folder))

    def _told(self, path: str, told: os.stat_result) -> FileInfo:
        return FileInfo(path, told.st_size, str(told.st_mtime_ns // 1_000_000))


class _Bucket:
    """gs:// by the client that the rest of slm uses, with its time limits and its errors that name the cure."""

    def look(self, path: str) -> FileInfo | str | None:
        from slm.storage import gcs

        name = gcs.split(path)[1]
        if name and not path.endswith("/"):
            with gcs._bucket(path) as bucket:
                if (blob := gcs._look(bucket, name, short=True)) is not None:
                    return self._told(path, blob)
        return "folder" if gcs.is_folder(path) else None

    def entries(self, folder: str) -> Iterator[_Entry]:
        from slm.storage import gcs

        _, name = gcs.split(folder)
        prefix = f"{name}/" if name else ""
        with gcs._bucket(folder) as bucket:
            found = bucket.list_blobs(prefix=prefix, delimiter="/", **gcs._limits(short=True))
            for blob in found:
                if blob.name != prefix:  # the object that some tools make to show an empty folder
                    yield _Entry(blob.name[len(prefix) :], self._told(f"gs://{bucket.name}/{blob.name}", blob))
            for below in found.prefixes:
                yield _Entry(below[len(prefix) : -1], None)

    def identity(self, folder: str) -> str:
        return folder.rstrip("/")

    def _told(self, path: str, blob: Any) -> FileInfo:
        return FileInfo(path, blob.size, str(blob.generation))


class _Fsspec:
    """Every other storage, through fsspec."""

    def look(self, path: str) -> FileInfo | str | None:
        with filesystem(path, "look at") as system:
            system.invalidate_cache()
            try:
                told = system.info(path)
            except FileNotFoundError:
                return None
        return "folder" if told["type"] == "directory" else _told(path, told)

    def entries(self, folder: str) -> Iterator[_Entry]:
        with filesystem(folder, "list") as system:
            itself = system._strip_protocol(folder).strip("/")
            listed = system.ls(folder, detail=True)
        for told in listed:
            path = told["name"].rstrip("/")
            if path.strip("/") == itself:  # the object that some tools make to show an empty folder
                continue
            name = path.rpartition("/")[2]
            yield _Entry(name, None if told["type"] == "directory" else _told(files.join(folder, name), told))

    def identity(self, folder: str) -> str:
        return folder.rstrip("/")


class _Web(_Fsspec):
    """http:// and https://: single files; `?` begins a query there, and folders cannot be listed."""

    def look(self, path: str) -> FileInfo | str | None:
        with filesystem(path, "look at") as system:
            try:
                return _told(path, system.info(path))
            except FileNotFoundError as error:
                # fsspec says so whatever went wrong; what did is the cause.
                status = getattr(error.__cause__, "status", None)
                if error.__cause__ is None or status in (404, 410):
                    return None
                said = f"the server answered {status}" if status else "there is no answer"
                raise StorageError(
                    f"Cannot read {path!r}: {said} ({error.__cause__}). Check the address and the network."
                ) from error


def _told(path: str, told: dict[str, Any]) -> FileInfo:
    """What fsspec tells of a file, under whichever names this storage uses."""
    lowered = {key.lower(): value for key, value in told.items()}
    stamp = next((lowered[name] for name in _STAMPS if lowered.get(name)), "")
    if isinstance(stamp, datetime.datetime):  # some systems list seconds and tell a date of the same moment
        stamp = stamp.timestamp()
    return FileInfo(path, told.get("size"), str(stamp))
