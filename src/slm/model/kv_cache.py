"""The keys and values that a model has computed so far, so that generating a token costs one position, not all.

Shapes: B batch, T new positions, S positions with the cached ones, K key and value heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FEWEST = 64  # positions that there is room for; then for twice as many, so that growing costs little on average


class KVCache:
    """Keys and values of each layer; empty until a model is called with it.

    The rows of a batch may hold different numbers of positions: `shorten` makes it so. For a model whose attention
    stays inside documents, the cache also knows where documents begin.
    """

    def __init__(self, num_layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers  # keys and values, (B, K, room, d)
        self._begins: Tensor | None = None  # (B, room)
        self.lengths: list[int] = []  # positions of each row; no row before the first call

    def length(self) -> int:
        """S: the positions of the longest row."""
        return max(self.lengths, default=0)

    def extend(self, tokens: Tensor) -> slice | Tensor:
        """The positions of tokens (B, T) that are about to be read: a slice, or (B, T) where rows differ in length."""
        B, T = tokens.shape
        lengths = self.lengths or [0] * B
        if len(lengths) != B:
            raise ValueError(f"tokens has {B} rows and the cache {len(lengths)}: a cache serves one batch.")
        self.lengths = [length + T for length in lengths]
        start = lengths[0] if lengths else 0
        if lengths.count(start) == B:
            return slice(start, start + T)
        return torch.tensor(lengths, device=tokens.device)[:, None] + torch.arange(T, device=tokens.device)

    def append(self, layer: int, k: Tensor, v: Tensor, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, (B, K, S, d), after setting those of new positions, (B, K, T, d)."""
        S, held = self.length(), self._layers[layer]
        if held is None or held[0].size(2) < S:
            old = held or (None, None)
            held = self._layers[layer] = _with_room(old[0], k, 2, S), _with_room(old[1], v, 2, S)
        for kept, new in zip(held, (k, v), strict=True):
            if isinstance(positions, slice):
                kept.narrow(2, positions.start, new.size(2)).copy_(new)
            else:
                kept[_rows(positions), :, positions] = new.transpose(1, 2)
        return held[0].narrow(2, 0, S), held[1].narrow(2, 0, S)

    def append_begins(self, begins: Tensor, positions: slice | Tensor) -> Tensor:
        """True at all positions that begin a document, (B, S), after setting those of new positions, (B, T)."""
        S, held = self.length(), self._begins
        if held is None or held.size(1) < S:
            held = self._begins = _with_room(held, begins, 1, S)
        rows = slice(None) if isinstance(positions, slice) else _rows(positions)
        held[rows, positions] = begins
        return held[:, :S]

    def shorten(self, lengths: Sequence[int]) -> None:
        """Keeps the first so many positions of each row. What lies beyond is overwritten, and never looked at."""
        self.lengths = list(lengths)

    def replace(self, rows: Sequence[int], other: KVCache) -> None:
        """Gives some rows what the rows of another cache hold, in their order, in place of their own."""
        S, index = other.length(), torch.tensor(rows)
        for held, new in zip(self._layers, other._layers, strict=True):
            for kept, part in zip(held or (), new or (), strict=False):
                kept[index, :, :S] = part[:, :, :S]
        if self._begins is not None and other._begins is not None:
            self._begins[index, :S] = other._begins[:, :S]
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length

    def select(self, rows: Sequence[int], start: int = 0) -> None:
        """Makes row i what row rows[i] was: rows in another order, more than once, or no longer.

        start: the positions before it are left as they are, since both hold the same there.
        """
        device = next((held[0].device for held in self._layers if held), None)
        index, S = torch.tensor(rows, dtype=torch.long, device=device), self.length()
        moved = (index != torch.arange(len(rows), device=device)).nonzero()[:, 0]
        origins = index[moved]

        def selected(held: Tensor, dim: int) -> Tensor:
            if len(rows) > len(held):
                return held.index_select(0, index)
            part = held.narrow(dim, start, S - start)
            part.index_copy_(0, moved, part.index_select(0, origins))
            return held[: len(rows)]

        self._layers = [held and (selected(held[0], 2), selected(held[1], 2)) for held in self._layers]
        if self._begins is not None:
            self._begins = selected(self._begins, 1)
        self.lengths = [self.lengths[row] for row in rows]


def _with_room(held: Tensor | None, new: Tensor, dim: int, needed: int) -> Tensor:
    """A larger tensor of the shape of `new` but for that dimension, with what is held at its beginning."""
    shape = list(new.shape)
    shape[dim] = max(needed, _FEWEST if held is None else 2 * held.size(dim))
    # Zeros, not whatever lies there: a masked position has a weight of 0, and 0 times infinity is no number.
    room = new.new_zeros(shape)
    if held is not None:
        room.narrow(dim, 0, held.size(dim)).copy_(held)
    return room


def _rows(positions: Tensor) -> Tensor:
    """(B, 1): the row of each of the positions (B, T)."""
    return torch.arange(len(positions), device=positions.device)[:, None]
