"""nanoGPT's recipe for CPUs, written plainly in PyTorch: what `race.py` measures slm against. No slm is imported.

4 layers of 128, 4 heads, windows of 64, batches of 12 at random places, AdamW at 1e-3 after 100 warm-up steps, cosine
to 1e-4, betas 0.9 and 0.99, weight decay 0.1 on matrices, gradients clipped at 1.0, output tied to the embeddings, no
biases, no dropout (github.com/karpathy/nanoGPT, README and config/train_shakespeare_char.py).
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS = 4, 128, 4, 64, 12, 2000


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (t.view(B, T, HEADS, D // HEADS).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, vocab, bias=False)
        self.head.weight = self.token.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                is_end = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if is_end else 0.02)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position.weight)))


@torch.no_grad()
def evaluate(model: nn.Module, data: torch.Tensor) -> float:
    """The mean loss over all full windows of the data, side by side."""
    n = (len(data) - 1) // CONTEXT
    x, y = data[: n * CONTEXT].view(n, CONTEXT), data[1 : n * CONTEXT + 1].view(n, CONTEXT)
    pairs = zip(x.split(64), y.split(64), strict=True)
    return (
        sum(F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item() for a, b in pairs) / y.numel()
    )


def train(text: str, seed: int) -> tuple[float, float]:
    """The loss on the last tenth of a text after training on the rest, and the seconds of training."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[c] for c in text])
    cut = int(0.9 * len(data))
    train_data, val_data = data[:cut], data[cut:]
    model = Model(len(ids))
    matrices, vectors = ([p for p in model.parameters() if (p.dim() >= 2) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    for step in range(STEPS):
        done = (step - 100) / (STEPS - 100)
        lr = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = lr
        starts = torch.randint(len(train_data) - CONTEXT, (BATCH,))
        x = torch.stack([train_data[s : s + CONTEXT] for s in starts])
        y = torch.stack([train_data[s + 1 : s + 1 + CONTEXT] for s in starts])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    return evaluate(model, val_data), seconds
