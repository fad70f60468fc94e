"""Token ids cut into windows of (tokens, targets).

Shapes: N token ids, T positions in a window, B windows in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, UserError
from slm.data.tokens import Tokens


class TextDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows side by side over a text: item i holds tokens (T,) from i*T on, and the same shifted by one as targets.

    The windows cover every target once. Where the last one reaches past the end, its targets there are IGNORE_INDEX.
    A text of fewer than max_seq_len + 1 tokens makes one window of all of it: see `window`.

    With start_id the windows begin where documents do. Each holds as many whole documents as fit into T targets, and
    its targets beyond them are IGNORE_INDEX; a document of more than T goes on in further windows. A document runs
    from a start_id, or from the beginning of the text, to the next one, which is its last target.
    """

    def __init__(
        self,
        token_ids: Tokens | Tensor | Sequence[int] | Any,
        max_seq_len: int,
        *,
        start_id: int | None = None,
        max_targets: int | None = None,
    ) -> None:
        """token_ids: (N,) integers, as tensor, array (a memory map stays one), list or Tokens.

        start_id: the token that begins a document. max_targets: keeps the dataset to about that many targets, always
        the same ones: windows spread evenly over the text, or, with start_id, its first whole documents.
        Raises UserError where N < 2 or the ids are not integers.
        """
        self.tokens = token_ids if isinstance(token_ids, Tokens) else Tokens([_as_array(token_ids)])
        if len(self.tokens) < 2:
            raise UserError(
                f"the text has {len(self.tokens)} tokens: at least 2 are needed, one to look at and one to predict."
            )
        for name, value in {"max_seq_len": max_seq_len, "max_targets": max_targets}.items():
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: must be at least 1.")
        self.num_targets = len(self.tokens) - 1  # of the whole text
        self.window = min(max_seq_len, self.num_targets)  # T
        self.start_id, self.max_targets = start_id, max_targets

    def id_range(self) -> tuple[int, int]:
        """The smallest and the largest token id of the text."""
        return self.tokens.id_range()

    def __len__(self) -> int:
        if self.start_id is not None:
            return len(self._packed[0])
        if self.max_targets is None or self.num_targets <= self.max_targets:
            return self._num_windows
        return max(1, self.max_targets // self.window)

    @property
    def _num_windows(self) -> int:
        """Windows side by side over the whole text."""
        return -(-self.num_targets // self.window)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        tokens, targets = self.batch(torch.tensor([index % len(self)]))
        return tokens[0], targets[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The windows of those indices, as tokens (B, T) and targets (B, T)."""
        return self._read(*self.places(indices.numpy()))

    def places(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the text the windows of those indices begin, (B,), and how many targets each has, (B,)."""
        if self.start_id is None:
            starts = indices * self._num_windows // len(self) * self.window
            return starts, np.minimum(self.num_targets - starts, self.window)
        starts, counts = self._packed
        return starts[indices], counts[indices]

    def windows_at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The windows that begin at those positions (B,) of the text, as tokens (B, T) and targets (B, T)."""
        return self._read(starts.numpy(), self.num_targets - starts.numpy())

    def _read(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The windows at those positions (B,), each with that many targets (B,) and IGNORE_INDEX after them."""
        ids = self.tokens.windows(starts, self.window + 1)  # (B, T+1)
        targets = ids[:, 1:].copy()  # who writes into the targets shall not change the tokens
        if (counts < self.window).any():
            targets[np.arange(self.window) >= counts[:, None]] = IGNORE_INDEX
        return torch.from_numpy(ids[:, :-1]), torch.from_numpy(targets)

    def document_starts(self, starts: Tensor) -> Tensor:
        """Those positions (B,) of full windows, each moved on to the first start_id among the T tokens from there on.

        Without one they stay, so that what lies deep in a long document is seen too; and the beginning of the text,
        where a document begins without a start_id, stays as well.
        """
        if self.start_id is None:
            return starts
        held = self.tokens.windows(starts.numpy(), self.window) == self.start_id  # (B, T)
        ahead = torch.from_numpy(held.argmax(axis=1))  # 0 where there is none
        return torch.where(starts == 0, starts, starts + ahead)

    @cached_property
    def _packed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The windows of whole documents, as their first positions and their numbers of targets."""
        assert self.start_id is not None
        limit = min(max(self.max_targets or self.num_targets, self.window), self.num_targets)
        borders = self.tokens.positions(self.start_id, limit + 1)
        borders = borders[borders > 0]
        if limit == self.num_targets or not len(borders):  # the last document ends there, or the first is cut
            borders = np.append(borders[borders < limit], limit)
        return _pack([0, *borders.tolist()], self.window)


def _as_array(token_ids: Any) -> NDArray[Any]:
    """token_ids as an array, which is a view of theirs where they are a tensor or an array."""
    if isinstance(token_ids, Tensor):
        kind = token_ids.dtype
        if kind.is_floating_point or kind.is_complex:  # of which numpy does not know all
            raise UserError(
                f"token_ids has shape {tuple(token_ids.shape)} and type {kind}: must be one row of integers."
            )
        return token_ids.cpu().numpy()
    try:
        return np.asarray(token_ids)
    except ValueError as error:  # rows of several lengths
        raise UserError(f"token_ids must be one row of integers: {error}") from error


def _pack(borders: list[int], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first positions and numbers of targets of windows that hold as many documents as fit.

    borders: document i lies between numbers i and i + 1 of them.
    """
    reach = np.searchsorted(borders, np.array(borders) + window, side="right") - 1  # the last border in a window
    windows, first = [], 0
    while first < len(borders) - 1:
        start, last = borders[first], int(reach[first])
        if last > first:
            windows.append((start, borders[last] - start))
        else:  # a document longer than a window
            last = first + 1
            windows += [(at, min(window, borders[last] - at)) for at in range(start, borders[last], window)]
        first = last
    starts, counts = np.array(windows, np.int64).T
    return starts, counts
