"""A piece of text on its way, and what was met by then: how much was read, skipped or replaced, also in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from slm.config import UserError
from slm.storage.listing import FileInfo

_NOUNS = ("empty document", "half surrogate pair", "byte order mark")


class Chunk(NamedTuple):
    """A document, or a part of a long one; `ends` with its last. bits: its entropy, where the source knows it."""

    text: str
    ends: bool
    bits: float = 0.0


@dataclass
class Counts:
    """What was read so far, and everything that was skipped or replaced; it grows while reading."""

    files: int = 0
    documents: int = 0
    num_bytes: int = 0  # of the documents in UTF-8
    stored_bytes: int = 0  # read from the sources, as they are stored
    undecodable_bytes: int = 0
    undecodable_file: str = ""  # the first with such bytes
    half_surrogates: int = 0
    byte_order_marks: int = 0
    crlf_files: int = 0
    empty_documents: int = 0
    skipped: dict[str, list[Any]] = field(default_factory=dict)  # reason: [count, first example]
    tables: int = 0  # of the files
    separators: int = 0  # met in plain text

    def skip(self, reason: str, example: str) -> None:
        """Counts one thing left out; the reason begins with its noun in the singular."""
        self.skipped.setdefault(reason, [0, example])[0] += 1

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk that is handed on."""
        self.documents += chunk.ends
        self.num_bytes += len(chunk.text.encode())

    def lines(self) -> list[str]:
        """All of it in words, one line for each kind of news; nothing is said of what did not happen."""
        told = [f"{many(self.documents, 'document')}, {size_in_words(self.num_bytes)}"]
        if self.files:
            told[0] = f"{many(self.files, 'file')}, {told[0]}"
        if skipped := self._skipped():
            told.append(f"skipped: {skipped}")
        if self.undecodable_bytes:
            were = "byte was" if self.undecodable_bytes == 1 else "bytes were"
            told.append(
                f"{self.undecodable_bytes:,} {were} not UTF-8 and became U+FFFD (first in {self.undecodable_file})"
            )
        if self.half_surrogates:
            told.append(f"{many(self.half_surrogates, 'half surrogate pair')} became U+FFFD")
        if self.crlf_files:
            told.append(f"{many(self.crlf_files, 'file')} with Windows line ends, read as plain ones")
        if self.byte_order_marks:
            told.append(f"{many(self.byte_order_marks, 'byte order mark')} left out")
        return told

    def no_text(self, name: str) -> str:
        """The message for a corpus in which no document was found."""
        skipped = self._skipped()
        return f"{name} is empty: there is no text to learn from" + (f"; skipped: {skipped}." if skipped else ".")

    def _skipped(self) -> str:
        told = [
            f"{many(count, reason)} ({'first: ' if count > 1 else ''}{example})"
            for reason, (count, example) in self.skipped.items()
        ]
        if self.empty_documents:
            told.append(many(self.empty_documents, "empty document"))
        return ", ".join(told)


class Notes:
    """What is told of one file while it is read: into `counts`, or as an error where the file was named itself."""

    def __init__(self, file: FileInfo, named: bool, counts: Counts) -> None:
        self.path, self.named, self.counts = file.path, named, counts
        self.name = file.name.encode(errors="replace").decode()  # a name on disk need not be Unicode
        self.problem = ""  # the first reason why a line of a table gave no text

    def read(self, num_bytes: int) -> None:
        """Counts bytes as they are stored."""
        self.counts.stored_bytes += num_bytes

    def undecodable(self, num_bytes: int) -> None:
        """Counts bytes that became U+FFFD."""
        if num_bytes:
            self.counts.undecodable_file = self.counts.undecodable_file or self.name
            self.counts.undecodable_bytes += num_bytes

    def skip_file(self, reason: str, error: str) -> None:
        """Counts the file as left out; raises UserError where it was named itself."""
        if self.named:
            raise UserError(f"{self.path} {error}")
        self.counts.skip(reason, self.name)

    def skip_row(self, number: int, reason: str, problem: str) -> None:
        """Counts a row of a table as left out; the reason begins with its noun."""
        self.counts.skip(reason, f"{self.name}:{number}")
        self.problem = self.problem or f"{reason.partition(' ')[0]} {number} {problem}"


def many(count: int, thing: str) -> str:
    """Such as 1 line without text, 2 lines without text: the noun is the first word, or one of _NOUNS."""
    noun, space, rest = (thing, "", "") if thing in _NOUNS else thing.partition(" ")
    return f"{count:,} {noun}{'' if count == 1 else 's'}{space}{rest}"


def size_in_words(num_bytes: int) -> str:
    """Such as 10.2 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return many(num_bytes, "byte")
