"""Parameter groups, AdamW, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from slm.config import TrainConfig

_FUSED_DEVICES = {"cpu", "cuda", "mps"}


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), whose weight decay spares biases, norms and other vectors."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=device.type in _FUSED_DEVICES,
    )


def learning_rate_at(step: int, config: TrainConfig, total_steps: int) -> float:
    """The learning rate of step 0 .. total_steps - 1: a linear warm-up to the peak, then the schedule's fall.

    config.warmup_steps must be set, as `resolve` does.
    """
    warmup_steps, peak, end = config.warmup_steps or 0, config.learning_rate, config.min_learning_rate
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)  # 0 .. 1
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
    return peak + (end - peak) * done
