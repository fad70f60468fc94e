"""Token files on disk: written shard by shard so that an interruption costs one shard, read back by memory map.

A folder of prepared data holds `train-00000.bin`, `val-00000.bin`, ... (raw uint16 or uint32, little-endian),
`tokenizer.json`, and `manifest.json`, which is written last and makes it valid. Until then `progress.json` tells how
far it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import ExitStack
from typing import Any

import numpy as np

from slm.config import UserError
from slm.data.encoding import Ids, Place, Rows
from slm.data.tokenizer import Tokenizer
from slm.data.tokens import Tokens
from slm.storage import files

MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer.json"
FORMAT = "slm prepared data"
FORMAT_VERSION = 1
SHARD_TOKENS = 1 << 24  # after which the files of both splits are closed
SPLITS = ("train", "val")
SHARD_NAME = re.compile(rf"(?:{'|'.join(SPLITS)})-[0-9]{{5,}}\.bin")
_STATE = ("place", "chars", "finished", "shards", "documents", "tokens", "counted")


class ShardRows(Rows):
    """Rows of tokens in files of a folder, continued where an interrupted preparation from the same stopped."""

    def __init__(
        self,
        folder: str,
        name: str,
        made_from: str,
        tokenizer: Tokenizer,
        *,
        bracketed: bool,
        most_counted: int,
    ) -> None:
        super().__init__(tokenizer.end_id, bracketed=bracketed, most_counted=most_counted)
        self.folder, self.name, self.made_from = folder, name, made_from
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.shards: list[dict[str, Any]] = []
        self.place, self.chars, self.finished = Place(), 0, False
        self._open: dict[int, _Shard] = {}
        self._group = 0
        self._resume()

    def write(self, where: int, ids: Ids) -> None:
        """Appends the ids (N,) to the split's open file."""
        if where not in self._open:
            self._open[where] = _Shard(self.folder, f"{SPLITS[where]}-{self._group:05}.bin")
        self._open[where].write(ids.astype(self.dtype))

    def after_batch(self, place: Place, chars: int) -> None:
        """Closes the files when they are long enough; what follows goes into new ones."""
        self.place, self.chars = place, self.chars + chars
        if sum(shard.num_bytes for shard in self._open.values()) >= SHARD_TOKENS * self.dtype.itemsize:
            self.close()

    def finish(self) -> None:
        """Appends what comes after the last document, once, and closes the files."""
        if not self.finished:
            super().finish()
        self.finished = True
        self.close()

    def close(self) -> None:
        """Closes the open files and notes how far the corpus has come."""
        for where in sorted(self._open):
            shard = self._open.pop(where)
            self.shards.append({"split": SPLITS[where], **shard.close()})
        self._count_groups()
        state = {name: getattr(self, name) for name in _STATE}
        _write_json(self.folder, PROGRESS, {**state, "name": self.name, "made_from": self.made_from})

    def abandon(self) -> None:
        """Removes files that are not complete."""
        for shard in self._open.values():
            shard.abandon()
        self._open.clear()

    def _resume(self) -> None:
        for name in files.list_names(self.folder):
            if name.endswith(files.TEMPORARY_SUFFIX):  # left by a process that was killed
                files.remove(files.join(self.folder, name))
        state = read_json(self.folder, PROGRESS)
        if state.get("made_from") != self.made_from:
            return
        for name in _STATE:
            setattr(self, name, state[name])
        self.place = Place(*self.place)
        self._count_groups()

    def _count_groups(self) -> None:
        self._group = 1 + max((int(shard["name"][-9:-4]) for shard in self.shards), default=-1)


class _Shard:
    """One file of tokens while it grows; it has its name only once it is complete."""

    def __init__(self, folder: str, name: str) -> None:
        self.name, self.num_bytes = name, 0
        self._digest = hashlib.sha256()
        self._context = ExitStack()
        temporary = self._context.enter_context(files.replace_file(files.join(folder, name)))
        self._file = self._context.enter_context(open(temporary, "wb"))  # noqa: SIM115  it lives as long as the shard

    def write(self, ids: Ids) -> None:
        data = ids.tobytes()
        with files.explaining(self._file.name, "write"):
            self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._context.close()
        return {"name": self.name, "bytes": self.num_bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        error = KeyboardInterrupt()
        self._context.__exit__(KeyboardInterrupt, error, None)


def _write_json(folder: str, name: str, content: dict[str, Any]) -> None:
    files.write_bytes(files.join(folder, name), json.dumps(content, indent=1).encode())


def read_json(folder: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder; an empty one where there is none, or it is none."""
    path = files.join(folder, name)
    if not files.exists(path):
        return {}
    try:
        content = json.loads(files.read_bytes(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What a folder of prepared data tells of itself; None where it is none. Raises UserError for a newer format."""
    manifest = read_json(folder, MANIFEST)
    if manifest.get("format") != FORMAT:
        return None
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(f"{folder} was prepared by a newer slm than this one. Upgrade slm, or prepare the data anew.")
    return manifest


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
    """Makes a folder of complete shards valid."""
    _write_json(folder, MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest})
    files.remove(files.join(folder, PROGRESS))


def open_shards(folder: str, manifest: dict[str, Any]) -> list[Tokens]:
    """The rows of training and validation tokens, as memory maps. Raises UserError where a file is not as it was."""
    rows: list[list[Ids]] = [[], []]
    for shard in manifest["shards"]:
        path = files.join(folder, shard["name"])
        if not files.exists(path) or os.path.getsize(path) != shard["bytes"]:
            raise UserError(f"{path} is missing or has another size than when it was prepared: {_damaged(folder)}")
        rows[SPLITS.index(shard["split"])].append(np.memmap(path, dtype=np.dtype(manifest["dtype"]), mode="r"))
    return [Tokens(arrays, vocab_size=manifest["vocab_size"]) for arrays in rows]


def check_shards(folder: str, manifest: dict[str, Any]) -> None:
    """Raises UserError where a shard's bytes are not those that were written."""
    for shard in manifest["shards"]:
        path = files.join(folder, shard["name"])
        with files.open_read(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if digest != shard["sha256"]:
            raise UserError(f"{path} is damaged: its checksum is not that of the manifest. {_damaged(folder)}")


def _damaged(folder: str) -> str:
    return f"remove the folder {folder} (slm-prepare --clean clears the cache) and prepare the data anew."


def read_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer that made the shards."""
    path = files.join(folder, TOKENIZER)
    return Tokenizer.from_json(files.read_bytes(path).decode(), path)
