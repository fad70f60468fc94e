"""Token files on disk: written shard by shard so that an interruption costs one shard, read back by memory map.

A folder of prepared data holds `train-00000.bin`, `val-00000.bin`, ... (raw uint16 or uint32, little-endian),
`tokenizer.json`, and `manifest.json`, which is written last and makes it valid. Until then `progress.json` tells how
far it is. Later shards are longer, so that their number, of which each is an open file, grows with the logarithm of the
text.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.config import UserError
from slm.data.encoding import Ids, Place, Rows
from slm.data.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    PROGRESS,
    TOKENIZER,
    clear,
    mark,
    read_manifest,
    read_mark,
    remove_temporary,
    write_json,
)
from slm.data.tokenizer import Tokenizer
from slm.data.tokens import Tokens
from slm.storage import files

SHARD_TOKENS = 1 << 24  # after which the files of both splits are closed, and twice as many after each SAME_LENGTH
SAME_LENGTH = 16
WAY_OUT = "The same slm-prepare with --recheck mends it."
SPLITS = ("train", "val")
_STATE = ("place", "chars", "finished", "shards", "documents", "tokens", "counted")


@dataclass(frozen=True)
class Prepared:
    """The two rows of tokens, the tokenizer that made them, and what the manifest tells of them."""

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    about: dict[str, Any]
    folder: str | None  # None: in memory

    @property
    def fingerprint(self) -> str:
        """Equal for equal text, split and tokenizer, wherever they lie."""
        val_fraction = self.about["settings"]["val_fraction"] if self.about["held_out"] else None
        parts = [self.about["content"], val_fraction, self.about["start_id"], self.tokenizer.to_json()]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


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
        enough = (SHARD_TOKENS << self._group // SAME_LENGTH) * self.dtype.itemsize
        if sum(shard.num_bytes for shard in self._open.values()) >= enough:
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
        mark(self.folder, {**state, "name": self.name, "made_from": self.made_from})

    def abandon(self) -> None:
        """Removes files that are not complete."""
        for shard in self._open.values():
            shard.abandon()
        self._open.clear()

    def discard(self) -> None:
        """Removes all that was written, the files of earlier calls too."""
        self.abandon()
        clear(self.folder)

    def _resume(self) -> None:
        remove_temporary(self.folder)
        state = read_mark(self.folder)
        if state.get("made_from") != self.made_from or not set(_STATE) <= set(state):
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


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
    """Makes a folder of complete shards valid. Raises UserError where one of them has gone since."""
    _check(folder, manifest)
    write_json(folder, MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest})
    files.remove(files.join(folder, PROGRESS))


def open_prepared(folder: str, *, recheck: bool = False) -> Prepared:
    """The data in a local folder that was prepared. Raises UserError where it is not complete, or no longer whole.

    recheck: looks at each byte, not only at the sizes.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} holds no prepared data: {MANIFEST} is missing or damaged. Prepare it with slm-prepare."
        )
    _check(folder, manifest)
    if recheck and (path := damaged(folder, manifest)):
        raise UserError(f"{path} is damaged: its checksum is not that of the manifest. {WAY_OUT}")
    train, val = _open_shards(folder, manifest)
    tokenizer = read_tokenizer(folder)
    if tokenizer.vocab_size != manifest["vocab_size"]:
        raise UserError(
            f"{files.join(folder, TOKENIZER)} has {tokenizer.vocab_size} tokens, and {manifest['vocab_size']} when the "
            f"data was prepared. Copy it again from where it was made, or remove {folder} and prepare the data anew."
        )
    return Prepared(train, val, tokenizer, manifest, folder)


def _check(folder: str, manifest: dict[str, Any]) -> None:
    if path := missing(folder, manifest):
        raise UserError(f"{path} is missing, or has another size than when it was prepared. {WAY_OUT}")


def _open_shards(folder: str, manifest: dict[str, Any]) -> list[Tokens]:
    """The rows of training and validation tokens, as memory maps."""
    rows: list[list[Ids]] = [[], []]
    for shard in manifest["shards"]:
        path = files.join(folder, shard["name"])
        with files.explaining(path, "open"):
            rows[SPLITS.index(shard["split"])].append(np.memmap(path, dtype=np.dtype(manifest["dtype"]), mode="r"))
    return [Tokens(arrays, vocab_size=manifest["vocab_size"]) for arrays in rows]


def missing(folder: str, manifest: dict[str, Any]) -> str | None:
    """The path of a file that is not there, or not as large as it was written; None where there is none."""
    paths = {files.join(folder, shard["name"]): shard["bytes"] for shard in manifest["shards"]}
    tokenizer = files.join(folder, TOKENIZER)
    path = next((path for path, num_bytes in paths.items() if not _has_size(path, num_bytes)), None)
    return path if path or files.exists(tokenizer) else tokenizer


def damaged(folder: str, manifest: dict[str, Any]) -> str | None:
    """The path of a shard whose bytes are not those that were written; None where there is none."""
    bad = next((shard["name"] for shard in manifest["shards"] if not is_whole(folder, shard)), None)
    return bad and files.join(folder, bad)


def is_whole(folder: str, shard: dict[str, Any]) -> bool:
    """True where the bytes of a shard, as the manifest describes it, are those that were written."""
    path = files.join(folder, shard["name"])
    if not _has_size(path, shard["bytes"]):
        return False
    with files.open_read(path) as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"])  # type: ignore[arg-type]


def _has_size(path: str, num_bytes: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == num_bytes


def read_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer that made the shards."""
    path = files.join(folder, TOKENIZER)
    return Tokenizer.from_json(files.read_bytes(path).decode(errors="replace"), path)
