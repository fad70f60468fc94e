"""Laws of the loss and of evaluation in pieces: the same numbers, and never all logits at the same time.

Shapes: B batch, T positions, N = B*T, D embed_dim, V vocab_size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, ModelConfig
from slm.metrics.evaluate import evaluate
from slm.model import loss as loss_module
from slm.model.loss import WithLoss, chunked_loss, has_many_logits, logits_in_pieces, next_token_loss, rows_at_once
from slm.model.transformer import LanguageModel

CPU = torch.device("cpu")
B, T, D, V = 10, 26, 8, 203  # N = 260 rows make five pieces of 64, the last one with 4


def take_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every LanguageModel has many logits, which are made for 64 rows at once."""
    monkeypatch.setattr(loss_module, "MOST_LOGITS", 0)
    monkeypatch.setattr(loss_module, "_FEWEST_ROWS", 64)
    monkeypatch.setitem(loss_module._LOGITS_AT_ONCE, "cpu", 0)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    take_pieces(monkeypatch)


def make(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_ids(*shape: int, ignored: float = 0.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, shape, generator=generator)
    return ids.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORE_INDEX)


def make_model(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "embed_dim": D, "num_heads": 2, "num_layers": 1, "hidden_dim": 8, "max_seq_len": T}
    model = LanguageModel(ModelConfig(**sizes, **options))
    nn.init.normal_(model.lm_head.weight)  # logits far from 0
    return model


def at_once(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(features @ weight.T, targets)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value and the gradients of features and weight."""
    features, weight = (x.clone().requires_grad_() for x in inputs[:2])
    loss = function(features, weight, inputs[2])
    return [loss.detach(), *torch.autograd.grad(loss, (features, weight))]


def train(model: nn.Module, tokens: Tensor, targets: Tensor) -> list[Tensor]:
    """The loss and the gradients of all parameters."""
    loss = WithLoss(model)(tokens, targets)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b).norm() / b.norm()).item()


class Largest(TorchDispatchMode):
    """Knows the number of elements of the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


# chunked_loss


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 128, 260])
@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_and_its_gradients_are_those_of_all_logits(num_rows: int, ignored: float) -> None:
    features, weight, targets = make(1, num_rows, D), make(V, D, seed=2), make_ids(1, num_rows, ignored=ignored)
    targets[0, 0] = 5  # at least one counts
    assert_same(
        with_gradients(chunked_loss, features, weight, targets), with_gradients(at_once, features, weight, targets)
    )


@pytest.mark.parametrize("size", [0.0, 1e-3, 3.0])
@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_is_that_of_all_logits_whatever_their_size(size: float) -> None:
    inputs = size * make(B, T, D), make(V, D, seed=2), make_ids(B, T, ignored=0.2)
    assert_same(with_gradients(chunked_loss, *inputs), with_gradients(at_once, *inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_without_any_counted_target_is_zero_with_zero_gradients(dtype: torch.dtype) -> None:
    features, weight = make(B, T, D).to(dtype), make(V, D, seed=2).to(dtype)
    loss, *gradients = with_gradients(chunked_loss, features, weight, torch.full((B, T), IGNORE_INDEX))
    assert loss.item() == 0
    assert [gradient.shape for gradient in gradients] == [features.shape, weight.shape]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("in_pieces")
def test_ignored_rows_of_chunked_loss_have_no_influence_and_get_no_gradient() -> None:
    features, weight, targets = make(B, T, D), make(V, D, seed=2), make_ids(B, T, ignored=0.3)
    loss, grad_features, grad_weight = with_gradients(chunked_loss, features, weight, targets)
    assert torch.equal(grad_features.abs().amax(-1) > 0, targets != IGNORE_INDEX)
    other = features.masked_fill((targets == IGNORE_INDEX)[..., None], 3.0)
    assert_same(with_gradients(chunked_loss, other, weight, targets), [loss, grad_features, grad_weight], 1e-6)


@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_does_not_depend_on_the_size_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(B, T, D), make(V, D, seed=2), make_ids(B, T, ignored=0.3)
    expected = with_gradients(chunked_loss, *inputs)
    for rows in (128, 192, 2048):
        monkeypatch.setitem(loss_module._LOGITS_AT_ONCE, "cpu", rows * V)
        assert rows_at_once(V, CPU) == rows
        assert_same(with_gradients(chunked_loss, *inputs), expected)


@pytest.mark.usefixtures("in_pieces")
def test_gradients_of_a_share_of_chunked_loss_are_that_share_of_its_gradients() -> None:
    inputs = make(B, T, D), make(V, D, seed=2), make_ids(B, T)
    _, *whole = with_gradients(chunked_loss, *inputs)
    _, *share = with_gradients(lambda *x: 0.25 * chunked_loss(*x), *inputs)
    assert_same(share, [0.25 * gradient for gradient in whole], 1e-7)


@pytest.mark.parametrize("frozen", [0, 1], ids=["features", "weight"])
@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_trains_what_is_not_frozen(frozen: int) -> None:
    inputs, targets = [make(B, T, D), make(V, D, seed=2)], make_ids(B, T)
    expected = with_gradients(at_once, *inputs, targets)[2 - frozen]
    inputs[1 - frozen].requires_grad_()
    chunked_loss(*inputs, targets).backward()
    torch.testing.assert_close(inputs[1 - frozen].grad, expected, rtol=1e-5, atol=1e-5)
    assert inputs[frozen].grad is None


@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_of_features_that_are_no_number_is_no_number() -> None:
    features = make(B, T, D)
    features[3, 2, 1] = math.nan
    assert chunked_loss(features, make(V, D), make_ids(B, T)).isnan()


# chunked_loss in half precision


@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_under_bf16_autocast_is_close_with_gradients_of_the_type_of_their_tensors() -> None:
    inputs = make(B, T, D), make(V, D, seed=2), make_ids(B, T, ignored=0.3)
    exact = with_gradients(chunked_loss, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = with_gradients(chunked_loss, *inputs)
    assert [x.dtype for x in half] == [torch.float32] * 3
    assert not torch.equal(half[1], exact[1])
    assert half[0].item() == pytest.approx(exact[0].item(), rel=0.01)
    assert max(relative_error(a, b) for a, b in zip(half, exact, strict=True)) < 0.02


@pytest.mark.usefixtures("in_pieces")
def test_chunked_loss_of_a_bf16_model_is_float32_with_gradients_in_bf16() -> None:
    inputs = make(B, T, D), make(V, D, seed=2), make_ids(B, T, ignored=0.3)
    loss, *gradients = with_gradients(chunked_loss, *(x.bfloat16() for x in inputs[:2]), inputs[2])
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
    exact = with_gradients(at_once, *inputs)
    assert max(relative_error(a, b) for a, b in zip([loss, *gradients], exact, strict=True)) < 0.02


@pytest.mark.parametrize("likely", [0.9, 0.999, 0.9999, 0.99999])
@pytest.mark.usefixtures("in_pieces")
def test_bf16_gradients_keep_their_size_where_the_target_is_nearly_certain(likely: float) -> None:
    # One feature raises the score of its own token alone, so that (p - 1) of the target is a gradient by itself.
    score = torch.tensor(math.log(likely / (1 - likely) * (V - 1))).bfloat16().float()
    targets = make_ids(1, 100)
    inputs = score * torch.eye(V)[targets], torch.eye(V), targets
    exact = [x.float() for x in with_gradients(at_once, inputs[0].double(), inputs[1].double(), targets)]
    with torch.autocast("cpu", torch.bfloat16):
        half = with_gradients(chunked_loss, *inputs)
    at_target = [gradients[1].gather(2, targets[..., None]) for gradients in (half, exact)]
    assert -at_target[1].mean().item() == pytest.approx((1 - likely) / 100, rel=0.1)
    torch.testing.assert_close(*at_target, rtol=0.02, atol=0)
    assert half[0].item() == pytest.approx(exact[0].item(), rel=0.02)
    assert max(relative_error(a, b) for a, b in zip(half, exact, strict=True)) < 0.02


# Which way is taken


def test_a_piece_has_whole_groups_of_64_rows_as_many_as_fit_but_for_the_fewest() -> None:
    budget, fewest = loss_module._LOGITS_AT_ONCE["cpu"], loss_module._FEWEST_ROWS
    for vocab_size in (2, 100, 2048, 10_000, 32_768, 32_769, 300_000):
        rows = rows_at_once(vocab_size, CPU)
        assert rows % 64 == 0
        assert rows == fewest or fewest < rows <= budget / vocab_size
        assert (rows + 64) * vocab_size > budget
        assert rows_at_once(vocab_size, torch.device("cuda")) >= rows
    assert rows_at_once(2048, torch.device("cuda")) > 8 * rows_at_once(2048, CPU)  # which needs more to be busy


def test_more_logits_than_the_most_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model(), make_ids(2, 5)
    for most, many in ((10 * V - 1, True), (10 * V, False)):
        monkeypatch.setattr(loss_module, "MOST_LOGITS", most)
        assert has_many_logits(model, tokens) == many


@pytest.mark.usefixtures("in_pieces")
def test_the_compiler_gets_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_many_logits(make_model(), make_ids(2, 5))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not has_many_logits(make_model(), make_ids(2, 5))


class Louder(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def make_bigrams() -> nn.Module:
    return nn.Embedding.from_pretrained(make(V, V), freeze=False)


def make_with_another_head() -> LanguageModel:
    model = make_model()
    model.lm_head = Louder(D, V, bias=False)
    return model


@pytest.mark.parametrize("make_any", [make_bigrams, make_with_another_head])
@pytest.mark.usefixtures("in_pieces")
def test_models_of_which_only_the_logits_are_known_take_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, make_any: Callable[[], nn.Module]
) -> None:
    monkeypatch.setattr(loss_module, "chunked_loss", lambda *_: pytest.fail("the logits are not all there is"))
    model, tokens, targets = make_any(), make_ids(B, T), make_ids(B, T, seed=2)
    assert torch.equal(WithLoss(model)(tokens, targets), next_token_loss(model(tokens), targets))
    ((logits, ids),) = logits_in_pieces(model, tokens, targets)
    assert torch.equal(logits, model(tokens).flatten(0, 1))
    assert torch.equal(ids, targets.flatten())


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": True}, {"positions": "rope", "bias": False}], ids=str)
def test_a_language_model_has_the_same_loss_and_gradients_above_and_below_the_threshold(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    model, tokens, targets = make_model(**options), make_ids(B, T), make_ids(B, T, ignored=0.2, seed=2)
    below = train(model, tokens, targets)
    assert torch.equal(below[0], next_token_loss(model(tokens), targets))
    take_pieces(monkeypatch)
    monkeypatch.setattr(loss_module, "next_token_loss", lambda *_: pytest.fail("all logits were made"))
    assert_same(train(model, tokens, targets), below)


@pytest.mark.usefixtures("in_pieces")
def test_the_pieces_together_are_the_logits_with_their_targets() -> None:
    model, tokens, targets = make_model(), make_ids(B, T), make_ids(B, T, ignored=0.2, seed=2)
    logits, ids = (torch.cat(pieces) for pieces in zip(*logits_in_pieces(model, tokens, targets), strict=True))
    torch.testing.assert_close(logits, model(tokens).flatten(0, 1))
    assert torch.equal(ids, targets.flatten())
    assert [len(ids) for _, ids in logits_in_pieces(model, tokens, targets)] == [64, 64, 64, 64, 4]


# Memory


def train_once(model: nn.Module) -> None:
    WithLoss(model)(make_ids(B, T), make_ids(B, T, seed=2)).backward()


def evaluate_once(model: nn.Module) -> None:
    evaluate(model, make_windows(2 * B), batch_size=B)


def make_windows(count: int, ignored: float = 0.0) -> Any:
    windows: Sequence[tuple[Tensor, Tensor]] = list(
        zip(make_ids(count, T, seed=3), make_ids(count, T, ignored=ignored, seed=4), strict=True)
    )
    return windows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("use", [train_once, evaluate_once])
def test_no_tensor_ever_holds_all_logits(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[nn.Module], None], precision: str
) -> None:
    def largest_of() -> int:
        with Largest() as largest, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            use(make_model())
        return largest.numel

    assert largest_of() == B * T * V
    take_pieces(monkeypatch)
    assert largest_of() <= max(64 * V, B * 2 * T * T)  # a piece of them, or the weights of attention


# evaluate


@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("is_training", [False, True])
def test_evaluation_in_pieces_gives_the_metrics_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, ignored: float, is_training: bool
) -> None:
    windows: Dataset[Any] = make_windows(B + 3, ignored)
    model, bytes_per_token = make_model(dropout=0.5).train(is_training), torch.arange(V) % 5 + 1
    whole = evaluate(model, windows, batch_size=B, bytes_per_token=bytes_per_token)
    take_pieces(monkeypatch)
    pieces = evaluate(model, windows, batch_size=B, bytes_per_token=bytes_per_token)
    assert pieces == pytest.approx(whole, rel=1e-5, nan_ok=True)
    assert ("val_bits_per_byte" in pieces) == (ignored < 1)
    assert model.training == is_training


@pytest.mark.usefixtures("in_pieces")
def test_evaluation_in_pieces_counts_every_target_once() -> None:
    model = make_model().eval()
    tokens, targets = (torch.stack(part) for part in zip(*make_windows(B + 3, ignored=0.3), strict=True))
    logits, counted = model(tokens), targets != IGNORE_INDEX
    targets[:, ::2] = torch.where(counted, logits.argmax(-1), targets)[:, ::2]  # more than half are right
    windows: Any = list(zip(tokens, targets, strict=True))
    for batch_size in (1, 4, B, 100):
        metrics = evaluate(model, windows, batch_size=batch_size)
        assert metrics["val_loss"] == pytest.approx(next_token_loss(logits, targets).item(), rel=1e-5)
        assert metrics["val_accuracy"] == pytest.approx((logits.argmax(-1) == targets)[counted].float().mean().item())
        assert metrics["val_perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))


@pytest.mark.usefixtures("in_pieces")
def test_evaluation_in_pieces_keeps_nothing_for_gradients_and_stops_when_asked() -> None:
    model, calls, kept = make_model(), itertools.count(), []
    model.norm.register_forward_hook(lambda *of_call: kept.append(of_call[-1].requires_grad))
    assert evaluate(model, make_windows(B), batch_size=4, should_stop=lambda: next(calls) == 2) == {}
    assert kept == [False, False]
