"""A first reading of the whole corpus: what is in it, which text validates, and a sample for the tokenizer.

It takes a small part of the time that tokenizing does, and finds everything that is wrong with the data before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from slm.data.counts import Counts
from slm.data.formats import Chunk
from slm.data.sources import Corpus

TRAIN, VAL = 0, 1
FEWEST_DOCUMENTS = 100  # from so many on, whole documents are held out
SAMPLE_CHARS = 20_000_000  # what a tokenizer is trained on, at most
HASHED_CHARS = 1 << 16  # of a document; its first part has at least so many characters, or is all of it
_SAMPLE_PIECE = 1 << 16


class Span(NamedTuple):
    """Some text of one document, and the split that it belongs to."""

    where: int  # TRAIN or VAL
    text: str
    ends: bool  # the document, or the part of it that this split gets
    bits: float


@dataclass(frozen=True)
class Split:
    """The rule that sends text to training or validation: a hash of each document, or a place in the text."""

    val_fraction: float = 0.0
    by_hash: bool = False
    cut: int | None = None  # the text after so many characters is for validation

    def spans(self, chunks: Iterator[Chunk], position: int) -> Iterator[Span]:
        """The text of the chunks with its split; `position` is the number of characters before them."""
        starts, where = True, TRAIN
        for text, ends, bits in chunks:
            if self.by_hash and starts:
                where = VAL if share(text) < self.val_fraction else TRAIN
            before = len(text) if self.cut is None else self.cut - position
            if self.cut is not None:
                where = TRAIN if before > 0 else VAL
            if 0 < before < len(text):
                yield Span(TRAIN, text[:before], True, 0.0)
                yield Span(VAL, text[before:], ends, 0.0)  # what a part of a document costs, nobody tells
            else:
                at_cut = self.cut is not None and before == len(text)
                yield Span(where, text, ends or at_cut, bits)
            position += len(text)
            starts = ends


def share(text: str) -> float:
    """A number from 0 to 1 that the document's first characters alone decide: equal documents have equal ones.

    So more data moves no document from one split to the other, and a document's copies share its split.
    """
    digest = hashlib.blake2b(text[:HASHED_CHARS].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


class _Sample:
    """Pieces of a text of unknown length, evenly spread, that never have more than twice the wanted characters."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.stride, self.seen, self.size = wanted, 1, 0, 0
        self.kept: list[tuple[int, int, float, str]] = []  # number, position, share of its document, text

    def add(self, position: int, share_of_document: float, text: str) -> None:
        if _kept(self.seen, self.stride):
            self.kept.append((self.seen, position, share_of_document, text))
            self.size += len(text) + 64  # a str's own bytes: a million words weigh more than their letters
        self.seen += 1
        if self.size > 2 * self.wanted:
            self.stride *= 2
            self.kept = [piece for piece in self.kept if _kept(piece[0], self.stride)]
            self.size = sum(len(piece[3]) + 64 for piece in self.kept)


def _kept(number: int, stride: int) -> bool:
    """True for one in `stride` numbers; those of a larger stride are among those of a smaller one."""
    # Multiples of the golden ratio, modulo 1, fall evenly everywhere. Every second piece would be of one language
    # where a text has two in turn.
    return number * 0x9E3779B1 % 2**32 < 2**32 // stride


@dataclass
class Survey:
    """What the first reading found."""

    counts: Counts = field(default_factory=Counts)
    num_chars: int = 0
    part_chars: list[int] = field(default_factory=list)  # characters of each part of the corpus
    smallest_share: float = 1.0  # of the documents'
    characters: set[str] = field(default_factory=set)  # only where they were asked for
    content: str = ""  # a SHA-256 of all documents, however they came in parts
    sample: _Sample = field(default_factory=lambda: _Sample(SAMPLE_CHARS))

    def split(self, val_fraction: float) -> Split:
        """The rule for this corpus: whole documents by their hash where there are many, else the end of the text.

        Where the hash chooses none, as may happen with few documents and a small val_fraction, it is the end as well.
        """
        if self.counts.documents >= FEWEST_DOCUMENTS and self.smallest_share < val_fraction:
            return Split(val_fraction, by_hash=True)
        return Split(val_fraction, cut=int(self.num_chars * (1 - val_fraction)))

    def sample_of_training(self, split: Split) -> list[str]:
        """Evenly spread pieces of the training text, SAMPLE_CHARS at most, or all of it."""
        texts: list[tuple[int, str]] = []
        for number, position, share_of_document, text in self.sample.kept:
            if split.by_hash and share_of_document < split.val_fraction:
                continue
            if split.cut is not None:
                text = text[: max(split.cut - position, 0)]
            texts.append((number, text))
        stride = self.sample.stride
        while sum(len(text) for _, text in texts) > SAMPLE_CHARS:
            stride *= 2
            texts = [piece for piece in texts if _kept(piece[0], stride)]
        return [text for _, text in texts]


def take_survey(corpus: Corpus, *, characters: bool, on_progress: Callable[[int], None]) -> Survey:
    """Reads the whole corpus once. `characters` collects the set of them; on_progress is told the bytes read so far."""
    survey = Survey()
    for folder in corpus.left_out:
        survey.counts.skip("folder that slm-prepare made", folder)
    digest = hashlib.sha256()
    for part in range(corpus.num_parts):
        before, starts, of_document = survey.num_chars, True, 0.0
        for text, ends, _ in corpus.chunks(part, survey.counts):
            digest.update(text.encode())
            if ends:
                digest.update(b"\xff")  # a byte that UTF-8 never has
            of_document = share(text) if starts else of_document
            survey.smallest_share = min(survey.smallest_share, of_document)
            for start in range(0, len(text), _SAMPLE_PIECE):
                survey.sample.add(survey.num_chars + start, of_document, text[start : start + _SAMPLE_PIECE])
            if characters:
                survey.characters.update(text)
            survey.num_chars += len(text)
            starts = ends
            on_progress(survey.counts.stored_bytes)
        survey.part_chars.append(survey.num_chars - before)
    survey.content = digest.hexdigest()
    return survey
