"""Examples of unequal length, each a row of tokens with its targets, in batches of examples of similar length.

Shapes: B examples in a batch, T positions of the longest one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, UserError
from slm.data.tokens import Tokens

PADDING = 0  # a token behind the end of an example: attention is causal, so that nothing before it sees it
_MULTIPLE = 8  # of which T is one: fewer shapes, and matrix products like such numbers
Ids = NDArray[np.int32] | NDArray[np.int64]


class ExampleDataset(Dataset[tuple[Tensor, Tensor]]):
    """Examples as (tokens (T,), targets (T,)), each of its own length T."""

    def __init__(self, rows: Iterable[tuple[Ids, Ids]]) -> None:
        """rows: tokens and targets of each example, of one length. Raises UserError where there is none."""
        pairs = list(rows)
        if not pairs:
            raise UserError("there is no example: nothing to learn from.")
        self.lengths = np.array([len(tokens) for tokens, _ in pairs])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._all = self._starts, self.lengths
        columns = (np.concatenate(column).astype(np.int32, copy=False) for column in zip(*pairs, strict=True))
        self._tokens, self.targets = columns
        self.tokens = Tokens([self._tokens])  # of all examples, also of those that a part leaves out

    @property
    def window(self) -> int:
        """T of the longest example."""
        return int(self.lengths.max())

    @property
    def mean_length(self) -> float:
        """Tokens of an example."""
        return float(self.lengths.mean())

    @property
    def num_targets(self) -> int:
        """The targets that count."""
        counts = np.concatenate(([0], np.cumsum(self.targets != IGNORE_INDEX)))
        return int((counts[self._starts + self.lengths] - counts[self._starts]).sum())

    def part(self, most_tokens: int) -> ExampleDataset:
        """So many of all examples, evenly spread, as have about most_tokens tokens; the same ones every time."""
        starts, lengths = self._all
        number = min(len(lengths), max(1, int(most_tokens / lengths.mean())))
        chosen = np.arange(number) * len(lengths) // number
        found = copy.copy(self)
        found._starts, found.lengths = starts[chosen], lengths[chosen]
        return found

    def id_range(self) -> tuple[int, int]:
        """The smallest and the largest token id."""
        return self.tokens.id_range()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        place = slice(self._starts[index], self._starts[index] + self.lengths[index])
        return tuple(torch.from_numpy(part[place].astype(np.int64)) for part in (self._tokens, self.targets))  # type: ignore[return-value]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The examples of those indices as tokens (B, T) and targets (B, T), filled up behind their ends."""
        chosen = indices.numpy()
        longest = min(-(-int(self.lengths[chosen].max()) // _MULTIPLE) * _MULTIPLE, self.window)
        places = self._starts[chosen, None] + np.arange(longest)
        inside = np.arange(longest) < self.lengths[chosen, None]
        places[~inside] = 0
        tokens = np.where(inside, self._tokens[places], PADDING)
        targets = np.where(inside, self.targets[places], IGNORE_INDEX)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))

    def by_length(self) -> Tensor:
        """All indices, those of short examples first."""
        return torch.from_numpy(np.argsort(self.lengths, kind="stable"))
