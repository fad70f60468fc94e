"""The order in which training sees the data: given by seed and epoch alone, at a position of two integers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from slm.config import UserError
from slm.data.dataset import TextDataset
from slm.data.example_dataset import ExampleDataset

_ROUNDS = 8
_POOL = 50  # batches of examples that are sorted by length together: a batch then wastes little on padding
_PLACES_AT_ONCE = 4096  # of an order; a place then costs what its arithmetic does, whatever the batch size


def stream_seed(*key: object) -> int:
    """A 63-bit seed for the random stream of that name, such as ("order", seed, epoch)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


class Order:
    """A permutation of range(size) that looks random, computed at any place of it without a list of the others.

    A Feistel network over pairs of digits, whose base is about the root of size, permutes slightly more numbers than
    there are; what it takes beyond them, it takes further until it is back (Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002: generalized Feistel cipher and cycle walking). A key gives the same order on every machine.
    """

    def __init__(self, size: int, *key: object) -> None:
        """size: 1 to 2**62. key: what the seeds of the rounds are made of."""
        self.size = size
        root = math.isqrt(size - 1) + 1
        self._base = np.uint64(root + root % 2)  # even: with an odd one only every other permutation can come out
        self._seeds = [np.uint64(stream_seed(*key, number)) for number in range(_ROUNDS)]

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at those places (B,) of the order."""
        items = self._permuted(places.astype(np.uint64))
        while (beyond := items >= self.size).any():
            items[beyond] = self._permuted(items[beyond])
        return items.astype(np.int64)

    def _permuted(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Each number below base**2 as another one."""
        left, right = np.divmod(numbers, self._base)
        for seed in self._seeds:
            # The upper half of 64 random bits, times the base, shifted back, is a digit.
            digits = (_mixed(right + seed) >> np.uint64(32)) * self._base >> np.uint64(32)
            left, right = right, left + digits
            right -= self._base * (right >= self._base)
        return left * self._base + right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random-looking bits for each number, modulo 2**64: the finalizer of SplitMix64 (Steele et al., 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class Batches:
    """Shuffled batches of a dataset of (tokens, targets).

    A TextDataset is cut anew in each epoch, at a random offset, into windows that are all full; the last one moves
    back where it would pass the end. Where the dataset knows the token that begins a document, each window in which
    one begins moves on to it: windows may then overlap, leave targets to other epochs, and pass the end, with
    IGNORE_INDEX there. Of any other dataset each item comes once an epoch. The last batch of an epoch may be smaller.
    Examples of unequal length (ExampleDataset) come in batches of similar length, in random order.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, int(seed)
        if isinstance(dataset, TextDataset):
            self.num_items = dataset.num_targets // dataset.window
        else:
            self.num_items = len(dataset)  # type: ignore[arg-type]
        if not self.num_items:
            raise UserError("the training dataset is empty: there is nothing to learn from.")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_items // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on, as tokens (B, T) and targets (B, T)."""
        offset = stream_seed("offset", self.seed, epoch)
        if isinstance(self.dataset, ExampleDataset):
            yield from map(self.dataset.batch, self._by_length(self.dataset, epoch, start))
            return
        for indices in self._indices(epoch, start):
            if isinstance(self.dataset, TextDataset):
                window, last = self.dataset.window, self.dataset.num_targets - self.dataset.window
                starts = (offset % min(window, last + 1) + indices * window).clamp(max=last)
                yield self.dataset.windows_at(self.dataset.document_starts(starts))
            else:
                yield default_collate([self.dataset[index] for index in indices.tolist()])

    def _by_length(self, dataset: ExampleDataset, epoch: int, start: int) -> Iterator[Tensor]:
        """The examples of each batch of an epoch from batch `start` on: pools of random ones, each sorted and cut."""
        order, pool_size = Order(self.num_items, "order", self.seed, epoch), _POOL * self.batch_size
        for pool in range(start // _POOL, -(-len(self) // _POOL)):
            items = order(np.arange(pool * pool_size, min((pool + 1) * pool_size, self.num_items)))
            items = items[np.argsort(dataset.lengths[items], kind="stable")]
            parts = torch.split(torch.from_numpy(items), self.batch_size)
            shuffled = Order(len(parts), "pool", self.seed, epoch, pool)(np.arange(len(parts)))
            for number in shuffled[max(start - pool * _POOL, 0) :].tolist():
                yield parts[number]

    def _indices(self, epoch: int, start: int) -> Iterator[Tensor]:
        """The items of each batch of an epoch, (B,), from batch `start` on."""
        order = Order(self.num_items, "order", self.seed, epoch)
        at_once = max(1, _PLACES_AT_ONCE // self.batch_size) * self.batch_size
        for first in range(start * self.batch_size, self.num_items, at_once):
            items = order(np.arange(first, min(first + at_once, self.num_items)))
            yield from torch.split(torch.from_numpy(items), self.batch_size)


def in_order(dataset: Dataset[Any], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every item of a dataset once, as tokens (B, T) and targets (B, T): from first to last, or from short to long."""
    size = len(dataset)  # type: ignore[arg-type]
    if isinstance(dataset, ExampleDataset):
        yield from map(dataset.batch, torch.split(dataset.by_length(), batch_size))
        return
    for first in range(0, size, batch_size):
        indices = torch.arange(first, min(first + batch_size, size))
        if isinstance(dataset, TextDataset):
            yield dataset.batch(indices)
        else:
            yield default_collate([dataset[index] for index in indices.tolist()])
