"""Activation, rotation and attention with their gradients written out: the same numbers in fewer passes over memory.

On a CPU an elementwise operation costs as much as moving its numbers, and autograd keeps and moves more of them than
the mathematics needs. Elsewhere, and under torch.compile, which fuses operations itself, the plain formula is used.

Shapes: B batch, T positions, S positions with the cached ones, H query heads, K key and value heads, d head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this T, keeping the weights of all pairs of positions is faster than the CPU's flash kernel, which keeps none;
# that kernel computes in fp32 whatever it is given, so that in half precision it loses longer.
_MOST_POSITIONS = {torch.float32: 128, torch.bfloat16: 1024}
MOST_POSITIONS = max(_MOST_POSITIONS.values())
_WEIGHTS_AT_ONCE = 2**22


def is_eager_on_cpu(x: Tensor) -> bool:
    """True where each operation is a pass over memory of its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise (So et al. 2021, Primer)."""
    if is_eager_on_cpu(x):
        return _Relu2.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    return F.relu(x).square()


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp(min=0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        doubled: Tensor = (grad * positive).mul_(2)
        return doubled


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., d) with number i and number i + d/2 turned by their angle: x * cos + (x with its halves swapped) * sin.

    cos, sin: broadcastable to x; the first half of sin is negative.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if is_eager_on_cpu(x):
        return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.size(-1) // 2, dims=-1), sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # the transpose of a rotation turns the other way
        return (grad * cos).addcmul_(grad.roll(grad.size(-1) // 2, dims=-1), sin, value=-1), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1): q (B, H, T, d), k and v (B, K, S, d) -> like q.

    mask: True where a query may look at a key; None means itself and all before it, with S = T or T = 1.
    """
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    is_short = 0 < q.size(2) <= _MOST_POSITIONS.get(q.dtype, 0)
    if mask is None and is_short and k.shape == q.shape and k.dtype == q.dtype and is_eager_on_cpu(q):
        return _Attend.apply(q, k, v)  # type: ignore[no-any-return, no-untyped-call]
    # is_causal=True aligns the triangle with the first key; a single query is the last position and sees all.
    is_causal = mask is None and q.size(2) > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=k.size(1) != q.size(1)
    )


class _Attend(torch.autograd.Function):
    """Causal attention by two matrix products around a softmax, for a few heads at a time.

    What fits the caches is not fetched from memory, and the system hands out large pieces of memory anew each time.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, T = q.shape, q.size(2)
        ctx.scale, ctx.heads = 1 / math.sqrt(q.size(3)), max(1, _WEIGHTS_AT_ONCE // T**2)
        q, k, v = (x.flatten(0, 1) for x in (q * ctx.scale, k, v))  # (B*H, T, d)
        future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(diagonal=1)
        output, all_weights = torch.empty_like(v), []
        for q_few, k_few, v_few, out in zip(*(x.split(ctx.heads) for x in (q, k, v, output)), strict=True):
            weights = torch.softmax(torch.bmm(q_few, k_few.mT).add_(future), dim=-1)  # (heads, T, T)
            torch.bmm(weights, v_few, out=out)
            all_weights.append(weights)
        ctx.save_for_backward(q, k, v, *all_weights)
        return output.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *all_weights = ctx.saved_tensors
        shape, grad = grad.shape, grad.flatten(0, 1)  # (B*H, T, d)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        few = zip(*(x.split(ctx.heads) for x in (grad, q, k, v, *grads)), all_weights, strict=True)
        for grad_few, q_few, k_few, v_few, grad_q, grad_k, grad_v, weights in few:
            torch.bmm(weights.mT, grad_few, out=grad_v)
            grad_weights = torch.bmm(grad_few, v_few.mT)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            torch.bmm(grad_scores, k_few, out=grad_q).mul_(ctx.scale)
            torch.bmm(grad_scores.mT, q_few, out=grad_k)
        return tuple(x.view(shape) for x in grads)
