"""Laws of slm.model.decoder: one token more by it is one token more by the model, and what it does not fit it leaves.

Shapes: B rows, T positions, V vocab_size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import every_combination, every_pair, small_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from slm.model import KVCache, LanguageModel, decoder, generate_tokens
from slm.model.decoder import Decoder
from slm.model.transformer import MLP, Block, NoRotation, SwiGLU

V, WINDOW, NUM_LAYERS = 23, 8, 2
MOST_ROWS = 8  # that a single thread multiplies the other way, where the weights are large
with_both_products = pytest.mark.parametrize("large", [False, True], ids=["small weights", "large weights"])


def make_decoder(model: LanguageModel, large: bool) -> Decoder:
    """The decoder of a model, which takes its weights for large or for small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_CACHE_BYTES", 0 if large else 2**40)
        return Decoder(model)


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def filled_cache(model: LanguageModel, lengths: list[int]) -> KVCache:
    """A cache whose rows hold so many positions."""
    cache = KVCache(NUM_LAYERS)
    if max(lengths):
        model(make_tokens(len(lengths), max(lengths)), cache)
    cache.shorten(lengths)
    return cache


def assert_decodes(model: LanguageModel, lengths: list[int], large: bool, tolerance: float = 1e-5) -> None:
    """Up to the end of the window, decoder and model give the same logits and fill the same cache."""
    decode = make_decoder(model, large)
    with torch.no_grad():
        ours, theirs = filled_cache(model, lengths), filled_cache(model, lengths)
        for step in range(WINDOW - max(lengths)):
            tokens = make_tokens(len(lengths), 1, seed=step)
            expected = model(tokens, theirs)[:, -1]
            logits = decode(tokens, ours)
            assert logits.dtype == expected.dtype
            torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
            assert ours.lengths == theirs.lengths == [length + step + 1 for length in lengths]
        # What it left in the cache serves the model as well.
        ours.shorten([length + 1 for length in lengths])
        theirs.shorten(ours.lengths)
        tokens = make_tokens(len(lengths), WINDOW - ours.length())
        torch.testing.assert_close(model(tokens, ours), model(tokens, theirs), rtol=tolerance, atol=tolerance)


@with_both_products
@every_combination
def test_a_token_decoded_is_a_token_read_by_the_model(options: dict[str, Any], large: bool) -> None:
    for document_start in (None, 3):
        model = small_model(**options, document_start=document_start)
        for rows in (1, 2, MOST_ROWS, 16):
            assert_decodes(model, [5] * rows, large)
            assert_decodes(model, [(3 * row + 4) % 6 for row in range(rows)], large)


@with_both_products
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"tie_embeddings": True},
        {"embedding_norm": True},
        {"num_kv_heads": 1},
        {"num_heads": 1},
        {"bias": False, "tie_embeddings": True, "embedding_norm": True, "positions": "rope", "norm": "rmsnorm"},
        {"norm_eps": 0.5, "rope_base": 20.0, "positions": "rope"},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_with_every_other_option_too(options: dict[str, Any], large: bool) -> None:
    for lengths in ([0], [0, 0, 0], [2] * 16, [4, 0, 1], [0, 6]):
        assert_decodes(small_model(**options), lengths, large)


@with_both_products
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.1)], ids=str)
@every_pair
def test_in_any_precision(options: dict[str, Any], dtype: torch.dtype, tolerance: float, large: bool) -> None:
    for lengths in ([2], [1, 3, 0]):
        model = small_model(**options).to(dtype)
        assert_decodes(model, lengths, large, tolerance)
        assert Decoder(model)(make_tokens(1, 1), filled_cache(model, [2])).dtype == dtype


@every_pair
def test_autocast_is_as_close_to_full_precision_as_for_the_model(options: dict[str, Any]) -> None:
    model, tokens = small_model(**options), make_tokens(2, 1)
    logits = Decoder(model)(tokens, filled_cache(model, [5, 5]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Decoder(model)(tokens, filled_cache(model, [5, 5]))
    assert (rounded - logits).pow(2).mean().sqrt() < 0.03 * logits.std()


def test_the_other_product_is_taken_for_large_weights_and_few_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, taken = small_model(), []
    few_rows = decoder._few_rows

    def watched(*arguments: Any) -> Callable[[Tensor], Tensor]:
        product = few_rows(*arguments)
        return lambda x: (taken.append(len(x)), product(x))[1]

    monkeypatch.setattr(decoder, "_few_rows", watched)
    for large in (False, True):
        for rows in (1, MOST_ROWS, MOST_ROWS + 1):
            make_decoder(model, large)(make_tokens(rows, 1), KVCache(NUM_LAYERS))
    products = 4 * NUM_LAYERS + 1  # of q, k and v, o, up, down, and the head
    assert taken == [1] * products + [MOST_ROWS] * products
    taken.clear()
    make_decoder(model.double(), True)(make_tokens(1, 1), KVCache(NUM_LAYERS))
    assert taken == []


def test_a_decoder_takes_the_weights_as_they_are() -> None:
    model = small_model()
    before = written(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.roll(1, 0))
    assert not torch.equal(written(model), before)
    assert torch.equal(written(model, use_cache=False), written(model))


def test_decoding_leaves_the_number_of_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    decode = Decoder(small_model())
    decode(make_tokens(1, 1), KVCache(NUM_LAYERS))
    assert asked[-1] == 7
    with pytest.raises(IndexError):
        decode(torch.full((1, 1), V), KVCache(NUM_LAYERS))
    assert asked[-1] == 7


# What it does not fit


def written(model: LanguageModel, **keywords: Any) -> Tensor:
    return generate_tokens(model, [[1, 2], [3]], max_new_tokens=20, temperature=1.0, seed=0, **keywords)


@every_combination
def test_it_fits_every_model_of_ours(options: dict[str, Any]) -> None:
    for others in ({}, {"bias": False, "tie_embeddings": True}, {"embedding_norm": True, "document_start": 3}):
        model = small_model(**options, **others)
        assert Decoder.fits(model)
        assert Decoder.fits(copy.deepcopy(model).double().train())


class Louder(nn.Module):
    """Another module around one, as an adapter is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any) -> Any:
        return 1.5 * self.inner(*arguments)


class Subclass(LanguageModel):
    """A model that hears its tokens otherwise."""

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().features((tokens + 1) % V, cache)


def patch_forward(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *arguments: 1.5 * forward(*arguments)  # type: ignore[method-assign]


def first(model: LanguageModel) -> Block:
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block


def with_large_linear(bias: bool) -> nn.Linear:
    linear = nn.Linear(16, 16, bias=bias)
    nn.init.normal_(linear.weight, std=0.4, generator=torch.Generator().manual_seed(5))
    return linear


def swiglu() -> SwiGLU:
    other = first(small_model(mlp="swiglu")).mlp
    assert isinstance(other, SwiGLU)
    return other


CHANGES: dict[str, Callable[[LanguageModel], Any]] = {
    "wrapped linear": lambda model: setattr(first(model).attention, "q_proj", Louder(first(model).attention.q_proj)),
    "wrapped head": lambda model: setattr(model, "lm_head", Louder(model.lm_head)),
    "wrapped mlp": lambda model: setattr(first(model), "mlp", Louder(first(model).mlp)),
    "another mlp of ours": lambda model: setattr(first(model), "mlp", swiglu()),
    "no mlp": lambda model: setattr(first(model), "mlp", nn.Identity()),
    "a linear layer as mlp": lambda model: setattr(first(model), "mlp", with_large_linear(bias=True)),
    "no norm": lambda model: setattr(model, "norm", nn.Identity()),
    "no rotation in one layer": lambda model: setattr(first(model).attention, "rotate", NoRotation(model.config)),
    "a norm for queries only": lambda model: setattr(first(model).attention, "q_norm", nn.LayerNorm(4)),
    "a norm for keys only": lambda model: setattr(first(model).attention, "k_norm", nn.LayerNorm(4)),
    "keys without a bias": lambda model: setattr(first(model).attention, "k_proj", with_large_linear(bias=False)),
    "hook": lambda model: first(model).mlp.register_forward_hook(lambda module, arguments, x: 1.5 * x),
    "hook before": lambda model: first(model).mlp.register_forward_pre_hook(lambda module, x: (1.5 * x[0],)),
    "hook of the model": lambda model: model.register_forward_pre_hook(lambda module, x: ((x[0] + 1) % V, *x[1:])),
    "patched part": lambda model: patch_forward(first(model).mlp),
    "patched embedding": lambda model: patch_forward(model.embedding),
    "parametrization": lambda model: parametrizations.weight_norm(model.lm_head),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_replaced_hooked_or_patched_counts_in_what_is_written(change: str) -> None:
    model = small_model(positions="rope")
    plain = written(model)
    CHANGES[change](model)
    assert not Decoder.fits(model)
    assert torch.equal(written(model), plain) == (change == "parametrization")  # the same weights in other words
    if change != "hook of the model":  # prompts are read by `features`
        assert torch.equal(written(model, use_cache=False), written(model))


def test_a_subclass_writes_what_its_own_methods_say() -> None:
    plain = small_model()
    model = Subclass(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    assert not Decoder.fits(model)
    assert torch.equal(written(model, use_cache=False), written(model))
    assert not torch.equal(written(model), written(plain))


def test_it_fits_no_other_module() -> None:
    assert not Decoder.fits(nn.Linear(1, 1))
    assert not Decoder.fits(MLP(small_model().config))


@pytest.mark.parametrize("owner", [MLP, Block])
def test_who_changes_the_code_of_the_model_sees_the_change_in_what_it_writes(
    owner: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    before, forward = written(model), owner.forward
    monkeypatch.setattr(owner, "forward", lambda self, *arguments: -2.0 * forward(self, *arguments))
    assert Decoder.fits(model)
    after = written(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, written(model, use_cache=False))
