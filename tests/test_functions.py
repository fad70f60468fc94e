"""Laws of slm.model.functions: gradients written out are those of the plain formulas, in whatever pieces.

Shapes: B batch, T positions, H query heads, K key and value heads, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model import functions
from slm.model.functions import attend, relu2, rotate
from slm.model.transformer import causal_mask

B, H, T, d = 2, 3, 6, 4


def make(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_qkv(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [make(*(shape or (B, H, T, d)), seed=seed, dtype=dtype).requires_grad_() for seed in range(3)]


def make_angles(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """cos and sin of T positions, (T, 1, d), as Rotation has them."""
    angles = torch.outer(torch.arange(T, dtype=dtype), torch.tensor([1.0, 0.3], dtype=dtype))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=1)[:, None], torch.cat((-sin, sin), dim=1)[:, None]


def plain_relu2(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0) ** 2


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of numbers as complex ones, multiplied by a complex number of length 1."""
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cos.chunk(2, dim=-1)[0], sin.chunk(2, dim=-1)[1])
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def plain_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, None)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of its product with some numbers, none of them alike."""
    output = function(*inputs)
    weights = make(*output.shape, seed=9, dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [x for x in inputs if x.requires_grad])]


def assert_same(a: list[Tensor], b: list[Tensor], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def is_written_out(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ in {"_Relu2Backward", "_RotateBackward", "_AttendBackward"}


# relu2 and rotate


def test_the_written_out_gradients_are_the_derivatives() -> None:
    x = make(B, T, H, d, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(functions._Relu2.apply, (x,))
    assert torch.autograd.gradcheck(functions._Rotate.apply, (x, *make_angles(torch.float64)))
    assert torch.autograd.gradcheck(functions._Attend.apply, tuple(make_qkv(2, 2, 5, 4, dtype=torch.float64)))


@pytest.mark.parametrize("is_view", [False, True])
def test_relu2_is_the_plain_formula_with_its_gradient(is_view: bool) -> None:
    x = (make(B, H, T, d).transpose(1, 2) if is_view else make(B, T, H, d)).requires_grad_()
    assert x.is_contiguous() != is_view
    assert is_written_out(relu2(x))
    assert_same(with_gradients(relu2, x), with_gradients(plain_relu2, x))


def test_relu2_is_flat_up_to_zero() -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0], requires_grad=True)
    output = relu2(x)
    output.sum().backward()
    assert output.tolist() == [0, 0, 0, 9]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0, 6]


@pytest.mark.parametrize("is_view", [False, True])
def test_rotate_turns_pairs_of_numbers_with_the_gradient_of_the_plain_formula(is_view: bool) -> None:
    x = (make(B, H, T, d).transpose(1, 2) if is_view else make(B, T, H, d)).requires_grad_()
    assert x.is_contiguous() != is_view
    assert is_written_out(rotate(x, *make_angles()))
    assert_same(with_gradients(rotate, x, *make_angles()), with_gradients(plain_rotate, x, *make_angles()))


def test_rotate_keeps_lengths_and_the_type_of_its_input() -> None:
    x = make(B, T, H, d)
    torch.testing.assert_close(rotate(x, *make_angles()).norm(dim=-1), x.norm(dim=-1))
    half = rotate(x.bfloat16(), *make_angles())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotate(x, *make_angles()), rtol=0.02, atol=0.03)


def test_the_compiler_gets_the_plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    x, qkv = make(B, T, H, d).requires_grad_(), make_qkv()
    calls: list[Callable[[], list[Tensor]]] = [
        lambda: with_gradients(relu2, x),
        lambda: with_gradients(rotate, x, *make_angles()),
        lambda: with_gradients(attend_causally, *qkv),
    ]
    eager = [call() for call in calls]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for output in (relu2(x), rotate(x, *make_angles()), attend_causally(*qkv)):
        assert not is_written_out(output)
    for call, expected in zip(calls, eager, strict=True):
        assert_same(call(), expected)


# attend


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 6, 4), (1, 4, 33, 8), (3, 1, 128, 2)], ids=str)
def test_attention_is_torchs_with_its_gradients(shape: tuple[int, ...]) -> None:
    qkv = make_qkv(*shape)
    assert is_written_out(attend_causally(*qkv))
    assert_same(with_gradients(attend_causally, *qkv), with_gradients(plain_attend, *qkv))


def test_attention_is_the_softmax_of_scaled_products_number_by_number() -> None:
    q, k, v = (x.detach().tolist() for x in make_qkv(1, 1, 4, 2))
    output = attend_causally(*make_qkv(1, 1, 4, 2))[0, 0]
    for t in range(4):
        scores = [
            math.exp(sum(a * b for a, b in zip(q[0][0][t], k[0][0][s], strict=True)) / 2**0.5) for s in range(t + 1)
        ]
        mean = [sum(score * v[0][0][s][i] for s, score in enumerate(scores)) / sum(scores) for i in range(2)]
        assert output[t].tolist() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("heads_at_once", [1, 2, 4, 5, 6, 100])
def test_attention_does_not_depend_on_how_many_heads_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch, heads_at_once: int
) -> None:
    qkv = make_qkv()  # of B * H = 6 heads
    expected = with_gradients(plain_attend, *qkv)
    monkeypatch.setattr(functions, "_WEIGHTS_AT_ONCE", heads_at_once * T**2)
    output = attend_causally(*qkv)
    kept = [x for x in output.grad_fn.saved_tensors if x.shape[1:] == (T, T)]  # type: ignore[union-attr]
    assert max(map(len, kept)) == min(heads_at_once, 6)
    assert sum(map(len, kept)) == 6
    assert_same(with_gradients(attend_causally, *qkv), expected)


def test_a_head_whose_weights_are_too_many_is_computed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_WEIGHTS_AT_ONCE", T**2 - 1)
    qkv = make_qkv()
    assert_same(with_gradients(attend_causally, *qkv), with_gradients(plain_attend, *qkv))


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_takes_views_with_heads_and_positions_swapped(batch: int) -> None:
    qkv = [make(batch, T, H, d, seed=seed).requires_grad_() for seed in range(3)]

    def swapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *inputs: function(*(x.transpose(1, 2) for x in inputs)).transpose(1, 2).reshape(batch, T, H * d)

    assert is_written_out(attend_causally(*(x.transpose(1, 2) for x in qkv)))
    assert_same(with_gradients(swapped(attend_causally), *qkv), with_gradients(swapped(plain_attend), *qkv))


def test_attention_changes_none_of_its_inputs() -> None:
    qkv = make_qkv()
    before = [x.detach().clone() for x in qkv]
    with_gradients(attend_causally, *qkv)
    assert all(torch.equal(x, old) for x, old in zip(qkv, before, strict=True))


def test_bf16_attention_is_close_to_that_of_fp32() -> None:
    exact, half = make_qkv(1, 2, 200, 8), make_qkv(1, 2, 200, 8, dtype=torch.bfloat16)
    output = attend_causally(*half)
    assert is_written_out(output)
    assert output.dtype == torch.bfloat16
    for got, expected in zip(with_gradients(attend_causally, *half), with_gradients(plain_attend, *exact), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_future_positions_do_not_change_past_outputs(dtype: torch.dtype) -> None:
    q, k, v = make_qkv(dtype=dtype)
    output = attend_causally(q, k, v)
    assert is_written_out(output)
    for t in range(T):
        later = [x.detach().clone() for x in (q, k, v)]
        for x in later:
            x[:, :, t + 1 :] += 9
        assert torch.equal(attend_causally(*later)[:, :, : t + 1], output[:, :, : t + 1])


def test_past_outputs_send_no_gradient_to_future_positions() -> None:
    q, k, v = make_qkv()
    for t in range(T):
        for gradient in torch.autograd.grad(attend_causally(q, k, v)[:, :, t].sum(), (k, v)):
            assert not gradient[:, :, t + 1 :].any()
            assert gradient[:, :, t].any() or t == 0  # at position 0 no key makes a difference


def test_a_mask_takes_the_plain_way_and_that_of_causality_changes_nothing() -> None:
    qkv = make_qkv()
    mask = causal_mask(torch.arange(T), T)
    assert not is_written_out(attend(*qkv, mask))
    assert_same(with_gradients(lambda *x: attend(*x, mask), *qkv), with_gradients(attend_causally, *qkv))


def test_a_mask_is_obeyed() -> None:
    q, k, v = make_qkv()
    diagonal = torch.eye(T, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, diagonal), v)


def test_grouped_key_heads_serve_their_query_heads_like_copies() -> None:
    q, (k, v) = make(B, 4, T, d).requires_grad_(), make_qkv(B, 2, T, d)[1:]
    assert not is_written_out(attend(q, k, v, None))

    def with_copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        output = attend_causally(q, k, v)
        assert is_written_out(output)
        return output

    assert_same(with_gradients(attend_causally, q, k, v), with_gradients(with_copies, q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_positions_than_are_worth_it_take_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    qkv = make_qkv(dtype=dtype)
    monkeypatch.setitem(functions._MOST_POSITIONS, dtype, T)
    short = with_gradients(attend_causally, *qkv)
    assert is_written_out(attend_causally(*qkv))
    monkeypatch.setitem(functions._MOST_POSITIONS, dtype, T - 1)
    assert not is_written_out(attend_causally(*qkv))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert_same(with_gradients(attend_causally, *qkv), short, rtol=tolerance, atol=tolerance)


def test_double_precision_attention_keeps_its_digits() -> None:
    qkv = make_qkv(dtype=torch.float64)
    assert attend_causally(*qkv).dtype == torch.float64
    assert_same(
        with_gradients(attend_causally, *qkv), with_gradients(functions._Attend.apply, *qkv), rtol=1e-12, atol=1e-12
    )
