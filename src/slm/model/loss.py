"""The loss of predicting the next token, and the module that training wraps.

Shapes: B batch, T positions, N = B*T positions in a row, D embed_dim, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import IGNORE_INDEX
from slm.model.transformer import LanguageModel

# From so many logits on they are computed, used and overwritten piece by piece, in pieces that fit the caches.
MOST_LOGITS = 2**21
_LOGITS_AT_ONCE = {"cpu": 2**21}
_MANY_COUNT = 0.75  # of the targets: the others are then not worth leaving out
_ROW_STEP = 128
_FEWEST_ROWS = 256  # in a piece: each costs a pass over the gradient of the output layer
_LOGITS_ON_DEVICE = 2**27  # of an accelerator, which needs large pieces to be busy


def next_token_loss(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The mean of -log p(target) in nats: logits (B, T, V), targets (B, T) -> a scalar, in float32 at least.

    Targets equal to IGNORE_INDEX are skipped; where all are, the loss is 0. class_weights (V,): what each target counts
    in the sum, which is divided by their number all the same, so that parts of a batch add up.
    """
    logits = logits.flatten(0, -2)  # (N, V)
    if logits.dtype.itemsize < 4:  # half precision: a sum over the vocabulary needs more digits
        logits = logits.float()
    total = F.cross_entropy(
        logits, targets.flatten().long(), weight=class_weights, ignore_index=IGNORE_INDEX, reduction="sum"
    )
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
        if has_many_logits(self.model, tokens):
            rows = _that_count(self.model.features(tokens).flatten(0, -2), targets.flatten())
            return chunked_loss(rows[0], self.model.lm_head.weight, rows[1])
        return next_token_loss(self.model(tokens), targets, getattr(self.model, "class_weights", None))


def has_many_logits(model: nn.Module, tokens: Tensor) -> TypeGuard[LanguageModel]:
    """True where the logits of all tokens (B, T) are not worth having at the same time; they need a LanguageModel."""
    if type(model) is not LanguageModel or type(model.lm_head) is not nn.Linear or model.lm_head.bias is not None:
        return False  # a model of somebody else's, though it may inherit from ours
    return tokens.numel() * model.config.vocab_size > MOST_LOGITS and not torch.compiler.is_compiling()


def logits_in_pieces(
    model: nn.Module, tokens: Tensor, targets: Tensor, *, all_rows: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits (rows, V) of all tokens (B, T) with their targets (rows,), all at once or piece by piece.

    all_rows = False: the rows may come in another order, without some whose targets do not count.
    """
    targets = targets.flatten()
    if not has_many_logits(model, tokens):
        yield model(tokens).flatten(0, -2), targets
        return
    features = model.features(tokens).flatten(0, -2)
    if not all_rows:
        features, targets = _that_count(features, targets)
    rows = rows_at_once(model.config.vocab_size, features.device)
    for x, ids in zip(torch.split(features, rows), torch.split(targets, rows), strict=True):
        yield model.lm_head(x), ids


def _that_count(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """features (N, D) and targets (N,) without most rows that do not count, where these are many, as in pairs.

    Some stay, so that the numbers of rows are few: oneDNN keeps memory for each shape that it meets. On an accelerator
    all stay: to find out would wait for it.
    """
    if targets.device.type != "cpu":
        return features, targets
    counts = targets != IGNORE_INDEX
    kept = -(-int(counts.sum()) // _ROW_STEP) * _ROW_STEP
    if kept > _MANY_COUNT * len(targets):
        return features, targets
    rows = counts.logical_not().argsort(stable=True)[:kept]  # those that count come first
    return features[rows], targets[rows]


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """How many rows of V logits make a piece on that device."""
    return max(_FEWEST_ROWS, _LOGITS_AT_ONCE.get(device.type, _LOGITS_ON_DEVICE) // vocab_size // 64 * 64)


def chunked_loss(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """next_token_loss(features @ weight.T, targets) without ever holding all logits.

    features (..., D), weight (V, D), targets (...) -> a scalar in float32.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    features, targets = features.flatten(0, -2).to(dtype), targets.flatten().long()
    total: Tensor = _ChunkedLoss.apply(features, weight.to(dtype), targets)  # type: ignore[no-untyped-call]
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)


class _ChunkedLoss(torch.autograd.Function):
    """The summed loss; the gradients of features and weight are made in the same pass over the logits."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            rows = rows_at_once(len(weight), features.device)
            buffer = features.new_empty(min(rows, len(features)), len(weight))
            grad_features = torch.empty_like(features)
            exact = torch.promote_types(weight.dtype, torch.float32)
            grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
            total = features.new_zeros((), dtype=exact)
            for x, ids, grad_x in zip(*(torch.split(t, rows) for t in (features, targets, grad_features)), strict=True):
                total += _loss_and_gradients(x, weight, ids, buffer[: len(x)], grad_x, grad_weight)
        ctx.save_for_backward(grad_features, grad_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_features, grad_weight = ctx.saved_tensors
        return grad_features * grad, None if grad_weight is None else (grad_weight * grad).to(ctx.dtype), None


def _loss_and_gradients(
    x: Tensor, weight: Tensor, ids: Tensor, logits: Tensor, grad_x: Tensor, grad_weight: Tensor | None
) -> Tensor:
    """The summed loss of rows x (rows, D) with targets ids (rows,); sets grad_x and adds to grad_weight, if any.

    logits (rows, V) is room to compute in. The gradient of -log softmax(logits)[id] is softmax(logits) - onehot(id).
    """
    valid = ids != IGNORE_INDEX
    ids = torch.where(valid, ids, 0)[:, None]
    torch.mm(x, weight.t(), out=logits)
    if logits.dtype == torch.bfloat16:
        losses, p = _in_bf16(logits, ids)
    else:
        log_p = logits.float() if logits.dtype == torch.float16 else logits
        torch.log_softmax(log_p, dim=-1, out=log_p)
        losses = -log_p.gather(1, ids).squeeze(1)
        p = log_p.exp_().scatter_add_(1, ids, log_p.new_full((), -1).expand_as(ids)).to(logits.dtype)
    p.mul_(valid[:, None].to(p.dtype))
    torch.mm(p, weight, out=grad_x)
    if grad_weight is not None and p.dtype == grad_weight.dtype:
        grad_weight.addmm_(p.t(), x)
    elif grad_weight is not None:
        grad_weight += p.t() @ x
    return losses.masked_fill(~valid, 0).sum()


def _in_bf16(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and softmax(logits) - onehot(ids), in place of the logits.

    A loss beyond 87 nats is given as 87: a probability below float32's range is 0.
    """
    p = torch.softmax(logits, dim=-1, out=logits)
    p_target = p.gather(1, ids).float().clamp(min=torch.finfo(torch.float32).tiny)
    # p_target - 1 would lose its digits where p_target is near 1; the sum of all others does not.
    others = p.scatter_(1, ids, 0).sum(dim=-1, keepdim=True, dtype=torch.float32)
    losses = torch.where(others < 0.5, -torch.log1p(-others), -p_target.log()).squeeze(1)
    return losses, p.scatter_(1, ids, (-others).to(p.dtype))
