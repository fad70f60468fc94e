"""AdamW in torch's fused kernel, without torch.optim, which loads torch's compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

EPS = 1e-8


class Optimizer(Protocol):
    """What training needs of an optimizer; torch's own have it, too."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """One update from the gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), the numbers of torch.optim.AdamW(fused=True).

    Where the attribute `found_inf` is a tensor other than 0, a step changes nothing.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        """groups: dicts of params and weight_decay."""
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, **group} for group in groups]
        self.betas = betas
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients."""
        for group in self.param_groups:
            self._step_of_group(group)

    def _step_of_group(self, group: Mapping[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        means, squares, steps = (
            [self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters],
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=group["weight_decay"],
            eps=EPS,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """What is kept of each parameter, by its number, and the groups with numbers in place of parameters."""
        parameters = self._parameters()
        number = {parameter: index for index, parameter in enumerate(parameters)}
        groups = [{**group, "params": [number[one] for one in group["params"]]} for group in self.param_groups]
        state = {number[parameter]: dict(kept) for parameter, kept in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave; of the groups, only their learning rates."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["lr"] = float(saved["lr"])
        parameters = self._parameters()
        self.state = {
            parameters[number]: {name: value.clone().to(parameters[number].device) for name, value in kept.items()}
            for number, kept in state_dict["state"].items()
        }
