"""Checkpoint folders on the local disk: written whole with a manifest last, verified, found, pruned.

`checkpoints/step-00001000/` holds files of any content and `manifest.json`, which lists their sizes and checksums and
is written last: a folder without it is not a checkpoint. It gets its name only when all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from slm.config import UserError
from slm.storage import files

MANIFEST = "manifest.json"
UNFINISHED = "was never completed"  # in the words on a folder without a manifest
FORMAT, FORMAT_VERSION = "slm checkpoint", 1
_REPLACED = ".replaced"  # ends the name of a checkpoint while another one takes its place
_NAME = re.compile(r"step-([0-9]{8,18})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_MAX_MANIFEST_BYTES, _MAX_FILES = 2**20, 100


def name_of(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08}"


def steps_of(names: Iterable[str]) -> list[int]:
    """The steps that names of folders tell, newest first; other names are left out."""
    return sorted((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), reverse=True)


def write(parent: str, step: int, contents: Mapping[str, Callable[[str], None]], about: Mapping[str, Any]) -> str:
    """The path of the new checkpoint, complete and flushed to the disk; after a failure there is no new folder.

    contents: for each file what writes it, given a path. about: goes into the manifest. What stood under the same name
    is replaced. Raises StorageError.
    """
    path = os.path.join(parent, name_of(step))
    replaced = f"{path}{_REPLACED}"
    with files.explaining(path, "write"):
        os.makedirs(parent, exist_ok=True)
        temporary = os.path.join(parent, f".slm-{os.urandom(6).hex()}{files.TEMPORARY_SUFFIX}")
        os.mkdir(temporary)
        try:
            described = {}
            for name, save in contents.items():
                save(os.path.join(temporary, name))
                size, crc32c = files.fingerprint(os.path.join(temporary, name))
                described[name] = {"size": size, "crc32c": crc32c}
            manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "step": step, "files": described}
            files.write_bytes(os.path.join(temporary, MANIFEST), json.dumps(manifest, indent=1).encode())
            files.flush(temporary)
            if os.path.exists(path):  # of the two renames a kill may leave the first, which `sweep` takes back
                remove(replaced)
                os.rename(path, replaced)
            os.rename(temporary, path)
            remove(replaced)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.exists(replaced) and not os.path.exists(path):
                os.rename(replaced, path)
            raise
        files.flush(parent)
    return path


def read_manifest(data: bytes, path: str) -> dict[str, Any]:
    """The manifest in these bytes. Raises UserError where they are none; path names their place in the message."""
    if len(data) > _MAX_MANIFEST_BYTES:
        raise UserError(f"{path} is damaged: a manifest is not that long.")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a checkpoint.")
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, and this slm reads up to {FORMAT_VERSION}: upgrade slm.")
    listed = manifest.get("files")
    fine = version == FORMAT_VERSION and type(manifest.get("step")) is int
    fine = fine and isinstance(listed, dict) and 0 < len(listed) <= _MAX_FILES
    if not fine or not all(map(_is_described, manifest["files"].items())):
        raise UserError(f"{path} is damaged: it does not describe its files.")
    return manifest


def _is_described(item: tuple[str, Any]) -> bool:
    name, told = item
    return (
        _FILE_NAME.fullmatch(name) is not None
        and name != MANIFEST
        and isinstance(told, dict)
        and type(told.get("size")) is int
        and isinstance(told.get("crc32c"), str)
    )


def verify(path: str) -> dict[str, Any]:
    """The manifest of a checkpoint all of whose bytes are those that were written. Raises UserError saying what is not.

    A disk that cannot be read is a StorageError.
    """
    with files.explaining(path, "read"):
        return _verify(path, os.path.join(path, MANIFEST))


def _verify(path: str, told: str) -> dict[str, Any]:
    if not os.path.isfile(told):
        raise UserError(f"{path} {UNFINISHED}: {MANIFEST} is missing.")
    if os.path.getsize(told) > _MAX_MANIFEST_BYTES:
        raise UserError(f"{told} is damaged: a manifest is not that long.")
    manifest = read_manifest(files.read_bytes(told), told)
    for name, described in manifest["files"].items():
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            raise UserError(f"{file} is missing.")
        if os.path.getsize(file) != described["size"]:
            raise UserError(f"{file} has {os.path.getsize(file)} bytes, and had {described['size']} when written.")
        if files.fingerprint(file)[1] != described["crc32c"]:
            raise UserError(f"{file} is damaged: its checksum is not that of the manifest.")
    if manifest["step"] not in steps_of([os.path.basename(path)]):
        raise UserError(f"{told} is damaged: it is of step {manifest['step']}.")
    return manifest


def newest(parent: str) -> tuple[str | None, dict[str, Any], list[str]]:
    """The newest checkpoint that verifies with its manifest, None where there is none, and why newer ones do not."""
    passed_over: list[str] = []
    for step in steps_of(files.list_names(parent)):
        path = os.path.join(parent, name_of(step))
        try:
            return path, verify(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, {}, passed_over


def remove(path: str) -> None:
    """Afterwards there is no such checkpoint; a kill on the way leaves one that nobody takes for complete."""
    files.remove(os.path.join(path, MANIFEST))
    with files.explaining(path, "remove"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def prune(parent: str, keep: Collection[int]) -> None:
    """Removes the checkpoints up to the newest of `keep` that are not in it."""
    for step in steps_of(files.list_names(parent)):
        if step < max(keep) and step not in keep:
            remove(os.path.join(parent, name_of(step)))


def sweep(parent: str) -> None:
    """Removes what killed processes left of checkpoints that they were writing, and brings back what they replaced."""
    for name in files.list_names(parent):
        path = os.path.join(parent, name)
        if name.endswith(_REPLACED):
            with files.explaining(path, "rename"):
                if os.path.exists(path.removesuffix(_REPLACED)):
                    remove(path)
                else:
                    os.rename(path, path.removesuffix(_REPLACED))
        if name.startswith(".slm-") and name.endswith(files.TEMPORARY_SUFFIX):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
