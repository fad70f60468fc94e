"""Token ids cut into windows of (tokens, targets).

Shapes: N token ids, T positions in a window, B windows in a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, UserError

_NOT_INDEXED_BY_OLD_TORCH = {torch.uint16, torch.uint32, torch.uint64}  # by torch 2.9, that is; 2.13 does


class TextDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows side by side over a text: item i holds tokens (T,) from i*T on, and the same shifted by one as targets.

    The windows cover every target once. Where the last one reaches past the end, its targets there are IGNORE_INDEX.
    A text of fewer than max_seq_len + 1 tokens makes one window of all of it: see `window`.
    """

    def __init__(self, token_ids: Tensor | Sequence[int] | Any, max_seq_len: int) -> None:
        """token_ids: (N,) integers, as tensor, array or list. Raises UserError where N < 2 or they are not integers."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
            self.tokens = torch.as_tensor(token_ids, device="cpu")
        if self.tokens.dtype in _NOT_INDEXED_BY_OLD_TORCH:
            self.tokens = self.tokens.long()
        kind = self.tokens.dtype
        if self.tokens.dim() != 1 or kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise UserError(
                f"token_ids has shape {tuple(self.tokens.shape)} and type {self.tokens.dtype}: "
                "must be one row of integers."
            )
        if len(self.tokens) < 2:
            raise UserError(
                f"the text has {len(self.tokens)} tokens: at least 2 are needed, one to look at and one to predict."
            )
        if max_seq_len < 1:
            raise UserError(f"max_seq_len = {max_seq_len}: must be at least 1.")
        self.window = min(max_seq_len, len(self.tokens) - 1)  # T

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.window)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        tokens, targets = self.batch(torch.tensor([index % len(self)]))
        return tokens[0], targets[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The windows of those indices, as tokens (B, T) and targets (B, T)."""
        return self.windows_at(indices * self.window)

    def windows_at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The windows that begin at those positions (B,) of the text, as tokens (B, T) and targets (B, T)."""
        places = starts[:, None] + torch.arange(self.window + 1)  # (B, T+1)
        last = len(self.tokens) - 1
        ids = self.tokens[places.clamp(max=last)].long()
        targets = ids[:, 1:].masked_fill(places[:, 1:] > last, IGNORE_INDEX)
        return ids[:, :-1], targets
