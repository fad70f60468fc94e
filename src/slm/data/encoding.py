"""The text of a corpus as token ids, in its order: pieces, encoded batch by batch while the next is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from slm.data.counts import Counts
from slm.data.sources import Corpus
from slm.data.survey import Span, Split
from slm.data.tokenizer import Tokenizer

_BATCH_CHARS = 1 << 21
_BATCH_PIECES = 4096
Ids = np.ndarray[Any, Any]


class Place(NamedTuple):
    """How far a corpus has been encoded: so many pieces of that part."""

    part: int = 0
    pieces: int = 0


class Piece(NamedTuple):
    """Some text of a document that is encoded by itself."""

    where: int  # TRAIN or VAL
    text: str
    starts: bool  # a document
    bits: float
    place: Place  # after it


def pieces(
    corpus: Corpus, split: Split, tokenizer: Tokenizer, part_chars: list[int], start: Place, counts: Counts
) -> Iterator[Piece]:
    """The pieces of a corpus from a place on. part_chars: the characters of each part, from the survey."""
    position = sum(part_chars[: start.part])
    for part in range(start.part, corpus.num_parts):
        number = 0
        spans = split.spans(corpus.chunks(part, counts), position)
        position += part_chars[part]
        for span in spans:
            starts = True
            for text in tokenizer.pieces(_texts(span, spans)):
                number += 1
                if part > start.part or number > start.pieces:
                    yield Piece(span.where, text, starts, span.bits, Place(part, number))
                starts = False


def _texts(span: Span, following: Iterator[Span]) -> Iterator[str]:
    """The texts of one document, whose first span is given."""
    yield span.text
    while not span.ends:
        span = next(following)
        yield span.text


def encoded(source: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[list[tuple[Piece, Ids]]]:
    """Batches of pieces with their token ids. The tokenizer's threads work on one while others are read and written."""
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[tuple[list[Piece], Future[Iterator[Ids]]]] = deque()
        for batch in _batches(source):
            waiting.append((batch, worker.submit(tokenizer.encode_pieces, [piece.text for piece in batch])))
            if len(waiting) > 1:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(batch: list[Piece], ids: Future[Iterator[Ids]]) -> list[tuple[Piece, Ids]]:
    return list(zip(batch, ids.result(), strict=True))


def _batches(source: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in source:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Rows:
    """The two rows of tokens, of training and validation, as they grow; kept in memory.

    end_id goes between documents; with `bracketed` also before the first, so that every document has a beginning that
    the model can be asked from, and after the last.
    """

    def __init__(self, end_id: int | None, *, bracketed: bool, most_counted: int) -> None:
        self.end_id, self.bracketed, self.most_counted = end_id, bracketed, most_counted
        self.documents, self.tokens = [0, 0], [0, 0]
        self.counted = [0.0, 0]  # bits and bytes of the validation text that evaluations read
        self.arrays: list[list[Ids]] = [[], []]

    def add(self, batch: list[tuple[Piece, Ids]]) -> None:
        """Appends the tokens of a batch."""
        parts: list[list[Ids]] = [[], []]
        for piece, ids in batch:
            where = piece.where
            if piece.starts:
                if self.end_id is not None and (self.documents[where] or self.bracketed):
                    parts[where].append(self._separator())
                    self.tokens[where] += 1
                self.documents[where] += 1
            parts[where].append(ids)
            self.tokens[where] += len(ids)
            # The document's end token comes at position `tokens`, and is the last of so many targets.
            if where and piece.bits and self.tokens[where] <= self.most_counted:
                self.counted[0] += piece.bits
                self.counted[1] += len(piece.text.encode())
        for where, arrays in enumerate(parts):
            if any(map(len, arrays)):
                self.write(where, np.concatenate(arrays))

    def finish(self) -> None:
        """Appends what comes after the last document."""
        for where in (0, 1):
            if self.bracketed and self.documents[where] and self.end_id is not None:
                self.tokens[where] += 1
                self.write(where, self._separator())

    def write(self, where: int, ids: Ids) -> None:
        """Keeps the ids (N,) of a split."""
        self.arrays[where].append(ids)

    def discard(self) -> None:
        """Forgets all that was written."""
        self.arrays = [[], []]

    def _separator(self) -> Ids:
        return np.array([self.end_id], dtype=np.uint32)


def encode_into(
    rows: Rows,
    corpus: Corpus,
    split: Split,
    tokenizer: Tokenizer,
    part_chars: list[int],
    *,
    start: Place,
    after_batch: Callable[[Place, int], None],
) -> None:
    """Appends a corpus, from a place on, to the rows. after_batch is told the place and the characters added."""
    source = pieces(corpus, split, tokenizer, part_chars, start, Counts())
    for batch in encoded(source, tokenizer):
        rows.add(batch)
        after_batch(batch[-1][0].place, sum(len(piece.text) for piece, _ in batch))
