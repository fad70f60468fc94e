"""A piece of text on its way, and what was met by then: how much was read, skipped or replaced, also in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

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

    def skip(self, reason: str, example: str) -> None:
        """Counts one thing left out; the reason begins with its noun in the singular."""
        self.skipped.setdefault(reason, [0, example])[0] += 1

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk that is handed on."""
        self.documents += chunk.ends
        self.num_bytes += len(chunk.text.encode())

    def lines(self) -> list[str]:
        """All of it in words, one line for each kind of news; nothing is said of what did not happen."""
        told = [f"{_many(self.documents, 'document')}, {size_in_words(self.num_bytes)}"]
        if self.files:
            told[0] = f"{_many(self.files, 'file')}, {told[0]}"
        if skipped := self._skipped():
            told.append(f"skipped: {skipped}")
        if self.undecodable_bytes:
            were = "byte was" if self.undecodable_bytes == 1 else "bytes were"
            told.append(
                f"{self.undecodable_bytes:,} {were} not UTF-8 and became U+FFFD (first in {self.undecodable_file})"
            )
        if self.half_surrogates:
            told.append(f"{_many(self.half_surrogates, 'half surrogate pair')} became U+FFFD")
        if self.crlf_files:
            told.append(f"{_many(self.crlf_files, 'file')} with Windows line ends, read as plain ones")
        if self.byte_order_marks:
            told.append(f"{_many(self.byte_order_marks, 'byte order mark')} left out")
        return told

    def no_text(self, name: str) -> str:
        """The message for a corpus in which no document was found."""
        skipped = self._skipped()
        return f"{name} is empty: there is no text to learn from" + (f"; skipped: {skipped}." if skipped else ".")

    def _skipped(self) -> str:
        told = [
            f"{_many(count, reason)} ({'first: ' if count > 1 else ''}{example})"
            for reason, (count, example) in self.skipped.items()
        ]
        if self.empty_documents:
            told.append(_many(self.empty_documents, "empty document"))
        return ", ".join(told)


def _many(count: int, thing: str) -> str:
    """Such as 1 line without text, 2 lines without text: the noun is the first word, or one of _NOUNS."""
    noun, space, rest = (thing, "", "") if thing in _NOUNS else thing.partition(" ")
    return f"{count:,} {noun}{'' if count == 1 else 's'}{space}{rest}"


def size_in_words(num_bytes: int) -> str:
    """Such as 10.2 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return _many(num_bytes, "byte")
