"""The loss of predicting the next token, and the module that training wraps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import IGNORE_INDEX


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log p(target) in nats: logits (B, T, V), targets (B, T) -> a scalar, in float32 at least.

    Targets equal to IGNORE_INDEX are skipped; where all are, the loss is 0.
    """
    logits = logits.flatten(0, -2)  # (B*T, V)
    if logits.dtype.itemsize < 4:  # half precision: a sum over the vocabulary needs more digits
        logits = logits.float()
    total = F.cross_entropy(logits, targets.flatten().long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)


class WithLoss(nn.Module):
    """A model with its loss: (tokens, targets) -> scalar.

    Training calls this module and nothing inside it, so that torch.compile, DDP and FSDP2 can wrap it: a call that
    reached past a wrapper's forward would give each rank its own gradients, silently.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """next_token_loss of the model's logits: tokens (B, T), targets (B, T) -> scalar."""
        return next_token_loss(self.model(tokens), targets)
