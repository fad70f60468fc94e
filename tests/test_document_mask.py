"""Laws of attention that stays inside documents: what a position may know, and that all else is as without it.

Shapes: B batch, T positions, V vocab_size.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import COMBINATIONS, every_combination, every_pair, with_large_weights
from plain_generation import assert_same_text, plain_stream
from torch import Tensor

from slm.config import ModelConfig, UserError
from slm.model import KVCache, LanguageModel, generate_tokens
from slm.model.choice import random_stream
from slm.sampling import Sampling

V, T, NUM_LAYERS, START = 6, 8, 2, 3
SIZES: dict[str, Any] = {"vocab_size": V, "embed_dim": 16, "num_heads": 4, "num_layers": NUM_LAYERS, "hidden_dim": 12}
# Two rows whose documents differ; one begins with a document, one ends with the beginning of another.
ROWS = torch.tensor([[START, 1, 2, START, START, 0, 5, 4], [4, 0, 1, 2, START, 5, 1, START]])

many_examples = settings(derandomize=True, database=None, deadline=None, max_examples=40)
any_options = st.sampled_from(COMBINATIONS)
any_token = st.integers(0, V - 1)


@functools.cache
def make_model(document_start: int | None = START, **options: Any) -> LanguageModel:
    """A model of the same large weights whatever its document_start; shared, hence copied where a test changes it."""
    config = ModelConfig(**SIZES, max_seq_len=T, document_start=document_start, **options)
    return with_large_weights(LanguageModel(config))


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """Tokens (B, T) in which a document may begin anywhere, in each row elsewhere."""
    length = draw(st.integers(1, T))
    return torch.tensor(draw(st.lists(st.lists(any_token, min_size=length, max_size=length), min_size=1, max_size=3)))


@st.composite
def rows_and_places(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Tokens (1, T) and a position at which a document begins."""
    tokens = draw(st.lists(any_token, min_size=T, max_size=T))
    place = draw(st.integers(1, T - 1))
    tokens[place] = START
    return torch.tensor([tokens]), place


def documents_in(row: Tensor) -> list[tuple[int, int]]:
    """The first position of each document of a row (T,), and the first after it."""
    edges = [0, *(place for place in range(1, len(row)) if row[place] == START), len(row)]
    return list(itertools.pairwise(edges))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def logits_alone(row: Tensor, place: int, **options: Any) -> Tensor:
    """(T, V) for a document alone, at positions from `place` on, by a model that knows no documents."""
    model = make_model(None, **options)
    if options["positions"] == "learned":  # rotary positions know distances only
        model = copy.deepcopy(model)
        with torch.no_grad():
            weight = model.positions.embedding.weight  # type: ignore[union-attr]
            weight.copy_(weight.roll(-place, dims=0))  # type: ignore[operator, arg-type]
    return model(row[None])[0]


# What a position may know


@every_combination
def test_a_document_has_the_logits_that_it_has_alone_at_the_same_positions(options: dict[str, Any]) -> None:
    logits = make_model(**options)(ROWS)
    for row, its_logits in zip(ROWS, logits, strict=True):
        for begin, end in documents_in(row):
            assert_close(its_logits[begin:end], logits_alone(row[begin:end], begin, **options))


@many_examples
@given(options=any_options, tokens=batches())
def test_wherever_documents_begin_each_has_the_logits_that_it_has_alone(
    options: dict[str, Any], tokens: Tensor
) -> None:
    logits = make_model(**options)(tokens)
    for row, its_logits in zip(tokens, logits, strict=True):
        for begin, end in documents_in(row):
            assert_close(its_logits[begin:end], logits_alone(row[begin:end], begin, **options))


@many_examples
@given(options=any_options, row_and_place=rows_and_places(), data=st.data())
def test_what_stands_before_a_document_changes_no_bit_in_it(
    options: dict[str, Any], row_and_place: tuple[Tensor, int], data: st.DataObject
) -> None:
    (tokens, place), model = row_and_place, make_model(**options)
    changed = tokens.clone()
    changed[0, :place] = torch.tensor(data.draw(st.lists(any_token, min_size=place, max_size=place)))
    assert torch.equal(model(changed)[:, place:], model(tokens)[:, place:])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_kv_heads", [None, 2])
def test_nothing_is_seen_of_earlier_documents_in_training_either(
    num_kv_heads: int | None, precision: torch.dtype
) -> None:
    model = copy.deepcopy(make_model(num_kv_heads=num_kv_heads, dropout=0.3)).train()
    logits = []
    for earlier in (1, 5):
        tokens = torch.tensor([[earlier] * 4 + [START, 0, 1, 2]])
        torch.manual_seed(0)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits.append(model(tokens)[:, 4:])
    assert torch.equal(logits[0], logits[1])


@every_pair
def test_no_gradient_flows_to_an_earlier_document(options: dict[str, Any]) -> None:
    model = copy.deepcopy(make_model(**options))
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, arguments, x: embedded.append(x) or x.retain_grad())
    model(ROWS)[0, 6].sum().backward()  # the third document of the first row goes from 4 to the end
    reached = embedded[0].grad.abs().amax(-1) > 0  # type: ignore[union-attr]
    assert reached.tolist() == [[False] * 4 + [True] * 3 + [False], [False] * T]


# What stays as it is


@many_examples
@given(options=any_options, tokens=batches())
def test_without_a_start_token_documents_make_no_difference(options: dict[str, Any], tokens: Tensor) -> None:
    tokens = tokens.where(tokens != START, 0)
    assert_close(make_model(**options)(tokens), make_model(None, **options)(tokens))


@every_pair
def test_documents_add_no_parameter_and_nothing_to_save(options: dict[str, Any]) -> None:
    with_documents, without = make_model(**options), make_model(None, **options)
    assert with_documents.config.num_parameters == without.config.num_parameters
    assert with_documents.state_dict().keys() == without.state_dict().keys()


def test_without_documents_there_is_no_mask_until_keys_are_cached() -> None:
    model, cache = make_model(None), KVCache(NUM_LAYERS)
    assert model.mask(ROWS, slice(0, T)) is None
    model(ROWS[:, :5], cache)
    mask = model.mask(ROWS[:, 5:], cache.extend(ROWS[:, 5:]), cache)
    assert mask.tolist() == [[True] * 6 + [False] * 2, [True] * 7 + [False], [True] * T]


def test_one_position_in_rows_of_equal_length_needs_no_mask_and_in_others_only_what_they_have() -> None:
    model = make_model(None)
    for lengths, expected in (([5, 5], None), ([5, 2], [[[[True] * 6]], [[[True] * 3 + [False] * 3]]])):
        cache = KVCache(NUM_LAYERS)
        model(ROWS[:, :5], cache)
        cache.shorten(lengths)
        mask = model.mask(ROWS[:, :1], cache.extend(ROWS[:, :1]), cache)
        assert (None if mask is None else mask.tolist()) == expected


def test_the_mask_is_made_once_for_all_layers() -> None:
    model, made, used = copy.deepcopy(make_model()), [], []
    model.mask.register_forward_hook(lambda module, arguments, mask: made.append(mask))
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, arguments: used.append(arguments[2]))
    model(ROWS)
    assert len(made) == 1
    assert len(used) == NUM_LAYERS
    assert all(mask is made[0] for mask in used)


# The cache and the stream


@every_combination
def test_cached_logits_equal_uncached(options: dict[str, Any]) -> None:
    model = make_model(**options)
    uncached = model(ROWS)
    for pieces in ([T], [3, 1, 4], [1, 5, 2], [1] * T):
        cache = KVCache(NUM_LAYERS)
        assert_close(torch.cat([model(piece, cache) for piece in ROWS.split(pieces, dim=1)], dim=1), uncached)


@many_examples
@given(options=any_options, tokens=batches(), data=st.data())
def test_however_tokens_are_cut_into_pieces_cached_logits_equal_uncached(
    options: dict[str, Any], tokens: Tensor, data: st.DataObject
) -> None:
    model, cache, pieces = make_model(**options), KVCache(NUM_LAYERS), []
    while tokens.size(1) > sum(pieces):
        pieces.append(data.draw(st.integers(1, tokens.size(1) - sum(pieces))))
    logits = [model(piece, cache) for piece in tokens.split(pieces, dim=1)]
    assert_close(torch.cat(logits, dim=1), model(tokens))


def test_a_refused_continuation_leaves_the_documents_of_the_cache_alone() -> None:
    model, cache = make_model(), KVCache(NUM_LAYERS)
    model(ROWS[:, :6], cache)
    with pytest.raises(ValueError, match=f"{T + 1} tokens"):
        model(torch.full((2, 3), START), cache)
    assert_close(model(ROWS[:, 6:], cache), model(ROWS)[:, 6:])


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_stream_equals_an_uncached_loop_also_past_the_window(positions: str) -> None:
    model, prompts = make_model(positions=positions), [[1, START, 2], [START] * 2 * T, [0, 1]]
    sampling = {"max_new_tokens": 4 * T, "temperature": 5.0, "top_k": None, "seed": 0}
    texts = generate_tokens(model, prompts, **sampling).tolist()
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        assert_same_text(text, list(plain_stream(model, prompt, Sampling(**sampling), random_stream(0, row))))
        assert text.count(START) > 1  # documents begin in what is generated, too


# Precision, compilation and errors


@every_pair
def test_bf16_autocast_gives_close_logits(options: dict[str, Any]) -> None:
    model = make_model(**options)
    logits = model(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ROWS)
    assert (rounded - logits).pow(2).mean().sqrt() < 0.03 * logits.std()


def test_the_whole_model_compiles_into_one_graph_whatever_the_documents() -> None:
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = make_model()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for tokens in (ROWS, ROWS.flip(0), torch.zeros_like(ROWS)):
        assert_close(compiled(tokens), model(tokens))
    assert len(graphs) == 1


@pytest.mark.parametrize("document_start", [V, V + 1, 2**40])
def test_a_start_token_outside_the_vocabulary_is_refused(document_start: int) -> None:
    with pytest.raises(UserError, match=rf"document_start = {document_start}: must be below vocab_size = {V}\b"):
        ModelConfig(**SIZES, document_start=document_start)


@pytest.mark.parametrize("document_start", [0, V - 1])
def test_every_token_of_the_vocabulary_may_begin_documents(document_start: int) -> None:
    model, plain = make_model(document_start), make_model(None)
    tokens = torch.tensor([[1, 2, document_start, 4]])
    assert_close(model(tokens)[:, :2], plain(tokens)[:, :2])
    assert (model(tokens) - plain(tokens))[0, 2:].abs().amax(-1).min() > 1e-3
