"""A character model and its training loop, written plainly in PyTorch: what `shakespeare.py` compares slm with.

The same architecture, batches, optimizer, schedule and evaluations as slm's defaults, as one would type them in an
afternoon: fused query-key-value projection, scaled_dot_product_attention, fused AdamW. Nothing of slm is imported.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(D, dim=2)
        q, k, v = (t.view(B, T, self.heads, D // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, vocab: int, width: int, heads: int, layers: int, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 / math.sqrt(2 * layers) if name.endswith(("proj.weight", "down.weight")) else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight[: tokens.size(1)]
        return self.head(self.norm(self.blocks(x)))


@torch.no_grad()
def evaluate(model: nn.Module, data: torch.Tensor, context: int, windows: int) -> float:
    """The mean loss over all full windows of the data, side by side."""
    model.eval()
    n = (len(data) - 1) // context
    x, y = data[: n * context].view(n, context), data[1 : n * context + 1].view(n, context)
    total = 0.0
    for xb, yb in zip(x.split(windows), y.split(windows), strict=True):
        total += F.cross_entropy(model(xb).flatten(0, 1), yb.flatten(), reduction="sum").item()
    model.train()
    return total / (n * context)


def train(text: str, seed: int, *, steps: int, width: int, heads: int, layers: int, context: int, batch: int) -> float:
    """The validation loss after training on all but the last tenth of a text."""
    torch.manual_seed(seed)
    characters = sorted(set(text))
    ids = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([ids[c] for c in text])
    cut = int(0.9 * len(data))
    train_data, val_data = data[:cut], data[cut:]
    model = Model(len(characters), width, heads, layers, context)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    loss_sum, val_loss = 0.0, math.inf
    for step in range(steps):
        lr = 1e-3 * (step + 1) / 100 if step < 100 else 1e-3 * (steps - step) / (steps - 100)
        for group in optimizer.param_groups:
            group["lr"] = lr
        starts = torch.randint(len(train_data) - context, (batch,))
        x = torch.stack([train_data[s : s + context] for s in starts])
        y = torch.stack([train_data[s + 1 : s + 1 + context] for s in starts])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_sum += loss.item()
        if (step + 1) % (steps // 20) == 0:
            val_loss = evaluate(model, val_data, context, 4 * batch)
    return val_loss
