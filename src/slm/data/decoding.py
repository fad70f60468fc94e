"""Bytes as stored, unpacked and decoded block by block: what comes out is text, however large the file."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, Protocol, cast

from slm.config import UserError
from slm.storage import files
from slm.storage.files import StorageError

BLOCK_BYTES = 2**20
SNIFF_BYTES = 8192  # a NUL byte among the first so many, and a file is not text
PACKED = (".gz", ".xz", ".bz2", ".zst")
REPLACEMENT = "\ufffd"

_PACKED_BYTES = 2**16  # read at once to be unpacked
# zstandard hands out all that its input unpacks to: of a run of zeros 128 KiB for every 4 bytes.
_ZST_BYTES = 512  # so at most so much is given to it at once, and less where it makes much of it
_Decode = Callable[[bytes, str, bool], tuple[str, int]]
_UTF_8: tuple[_Decode, str] = (codecs.utf_8_decode, "utf-8")
# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
_MARKS: tuple[tuple[bytes, tuple[_Decode, str]], ...] = (
    (codecs.BOM_UTF8, _UTF_8),
    (codecs.BOM_UTF32_LE, (codecs.utf_32_le_decode, "utf-32-le")),
    (codecs.BOM_UTF32_BE, (codecs.utf_32_be_decode, "utf-32-be")),
    (codecs.BOM_UTF16_LE, (codecs.utf_16_le_decode, "utf-16-le")),
    (codecs.BOM_UTF16_BE, (codecs.utf_16_be_decode, "utf-16-be")),
)
# What a file that is no text may begin with: its kind, and the ending that would have it unpacked.
_NOT_TEXT = (
    (re.compile(rb"\x1f\x8b"), "gzip", ".gz"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz", ".xz"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "bzip2", ".bz2"),
    (re.compile(rb"\(\xb5/\xfd"), "zstd", ".zst"),
    (re.compile(rb"PK\x03\x04"), "zip", ""),
    (re.compile(rb"%PDF-"), "PDF", ""),
    (re.compile(rb"\x89PNG|\xff\xd8\xff"), "a picture", ""),
)


class _Stream(Protocol):
    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes, none at the end."""


class TextStream:
    """The text of a file's bytes, block by block, and what was noticed on the way.

    Afterwards `undecodable` is the number of bytes that were not of the encoding; U+FFFD stands in their place.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._head = b""
        while len(self._head) < SNIFF_BYTES and (block := next(self._blocks, b"")):
            self._head += block
        found = next(((mark, how) for mark, how in _MARKS if self._head.startswith(mark)), (b"", _UTF_8))
        self._mark, (self._decode, self._encoding) = found
        self.has_mark = bool(self._mark)
        known = (one[1:] for one in _NOT_TEXT if one[0].match(self._head))
        self.looks_like, self.packing = next(known, ("", ""))  # such as gzip, .gz; "" for text
        self.is_binary = bool(self.looks_like) or (self._encoding == "utf-8" and b"\0" in self._head[:SNIFF_BYTES])
        self.has_crlf = False
        self.undecodable = 0

    def __iter__(self) -> Iterator[str]:
        rest = b""
        for block in chain([self._head[len(self._mark) :]], self._blocks):
            data = rest + block
            text, used = self._decoded(data, final=False)
            rest = data[used:]
            if text:
                yield text
        if rest:
            yield self._decoded(rest, final=True)[0]

    def _decoded(self, data: bytes, *, final: bool) -> tuple[str, int]:
        """(text, bytes used): a character that the block's end cuts is left for the next one."""
        text, used = self._decode(data, "replace", final)
        self.undecodable += _misfits(text, data[:used], self._decode, self._encoding)
        return text, used

    def unix_lines(self) -> Iterator[str]:
        """The text with each CR LF as LF; a lone CR stays."""
        held = ""
        for text in self:
            text = held + text
            held = "\r" if text.endswith("\r") else ""
            if "\r\n" in text:
                self.has_crlf = True
                text = text.replace("\r\n", "\n")
            if held:
                text = text[:-1]
            if text:
                yield text
        if held:
            yield held


def decoded(data: bytes) -> tuple[str, int]:
    """(the text of UTF-8 bytes, how many of them did not fit and became U+FFFD)."""
    text = data.decode(errors="replace")
    return text, _misfits(text, data, *_UTF_8)


def _misfits(text: str, data: bytes, decode: _Decode, encoding: str) -> int:
    """How many bytes of `data`, of which `text` was made, do not fit the encoding."""
    if REPLACEMENT not in text:
        return 0
    fitting, _ = decode(data, "ignore", True)  # a U+FFFD of the text's own is among them
    return len(data) - len(fitting.encode(encoding))


def lines(texts: Iterable[str], longest: int, name: str) -> Iterator[str]:
    """The lines of a text that comes in blocks, each with its line feed; UserError for one above `longest`."""
    held: list[str] = []
    size = 0
    for text in texts:
        start = 0
        while end := text.find("\n", start) + 1:
            held.append(text[start:end])
            yield held[0] if len(held) == 1 else "".join(held)
            held, size, start = [], 0, end
        held.append(text[start:])
        size += len(text) - start
        if size > longest:
            raise UserError(f"{name} has a line of more than {longest:,} characters: give each document its own line.")
    if last := "".join(held):
        yield last


def split(texts: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """(piece, whether it ends there) for what stands between separators, in a text that comes in blocks."""
    held = ""
    for text in texts:
        text = held + text
        start = 0
        while (end := text.find(separator, start)) >= 0:
            yield text[start:end], True
            start = end + len(separator)
        # The next block may complete a separator that begins in these last characters.
        cut = max(start, len(text) - len(separator) + 1)
        yield text[start:cut], False
        held = text[cut:]
    yield held, True


def read_blocks(path: str, packing: str, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of a file, unpacked as `packing` (one of PACKED or "") says; on_read is told of bytes as stored.

    Raises UserError where they are damaged or end too early, StorageError where they cannot be read.
    """
    with opened(path, packing, on_read) as source:
        stream = _unpacked(source, packing)
        while block := stream.read(BLOCK_BYTES):
            yield block


@contextlib.contextmanager
def opened(path: str, ending: str, on_read: Callable[[int], None]) -> Iterator[Source]:
    """Yields a file that tells on_read of each piece; an error of whatever reads it is one about its content.

    That is a UserError which says that the file is no whole `ending` file; the storage's own is a StorageError.
    """
    try:
        with files.open_read(path) as file:
            source = Source(file, on_read)
            try:
                yield source
            except UserError:
                raise
            except Exception as error:  # each format has its own family of exceptions
                if source.failed:
                    raise
                problem = _one_line(error)
                raise UserError(
                    f"{path} is damaged or incomplete, no whole {ending} file ({problem}). Get it again."
                ) from error
    except (OSError, UserError):
        raise
    except Exception as error:  # and so has each storage
        raise StorageError(f"Cannot read {path!r}: {_one_line(error)} Try again, or download it first.") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())


class Source:
    """A file being read, with a word of each piece; `failed` once the storage did, not what makes sense of it."""

    closed = False

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file, self._on_read, self.failed = file, on_read, False
        self._ended = False  # some streams complain when they are asked again

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, fewer than `size` at the end only: blocks are the same whenever a file is read."""
        parts: list[bytes] = []
        with self._noticing():
            while size and not self._ended:
                part = self._file.read(size)
                self._ended = not part
                self._on_read(len(part))
                parts.append(part)
                size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, place: int, whence: int = 0, /) -> int:
        """The new place, as of any file."""
        with self._noticing():
            self._ended = False
            return self._file.seek(place, whence)

    def tell(self) -> int:
        """The present place."""
        return self._file.tell()

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.failed = True
            raise


def _unpacked(source: _Stream, packing: str) -> _Stream:
    import bz2
    import gzip
    import lzma

    if not packing:
        return source
    if packing == ".zst":
        return _Zst(source)
    if packing == ".gz":
        return cast(_Stream, gzip.open(cast(BinaryIO, source), "rb"))
    return _Streams(source, bz2.BZ2Decompressor if packing == ".bz2" else lzma.LZMADecompressor)


class _Streams:
    """Unpacked .xz or .bz2 streams, one after the other; Python's own readers pass over what else follows them."""

    def __init__(self, source: _Stream, unpacker: Callable[[], Any]) -> None:
        self._source, self._new = source, unpacker
        self._unpacker = unpacker()

    def read(self, size: int = BLOCK_BYTES, /) -> bytes:
        """The next bytes, about `size`, or none at the end."""
        parts: list[bytes] = []
        while size > 0:
            packed = b""
            if self._unpacker.eof:
                if not (packed := self._next_stream()):
                    break
                self._unpacker = self._new()
            elif self._unpacker.needs_input and not (packed := self._source.read(_PACKED_BYTES)):
                raise EOFError("it ends in the middle")
            parts.append(self._unpacker.decompress(packed, size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _next_stream(self) -> bytes:
        """The first bytes after a stream, without the zeros that may pad it; none at the file's end."""
        packed: bytes = self._unpacker.unused_data.lstrip(b"\0")
        while not packed and (block := self._source.read(_PACKED_BYTES)):
            packed = block.lstrip(b"\0")
        return packed


class _Zst:
    """Unpacked Zstandard frames; the package's own reader takes a file that was cut off for a whole one."""

    def __init__(self, source: _Stream) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError("A .zst file needs the package zstandard: pip install zstandard") from error
        # Frames packed with --long=31 are common among large data sets.
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._source = source
        self._packed, self._step = b"", 8
        self._frame: Any = None

    def read(self, size: int = BLOCK_BYTES, /) -> bytes:
        """The next bytes, about `size`, or none at the end."""
        parts: list[bytes] = []
        while size > 0 and self._fill():
            if self._frame is None:
                self._frame = self._unpacker.decompressobj()
            part = self._frame.decompress(self._packed[: self._step])
            self._packed = self._packed[self._step :]
            self._step = max(self._step // 8, 1) if len(part) > 2**16 else min(self._step * 2, _ZST_BYTES)
            if self._frame.eof:
                self._packed = self._frame.unused_data + self._packed
                self._frame = None
            parts.append(part)
            size -= len(part)
        if size > 0 and self._frame is not None:
            raise EOFError("it ends in the middle")
        return b"".join(parts)

    def _fill(self) -> bool:
        """True once packed bytes are at hand, False at the file's end."""
        if not self._packed:
            self._packed = self._source.read(_PACKED_BYTES)
        return bool(self._packed)
