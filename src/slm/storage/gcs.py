"""Google Cloud Storage: verified uploads and downloads, a start-up check, errors that name the cure.

Transfers use google-cloud-storage, whose checksums the server compares; gcsfs verifies nothing and serves only
streams. A name is written only while it is what we last saw of it (its generation), so two processes cannot
silently replace each other's files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from slm.config import UserError
from slm.storage.files import (
    ExistsError,
    MissingError,
    Seen,
    StorageError,
    TakenError,
    explaining,
    fingerprint,
    replace_file,
)
from slm.storage.gcs_errors import LoginError, explain, missing

CHUNK_BYTES = 32 * 2**20  # an upload keeps about two of these in memory and waits one round trip for each
ATTEMPTS = 3
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0  # longest silence during a transfer
RETRY_SECONDS = 120.0  # no new try of a transfer after this
CHECK_ANSWER_SECONDS = 10.0  # the same two for short questions, asked before a training starts
CHECK_RETRY_SECONDS = 20.0
FIRST_WAIT_SECONDS = 1.0  # before the second try; doubled each time

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_MAX_NAME_BYTES = 1024
_GONE = 410  # an upload in chunks that cannot be gone on with, only begun anew
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


def split(url: str) -> tuple[str, str]:
    """(bucket, name) of gs://bucket/name, the name "" for the bucket's root; UserError for a malformed URL."""
    rest = url.removeprefix("gs://")
    bucket, _, name = rest.removesuffix("/").partition("/")
    if rest == url or not _BUCKET.fullmatch(bucket):
        raise UserError(
            f"The URL {url!r} has the bucket name {bucket!r}: a bucket is 3 to 63 characters of a-z 0-9 . _ - that "
            "begin and end with a letter or digit, as in gs://my-bucket/folder."
        )
    if rest.endswith("//") or (name and any(part in ("", ".", "..") for part in name.split("/"))):
        raise UserError(f"The URL {url!r} has an empty part, '.' or '..' between its slashes: remove that part.")
    if len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES or re.search("[\ud800-\udfff]", name):
        raise UserError(f"The URL {url!r} is too long or not Unicode: use a name of {_MAX_NAME_BYTES} bytes or less.")
    return bucket, name


def _object_name(url: str) -> str:
    """The object's name; UserError for a URL that can only be a folder."""
    _, name = split(url)
    if not name or url.endswith("/"):
        raise UserError(f"The URL {url!r} names a folder: add the name of a file.")
    return name


@functools.lru_cache(maxsize=1)
def _credentials() -> tuple[Any, str | None]:
    """The credentials of this machine and their project; the look-up takes 0.1 to 12 seconds, so once."""
    import google.auth

    credentials, project = google.auth.default(scopes=[_SCOPE])
    return credentials, project


def _emulated() -> bool:
    return bool(os.environ.get("STORAGE_EMULATOR_HOST"))


@contextlib.contextmanager
def _bucket(url: str) -> Iterator[Any]:
    """Yields the bucket of `url`; whatever the client raises in the block becomes a StorageError about `url`."""
    bucket, _ = split(url)
    with _explaining_network(url):
        from google.cloud import storage

        credentials, project = (None, None) if _emulated() else _credentials()
        client = storage.Client(project=project, credentials=credentials)
        client._http.hooks["response"].append(_read_refusal)
        try:
            yield client.bucket(bucket)
        finally:
            client._http.close()  # Client.close() is younger than our oldest supported version


def _read_refusal(answer: Any, **_: Any) -> None:
    """Reads the body of a refusal, which the client forgets on a download, leaving the connection open."""
    if not answer.ok:
        _ = answer.content


@contextlib.contextmanager
def _explaining_network(url: str) -> Iterator[None]:
    with explaining(url, "transfer"):
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            if (told := explain(error, url)) is None:
                raise  # an OSError of a local file, which the outer block explains, or a mistake of ours
            if isinstance(told, LoginError):
                _credentials.cache_clear()  # a new login must count without a new process
            raise told from error


def _limits(*, short: bool = False) -> dict[str, Any]:
    """The arguments `timeout` and `retry` of every request: none waits for ever."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    answer, last_try = (CHECK_ANSWER_SECONDS, CHECK_RETRY_SECONDS) if short else (ANSWER_SECONDS, RETRY_SECONDS)
    retry = DEFAULT_RETRY.with_timeout(last_try).with_delay(initial=FIRST_WAIT_SECONDS)
    return {"timeout": (CONNECT_SECONDS, answer), "retry": retry}


def _look(bucket: Any, name: str, *, short: bool = False) -> Any:
    """The object's metadata (generation, size, crc32c) as they are now, or None."""
    return bucket.get_blob(name, **_limits(short=short))


def look(url: str) -> Seen | None:
    """What an object is now, or None where there is none; a bucket that is missing is a StorageError."""
    from google.api_core.exceptions import NotFound

    name = _object_name(url)
    with _bucket(url) as bucket:
        blob = bucket.blob(name)
        try:
            blob.reload(**_limits(short=True))
        except NotFound as error:
            if isinstance(explain(error, url), MissingError):
                return None
            raise
    if blob.content_encoding == "gzip":  # size and checksum are those of the packed bytes
        return Seen(None, None, int(blob.generation))
    return Seen(int(blob.size), str(blob.crc32c), int(blob.generation))


def exists(url: str) -> bool:
    """True when there is an object of that name or one whose name begins with it and a slash."""
    _, name = split(url)
    with _bucket(url) as bucket:
        if name and not url.endswith("/") and _look(bucket, name, short=True) is not None:
            return True
    return is_folder(url)


def is_folder(url: str) -> bool:
    """True for a bucket, and for a name that others continue after a slash."""
    from google.api_core.exceptions import NotFound

    _, name = split(url)
    with _bucket(url) as bucket:
        found = bucket.list_blobs(prefix=f"{name}/" if name else "", max_results=1, **_limits(short=True))
        try:
            return any(True for _ in found) or not name
        except NotFound:  # the bucket itself
            return False


def list_names(url: str) -> list[str]:
    """The names directly under a folder, or [] when there is none."""
    from google.api_core.exceptions import NotFound

    _, name = split(url)
    prefix = f"{name}/" if name else ""
    with _bucket(url) as bucket:
        found = bucket.list_blobs(prefix=prefix, delimiter="/", **_limits(short=True))
        try:
            objects = [blob.name for blob in found]
        except NotFound:
            return []
        names = {full[len(prefix) :].removesuffix("/") for full in [*objects, *found.prefixes]}
        return sorted(names - {""})  # "" is the object that some tools make to show an empty folder


def check_access(url: str) -> list[str]:
    """Notes for the user, most often none, once listing, writing and deleting under `url` were tried.

    Takes seconds, also when something is wrong; then it raises the StorageError that names the cure.
    """
    from google.api_core import exceptions as api

    _, name = split(url)
    prefix = f"{name}/" if name else ""
    with _bucket(url) as bucket:
        list(bucket.list_blobs(prefix=prefix, max_results=1, **_limits(short=True)))
        probe = bucket.blob(f"{prefix}.slm-write-check-{os.urandom(6).hex()}")
        # 412: an answer was lost, the retry met our own object; nobody else knows this name.
        with contextlib.suppress(api.PreconditionFailed):
            probe.upload_from_string(b"", if_generation_match=0, checksum="crc32c", **_limits(short=True))
        try:
            probe.delete(**_limits(short=True))
        except api.NotFound:
            return []
        except api.GoogleAPIError as error:
            where = f"gs://{bucket.name}/{probe.name}"
            return [f"{url} takes files but does not delete them, so the empty {where} stays. {explain(error, where)}"]
    return []


def _generation(blob: Any) -> int:
    return 0 if blob is None else int(blob.generation)


def _is(blob: Any, ours: tuple[int, str]) -> bool:
    return blob is not None and (blob.size, blob.crc32c) == ours


def upload(local_path: str, url: str, *, overwrite: bool = False, version: int | None = None) -> int:
    """The generation of `url` with the file's bytes, as the server's checksum says; ExistsError if others are there.

    Bytes that are there already are a success. An object that changes during the call, or did since it was of
    `version`, is a TakenError: another process writes the same name.
    """
    import requests
    from google.api_core import exceptions as api
    from google.cloud.storage.exceptions import DataCorruption

    name = _object_name(url)
    with explaining(local_path, "read"):
        ours = fingerprint(local_path)
    with _bucket(url) as bucket:
        seen = _look(bucket, name)
        if _is(seen, ours):
            return int(seen.generation)
        if seen is not None and not overwrite:
            raise ExistsError(f"{url} exists with other content; choose another name or allow overwriting.")
        if version not in (None, _generation(seen)):
            raise TakenError(f"{url}: another process wrote this object; use one folder per run.")
        for attempt in range(1, ATTEMPTS + 1):
            generation = _generation(seen)
            try:
                return _send(bucket.blob(name, chunk_size=CHUNK_BYTES), local_path, generation)
            except (api.GoogleAPIError, DataCorruption, requests.RequestException) as error:
                # An answer can be lost after the bytes arrived, and the retry then meets our own object (412).
                now = _look(bucket, name)
                if _is(now, ours):
                    return int(now.generation)
                if now is None and isinstance(error, DataCorruption):
                    seen = None  # the client took its damaged object away again
                elif generation != _generation(now):
                    raise TakenError(f"{url}: another process wrote this object; use one folder per run.") from error
                again = isinstance(error, _worth_another_try()) or getattr(error, "code", 0) == _GONE
                if attempt == ATTEMPTS or not again:
                    raise
    raise AssertionError("the last attempt returns or raises")


def _send(blob: Any, local_path: str, generation: int) -> int:
    """The new generation, once the bytes were sent in place of those of `generation`."""
    from google.api_core.exceptions import from_http_status

    try:
        blob.upload_from_filename(local_path, if_generation_match=generation, checksum="crc32c", **_limits())
    except ValueError as error:
        # The server may keep only the first part of a chunk. The client cannot go on from there.
        raise from_http_status(_GONE, f"the upload broke off: {error}") from error  # type: ignore[no-untyped-call]
    if blob._properties.get("name") != blob.name:  # the checksum is that of the bytes alone
        raise from_http_status(_GONE, "the name was damaged on the way")  # type: ignore[no-untyped-call]
    return int(blob.generation)


def _worth_another_try() -> tuple[type[Exception], ...]:
    """What a damaged or raced transfer raises; the client has already retried everything else."""
    from google.api_core.exceptions import BadRequest, NotFound, PreconditionFailed
    from google.cloud.storage.exceptions import DataCorruption

    return (PreconditionFailed, BadRequest, DataCorruption, NotFound)


def _fetch(url: str, into: str) -> None:
    """Afterwards the local file `into` holds the verified bytes of one generation of `url`."""
    name = _object_name(url)
    with _bucket(url) as bucket:
        for attempt in range(1, ATTEMPTS + 1):
            blob = _look(bucket, name)
            if blob is None:
                raise missing(url)
            try:
                blob.download_to_filename(into, if_generation_match=blob.generation, checksum="crc32c", **_limits())
            except _worth_another_try():
                if attempt == ATTEMPTS:
                    raise
                continue
            # The client leaves a download that it had to resume unverified. Of a gzip-encoded object the server
            # knows the checksum of the packed bytes only, which the client compared while unpacking.
            if blob.content_encoding == "gzip" or _is(blob, fingerprint(into)):
                return
    raise StorageError(f"Cannot read {url}: its bytes were damaged on the way {ATTEMPTS} times; try again.")


def download(url: str, local_path: str) -> None:
    """Afterwards `local_path` holds the verified bytes of `url`; after a failure, what it held before."""
    with replace_file(local_path) as temporary:
        _fetch(url, temporary)


def read_bytes(url: str) -> bytes:
    """The verified bytes of an object."""
    import tempfile

    with explaining(tempfile.gettempdir(), "stage a download in"), tempfile.TemporaryDirectory() as folder:
        staged = os.path.join(folder, "staged")
        _fetch(url, staged)
        with open(staged, "rb") as file:
            return file.read()


@contextlib.contextmanager
def open_read(url: str) -> Iterator[BinaryIO]:
    """A seekable stream over an object, by gcsfs; its bytes are not verified."""
    # With this feature on, gcsfs waits 40 to 90 s for gRPC wherever that is not let through.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    path = "/".join([split(url)[0], _object_name(url)])
    with _explaining_network(url):
        # Found credentials are handed over: gcsfs, left to look for itself, turns anonymous after 16 to 43 s.
        token = "anon" if _emulated() else _credentials()[0]
        system = gcsfs.GCSFileSystem(token=token, requests_timeout=ANSWER_SECONDS, use_listings_cache=False)
        try:
            stream = system.open(path, "rb")
        except FileNotFoundError as error:
            raise missing(url) from error
        with stream:
            yield stream


def move(source: str, target: str) -> None:
    """Afterwards the object is `target` and no longer `source`; ExistsError when `target` holds other bytes."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    name, new_name = _object_name(source), _object_name(target)
    with _bucket(source) as bucket:
        old = _look(bucket, name)
        if old is None:
            raise missing(source)
        new_bucket = bucket.client.bucket(split(target)[0])
        new = new_bucket.blob(new_name)
        checks = {"if_generation_match": 0, "if_source_generation_match": old.generation}
        try:
            token, _, _ = new.rewrite(old, **checks, **_limits())
            while token is not None:
                token, _, _ = new.rewrite(old, token=token, **checks, **_limits())
        except PreconditionFailed as error:
            there = _look(new_bucket, new_name)
            if there is None:
                raise  # the source changed meanwhile
            if not _is(there, (old.size, old.crc32c)):
                raise ExistsError(f"Cannot move {source}: {target} exists; choose another name.") from error
        with contextlib.suppress(NotFound):  # an answer was lost, and the retry found nothing left to delete
            old.delete(if_generation_match=old.generation, **_limits())


def remove(url: str) -> None:
    """Afterwards there is no object of this name; one that was not there is no error."""
    from google.api_core.exceptions import NotFound

    name = _object_name(url)
    with _bucket(url) as bucket, contextlib.suppress(NotFound):
        bucket.blob(name).delete(**_limits())
