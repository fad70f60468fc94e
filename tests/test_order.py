"""Laws of the shuffled order: every item once, at any size, from any place on; two integers give it back."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dataset import BATCH_SIZES, LENGTHS, WINDOWS, equal, joined
from torch import Tensor
from torch.utils.data import Dataset

from slm.data.batches import Batches, Order, in_order, stream_seed
from slm.data.dataset import TextDataset

KEYS = st.integers(0, 2**40)
SIZES = [7, 16, 50, 81, 100, 1000, 1024, 4097, 30_000]


class Numbers(Dataset[tuple[Tensor, Tensor]]):
    """Item i is (i, -i); none of them is stored."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([index]), torch.tensor([-index])


def whole(size: int, *key: object) -> np.ndarray:
    return Order(size, *key)(np.arange(size))


def surprise(counts: np.ndarray, shares: np.ndarray) -> float:
    """How many standard deviations the chi-square of counts lies above what chance with those shares would give."""
    assert not counts[shares == 0].any()
    counts, expected = counts[shares > 0], (counts.sum() * shares)[shares > 0]
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float(chi_square - freedom) / math.sqrt(2 * freedom)


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 700), key=KEYS)
def test_every_number_comes_once(size: int, key: int) -> None:
    assert sorted(whole(size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [99_999, 100_000, 316**2, 317**2 - 1, 2**17 + 1])
def test_every_number_comes_once_at_larger_sizes(size: int) -> None:
    assert (np.sort(whole(size, 0)) == np.arange(size)).all()


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 2**40), key=KEYS, place=st.floats(0, 1))
def test_huge_orders_stay_in_range_and_never_repeat(size: int, key: int, place: float) -> None:
    first = int(place * max(size - 500, 0))
    items = Order(size, key)(np.arange(first, min(first + 500, size)))
    assert items.dtype == np.int64
    assert items.min() >= 0
    assert items.max() < size
    assert len(set(items.tolist())) == len(items)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 2**40), key=KEYS, places=st.lists(st.floats(0, 0.999), min_size=1, max_size=9))
def test_a_place_holds_the_same_whatever_is_asked_along_with_it(size: int, key: int, places: list[float]) -> None:
    numbers = np.array([int(place * size) for place in places])
    together = Order(size, key)(numbers).tolist()
    assert together == [Order(size, key)(numbers[i : i + 1])[0] for i in range(len(numbers))]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_numbers_come_equally_often(size: int) -> None:
    orders = list(permutations(range(size)))
    seen = Counter(tuple(whole(size, key).tolist()) for key in range(300 * size))
    assert abs(surprise(np.array([seen[order] for order in orders]), np.full(len(orders), 1 / len(orders)))) < 4


@pytest.mark.parametrize("size", SIZES)
def test_an_order_shows_no_pattern(size: int) -> None:
    """Where numbers land, how far they move, and how far neighbours lie apart, each in up to 16 bins, as by chance."""
    orders = [whole(size, key) for key in range(max(8, 5000 // size))]
    bins = min(size, 16)
    here = np.arange(size) * bins // size
    shares = np.bincount(here) / size
    landed, moved, apart = np.zeros((bins, bins)), np.zeros(bins), np.zeros(size)
    for order in orders:
        np.add.at(landed, (here, order * bins // size), 1)
        moved += np.bincount(here[(order - np.arange(size)) % size], minlength=bins)
        apart += np.bincount((order[1:] - order[:-1]) % size, minlength=size)
    assert surprise(landed, np.outer(shares, shares)) < 4
    assert surprise(moved, shares) < 5
    steps = np.bincount(here, apart, minlength=bins)
    assert surprise(steps, np.bincount(here[1:], minlength=bins) / (size - 1)) < 4  # no distance is 0


@pytest.mark.parametrize("size", [1000, 2**20, 10**9, 2**40])
def test_epochs_and_seeds_share_no_more_than_chance(size: int) -> None:
    starts = [
        tuple(Order(size, "order", seed, epoch)(np.arange(32)).tolist()) for seed in range(5) for epoch in range(20)
    ]
    assert len(set(starts)) == len(starts)
    firsts = np.array(starts)[:, 0] * 10 // size
    assert surprise(np.bincount(firsts, minlength=10), np.full(10, 0.1)) < 4


def test_the_order_is_the_same_on_every_machine() -> None:
    assert whole(10, "order", 1, 2).tolist() == [6, 7, 8, 1, 4, 0, 2, 3, 5, 9]
    assert Order(10**12, "order", 1, 2)(np.arange(3)).tolist() == [544601079675, 427659779882, 180869415888]


def test_a_trillion_items_are_read_from_any_place_without_a_list_of_them() -> None:
    batches = Batches(Numbers(10**12), 10, 0)
    assert len(batches) == 10**11
    tracemalloc.start()
    try:
        shuffled, last = next(batches.epoch(0, 10**10)), next(batches.epoch(0, 10**11 - 1))
        first = next(in_order(Numbers(10**12), 3))
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    expected = Order(10**12, "order", 0, 0)
    assert shuffled[0].flatten().tolist() == expected(np.arange(10**11, 10**11 + 10)).tolist()
    assert last[0].flatten().tolist() == expected(np.arange(10**12 - 10, 10**12)).tolist()
    assert first[0].flatten().tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=20)
@given(batch_size=st.sampled_from([1, 7, 4095, 4096, 4097]), start=st.sampled_from([0, 1, 2]))
def test_blocks_of_the_order_join_without_a_seam(batch_size: int, start: int) -> None:
    indices = list(Batches(Numbers(9001), batch_size, 3)._indices(1, start))
    assert torch.cat(indices).tolist() == whole(9001, "order", 3, 1)[start * batch_size :].tolist()
    assert {len(batch) for batch in indices[:-1]} <= {batch_size}


@settings(deadline=None, max_examples=50)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=KEYS, epoch=st.integers(0, 99))
def test_the_order_is_given_by_seed_and_epoch_alone(
    length: int, max_seq_len: int, batch_size: int, seed: int, epoch: int
) -> None:
    def make() -> Batches:
        return Batches(TextDataset(torch.arange(length), max_seq_len), batch_size, seed)

    used = make()
    for earlier in range(3):
        list(used.epoch(earlier))
    assert equal(used.epoch(epoch), make().epoch(epoch))


@settings(deadline=None, max_examples=50)
@given(length=LENGTHS, max_seq_len=WINDOWS, seed=KEYS, one=BATCH_SIZES, two=BATCH_SIZES)
def test_batch_size_cuts_the_order_but_does_not_change_it(
    length: int, max_seq_len: int, seed: int, one: int, two: int
) -> None:
    dataset = TextDataset(torch.arange(length), max_seq_len)
    orders = [joined(Batches(dataset, size, seed).epoch(3)) for size in (one, two)]
    assert equal([orders[0]], [orders[1]])


@pytest.mark.parametrize("dataset", [TextDataset(torch.arange(1000), 7), Numbers(100)], ids=["text", "pairs"])
def test_the_order_differs_between_epochs_and_between_seeds(dataset: Dataset[Any]) -> None:
    orders = [
        tuple(joined(Batches(dataset, 8, seed).epoch(epoch))[0][:, 0].tolist())
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


@settings(deadline=None, max_examples=60)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=KEYS, start=st.integers(0, 100))
def test_starting_at_a_batch_equals_skipping_those_before(
    length: int, max_seq_len: int, batch_size: int, seed: int, start: int
) -> None:
    for dataset in (TextDataset(torch.arange(length), max_seq_len), Numbers(length)):
        batches = Batches(dataset, batch_size, seed)
        assert equal(batches.epoch(5, start), list(batches.epoch(5))[start:])


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 60), batch_size=BATCH_SIZES, seed=KEYS, epoch=st.integers(0, 9))
def test_any_dataset_gives_each_item_once_an_epoch(length: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = Batches(Numbers(length), batch_size, seed)
    got = list(batches.epoch(epoch))
    tokens, targets = joined(got)
    assert sorted(tokens[:, 0].tolist()) == list(range(length))
    assert torch.equal(targets, -tokens)
    assert len(got) == len(batches)
    assert all(len(tokens) == batch_size for tokens, _ in got[:-1])


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 40), batch_size=BATCH_SIZES)
def test_any_dataset_is_read_in_order_for_evaluation(length: int, batch_size: int) -> None:
    tokens, _ = joined(in_order(Numbers(length), batch_size))
    assert tokens[:, 0].tolist() == list(range(length))


def test_no_global_random_state_is_touched() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    for dataset in (TextDataset(torch.arange(100), 7), Numbers(20)):
        list(Batches(dataset, 4, seed=3).epoch(1))
        list(in_order(dataset, 4))
    assert states() == before


def test_the_global_random_state_does_not_change_the_order() -> None:
    batches = Batches(TextDataset(torch.arange(300), 7), 4, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = list(batches.epoch(0))
        torch.manual_seed(2)
        assert equal(one, batches.epoch(0))


def test_streams_of_other_names_have_other_seeds_that_torch_takes() -> None:
    seeds = [stream_seed(name, seed, epoch) for name in ("order", "dropout") for seed in range(9) for epoch in range(9)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed("order", 42, 0) == stream_seed("order", 42, 0)
