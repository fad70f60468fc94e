"""Muon: momentum whose update of a matrix is made orthogonal (Jordan et al. 2024), with AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slm.training.adamw import AdamW

MOMENTUM = 0.95
# p(x) = a x + b x^3 + c x^5, applied STEPS times, brings every singular value from 0.01 to 1 near 1.
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
UPDATE_RMS = 0.2  # about that of AdamW's updates, so that one learning rate serves both (Liu et al. 2025, equation 4)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly U V^T for each of the matrices U S V^T: (n, rows, columns) -> the same shape, by Newton-Schulz.

    All are worked on at once, in `dtype`: bf16 where the machine is fast at it, else float32. The singular values of
    the result lie between about 0.7 and 1.2, which serves as well as 1.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    iterate = _iterate_by_gram if dtype == torch.float32 and x.size(1) < x.size(2) else _iterate
    return iterate(x).mT if is_tall else iterate(x)


def _iterate(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_by_gram(x: Tensor) -> Tensor:
    """The same, with small square products in place of most long ones; it needs the digits of float32.

    With G = X X^T a step is X <- P X, where P = aI + bG + cG^2, and brings G to P G P: only G and the product of all P
    need to be known.
    """
    a, b, c = COEFFICIENTS
    gram, product = x @ x.mT, x
    identity = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    for step in range(STEPS):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        product = p @ product if step else p
        gram = p @ gram @ p
    return product @ x


class Muon(AdamW):
    """Muon for the first group, AdamW for the others; the numbers are torch's own.

    torch.optim.Muon takes one matrix at a time, always in bf16.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        """others: AdamW's groups. dtype: that of the Newton-Schulz iteration."""
        super().__init__([{"params": list(matrices), "weight_decay": weight_decay}, *others], lr=lr, betas=betas)
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients."""
        first, *others = self.param_groups
        for group in others:
            self._step_of_group(group)
        share = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in first["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        for parameters in by_shape.values():
            self._step_of_one_shape(parameters, first["lr"], first["weight_decay"], share)

    def _step_of_one_shape(self, parameters: list[Tensor], lr: float, decay: float, share: float | Tensor) -> None:
        grads: list[Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        if isinstance(share, Tensor):
            grads = [torch.where(share > 0, grad, 0.0) for grad in grads]
            torch._foreach_lerp_(buffers, grads, [(1 - MOMENTUM) * share] * len(grads))
        else:
            torch._foreach_lerp_(buffers, grads, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(grads, buffers, MOMENTUM)  # Nesterov's
        updates = orthogonalize(torch.stack(list(ahead)), self.dtype)
        scale = lr * UPDATE_RMS * math.sqrt(max(parameters[0].shape)) * share
        torch._foreach_mul_(parameters, 1 - lr * decay * share)
        torch._foreach_sub_(parameters, list((updates * scale).to(parameters[0].dtype).unbind()))
