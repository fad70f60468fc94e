"""One file -> documents, or token ids: what a file's ending says of it, and what was met on the way."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from slm.config import UserError
from slm.data import decoding
from slm.data.counts import Chunk, Counts
from slm.data.decoding import REPLACEMENT, TextStream
from slm.storage import files
from slm.storage.listing import FileInfo, file_name

__all__ = ["Chunk", "Counts", "check_unicode", "documents", "endings", "is_token_file", "open_tokens"]

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TOKENS = (".npy", ".bin")  # token ids, not documents
PART_CHARS = 2**20  # about so much of a long document at once
MIN_PART_CHARS = 65_536  # a document's parts are this long at least, but for its last
LONGEST_LINE = 2**26  # characters; what a whole file without a line break would be
_PARQUET_ROWS = 64
_END_OF_CSV = "\0end of file\0"
_FIELDS_TOLD = 8
_LONG_NAME = 40  # characters; a longer name of a field is rather a text
_NUMBER = re.compile(r"[-+]?[0-9.,]+")
_LINE = re.compile("[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # the csv module wants a lone CR to end a line, too
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
    for chunk in _File(file, named, text_field, counts).chunks(split_documents_on):
        counts.add(chunk)
        yield chunk
    if file.size is not None:  # also of a file that was skipped, or read for one column
        counts.stored_bytes = before + file.size


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

    def __init__(self, file: FileInfo, named: bool, text_field: str, counts: Counts) -> None:
        self.path, self.size, self.named, self.counts = file.path, file.size, named, counts
        self.name = file.name.encode(errors="replace").decode()  # a name on disk need not be Unicode
        self.text_field = text_field
        self.column = int(text_field) if text_field.isascii() and text_field.isdigit() else None
        self.ending, self.packing = endings(file.path)
        self.problem = ""  # the first reason why a line of a table gave no text

    def chunks(self, split_documents_on: str | None) -> Iterator[Chunk]:
        """The documents of the file in chunks."""
        if self.ending in TABLES:
            yield from self._table()
        elif self.ending in TOKENS:
            self.counts.skip("file of token ids", self.name)
        elif (stream := self._text_stream()) is not None:
            yield from self._plain(stream, split_documents_on)
            self._close(stream)

    def _text_stream(self) -> TextStream | None:
        """The file's text, or None once it was skipped as no text."""
        blocks = decoding.read_blocks(self.path, self.packing, self._on_read)
        stream = TextStream(blocks)
        if not stream.is_binary:
            self.counts.files += 1
            return stream
        self._skip_file(
            "file of binary data",
            self.name,
            f"{self.path} is not text (it holds zero bytes, or begins like a known binary format). Convert it to "
            "UTF-8 text first.",
        )
        return None

    def _on_read(self, num_bytes: int) -> None:
        self.counts.stored_bytes += num_bytes

    def _skip_file(self, reason: str, example: str, error: str) -> None:
        if self.named:
            raise UserError(error)
        self.counts.skip(reason, example)

    def _close(self, stream: TextStream) -> None:
        """Adds what was noticed in a whole text."""
        if stream.undecodable:
            self._undecodable(stream.undecodable)
        self.counts.byte_order_marks += stream.has_mark
        self.counts.crlf_files += stream.has_crlf

    def _undecodable(self, num_bytes: int) -> None:
        self.counts.undecodable_file = self.counts.undecodable_file or self.name
        self.counts.undecodable_bytes += num_bytes

    def _plain(self, stream: TextStream, split_documents_on: str | None) -> Iterator[Chunk]:
        texts = stream.unix_lines()
        if split_documents_on is None:
            yield from self._chunked(chain(((text, False) for text in texts), [("", True)]), strip=False)
        else:
            yield from self._chunked(decoding.split(texts, _separator(split_documents_on)), strip=True)

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

    def _table(self) -> Iterator[Chunk]:
        given = False
        for text in self._parquet() if self.ending == ".parquet" else self._rows():
            text, replaced = _HALF_SURROGATE.subn(REPLACEMENT, text)
            self.counts.half_surrogates += replaced
            if not text:
                self.counts.empty_documents += 1
            for start in range(0, len(text), PART_CHARS):
                given = True
                yield Chunk(text[start : start + PART_CHARS], start + PART_CHARS >= len(text))
        if self.named and self.problem and not given:
            raise UserError(f"{self.path} gives no text: {self.problem}.")

    def _rows(self) -> Iterator[str]:
        """The texts of a table that is itself text."""
        if (stream := self._text_stream()) is None:
            return
        lines = decoding.lines(stream, LONGEST_LINE, self.path)
        if self.ending in (".jsonl", ".ndjson"):
            yield from self._json_lines(lines)
        else:
            yield from self._columns(self._csv(lines) if self.ending == ".csv" else _tabs(lines))
        self._close(stream)

    def _skip_line(self, number: int, reason: str, problem: str) -> None:
        self.counts.skip(reason, f"{self.name}:{number}")
        self.problem = self.problem or f"line {number} {problem}"

    def _json_lines(self, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                rule = f"each line of a {self.ending} file is one JSON object; other text takes an ending such as .txt"
                self._skip_line(number, "line that did not parse as JSON", f"is not JSON ({error}); {rule}")
                continue
            if self.column is not None:
                there = isinstance(row, list) and self.column < len(row)
            else:
                there = isinstance(row, dict) and self.text_field in row
            if not there:
                self._skip_line(number, f"line without field {self.text_field!r}", self._missing(_fields(row)))
                continue
            value = row[self.text_field if self.column is None else self.column]
            if isinstance(value, str):
                yield value
            else:
                reason = f"line with no string in field {self.text_field!r}"
                self._skip_line(number, reason, f"has {_short(value)} in field {self.text_field!r}, no string")

    def _csv(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        # The limit is one of the process, 131,072 characters unless somebody sets it.
        csv.field_size_limit(LONGEST_LINE)
        parts = (part for line in lines for part in (_LINE.findall(line) if "\r" in line else (line,)))
        reader = csv.reader(chain(parts, ["\n", _END_OF_CSV]))
        before, row = 0, [_END_OF_CSV]
        try:
            for row in reader:
                if row and row != [_END_OF_CSV]:
                    # A quote that nobody closes takes all lines to the end, that of ours too.
                    if row[-1].endswith(_END_OF_CSV):
                        raise UserError(f"{self.path}:{before + 1} has a quote that is never closed. Mend that line.")
                    yield reader.line_num, row
                before = reader.line_num
        except csv.Error as error:
            raise UserError(f"{self.path}:{reader.line_num} cannot be read as CSV: {error}.") from error

    def _columns(self, rows: Iterator[tuple[int, list[str]]]) -> Iterator[str]:
        """The text of each row: under its name in the first one, or in the column of that number."""
        column = self.column
        if column is None:
            _, header = next(rows, (0, [self.text_field]))
            if self.text_field not in header:
                self._no_field(header)
                return
            column = header.index(self.text_field)
        for number, row in rows:
            if column < len(row):
                yield row[column]
            else:
                self._skip_line(number, f"line without field {self.text_field!r}", f"has {len(row)} columns only")

    def _missing(self, fields: list[str]) -> str:
        told = ", ".join(map(_short, fields[:_FIELDS_TOLD])) + (", ..." if len(fields) > _FIELDS_TOLD else "")
        return f"has no field {self.text_field!r}; its fields are: {told or 'none'}. Name one of them with --text_field"

    def _no_field(self, fields: list[str]) -> None:
        """Skips a table that lacks the field as a whole."""
        hint = ""
        if self.column is None and any(len(one) > _LONG_NAME or not one or _NUMBER.fullmatch(one) for one in fields):
            longest = max(range(len(fields)), key=lambda index: len(fields[index]))
            hint = f", or a column by its number if there is no header: --text_field {longest}"
        problem = f"{self._missing(fields)}{hint}"
        self.counts.files -= 1
        self._skip_file(f"file without field {self.text_field!r}", self.name, f"{self.path} {problem}.")

    def _parquet(self) -> Iterator[str]:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(f"{self.path}: a .parquet file needs the package pyarrow: pip install pyarrow") from error
        if self.packing:
            raise UserError(f"{self.path} is packed, and a .parquet file is read in pieces: unpack it first.")
        with decoding.opened(self.path, self.ending, self._on_read) as source:
            # With a buffer, a column of a row group is read piece by piece.
            table = parquet.ParquetFile(source, buffer_size=decoding.BLOCK_BYTES, pre_buffer=False)
            self.counts.files += 1
            yield from self._parquet_column(table)

    def _parquet_column(self, table: Any) -> Iterator[str]:
        names, kinds = table.schema_arrow.names, table.schema_arrow.types
        known = self.text_field in names if self.column is None else self.column < len(names)
        if not known:
            self._no_field(names)
            return
        column = names.index(self.text_field) if self.column is None else self.column
        kind = kinds[column]
        if str(kind).startswith("dictionary"):
            kind = kind.value_type  # that of its words
        if not str(kind).endswith(("string", "binary", "string_view", "binary_view")):
            self.counts.files -= 1
            reason = f"file with no text in field {names[column]!r}"
            self._skip_file(reason, self.name, f"{self.path} has {kinds[column]} in field {names[column]!r}, not text.")
            return
        number = 0
        for batch in table.iter_batches(_PARQUET_ROWS, columns=[names[column]], use_threads=False):
            # As bytes, since nobody checks that a file's strings are UTF-8.
            for data in batch.column(0).cast(kind).cast("large_binary").to_pylist():
                number += 1
                if data is None:
                    reason = f"row with no string in field {names[column]!r}"
                    self._skip_line(number, reason, f"has nothing in field {names[column]!r}")
                    continue
                text, undecodable = decoding.decoded(data)
                if undecodable:
                    self._undecodable(undecodable)
                yield text


def _tabs(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The columns of each line that is not empty, split at tabs without a look at quotes."""
    for number, line in enumerate(lines, 1):
        if line := line.removesuffix("\n").removesuffix("\r"):
            yield number, line.split("\t")


def _separator(typed: str) -> str:
    """What split_documents_on stands for: the user types \\n for a line break; lines end with LF by then."""
    separator = re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], typed).replace("\r\n", "\n")
    if not separator:
        raise UserError("split_documents_on = '': give the text that stands between two documents, such as '\\n\\n'.")
    return separator


def _fields(row: Any) -> list[str]:
    """The names of a JSON row's fields, or their numbers in a list."""
    if isinstance(row, dict):
        return list(row)
    return [str(number) for number in range(len(row))] if isinstance(row, list) else []


def _short(value: Any) -> str:
    """A value for a message, on one line and not long."""
    told = value if isinstance(value, str) else json.dumps(value)
    told = " ".join(told.encode(errors="replace").decode().split())
    return told if len(told) <= _LONG_NAME else f"{told[: _LONG_NAME - 3]}..."
