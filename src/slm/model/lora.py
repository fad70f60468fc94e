"""LoRA: a few new weights beside each frozen matrix of a built model, trained in its place (Hu et al. 2021).

The model's own code stays as it is: its linear layers are wrapped from outside, and merging unwraps them again.

Shapes: N inputs and M outputs of a linear layer, r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import UserError

# The update is scaled by ALPHA / rank, so that a learning rate which suits one rank suits another, about. With Adam,
# alpha does little that the learning rate does not do, too (Hu et al. 2021, section 4.1), hence it is no setting: twice
# the usual rank of 8. Saved adapters count on this number.
ALPHA = 2 * 8
_TOLD = 3  # names of each kind in an error's message


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable update of low rank (Hu et al. 2021, section 4.1, equation 3)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """lora_a is drawn from torch's global generator of the CPU: the same start on every device."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = ALPHA / rank
        # A is Gaussian and B is 0: training begins at the model as it was, and from both at 0 it would never leave. The
        # numbers of A x are then about as large as those of x.
        a = torch.randn(rank, base.in_features, device="cpu") / math.sqrt(base.in_features)
        self.lora_a = nn.Parameter(a.to(base.weight))  # (r, N)
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))  # (M, r)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """h = W x + scale B A x: (..., N) -> (..., M)."""
        output: Tensor = self.base(x) + F.linear(self.scale * F.linear(x, self.lora_a), self.lora_b)
        return output

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base, its weight replaced by W + scale B A.

        The sum is made in float64, so that the only rounding is that to the weight's own type; and on the CPU, since
        not every device has float64. Where B is 0 the weight stays: -0.0 + 0.0 would lose its sign.
        """
        if self.lora_b.count_nonzero():
            a, b, weight = (tensor.to("cpu", torch.float64) for tensor in (self.lora_a, self.lora_b, self.base.weight))
            # A new tensor: others may hold the one of before, such as a layer that shares it.
            self.base.weight = nn.Parameter(torch.addmm(weight, b, a, alpha=self.scale).to(self.base.weight))
        return self.base

    def extra_repr(self) -> str:
        """What print shows of the layer beside its base."""
        return f"rank={len(self.lora_a)}, scale={self.scale:g}"


def add_lora(model: nn.Module, rank: int) -> None:
    """Freezes a model and wraps each nn.Linear of its blocks, in place.

    The blocks are all that is below an nn.ModuleList of that name; an output layer beside them stays frozen as it is.
    Raises UserError, and leaves the model alone, where there is nothing to wrap, where it is wrapped already, and for a
    rank above the smallest side of a layer.
    """
    if is_lora(model):
        raise UserError("the model has LoRA already: go on training it, or merge_lora(model) before you add another.")
    linears = _linears_of_blocks(model)
    if not linears:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear in an nn.ModuleList called blocks, which LoRA could wrap: "
            "train it without LoRA, or give a model that has them, such as slm.LanguageModel."
        )
    smallest = min(linears, key=lambda linear: min(linear.weight.shape))
    limit = min(smallest.weight.shape)
    if type(rank) is not int or not 1 <= rank <= limit:
        raise UserError(
            f"lora_rank = {rank!r}: must be a whole number from 1 to {limit}, the smaller side of {linears[smallest]} "
            f"({' x '.join(map(str, smallest.weight.shape))}), above which no rank of it can be. Choose one of these."
        )
    model.requires_grad_(False)
    _replace(model, {linear: LoRALinear(linear, rank) for linear in linears})


def merge_lora(model: nn.Module) -> None:
    """Puts plain linear layers back that compute what the wrapped ones did, in place; all weights are trainable again.

    Raises UserError for a model without LoRA.
    """
    if not is_lora(model):
        raise UserError("the model has no LoRA to merge: add_lora(model, rank) is what adds it.")
    _replace(model, {module: module.merged() for module in model.modules() if isinstance(module, LoRALinear)})
    model.requires_grad_(True)


def is_lora(model: nn.Module) -> bool:
    """True where a part of the model is wrapped."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


def trainable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The part of the model's state_dict that training changes, not copied: what a file of adapters holds.

    Of tied weights there is one, under its first name.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trainable(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies what `trainable_weights` gave into a model that trains the same.

    Raises ValueError, and leaves the model alone, where a name is missing, unexpected or of another shape.
    """
    own = trainable_weights(model)
    both = [name for name in own if name in weights]
    faults = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)}, here {tuple(own[name].shape)}"
            for name in both
            if weights[name].shape != own[name].shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"these weights are not those that the model trains ({told}). Wrap it as theirs was wrapped.")
    for name in both:
        own[name].copy_(weights[name])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _TOLD
    return ", ".join(names[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _linears_of_blocks(model: nn.Module) -> dict[nn.Linear, str]:
    """The linear layers of the blocks, with their names."""
    blocks = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList)
    }
    # Whatever inherits from nn.Linear may be used in another way than by its forward, such as nn.MultiheadAttention's.
    return {
        module: f"{prefix}.{name}"
        for prefix, modules in blocks.items()
        for name, module in modules.named_modules()
        if type(module) is nn.Linear
    }


def _replace(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Puts other modules into the places of the model's own, into all of them where one has several."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in others:
                setattr(parent, name, others[child])
