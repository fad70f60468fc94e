"""The order in which training sees the data: given by seed and epoch alone, at a position of two integers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from slm.config import UserError
from slm.data.dataset import TextDataset


def stream_seed(*key: object) -> int:
    """A 63-bit seed for the random stream of that name, such as ("order", seed, epoch)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


class Batches:
    """Shuffled batches of a dataset of (tokens, targets).

    A TextDataset is cut anew in each epoch, at a random offset, into windows that are all full; the last one moves
    back where it would pass the end. Of any other dataset each item comes once an epoch. The last batch of an epoch
    may be smaller.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, int(seed)
        if isinstance(dataset, TextDataset):
            self.num_items = (len(dataset.tokens) - 1) // dataset.window
        else:
            self.num_items = len(dataset)  # type: ignore[arg-type]
        if not self.num_items:
            raise UserError("the training dataset is empty: there is nothing to learn from.")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_items // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `start` on, as tokens (B, T) and targets (B, T)."""
        generator = torch.Generator().manual_seed(stream_seed("order", self.seed, epoch))
        order = torch.randperm(self.num_items, generator=generator)
        if isinstance(self.dataset, TextDataset):
            window, last = self.dataset.window, len(self.dataset.tokens) - 1 - self.dataset.window
            offset = torch.randint(min(window, last + 1), (), generator=generator)
            order = (offset + order * window).clamp(max=last)
        for indices in torch.split(order, self.batch_size)[start:]:
            if isinstance(self.dataset, TextDataset):
                yield self.dataset.windows_at(indices)
            else:
                yield default_collate([self.dataset[index] for index in indices.tolist()])


def in_order(dataset: Dataset[Any], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every item of a dataset once, from first to last, as tokens (B, T) and targets (B, T)."""
    for indices in torch.split(torch.arange(len(dataset)), batch_size):  # type: ignore[arg-type]
        if isinstance(dataset, TextDataset):
            yield dataset.batch(indices)
        else:
            yield default_collate([dataset[index] for index in indices.tolist()])
