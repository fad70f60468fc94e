"""Laws of slm.model.loss: the mean of -log p(target) over the targets that count.

Shapes: B batch, T positions, V vocab_size.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.model import IGNORE_INDEX, LanguageModel, WithLoss, next_token_loss

V = 7


def make_logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed))


def make_targets(*shape: int, ignored: float = 0.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, shape, generator=generator)
    return targets.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORE_INDEX)


def loss_by_hand(logits: Tensor, targets: Tensor) -> float:
    """The definition, number by number, in Python's floats."""
    terms = []
    for scores, target in zip(logits.flatten(0, -2).tolist(), targets.flatten().tolist(), strict=True):
        if target != -100:
            terms.append(math.log(math.fsum(math.exp(score) for score in scores)) - scores[target])
    return math.fsum(terms) / len(terms)


@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(B=st.integers(1, 4), T=st.integers(1, 6), ignored=st.sampled_from([0.0, 0.3, 0.9]), seed=st.integers(0, 2**32))
def test_loss_is_the_mean_of_minus_log_softmax_at_the_targets_that_count(
    B: int, T: int, ignored: float, seed: int
) -> None:
    logits, targets = make_logits(B, T, seed=seed), make_targets(B, T, ignored=ignored, seed=seed)
    targets[0, 0] = seed % V  # at least one counts
    loss = next_token_loss(logits, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(loss_by_hand(logits, targets), abs=1e-5)


def test_ignore_index_is_the_one_of_the_glossary() -> None:
    assert IGNORE_INDEX == -100


def test_even_scores_cost_the_logarithm_of_the_vocabulary() -> None:
    assert next_token_loss(torch.full((2, 3, V), 5.0), make_targets(2, 3)).item() == pytest.approx(math.log(V))


def test_loss_does_not_change_when_all_scores_of_a_position_rise_together() -> None:
    logits, targets = make_logits(2, 3), make_targets(2, 3)
    shifted = logits + torch.tensor([-8.0, 0.0, 8.0])[:, None]
    torch.testing.assert_close(next_token_loss(shifted, targets), next_token_loss(logits, targets))


def test_scores_too_large_to_exponentiate_have_a_finite_loss() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])
    assert next_token_loss(logits, torch.tensor([[0]])).item() == 0
    assert next_token_loss(logits, torch.tensor([[2]])).item() == pytest.approx(2e4)


def test_every_counted_token_weighs_the_same_wherever_it_stands() -> None:
    logits, targets = make_logits(2, 4), make_targets(2, 4)
    targets[0, 1:] = IGNORE_INDEX  # rows with one and with four counted tokens
    first, second = (next_token_loss(logits[row : row + 1], targets[row : row + 1]) for row in range(2))
    torch.testing.assert_close(next_token_loss(logits, targets), (first + 4 * second) / 5)


def test_ignored_positions_have_no_influence_and_get_no_gradient() -> None:
    logits, targets = make_logits(2, 4).requires_grad_(), make_targets(2, 4)
    targets[0, 1] = targets[1, 3] = IGNORE_INDEX
    loss = next_token_loss(logits, targets)
    loss.backward()
    assert logits.grad is not None
    reached = logits.grad.abs().amax(-1) > 0
    assert torch.equal(reached, targets != IGNORE_INDEX)
    other = logits.detach().clone()
    other[targets == IGNORE_INDEX] = 99.0
    assert torch.equal(next_token_loss(other, targets), loss.detach())


def test_gradient_is_the_probabilities_less_the_target_over_the_count() -> None:
    logits, targets = make_logits(2, 4).requires_grad_(), make_targets(2, 4)
    targets[0, 0] = IGNORE_INDEX
    next_token_loss(logits, targets).backward()
    counted = targets != IGNORE_INDEX
    expected = torch.softmax(logits.detach(), dim=-1)
    expected[counted] -= torch.eye(V)[targets[counted]]
    expected[~counted] = 0
    torch.testing.assert_close(logits.grad, expected / counted.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_loss_without_any_counted_target_is_zero_with_zero_gradients(dtype: torch.dtype) -> None:
    logits = make_logits(2, 3).to(dtype).requires_grad_()
    loss = next_token_loss(logits, torch.full((2, 3), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    # So many tokens that in half precision their sum would lose digits, or overflow.
    logits, targets = make_logits(40, 500).to(dtype).requires_grad_(), make_targets(40, 500)
    loss = next_token_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, next_token_loss(logits.float(), targets))
    assert loss.item() == pytest.approx(loss_by_hand(logits.detach(), targets), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_keeps_the_precision_of_full_precision_logits(dtype: torch.dtype) -> None:
    assert next_token_loss(make_logits(2, 3).to(dtype), make_targets(2, 3)).dtype == dtype


def test_loss_of_double_precision_logits_has_double_precision() -> None:
    logits, targets = make_logits(2, 3).double() / 3, make_targets(2, 3, ignored=0.2)
    assert next_token_loss(logits, targets).item() == pytest.approx(loss_by_hand(logits, targets), rel=1e-13)


# WithLoss


def make_language_model(positions: str = "learned") -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "hidden_dim": 8, "max_seq_len": 5}
    return LanguageModel(ModelConfig(**sizes, positions=positions))


def make_bigrams() -> nn.Module:
    """Any nn.Module (B, T) -> (B, T, V) will do."""
    torch.manual_seed(0)
    return nn.Embedding(V, V)


@pytest.mark.parametrize("make", [make_language_model, make_bigrams])
def test_with_loss_equals_the_loss_of_the_models_logits_with_its_gradients(make: type[nn.Module]) -> None:
    model, tokens, targets = make(), make_targets(2, 5), make_targets(2, 5, ignored=0.3, seed=2)
    loss = next_token_loss(model(tokens), targets)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    with_loss = WithLoss(model)(tokens, targets)
    assert torch.equal(with_loss, loss)
    with_loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_with_loss_trains_the_model_itself_and_adds_no_parameter() -> None:
    model = make_language_model()
    with_loss = WithLoss(model)
    assert all(mine is its for mine, its in zip(with_loss.parameters(), model.parameters(), strict=True))
    assert set(with_loss.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    with_loss.eval()
    assert not model.training


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_double_precision_model_has_a_double_precision_loss_and_gradients(positions: str) -> None:
    model, tokens, targets = make_language_model(positions), make_targets(2, 5), make_targets(2, 5, seed=2)
    single = WithLoss(model)(tokens, targets)
    loss = WithLoss(model.double())(tokens, targets)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(single.double(), loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float64 for parameter in model.parameters())


def test_loss_under_bf16_autocast_is_float32_and_close() -> None:
    with_loss, tokens, targets = WithLoss(make_language_model()), make_targets(2, 5), make_targets(2, 5, seed=2)
    exact = with_loss(tokens, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = with_loss(tokens, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0.01)


def test_a_new_model_starts_at_the_logarithm_of_the_vocabulary() -> None:
    loss = WithLoss(make_language_model())(make_targets(2, 5), make_targets(2, 5, seed=2))
    assert loss.item() == pytest.approx(math.log(V), abs=0.05)
