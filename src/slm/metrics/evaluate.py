"""Loss, perplexity, accuracy and bits per byte over a whole split, in constant memory.

Shapes: B windows in a batch, T positions, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX
from slm.data.batches import in_order
from slm.model.loss import logits_in_pieces

_POSITIONS_AT_ONCE = 4096


@torch.no_grad()  # not inference_mode: a module may keep a mask made here and need it in training
def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 32,
    bytes_per_token: Tensor | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """val_loss (nats per token), val_accuracy (0-1) and val_perplexity over every target of the dataset.

    With bytes_per_token (V,), also val_bits_per_byte: all nats, in bits, over all bytes predicted, so that models with
    different tokenizers compare. Items are read in order and nothing is drawn at random. The model is left in the
    mode it was in, on the device it was on. should_stop is asked before each batch; where it says so, {} is returned.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    home = "cpu" if device.type == "mps" else device  # which has no float64
    sums, count, num_bytes = torch.zeros(2, dtype=torch.float64, device=home), 0, 0  # nats, correct
    try:
        for tokens, targets in in_order(dataset, batch_size):
            if should_stop():
                return {}
            predicted = targets[targets != IGNORE_INDEX]
            count += len(predicted)
            if bytes_per_token is not None:
                num_bytes += int(bytes_per_token[predicted.cpu()].sum().item())
            with autocast or nullcontext():
                pieces = logits_in_pieces(model, tokens.to(device), targets.to(device).long(), all_rows=False)
                for logits, ids in pieces:
                    # A piece's sum in float32 is exact to 7 digits; the sum over pieces is kept in float64.
                    losses = F.cross_entropy(logits.float(), ids, ignore_index=IGNORE_INDEX, reduction="sum")
                    sums += torch.stack((losses, (logits.argmax(dim=-1) == ids).sum())).to(home)
        nats, correct = sums.tolist()
    finally:
        model.train(was_training)
    loss = nats / count if count else math.nan
    metrics = {
        "val_loss": loss,
        "val_accuracy": correct / count if count else math.nan,
        "val_perplexity": math.inf if loss > 700 else math.exp(loss),
    }
    if num_bytes:
        metrics["val_bits_per_byte"] = nats / math.log(2) / num_bytes
    return metrics


def evaluation_batch_size(train_batch_size: int, window: int) -> int:
    """Windows per forward without gradients: up to twice those of a training step, which keeps far more per window."""
    return max(train_batch_size, min(2 * train_batch_size, _POSITIONS_AT_ONCE // max(window, 1)))
