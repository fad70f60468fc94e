"""Dicts of tensors and plain Python values <-> files, written whole or not at all; knows no class of slm."""

from __future__ import annotations

import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from slm.config import UserError
from slm.storage import files

FORMAT = "slm"
FORMAT_VERSION = 1


def save_file(path: str, content: dict[str, Any]) -> None:
    """Writes a dict of tensors, numbers, strings, lists and dicts as one local .pt file, whole or not at all.

    Raises TypeError for anything else, which could not be read back without running code.
    """
    _check_plain(content)
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
    if files.is_remote(path):
        with tempfile.TemporaryDirectory(prefix="slm-") as folder:
            local = str(Path(folder) / "download.pt")
            files.download(path, local)
            return _load_local(local, path)
    return _load_local(path, path)


def _check_plain(value: object) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item)
    elif type(value) in (list, tuple):
        for item in value:  # type: ignore[attr-defined]
            _check_plain(item)
    elif type(value) not in (torch.Tensor, str, int, float, bool, type(None)):
        raise TypeError(f"a file of tensors and plain values cannot hold {value!r}, a {type(value)}")


def _load_local(local: str, path: str) -> dict[str, Any]:
    if not Path(local).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    if not zipfile.is_zipfile(local):
        raise UserError(f"{path} is not a model of slm, or it is cut short. Copy it again from where it was made.")
    try:
        with zipfile.ZipFile(local) as archive:
            if damaged := archive.testzip():  # torch compares no checksums: a flipped bit would be a wrong weight
                raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong. Copy it again.")
        content = torch.load(local, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not written by slm: it holds more than tensors and plain values, and nothing in it was run."
        ) from error
    except Exception as error:  # damage shows in as many ways as there are readers
        raise UserError(f"{path} is damaged: {_first_line(error)}. Copy it again from where it was made.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is a PyTorch file, but not a model that slm saved.")
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path} is damaged: its format_version is {version!r}.")
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, and this slm reads up to {FORMAT_VERSION}: upgrade slm.")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
