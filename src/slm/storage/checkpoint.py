"""Dicts of tensors and plain Python values <-> files, written whole or not at all; knows no class of slm."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from slm.config import UserError
from slm.storage import files, pickles
from slm.storage.cached import cached_copy

FORMAT = "slm"
FORMAT_VERSION = 1  # of what is written, unless the content says that it needs a newer reader
NEWEST_VERSION = 2  # that can be read
_AGAIN = "Copy it again from where it was made."


def save_file(path: str, content: dict[str, Any]) -> None:
    """Writes a dict of tensors, numbers, strings, lists and dicts as one local .pt file, whole or not at all.

    content: may have a format_version of its own, for what an older slm could not read. Raises TypeError for anything
    else, which could not be read back without running code.
    """
    pickles.check_plain(content)
    # Given a name, torch would store it inside, and equal models would have unequal bytes.
    with files.replace_file(path) as temporary, open(temporary, "wb") as file:
        writer = _Writer(file)
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error:
                raise writer.error from None
            raise


class _Writer:
    """A file that remembers why it could not be written: torch turns a full disk into a RuntimeError without words."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_file(path: str) -> dict[str, Any]:
    """What `save_file` wrote, from a local file or URL, with all tensors on the CPU.

    No code in the file is ever run. Raises UserError where the file is not one of ours, is damaged, or was written
    by a newer slm, and OSError where it cannot be read.
    """
    return _load_local(cached_copy(path), path)


def _load_local(local: str, path: str) -> dict[str, Any]:
    if not Path(local).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    try:
        with files.explaining(path, "read"), open(local, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path} is not a model of slm, or it is cut short. {_AGAIN}")
            content = pickles.read(file)
    except (UserError, OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not written by slm: it holds more than tensors and plain values, and nothing in it was run "
            f"({error})."
        ) from error
    except Exception as error:  # damage shows in as many ways as there are readers
        raise UserError(f"{path} is damaged: {_first_line(error)}. {_AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is a PyTorch file, but not a model that slm saved.")
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{path} is damaged: its format_version is {version!r:.100}. {_AGAIN}")
    if version > NEWEST_VERSION:
        raise UserError(f"{path} has format_version {version}, and this slm reads up to {NEWEST_VERSION}: upgrade slm.")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.300}".rstrip(".") if lines else type(error).__name__
