"""One file -> documents, rows or token ids: what a file's ending says of it, and what was met on the way."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from slm.config import UserError
from slm.data import decoding
from slm.data.counts import Chunk, Counts, Notes
from slm.data.decoding import REPLACEMENT, TextStream
from slm.data.tables import LONGEST_LINE, TABLES, Field, Table
from slm.storage import files
from slm.storage.listing import FileInfo, file_name

__all__ = [
    "Chunk",
    "Counts",
    "check_unicode",
    "documents",
    "endings",
    "is_table",
    "is_token_file",
    "lines_of",
    "open_tokens",
    "rows",
]

TOKENS = (".npy", ".bin")  # token ids, not documents
PART_CHARS = 2**20  # about so much of a long document at once
MIN_PART_CHARS = 65_536  # a document's parts are this long at least, but for its last
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def check_unicode(text: str, name: str) -> None:
    """Raises UserError where a str is not Unicode text, as after a decoding that went wrong."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not Unicode: {text[error.start]!r} at position {error.start} is half a surrogate pair. "
            "Decode the bytes it came from with errors='replace'."
        ) from error


def endings(path: str) -> tuple[str, str]:
    """(.jsonl, .gz) of a.jsonl.gz: what is in a file and how it is packed, each "" where the name does not say."""
    stem, packing = os.path.splitext(file_name(path).lower())
    if packing not in decoding.PACKED:
        stem, packing = stem + packing, ""
    return os.path.splitext(stem)[1], packing


def is_table(path: str) -> bool:
    """True for names of tables, packed or not."""
    return endings(path)[0] in TABLES


def is_token_file(path: str) -> bool:
    """True for names of token ids, .npy and .bin, packed or not."""
    return endings(path)[0] in TOKENS


def documents(
    file: FileInfo, *, named: bool, text_field: str, split_documents_on: str | None, counts: Counts
) -> Iterator[Chunk]:
    """The documents of a file, long ones in parts, never more of it in memory than a few blocks.

    Raises UserError where a file that was named itself gives no text for a reason, or any file is damaged; what a
    folder holds beside text is counted as skipped.
    """
    before = counts.stored_bytes
    for chunk in _File(file, named, [Field(text_field)], counts).chunks(split_documents_on):
        counts.add(chunk)
        yield chunk
    if file.size is not None:  # also of a file that was skipped, or read for one column
        counts.stored_bytes = before + file.size


def rows(file: FileInfo, *, named: bool, fields: Sequence[Field], counts: Counts) -> Iterator[tuple[str, ...]]:
    """The texts of the fields in each row of a table; `counts` is told of the rest, but not of what a row holds.

    Raises UserError where a file that was named itself gives none, or any file is damaged.
    """
    before = counts.stored_bytes
    yield from _File(file, named, fields, counts).rows()
    if file.size is not None:
        counts.stored_bytes = before + file.size


def lines_of(file: FileInfo, counts: Counts) -> Generator[str, None, None]:
    """The lines of a plain text, also empty ones, without their ends, which are LF or CR LF.

    Raises UserError where the file is not text, or damaged.
    """
    return _File(file, True, (), counts).lines()


def open_tokens(local_path: str) -> np.ndarray[Any, Any]:
    """The token ids of a file as a 1-D memory map: .npy of integers, .bin of uint16, .u32.bin of uint32.

    Raises UserError where the file holds anything else.
    """
    ending, packing = endings(local_path)
    if packing:
        raise UserError(f"{local_path} is packed, and token ids are read in place: unpack it first.")
    with files.explaining(local_path, "read"):
        return _open_npy(local_path) if ending == ".npy" else _open_bin(local_path)


def _open_npy(path: str) -> np.ndarray[Any, Any]:
    try:
        ids: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is no .npy file of numbers ({error}). Save one row of integers with numpy.save."
        ) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"{path} holds an array of shape {ids.shape} and type {ids.dtype}: token ids are one row of integers."
        )
    if not len(ids):
        raise UserError(f"{path} is empty: there is no token to learn from.")
    return ids


def _open_bin(path: str) -> np.ndarray[Any, Any]:
    width = 4 if path.lower().endswith((".u32.bin", ".uint32.bin")) else 2
    size = os.path.getsize(path)
    if not size:
        raise UserError(f"{path} is empty: there is no token to learn from.")
    if size % width:
        raise UserError(
            f"{path} has {size:,} bytes, no multiple of {width}: a .bin file holds little-endian uint16 token ids, "
            "a .u32.bin file uint32 ones."
        )
    return np.memmap(path, dtype=f"<u{width}", mode="r")


class _File:
    """The reading of one file: its chunks, and into `counts` what was skipped."""

    def __init__(self, file: FileInfo, named: bool, fields: Sequence[Field], counts: Counts) -> None:
        self.path, self.fields, self.counts = file.path, fields, counts
        self.ending, self.packing = endings(file.path)
        self.notes = Notes(file, named, counts)

    def chunks(self, split_documents_on: str | None) -> Iterator[Chunk]:
        """The documents of the file in chunks."""
        if self.ending in TABLES:
            yield from self._table()
        elif self.ending in TOKENS:
            self.counts.skip("file of token ids", self.notes.name)
        elif (stream := self._text_stream()) is not None:
            self.counts.files += 1
            yield from self._plain(stream, split_documents_on)
            self._close(stream)

    def _text_stream(self) -> TextStream | None:
        """The file's text, or None once it was skipped as no text."""
        stream = TextStream(decoding.read_blocks(self.path, self.packing, self.notes.read))
        if not stream.is_binary:
            return stream
        self.notes.skip_file("file of binary data", f"is not text{self._way_out(stream)}.")
        return None

    def _way_out(self, stream: TextStream) -> str:
        """What a binary file seems to be, and what to do with it."""
        if not stream.looks_like:
            return ": it holds zero bytes. Convert it to UTF-8 text first"
        looks = f": {'what it holds' if self.packing else 'it'} looks like {stream.looks_like}"
        if stream.packing and not self.packing:
            return f"{looks}: name it {self.notes.name}{stream.packing}"
        if stream.packing or stream.looks_like == "zip":
            return f"{looks}: unpack it first"
        return f"{looks}: convert it to text first"

    def _close(self, stream: TextStream) -> None:
        """Adds what was noticed in a whole text."""
        self.notes.undecodable(stream.undecodable)
        self.counts.byte_order_marks += stream.has_mark
        self.counts.crlf_files += stream.has_crlf

    def _plain(self, stream: TextStream, split_documents_on: str | None) -> Iterator[Chunk]:
        texts = stream.unix_lines()
        if split_documents_on is None:
            yield from self._chunked(chain(((text, False) for text in texts), [("", True)]), strip=False)
        else:
            pieces = decoding.split(texts, _separator(split_documents_on))
            yield from self._chunked(self._counted(pieces), strip=True)

    def _counted(self, pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """The pieces as they are; what separates them is counted."""
        ended = False
        for piece in pieces:
            self.counts.separators += ended
            ended = piece[1]
            yield piece

    def _chunked(self, pieces: Iterable[tuple[str, bool]], *, strip: bool) -> Iterator[Chunk]:
        """Documents from their pieces; `strip` drops the line breaks at both ends of each."""
        held, in_parts = "", False
        found, gaps = False, 0  # what is empty before the first document or after the last one is none
        for text, ends in pieces:
            held += text
            if strip and not in_parts:
                held = held.lstrip("\n")
            if ends:
                held = held.rstrip("\n") if strip else held
                if held:
                    self.counts.empty_documents += gaps if found else 0
                    found, gaps = True, 0
                    yield Chunk(held, True)
                else:
                    gaps += 1
                held, in_parts = "", False
                continue
            # One character stays behind so that the last part is never empty, with the line breaks after it.
            ready = len(held.rstrip("\n") if strip else held) - 1
            if ready >= MIN_PART_CHARS:
                yield Chunk(held[:ready], False)
                held, in_parts = held[ready:], True
        self.counts.empty_documents += not found

    def lines(self) -> Generator[str, None, None]:
        """The lines of the file, a plain text."""
        if (stream := self._text_stream()) is not None:
            self.counts.files += 1
            for line in decoding.lines(stream.unix_lines(), LONGEST_LINE, self.path):
                yield line.removesuffix("\n")
            self._close(stream)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of the file, a table."""
        given = False
        for row in self._rows():
            given = True
            yield tuple(map(self._unicode, row))
        if self.notes.named and not given:
            raise UserError(f"{self.path} gives no example: {self.notes.problem or 'it has no rows'}.")

    def _table(self) -> Iterator[Chunk]:
        given = False
        for (text,) in self._rows():
            text, replaced = _HALF_SURROGATE.subn(REPLACEMENT, text)
            self.counts.half_surrogates += replaced
            if not text:
                self.counts.empty_documents += 1
            for start in range(0, len(text), PART_CHARS):
                given = True
                yield Chunk(text[start : start + PART_CHARS], start + PART_CHARS >= len(text))
        if self.notes.named and self.notes.problem and not given:
            raise UserError(f"{self.path} gives no text: {self.notes.problem}.")

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """The texts of each row, which may hold half surrogate pairs."""
        return self._parquet() if self.ending == ".parquet" else self._text_rows()

    def _unicode(self, text: str) -> str:
        text, replaced = _HALF_SURROGATE.subn(REPLACEMENT, text)
        self.counts.half_surrogates += replaced
        return text

    def _text_rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of a table that is itself text."""
        if (stream := self._text_stream()) is not None:
            yield from Table(self.notes, self.ending, self.fields).rows(stream)
            self._close(stream)

    def _parquet(self) -> Iterator[tuple[str, ...]]:
        if self.packing:
            raise UserError(f"{self.path} is packed, and a .parquet file is read in pieces: unpack it first.")
        with decoding.opened(self.path, self.ending, self.notes.read) as source:
            yield from Table(self.notes, self.ending, self.fields).parquet_rows(source)


def _separator(typed: str) -> str:
    """What split_documents_on stands for: the user types \\n for a line break; lines end with LF by then."""
    separator = re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], typed).replace("\r\n", "\n")
    if not separator:
        raise UserError("split_documents_on = '': give the text that stands between two documents, such as '\\n\\n'.")
    return separator
