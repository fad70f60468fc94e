"""Parameter groups, the optimizer, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from slm.config import TrainConfig
from slm.training.adamw import AdamW
from slm.training.device import Machine
from slm.training.muon import Muon


def make_optimizer(model: nn.Module, config: TrainConfig, machine: Machine) -> AdamW:
    """AdamW, or Muon for the matrices of hidden layers and AdamW for the rest.

    Weight decay spares biases, norms and other vectors.
    """
    hidden = hidden_matrices(model) if config.optimizer == "muon" else []
    taken = {id(parameter) for parameter in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    if not hidden:
        return AdamW(groups, lr=config.learning_rate, betas=betas)
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    decay = config.weight_decay
    return Muon(hidden, groups, lr=config.learning_rate, betas=betas, weight_decay=decay, dtype=dtype)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers but for the last, which is the output; nor what is an embedding, too."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights: list[Any] = [module.weight for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    unique = {
        id(weight): weight
        for weight in weights
        if weight.requires_grad and weight.is_leaf and id(weight) not in embeddings
    }
    return list(unique.values())


def learning_rate_at(step: int, config: TrainConfig, total_steps: int) -> float:
    """The learning rate of step 0 .. total_steps - 1: a linear warm-up to the peak, then the schedule's fall.

    config.warmup_steps must be set, as `resolve` does; decay_steps, too, but for a run whose end is not known yet.
    """
    warmup_steps, peak, end = config.warmup_steps or 0, config.learning_rate, config.min_learning_rate
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)  # 0 .. 1
    if config.schedule == "wsd":
        done = 1 - (total_steps - step) / config.decay_steps if config.decay_steps else 0.0
    if config.schedule == "constant" or done <= 0:
        return peak
    if config.schedule == "cosine":
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
    return peak + (end - peak) * done
