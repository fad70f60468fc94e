"""Laws of slm.model.generation and the cache: what is generated, by which odds, and that the cache changes nothing.

Shapes: B batch, T positions, V vocab_size.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import every_combination, with_large_weights
from torch import Tensor

from slm.config import ModelConfig, UserError
from slm.model import KVCache, LanguageModel, choose_next_token, stream_tokens

V, WINDOW, NUM_LAYERS = 23, 8, 2


def make_model(max_seq_len: int = WINDOW, **options: Any) -> LanguageModel:
    """A model whose weights are so large that each token changes what comes next."""
    sizes = {"vocab_size": V, "embed_dim": 16, "num_heads": 4, "num_layers": NUM_LAYERS, "hidden_dim": 12}
    return with_large_weights(LanguageModel(ModelConfig(**sizes, max_seq_len=max_seq_len, **options)))


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The cache


@every_combination
def test_cached_logits_equal_uncached(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(2, WINDOW)
    uncached = model(tokens)
    for pieces in ([WINDOW], [3, 1, 4], [1, 5, 2], [1] * WINDOW):
        cache, logits = KVCache(NUM_LAYERS), []
        for piece in tokens.split(pieces, dim=1):
            logits.append(model(piece, cache))
            seen = sum(part.size(1) for part in logits)
            assert [cache.length(layer) for layer in range(NUM_LAYERS)] == [seen] * NUM_LAYERS
        torch.testing.assert_close(torch.cat(logits, dim=1), uncached, rtol=1e-5, atol=1e-5)


def test_an_empty_cache_has_length_zero_and_two_caches_share_nothing() -> None:
    model, first, second = make_model(), KVCache(NUM_LAYERS), KVCache(NUM_LAYERS)
    assert first.length() == 0
    model(make_tokens(1, 3), first)
    assert (first.length(), second.length()) == (3, 0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_the_cache_holds_key_heads_not_query_heads(num_kv_heads: int) -> None:
    cache = KVCache(NUM_LAYERS)
    make_model(num_kv_heads=num_kv_heads)(make_tokens(3, 5), cache)
    nothing = torch.zeros(3, num_kv_heads, 0, 4)
    assert [held.shape for held in cache.append(1, nothing, nothing)] == [(3, num_kv_heads, 5, 4)] * 2


# The stream


def reference_stream(
    model: LanguageModel, prompt: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
) -> list[int]:
    """Without a cache: the window is read anew for each token; past its end, it goes on with the last half of it."""
    generator, window = seeded(seed), model.config.max_seq_len
    tokens, new = prompt.tolist()[-window:], []
    for _ in range(max_new_tokens):
        if len(tokens) > window:
            tokens = tokens[-max(window // 2, 1) :]
        new.append(choose_next_token(model(torch.tensor([tokens]))[0, -1], temperature, top_k, generator))
        tokens.append(new[-1])
    return new


@every_combination
def test_greedy_stream_equals_an_uncached_argmax_loop(options: dict[str, Any]) -> None:
    model = make_model(**options)
    for prompt_length in (1, 4):
        tokens = make_tokens(prompt_length)
        streamed = list(stream_tokens(model, tokens, max_new_tokens=WINDOW - prompt_length, temperature=0))
        for _ in range(WINDOW - prompt_length):
            tokens = torch.cat((tokens, model(tokens[None])[0, -1:].argmax(-1)))
        assert streamed == tokens[prompt_length:].tolist()


@pytest.mark.parametrize("prompt_length", [1, WINDOW])
@pytest.mark.parametrize("window", [1, 2, 3, WINDOW])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_past_the_window_the_stream_goes_on_from_its_last_half(positions: str, window: int, prompt_length: int) -> None:
    model, prompt = make_model(window, positions=positions), make_tokens(prompt_length)
    for temperature, top_k in ((0.0, None), (3.0, None), (5.0, 9)):
        sampling = {"max_new_tokens": 3 * WINDOW, "temperature": temperature, "top_k": top_k, "seed": 3}
        streamed = list(stream_tokens(model, prompt, **sampling))
        assert streamed == reference_stream(model, prompt, **sampling)
        assert temperature == 0 or len(set(streamed)) > 5


def test_no_more_than_half_a_window_is_ever_read_twice() -> None:
    model = make_model()
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0].size(1)))
    list(stream_tokens(model, make_tokens(3), max_new_tokens=15))
    half = [WINDOW // 2, *[1] * (WINDOW // 2)]
    assert lengths == [3, 1, 1, 1, 1, 1, *half, *half][:15]


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("excess", [1, 5, 3 * WINDOW])
def test_a_prompt_longer_than_the_window_counts_by_its_last_tokens(positions: str, excess: int) -> None:
    model, prompt = make_model(positions=positions), make_tokens(WINDOW + excess)
    sampling = {"max_new_tokens": 2 * WINDOW, "temperature": 1.0, "top_k": None, "seed": 3}
    streamed = list(stream_tokens(model, prompt, **sampling))
    assert streamed == list(stream_tokens(model, prompt[-WINDOW:], **sampling))
    assert streamed == reference_stream(model, prompt, **sampling)


def test_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    model, prompt = make_model(), make_tokens(3)

    def sample(seed: int | None) -> list[int]:
        return list(stream_tokens(model, prompt, max_new_tokens=30, temperature=1.0, seed=seed))

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)
    assert sample(None) != sample(None)  # 30 tokens agree by chance once in many millions of runs


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    model, prompt = make_model(), make_tokens(3)
    streams = [list(stream_tokens(model, prompt, max_new_tokens=n, seed=0)) for n in (0, 1, 7, 25)]
    assert [len(stream) for stream in streams] == [0, 1, 7, 25]
    assert all(streams[-1][: len(stream)] == stream for stream in streams)


def test_a_stream_computes_only_the_tokens_that_are_asked_for() -> None:
    model = make_model()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: calls.append(1))
    assert len(list(itertools.islice(stream_tokens(model, make_tokens(3), max_new_tokens=10**9), 4))) == 4
    assert len(calls) == 4


def test_a_stream_keeps_no_graph_for_gradients() -> None:
    model = make_model()
    graphs: list[object] = []
    model.register_forward_hook(lambda module, arguments, logits: graphs.append(logits.grad_fn))
    list(stream_tokens(model, make_tokens(3), max_new_tokens=5))
    assert graphs == [None] * 5


def test_top_k_of_one_streams_what_temperature_zero_streams() -> None:
    model, prompt = make_model(), make_tokens(3)
    greedy = list(stream_tokens(model, prompt, max_new_tokens=30, temperature=0))
    assert list(stream_tokens(model, prompt, max_new_tokens=30, temperature=5.0, top_k=1)) == greedy


def test_streamed_tokens_are_among_the_k_likeliest() -> None:
    model, tokens = make_model(), make_tokens(1)
    for token in stream_tokens(model, tokens, max_new_tokens=WINDOW - 1, temperature=50.0, top_k=3, seed=0):
        assert token in model(tokens[None])[0, -1].topk(3).indices
        tokens = torch.cat((tokens, torch.tensor([token])))


# What a stream leaves alone


@pytest.mark.parametrize("seed", [None, 0])
def test_generation_does_not_touch_the_global_random_numbers(seed: int | None) -> None:
    model = make_model(dropout=0.5).train()
    before = torch.get_rng_state()
    list(stream_tokens(model, make_tokens(3), max_new_tokens=2 * WINDOW, seed=seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_does_not_hear_the_global_random_numbers() -> None:
    model, prompt = make_model(), make_tokens(3)
    streams = []
    for global_seed in range(2):
        torch.manual_seed(global_seed)
        streams.append(list(stream_tokens(model, prompt, max_new_tokens=20, temperature=1.0, seed=0)))
    assert streams[0] == streams[1]


def test_generation_drops_nothing_even_in_the_middle_of_training() -> None:
    dropping, plain, prompt = make_model(dropout=0.5).train(), make_model(), make_tokens(3)
    sampling = {"max_new_tokens": 2 * WINDOW, "temperature": 0.0}
    assert list(stream_tokens(dropping, prompt, **sampling)) == list(stream_tokens(plain, prompt, **sampling))


def test_generation_leaves_prompt_weights_and_gradients_alone() -> None:
    model, prompt = make_model(positions="rope"), make_tokens(3)
    kept, weights = prompt.clone(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in stream_tokens(model, prompt, max_new_tokens=2 * WINDOW):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(prompt, kept)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    model(prompt[None]).sum().backward()  # trains on as before
    assert all(parameter.grad is not None for parameter in model.parameters())


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": torch.tensor([], dtype=torch.long)}, "prompt"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": -math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -3}, "top_k"),
        ({"top_k": 0, "temperature": 0.0}, "top_k"),
        ({"top_k": 0, "max_new_tokens": 0}, "top_k"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_a_user_error_naming_it(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        list(stream_tokens(make_model(), **({"prompt": make_tokens(3), "max_new_tokens": 3} | arguments)))


# The choice of one token


def random_logits(seed: int, size: int = V) -> Tensor:
    """Logits (size,) without ties."""
    return torch.randperm(size, generator=seeded(seed)) / 4 + torch.rand(1, generator=seeded(seed))


few_examples = settings(derandomize=True, database=None, deadline=None, max_examples=30)
seeds = st.integers(0, 2**32)
temperatures = st.floats(0.01, 100.0)
counts = st.integers(1, V)


@few_examples
@given(seed=seeds, top_k=st.none() | counts)
def test_temperature_zero_takes_the_argmax(seed: int, top_k: int | None) -> None:
    logits = random_logits(seed)
    assert choose_next_token(logits, 0, top_k, seeded(seed)) == logits.argmax().item()


def test_temperature_zero_and_top_k_of_one_draw_no_lots() -> None:
    for logits in (random_logits(0), random_logits(1)):
        assert {choose_next_token(logits, 0, None, seeded(seed)) for seed in range(20)} == {logits.argmax().item()}
        assert {choose_next_token(logits, 9.0, 1, seeded(seed)) for seed in range(20)} == {logits.argmax().item()}


@few_examples
@given(seed=seeds, temperature=temperatures, top_k=counts)
def test_top_k_never_yields_a_token_outside_the_k_likeliest(seed: int, temperature: float, top_k: int) -> None:
    logits, generator = random_logits(seed), seeded(seed)
    likeliest = set(logits.sort(descending=True).indices[:top_k].tolist())
    assert {choose_next_token(logits, temperature, top_k, generator) for _ in range(20)} <= likeliest


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_yields_each_of_the_k_likeliest(top_k: int) -> None:
    logits, generator = torch.tensor([0.5, 3.0, -1.0, 2.0]), seeded()
    drawn = {choose_next_token(logits, 100.0, top_k, generator) for _ in range(100)}
    assert drawn == set([1, 3, 0, 2][:top_k])


@few_examples
@given(seed=seeds, temperature=temperatures, above=st.sampled_from([0, 1, 1000]))
def test_top_k_of_the_whole_vocabulary_or_more_is_no_top_k(seed: int, temperature: float, above: int) -> None:
    logits = random_logits(seed)
    chosen = choose_next_token(logits, temperature, V + above, seeded(seed))
    assert chosen == choose_next_token(logits, temperature, None, seeded(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 2, 4])
def test_frequencies_are_those_of_softmax(temperature: float, top_k: int | None) -> None:
    logits, generator, draws = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.9, -0.4]), seeded(), 3000
    scores = logits.tolist()
    floor = sorted(scores)[-top_k] if top_k else -math.inf
    weights = [math.exp(score / temperature) if score >= floor else 0.0 for score in scores]
    counted = [0] * len(scores)
    for _ in range(draws):
        counted[choose_next_token(logits, temperature, top_k, generator)] += 1
    chi_square = 0.0
    for count, weight in zip(counted, weights, strict=True):
        expected = draws * weight / sum(weights)
        assert expected or not count
        chi_square += (count - expected) ** 2 / expected if expected else 0.0
    degrees = sum(weight > 0 for weight in weights) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)  # its mean, and four standard deviations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_can_be_chosen_from_logits_of_any_precision(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([0.5, 3.0, -1.0, 2.0]).to(dtype)  # exact in all of them
    for top_k in (None, 2):
        chosen = choose_next_token(logits, temperature, top_k, seeded())
        assert chosen == choose_next_token(logits.float(), temperature, top_k, seeded())


def test_half_precision_logits_do_not_overflow_at_a_low_temperature() -> None:
    assert choose_next_token(torch.tensor([0.0, 6e4]).half(), 0.1, None, seeded()) == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_a_temperature_near_zero_takes_the_argmax(temperature: float) -> None:
    logits = random_logits(0)
    assert choose_next_token(logits, temperature, None, seeded()) == logits.argmax().item()


@pytest.mark.parametrize("temperature", [1e-38, 5e-324])
def test_the_smallest_temperature_takes_the_argmax(temperature: float) -> None:
    logits = 10 * random_logits(0)
    assert choose_next_token(logits, temperature, None, seeded()) == logits.argmax().item()


def test_choosing_leaves_the_logits_alone() -> None:
    logits = random_logits(0)
    kept = logits.clone()
    choose_next_token(logits, 0.5, 3, seeded())
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_scores_that_are_no_numbers_are_told_and_not_drawn_from(temperature: float) -> None:
    with pytest.raises(UserError, match="no finite numbers"):
        choose_next_token(torch.tensor([0.0, math.nan]), temperature, None, torch.Generator())
