"""Open, list, copy and whole-or-absent writes, for local paths, gs:// and any fsspec URL alike.

A path is a `str`. Every failure of a disk or network is a `StorageError` with a text for the user; three kinds of it
are also the builtin FileNotFoundError, FileExistsError and PermissionError. A malformed path is a UserError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, cast

from slm.config import UserError

TEMPORARY_SUFFIX = ".part"  # ends the name of every unfinished file

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two characters at least: `C:\` is a Windows drive
_KNOWN = r"(?:gs|gcs|s3|s3a|https?|file|memory|az|abfss?|adl|hf|s?ftp|ssh|smb|(?:web)?hdfs|github|oci|r2)"
# `gs:/bucket/x` is what Path("gs://bucket/x") prints; taken as a local path it would create a folder `gs:`.
_LOST_SLASH = re.compile(rf"^\s*{_KNOWN}:(?!//)|[/\\]{_KNOWN}:(?=[/\\]|$)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class StorageError(OSError):
    """A disk or network failure in one sentence for the user: which path, what rule, which way out."""


class MissingError(StorageError, FileNotFoundError):
    """There is no file of that name."""


class ExistsError(StorageError, FileExistsError):
    """The name is taken, and the call was not allowed to replace it."""


class DeniedError(StorageError, PermissionError):
    """The file or folder is there, and this user may not do that with it."""


class TakenError(StorageError):
    """Another process writes the same name; only a storage with versions can tell."""


class Seen(NamedTuple):
    """What a storage tells of a file without sending it; None where it tells no such thing."""

    size: int | None  # of what a download gives
    crc32c: str | None  # as `fingerprint` gives it
    version: int | None  # another one after each write


_REASONS: tuple[tuple[str | type[OSError], type[StorageError], str], ...] = (
    ("ENOSPC", StorageError, "the disk is full; free some space or choose another folder."),
    ("EDQUOT", StorageError, "your disk quota is used up; free some space or choose another folder."),
    ("EROFS", DeniedError, "the disk is read-only; choose another folder."),
    ("EXDEV", StorageError, "the two names are on different disks; copy the file instead."),
    (FileNotFoundError, MissingError, "there is no such file or folder; check the spelling."),
    (FileExistsError, ExistsError, "the name is taken; choose another name or remove what is there."),
    (PermissionError, DeniedError, "permission denied; choose a place you may use, or change its permissions."),
    (IsADirectoryError, StorageError, "it is a folder, not a file; name a file."),
    (NotADirectoryError, StorageError, "a part of the path is a file, not a folder; choose another folder."),
)


def is_remote(path: str) -> bool:
    """True for anything with a scheme (`gs://`, `file://`, ...), False for local paths such as `C:\\data`."""
    return _SCHEME.match(path) is not None


def _scheme(path: str) -> str:
    """`gs` of `gs://bucket/x`, and an empty string of a local path."""
    return match.group(1) if (match := _SCHEME.match(path)) else ""


def check_path(path: str) -> None:
    """Returns None for a well-formed path or URL; raises UserError with the rule it breaks otherwise."""
    if not path.strip():
        raise UserError(f"The path {path!r} is empty: give a file, a folder or a URL such as gs://bucket/folder.")
    if _CONTROL.search(path):
        raise UserError(f"The path {path!r} holds a control character (a line break, a tab): remove it.")
    if (lost := _LOST_SLASH.search(path)) is not None:
        raise UserError(
            f"The path {path!r} is neither local nor a URL: write {lost.group().strip(' /')}// with two slashes, "
            "and keep URLs as strings, because pathlib.Path drops one slash."
        )
    if "://" in path and not is_remote(path):
        raise UserError(f"The path {path!r} is no plain URL: begin with one scheme, as in gs://bucket.")
    if _scheme(path) == "gs":
        from slm.storage import gcs

        gcs.split(path)
    elif is_remote(path):
        _check_other(path, *path.split("://", 1))


def _check_other(path: str, scheme: str, rest: str) -> None:
    """Returns None when fsspec can open this scheme here; else a UserError names the package or the mistake."""
    if scheme.lower() in ("gs", "gcs"):
        raise UserError(f"The URL {path!r} means Google Cloud Storage: write gs:// in small letters.")
    if "::" in path:
        raise UserError(f"The URL {path!r} is chained with '::', which is not supported: give one plain URL.")
    if problem := _protocol_problem(scheme):
        raise UserError(f"The URL {path!r} cannot be used: {problem}")
    if not (rest.startswith("/") if scheme == "file" else rest.strip("/") or scheme == "memory"):
        raise UserError(f"The URL {path!r} names no place: write {scheme}://place/name, or file:///folder/name.")


@lru_cache(maxsize=64)
def _protocol_problem(scheme: str) -> str:
    """Why fsspec cannot serve `scheme` on this machine, or an empty string."""
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        return f"{error} (install the package it names with pip)."
    except ValueError:
        return f"no storage is known under {scheme}://; gs://, s3://, https://, hf:// and local paths are."
    return ""


def join(folder: str, name: str) -> str:
    """The path of `name` inside `folder`, local or URL; UserError when `name` would lead out of the folder."""
    parts = re.split(r"[/\\]" if os.sep == "\\" else "/", name)
    if any(part in ("", ".", "..") for part in parts) or os.path.splitdrive(name)[0]:
        raise UserError(f"The name {name!r} must stay inside {folder!r}: no leading slash, empty part or '..'.")
    match = _SCHEME.match(folder)
    if match is None:
        return os.path.join(folder, name)
    return f"{match.group()}{folder[match.end() :].rstrip('/')}/{name}"


def _store(path: str) -> Any:
    """What serves `path`, the module gcs or a class below: the one place that chooses by the scheme."""
    check_path(path)
    if _scheme(path) == "gs":
        from slm.storage import gcs

        return gcs
    if not is_remote(path):
        return _Local()
    from slm.storage import fsspec_urls

    return fsspec_urls


def exists(path: str) -> bool:
    """True when a file or a folder of that name is there."""
    return bool(_store(path).exists(path))


def is_folder(path: str) -> bool:
    """True when it is a folder; in an object store: when some name begins with it and a slash."""
    return bool(_store(path).is_folder(path))


def look(path: str) -> Seen | None:
    """What a file is now, or None where no file has that name; StorageError where the storage does not answer."""
    return cast("Seen | None", _store(path).look(path))


def list_names(folder: str) -> list[str]:
    """The sorted names directly under a folder, or [] when there is no such folder."""
    return sorted(set(_store(folder).list_names(folder)))


def read_bytes(path: str) -> bytes:
    """The whole content of a file; from gs:// with its checksum verified."""
    if _scheme(path) == "gs":
        return bytes(_store(path).read_bytes(path))
    with open_read(path) as file:
        return file.read()


def open_read(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """A stream over a file too large for memory; remote bytes carry no checksum (download verifies).

    It is seekable, but for a file of a web server that sends files only whole.
    """
    return cast("contextlib.AbstractContextManager[BinaryIO]", _store(path).open_read(path))


def write_bytes(path: str, data: bytes) -> None:
    """Afterwards the file holds exactly `data`; after a failure, what it held before. Makes missing folders."""
    store = _store(path)
    if not is_remote(path):
        with replace_file(path) as temporary, open(temporary, "wb") as file:
            file.write(data)
        return
    import tempfile

    # A stream to an object store that is cut publishes what it has so far, so the bytes are staged on disk.
    with explaining(tempfile.gettempdir(), "stage an upload in"), tempfile.TemporaryDirectory() as folder:
        staged = os.path.join(folder, "staged")
        with open(staged, "wb") as file:
            file.write(data)
        store.upload(staged, path, overwrite=True, version=None)


def upload(local_path: str, url: str, *, overwrite: bool = False, version: int | None = None) -> int | None:
    """The version of `url` once it holds what `local_path` holds, verified; ExistsError if other bytes are there.

    version: as `look` told it, 0 where nothing was there; TakenError if the file is of another one by now and holds
    other bytes. A storage that tells no versions gives None and asks for none.
    """
    store = _store(url)
    if not os.path.isfile(local_path):
        raise MissingError(f"There is no local file {local_path!r} to copy to {url!r}.")
    if _scheme(url) != "gs" and not overwrite and store.exists(url):  # gs:// looks at the bytes there, too
        raise ExistsError(f"{url!r} exists and would be replaced; choose another name or allow it.")
    return cast("int | None", store.upload(local_path, url, overwrite=overwrite, version=version))


def download(url: str, local_path: str) -> None:
    """Afterwards `local_path` holds the whole of `url`, verified; after a failure, what it held before."""
    _store(url).download(url, local_path)


def move(source: str, target: str) -> None:
    """Afterwards the file is `target` and no longer `source`; ExistsError when `target` is taken."""
    store = _store(source)
    check_path(target)
    if _scheme(source) != _scheme(target):
        raise UserError(f"Cannot move {source!r} to {target!r}, another kind of storage: upload or download it.")
    if store.exists(target):
        raise ExistsError(f"Cannot move {source!r}: {target!r} exists; choose another name.")
    store.move(source, target)


def remove(path: str) -> None:
    """Afterwards no file or empty folder has this name; one that was not there is no error."""
    _store(path).remove(path)


def check_writable(folder: str) -> list[str]:
    """Notes for the user, mostly none, once a file could be written in `folder`; else StorageError.

    Nothing stays behind, nor a local folder that was not there.
    """
    store = _store(folder)
    if _scheme(folder) == "gs":
        return list(store.check_access(folder))
    if store.exists(folder) and not store.is_folder(folder):
        raise StorageError(f"Cannot write into {folder!r}: it is a file, not a folder; choose another folder.")
    probe = join(folder, f".slm-write-check-{os.urandom(6).hex()}")
    new = [] if is_remote(folder) else _missing_folders(folder)
    write_bytes(probe, b"x")
    try:
        remove(probe)
        for path in new:
            if os.path.isdir(path) and not os.listdir(path):  # nobody else has come to use it
                remove(path)
    except StorageError as error:
        return [f"The folder {folder!r} takes files but does not delete them, so {probe!r} stays there. {error}"]
    return []


def _missing_folders(path: str) -> list[str]:
    """A local path and the folders above it, as far as they are not there, from the inside out."""
    path, missing = os.path.abspath(path), []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


@contextlib.contextmanager
def explaining(path: str, doing: str) -> Iterator[None]:
    """Turns every OSError of the block into a StorageError that says what could not be done with `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        start, code = f"Cannot {doing} {path!r}: ", errno.errorcode.get(error.errno or 0)
        for cause, kind, reason in _REASONS:
            if code == cause or (isinstance(cause, type) and isinstance(error, cause)):
                raise kind(start + reason) from error
        raise StorageError(f"{start}{error.strerror or error}; check the place, or choose another one.") from error


@contextlib.contextmanager
def replace_file(path: str) -> Iterator[str]:
    """Yields a temporary name beside the local `path`; on success its flushed bytes take the name `path`.

    On any exception the temporary file goes and an old file stays as it was. The temporary name differs each
    time: hand torch.save an open file, not the name, since it stores the name inside the file.
    """
    check_path(path)
    if is_remote(path):
        raise UserError(f"replace_file is for local files, not for {path!r}: use write_bytes or upload.")
    target = os.path.realpath(path)  # a link stays a link: its file is replaced
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".slm-{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    with explaining(path, "write"):
        if os.path.isdir(target):
            raise IsADirectoryError
        os.makedirs(folder, exist_ok=True)
        try:
            open(temporary, "xb").close()
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            raise
        flush(folder)


def fingerprint(path: str) -> tuple[int, str]:
    """(size, crc32c) of a local file, the checksum in the base64 form that Google Cloud Storage uses."""
    import base64

    import google_crc32c

    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    with explaining(path, "read"), open(path, "rb") as file:
        while block := file.read(2**20):
            checksum.update(block)
        return file.tell(), base64.b64encode(checksum.digest()).decode()


def flush(path: str) -> None:
    """Returns once the system says that a file's bytes, or a folder's names, are on the disk."""
    if (is_directory := os.path.isdir(path)) and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if not is_directory or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class _Local:
    """Paths without a scheme."""

    def exists(self, path: str) -> bool:
        # os.path.exists also says False to "permission denied", which would pass for "start afresh".
        with explaining(path, "look at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
            return True
        return False

    def is_folder(self, path: str) -> bool:
        return self.exists(path) and os.path.isdir(path)

    def look(self, path: str) -> Seen | None:
        return Seen(os.path.getsize(path), None, None) if self.exists(path) and not os.path.isdir(path) else None

    def list_names(self, path: str) -> list[str]:
        with explaining(path, "list"):
            return os.listdir(path) if self.is_folder(path) else []

    @contextlib.contextmanager
    def open_read(self, path: str) -> Iterator[BinaryIO]:
        with explaining(path, "read"):
            if os.path.isdir(path):  # Windows would say "permission denied"
                raise IsADirectoryError
            with open(path, "rb") as file:
                yield file

    def upload(self, local_path: str, path: str, *, overwrite: bool, version: int | None) -> None:
        self.download(local_path, path)

    def download(self, path: str, local_path: str) -> None:
        with self.open_read(path) as source, replace_file(local_path) as name, open(name, "wb") as target:
            while block := source.read(2**20):
                target.write(block)

    def move(self, source: str, target: str) -> None:
        folder = os.path.dirname(os.path.abspath(target))
        with explaining(source, "move"):
            if os.path.isdir(source):
                raise IsADirectoryError
            os.makedirs(folder, exist_ok=True)
            os.rename(source, target)
            flush(folder)

    def remove(self, path: str) -> None:
        with explaining(path, "remove"), contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.remove(path)
