"""One step of training: forward and backward in micro-batches, and the update."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slm.config import IGNORE_INDEX
from slm.training.adamw import Optimizer
from slm.training.device import Machine, is_out_of_memory, random_state, set_random_state


class StepResult(NamedTuple):
    """The loss of a step before its update, in nats per token, and the length of its gradient before clipping.

    Both are tensors of no dimension on the model's device: reading them waits for the step.
    """

    loss: Tensor
    grad_norm: Tensor
    micro_batch_size: int = 0  # what memory allowed


def train_step(
    with_loss: nn.Module,
    optimizer: Optimizer,
    tokens: Tensor,
    targets: Tensor,
    *,
    micro_batch_size: int,
    max_grad_norm: float,
    machine: Machine,
    scaler: torch.amp.GradScaler,
) -> StepResult:
    """One update from a batch of tokens (B, T) and targets (B, T), in micro-batches whose sum equals the whole.

    Where the loss or the gradient is not finite the weights stay as they are. Where an accelerator's memory is full,
    the micro-batches are halved until they fit.
    """
    num_targets = (targets != IGNORE_INDEX).sum().clamp(min=1)
    random = random_state(machine.device)
    loss = None
    while loss is None:
        try:
            loss = torch.zeros((), device=tokens.device)
            for micro_tokens, micro_targets in zip(
                torch.split(tokens, micro_batch_size), torch.split(targets, micro_batch_size), strict=True
            ):
                with machine.autocast():
                    micro_loss = with_loss(micro_tokens, micro_targets)
                # A micro-batch's mean counts by its share of the targets, for masks may be ragged.
                share = micro_loss * ((micro_targets != IGNORE_INDEX).sum() / num_targets)
                scaler.scale(share).backward()
                loss += share.detach()
        except RuntimeError as error:
            if micro_batch_size == 1 or not is_out_of_memory(error):
                raise
            loss = None
        if loss is None:  # outside of the handler, which holds on to the tensors of the step that failed
            micro_batch_size = min(micro_batch_size, len(tokens)) // 2 or 1
            optimizer.zero_grad(set_to_none=True)
            machine.free_memory()
            set_random_state(machine.device, random)
    scaler.unscale_(optimizer)  # type: ignore[arg-type]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    if scaler.is_enabled():  # skips infinite gradients itself
        if torch.isfinite(loss):
            scaler.step(optimizer)  # type: ignore[arg-type]
        scaler.update()
    else:
        _update(optimizer, torch.isfinite(loss) & torch.isfinite(grad_norm))
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, micro_batch_size)


def _update(optimizer: Optimizer, is_finite: Tensor) -> None:
    """The optimizer's step, which changes nothing where is_finite is False."""
    if is_finite.device.type != "cpu":  # the device finds out by itself: asking it would wait for it
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
    elif not is_finite:
        return
    optimizer.step()
