"""A row of token ids that may be far larger than memory: it stays where it lies and is read in small parts.

Shapes: N ids in the row, B windows of T ids each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.config import UserError

_BLOCK = 2**20  # ids


class Tokens:
    """One row of ids that lies in one or several arrays, such as memory maps of files, read as if they were joined."""

    def __init__(self, arrays: Sequence[NDArray[Any]], vocab_size: int | None = None) -> None:
        """arrays: each of one dimension and of any integer type. Raises UserError where they are not.

        vocab_size: all ids are known to be at least 0 and below it, so that `id_range` need not look.
        """
        for array in arrays:
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise UserError(
                    f"token_ids has shape {tuple(array.shape)} and type {array.dtype}: must be one row of integers."
                )
        # A plain view of a memory map is several times faster to slice than the map itself.
        self._arrays = [np.asarray(array) for array in arrays if len(array)]
        self._ends = list(accumulate(len(array) for array in self._arrays))
        self._id_range = None if vocab_size is None else (0, vocab_size - 1)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, part: slice) -> NDArray[np.int64]:
        """A copy of the ids from one position to another, as in tokens[10:20]."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise IndexError(f"tokens[{start}:{stop}:{step}]: the step must be 1.")
        ids: NDArray[np.int64] = self.windows(np.array([start]), max(stop - start, 0))[0]
        return ids

    def part(self, start: int, stop: int) -> Tokens:
        """The row from one position to another, which stays where it lies."""
        begins = [end - len(array) for array, end in zip(self._arrays, self._ends, strict=True)]
        cut = [array[max(start - b, 0) : max(stop - b, 0)] for array, b in zip(self._arrays, begins, strict=True)]
        part = Tokens(cut)
        part._id_range = self._id_range  # bounds for the whole are bounds for a part
        return part

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """(B, length): the ids from each of the positions (B,) on; beyond the end of the row, its last id."""
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            self._read(start, row)
        if self._id_range and rows.size and rows.max() > self._id_range[1]:
            raise UserError(
                f"the token files hold the id {rows.max()}, and the vocabulary ends at {self._id_range[1]}: they are "
                "damaged. The same command with --recheck finds out where, and mends what can be made again."
            )
        return rows

    def _read(self, start: int, row: NDArray[np.int64]) -> None:
        """Fills a row with the ids from a position on."""
        index, filled = bisect_right(self._ends, start), 0
        while filled < len(row) and index < len(self._arrays):
            array = self._arrays[index]
            at = start + filled - (self._ends[index] - len(array))
            ids = array[at : at + len(row) - filled]
            row[filled : filled + len(ids)] = ids
            filled += len(ids)
            index += 1
        if filled < len(row):
            row[filled:] = self._arrays[-1][-1]

    def id_range(self) -> tuple[int, int]:
        """The smallest and the largest id, looked up once; of a part or with vocab_size, bounds known before."""
        if self._id_range is None:
            bounds = [(int(ids.min()), int(ids.max())) for _, ids in self._blocks(len(self))]
            self._id_range = min(low for low, _ in bounds), max(high for _, high in bounds)
        return self._id_range

    def positions(self, id: int, stop: int) -> NDArray[np.int64]:
        """All positions before `stop` that hold an id, in order."""
        found = [position + np.flatnonzero(ids == id) for position, ids in self._blocks(stop)]
        return np.concatenate(found or [np.empty(0, np.int64)]).astype(np.int64)

    def _blocks(self, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """The ids before a position, uncopied, block by block, each with its own position."""
        for array, end in zip(self._arrays, self._ends, strict=True):
            begin = end - len(array)
            for start in range(begin, min(end, stop), _BLOCK):
                yield start, array[start - begin : min(start + _BLOCK, stop) - begin]
