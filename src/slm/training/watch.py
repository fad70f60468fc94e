"""What the steps of a run returned, read one step late, so that an accelerator has it already (in fp16 it may not)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slm.training.step import StepResult

MAX_BAD_STEPS = 5  # non-finite steps in a row after which a run stops


class Watch:
    """Losses since the last log, steps that were no finite number or clipped, and whether the run has diverged."""

    def __init__(self, device: torch.device, scaler: torch.amp.GradScaler, max_grad_norm: float = 0.0) -> None:
        self.scaler, self.max_grad_norm = scaler, max_grad_norm
        # On an accelerator the newest step is under way while the host goes on.
        self.lag = 0 if device.type == "cpu" else 1
        self.losses: list[float] = []  # since the last log
        self.grad_norm = math.nan  # of the newest step that was read
        self.bad_steps = 0  # in a row
        self.skipped_steps = 0
        self.clipped_steps = 0  # whose gradient was scaled down to max_grad_norm
        self.message = ""  # of a run that has diverged
        self._unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, lr: float, result: StepResult) -> None:
        """Takes the result of a step; on a CPU it is read at once."""
        self._unread.append((step, lr, torch.stack((result.loss.float(), result.grad_norm.float()))))
        if not self.lag:
            self.read()

    def read(self, leave: int = 0) -> None:
        """Reads all results but for the newest `leave`."""
        while len(self._unread) > leave and not self.message:
            step, lr, values = self._unread.pop(0)
            self._judge(step, lr, *values.tolist())

    def _judge(self, step: int, lr: float, loss: float, grad_norm: float) -> None:
        # fp16's loss scaling meets infinite gradients in normal operation; it skips them itself and lowers the scale.
        scale_may_be_too_high = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        self.grad_norm = grad_norm
        self.skipped_steps += not (math.isfinite(loss) and math.isfinite(grad_norm))
        self.clipped_steps += math.isfinite(grad_norm) and grad_norm > self.max_grad_norm > 0
        if math.isfinite(loss):
            self.losses.append(loss)
        fine = math.isfinite(loss) and (math.isfinite(grad_norm) or scale_may_be_too_high)
        self.bad_steps = 0 if fine else self.bad_steps + 1
        if self.bad_steps == MAX_BAD_STEPS:
            self.message = (
                f"The loss or gradient was no finite number in {MAX_BAD_STEPS} steps in a row, from step "
                f"{step - MAX_BAD_STEPS + 1} on (learning rate {lr:.3g}, loss {loss:.3g}, gradient norm "
                f"{grad_norm:.3g}). Those steps changed nothing. Lower learning_rate, raise warmup_steps, or take "
                "precision = fp32."
            )

    def take_mean_loss(self) -> float:
        """The mean of the losses since the last call, NaN where there was none."""
        mean = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses.clear()
        return mean
