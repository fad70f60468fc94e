"""The keys and values that a model has computed so far, so that generating a token costs one position, not all.

Shapes: B batch, T new positions, S positions with the cached ones, K key and value heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of each layer, (B, K, S, d); empty until a model is called with it.

    For a model whose attention stays inside documents, it also knows where documents begin.
    """

    def __init__(self, num_layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._begins: Tensor | None = None

    def length(self, layer: int = 0) -> int:
        """S: the positions that this layer has seen."""
        held = self._layers[layer]
        return held[0].size(2) if held else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, (B, K, S, d), after adding those of T new positions, (B, K, T, d)."""
        held = self._layers[layer]
        if held:
            k, v = torch.cat((held[0], k), dim=2), torch.cat((held[1], v), dim=2)
        self._layers[layer] = (k, v)
        return k, v

    def append_begins(self, begins: Tensor) -> Tensor:
        """True at all positions that begin a document, (B, S), after adding those of T new positions, (B, T)."""
        if self._begins is not None:
            begins = torch.cat((self._begins, begins), dim=1)
        self._begins = begins
        return begins
