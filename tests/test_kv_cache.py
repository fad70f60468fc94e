"""Laws of slm.model.kv_cache: what was read once need not be read again, in rows of equal and of unequal lengths.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from models import every_combination, every_pair, small_model
from torch import Tensor

from slm.model import KVCache, LanguageModel, kv_cache

V, WINDOW, NUM_LAYERS, START = 23, 8, 2, 3


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def read_unequal(model: LanguageModel, rows: list[Tensor]) -> KVCache:
    """A cache that holds rows of unequal lengths, which were read at once."""
    cache = KVCache(NUM_LAYERS)
    padded = torch.full((len(rows), max(map(len, rows))), START)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    if padded.numel():
        model(padded, cache)
    cache.shorten([len(row) for row in rows])
    return cache


@every_combination
def test_cached_logits_equal_uncached(options: dict[str, Any]) -> None:
    model, tokens = small_model(**options), make_tokens(2, WINDOW)
    uncached = model(tokens)
    for pieces in ([WINDOW], [3, 1, 4], [1, 5, 2], [1] * WINDOW):
        cache, logits = KVCache(NUM_LAYERS), []
        for piece in tokens.split(pieces, dim=1):
            logits.append(model(piece, cache))
            assert cache.lengths == [sum(part.size(1) for part in logits)] * 2
        assert_close(torch.cat(logits, dim=1), uncached)


@pytest.mark.parametrize("document_start", [None, START])
@every_pair
def test_rows_of_unequal_lengths_go_on_as_each_would_alone(options: dict[str, Any], document_start: int | None) -> None:
    model = small_model(**options, document_start=document_start)
    rows = [make_tokens(length, seed=length) for length in (4, 0, 6, 1)]
    for pieces in ([2], [1, 1]):
        cache, new = read_unequal(model, rows), make_tokens(4, 2)
        new[2, 0] = START  # a document begins in one of them
        logits = torch.cat([model(piece, cache) for piece in new.split(pieces, dim=1)], dim=1)
        assert cache.lengths == [len(row) + 2 for row in rows]
        for row, added, its_logits in zip(rows, new, logits, strict=True):
            assert_close(its_logits, model(torch.cat((row, added))[None])[0, -2:])


def test_an_empty_cache_has_length_zero_and_two_caches_share_nothing() -> None:
    model, first, second = small_model(), KVCache(NUM_LAYERS), KVCache(NUM_LAYERS)
    assert (first.length(), first.lengths) == (0, [])
    model(make_tokens(1, 3), first)
    assert (first.length(), second.length()) == (3, 0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_the_cache_holds_key_heads_not_query_heads(num_kv_heads: int) -> None:
    cache = KVCache(NUM_LAYERS)
    small_model(num_kv_heads=num_kv_heads)(make_tokens(3, 5), cache)
    nothing = torch.zeros(3, num_kv_heads, 0, 4)
    assert [held.shape for held in cache.append(1, nothing, nothing, slice(5, 5))] == [(3, num_kv_heads, 5, 4)] * 2


@pytest.mark.parametrize("document_start", [None, START])
def test_what_lies_beyond_a_row_is_never_looked_at(document_start: int | None) -> None:
    model, logits = small_model(document_start=document_start), []
    rows = [make_tokens(length, seed=length) for length in (4, 2, 6)]
    for waste in (0.0, 1e30):
        cache = read_unequal(model, rows)
        for layer in cache._layers:
            assert layer is not None
            for held, row in itertools.product(layer, range(3)):
                held[row, :, len(rows[row]) :] = waste
        if cache._begins is not None:
            for number, row in enumerate(rows):
                cache._begins[number, len(row) :] = waste > 0
        logits.append(torch.cat([model(tokens, cache) for tokens in make_tokens(3, 2).split(1, dim=1)], dim=1))
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("document_start", [None, START])
def test_replaced_rows_go_on_as_in_the_cache_that_they_come_from(document_start: int | None) -> None:
    model = small_model(document_start=document_start)
    old, new = ([make_tokens(length, seed=length) for length in lengths] for lengths in ((7, 4, 7, 5), (3, 6)))
    new[0][1] = START
    for kept in (new, [new[0], new[1][:0]]):  # a row may become empty
        cache, other = read_unequal(model, old), read_unequal(model, kept)
        cache.replace([2, 0], other)
        rows = [kept[1], old[1], kept[0], old[3]]
        assert cache.lengths == [len(row) for row in rows]
        added = make_tokens(4, 1)
        for row, last, logits in zip(rows, added, model(added, cache), strict=True):
            assert_close(logits, model(torch.cat((row, last))[None])[0, -1:])


@pytest.mark.parametrize("document_start", [None, START])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 2, 5)])
def test_selected_rows_go_on_as_those_that_they_come_from(lengths: tuple[int, ...], document_start: int | None) -> None:
    model = small_model(document_start=document_start)
    for selected in ([0, 1, 2], [2, 0, 1], [1, 1, 0], [2], [2, 2, 0, 1, 1, 1], []):
        rows = [make_tokens(length, seed=length + number) for number, length in enumerate(lengths)]
        rows[2][1] = START
        cache = read_unequal(model, rows)
        # Again and again, with more rows and fewer, and a token more each time.
        for select in (selected, selected[1:], [0] * 4 if selected[1:] else []):
            cache.select(select)
            rows = [torch.cat((rows[row], make_tokens(1, seed=place))) for place, row in enumerate(select)]
            assert cache.lengths == [len(row) - 1 for row in rows]
            if rows:
                logits = model(torch.stack([row[-1:] for row in rows]), cache)
                for row, its_logits in zip(rows, logits, strict=True):
                    assert_close(its_logits, model(row[None])[0, -1:])


@pytest.mark.parametrize("document_start", [None, START])
def test_what_rows_share_is_left_alone_where_rows_are_selected(document_start: int | None) -> None:
    model, shared, rows = small_model(document_start=document_start), 3, make_tokens(3, 6)
    rows[:, 1] = START
    rows[1:, :shared] = rows[0, :shared]
    cache, marked, added = KVCache(NUM_LAYERS), KVCache(NUM_LAYERS), make_tokens(3, 1)
    for one in (cache, marked):
        model(rows, one)
    held = [kept for layer in marked._layers for kept in layer or ()]
    before = [kept.clone() for kept in held]
    for kept in held:
        kept[:, :, :shared] = torch.arange(3.0)[:, None, None, None]
    for one in (cache, marked):
        one.select([2, 0, 0], shared)
    for row, last, logits in zip(rows[[2, 0, 0]], added, model(added, cache), strict=True):
        assert_close(logits, model(torch.cat((row, last))[None])[0, -1:])
    for kept, old in zip(held, before, strict=True):
        assert torch.equal(kept[:, 0, :shared, 0].long(), torch.arange(3)[:, None].expand(-1, shared))
        assert torch.equal(kept[:, :, shared:6], old[[2, 0, 0], :, shared:6])


def test_a_refused_continuation_leaves_unequal_rows_alone() -> None:
    model, rows = small_model(), [make_tokens(6), make_tokens(2)]
    cache = read_unequal(model, rows)
    with pytest.raises(ValueError, match=f"{WINDOW + 1} tokens"):
        model(make_tokens(2, 3), cache)
    assert cache.lengths == [6, 2]
    assert_close(model(make_tokens(2, 1), cache), model(make_tokens(2, 1), read_unequal(model, rows)))


@pytest.mark.parametrize("equal", [True, False])
def test_room_is_made_a_logarithmic_number_of_times(equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, steps = small_model(max_seq_len=1000, document_start=START), list[int](), 700
    with_room = kv_cache._with_room

    def watched(*arguments: Any) -> Tensor:
        room = with_room(*arguments)
        made.append(room.size(arguments[2]))
        return room

    monkeypatch.setattr(kv_cache, "_with_room", watched)
    with torch.inference_mode():
        cache = KVCache(NUM_LAYERS)
        model(make_tokens(2, 5), cache)
        cache.shorten([5, 5 - (not equal)])
        for _ in range(steps):
            model(make_tokens(2, 1), cache)
    tensors = 2 * NUM_LAYERS + 1  # keys and values of each layer, and where documents begin
    assert len(made) <= tensors * (1 + math.ceil(math.log2((steps + 5) / 64)))
    assert max(made) < 2 * (steps + 5)  # nor is more than twice the memory taken


def test_a_cache_serves_one_batch() -> None:
    model, cache = small_model(), KVCache(2)
    model(torch.zeros(2, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="3 rows and the cache 2"):
        model(torch.zeros(3, 1, dtype=torch.long), cache)
    assert cache.lengths == [3, 3]
