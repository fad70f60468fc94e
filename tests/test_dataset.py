"""Laws of windows and batches: every target once, shifted by one; an order that two integers give back."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, UserError
from slm.data.batches import Batches, in_order, stream_seed
from slm.data.dataset import TextDataset

LENGTHS = st.integers(2, 90)
WINDOWS = st.integers(1, 40)
BATCH_SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**40)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset of anybody's: item i is (i, -i)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([index]), torch.tensor([-index])


def joined(batches: Any) -> tuple[Tensor, Tensor]:
    """All windows of some batches, one below the other."""
    tokens, targets = zip(*batches, strict=True)
    return torch.cat(tokens), torch.cat(targets)


def equal(one: Any, two: Any) -> bool:
    one, two = list(one), list(two)
    return len(one) == len(two) and all(
        torch.equal(a, b) for pair, other in zip(one, two, strict=True) for a, b in zip(pair, other, strict=True)
    )


@settings(deadline=None, max_examples=200)
@given(length=LENGTHS, max_seq_len=WINDOWS)
def test_items_hold_every_target_once_in_order_and_only_the_end_is_padded(length: int, max_seq_len: int) -> None:
    ids = torch.arange(length) * 3 + 1
    dataset = TextDataset(ids, max_seq_len)
    items = [dataset[index] for index in range(len(dataset))]
    assert all(tokens.shape == targets.shape == (dataset.window,) for tokens, targets in items)
    tokens, targets = (torch.cat(column) for column in zip(*items, strict=True))
    assert torch.equal(targets[: length - 1], ids[1:])
    assert (targets[length - 1 :] == IGNORE_INDEX).all()
    assert len(targets) - (length - 1) < dataset.window
    assert torch.equal(tokens[: length - 1], ids[:-1])
    assert torch.isin(tokens, ids).all()  # padding, too, is a token that an embedding has


@settings(deadline=None)
@given(length=LENGTHS, max_seq_len=WINDOWS)
def test_targets_are_the_tokens_shifted_by_one(length: int, max_seq_len: int) -> None:
    for tokens, targets in TextDataset(list(range(length)), max_seq_len):
        real = targets != IGNORE_INDEX
        assert torch.equal(targets[real], tokens[real] + 1)


@settings(deadline=None)
@given(length=LENGTHS, beyond=st.integers(-1, 50))
def test_a_short_text_makes_one_window_of_all_of_it(length: int, beyond: int) -> None:
    dataset = TextDataset(range(length), max(1, length + beyond))
    assert dataset.window == length - 1
    assert len(dataset) == 1
    tokens, targets = dataset[0]
    assert tokens.tolist() == list(range(length - 1))
    assert targets.tolist() == list(range(1, length))


@settings(deadline=None)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES)
def test_batches_in_order_are_the_items_in_order(length: int, max_seq_len: int, batch_size: int) -> None:
    dataset = TextDataset(range(length), max_seq_len)
    tokens, targets = joined(in_order(dataset, batch_size))
    assert equal(zip(tokens, targets, strict=True), (dataset[index] for index in range(len(dataset))))


def test_indices_count_from_the_end_too_and_stop_at_both_ends() -> None:
    dataset = TextDataset(range(10), 3)
    assert equal([dataset[-1], dataset[-3]], [dataset[2], dataset[0]])
    for index in (3, -4):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [1],
        [1.0, 2.0],
        [True, False],
        [[1, 2], [3, 4]],
        3,
        np.ones(3),
        torch.ones(3),
        torch.zeros(0, dtype=torch.long),
        torch.ones(3, dtype=torch.complex64),
    ],
    ids=repr,
)
def test_what_is_no_row_of_at_least_two_integers_is_a_user_error(ids: Any) -> None:
    with pytest.raises(UserError, match=r"must be one row of integers|at least 2 are needed"):
        TextDataset(ids, 4)


@pytest.mark.parametrize("max_seq_len", [0, -1])
def test_a_window_has_at_least_one_position(max_seq_len: int) -> None:
    with pytest.raises(UserError, match=f"max_seq_len = {max_seq_len}"):
        TextDataset([1, 2, 3], max_seq_len)


KINDS = [torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.uint16, torch.uint32]


@pytest.mark.parametrize(
    "ids",
    [
        list(range(8)),
        range(8),
        np.arange(8),
        np.arange(8, dtype=np.uint16),
        np.arange(8, dtype=np.int32),
        np.arange(16)[::2],
        *(torch.arange(8).to(kind) for kind in KINDS),
        torch.arange(16)[::2] // 2 * 2,
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)
def test_lists_arrays_and_tensors_of_any_integers_give_the_same_windows(ids: Any) -> None:
    dataset = TextDataset(ids, 3)
    expected = TextDataset([int(id) for id in ids], 3)
    assert equal((dataset[i] for i in range(len(dataset))), (expected[i] for i in range(len(expected))))
    assert {tensor.dtype for item in dataset for tensor in item} == {torch.int64}


def test_a_read_only_array_is_taken_without_a_warning() -> None:
    ids = np.arange(8)
    ids.flags.writeable = False
    assert TextDataset(ids, 3)[0][0].tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=150)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=SEEDS, epoch=st.integers(0, 99))
def test_windows_of_an_epoch_are_full_and_side_by_side_from_one_offset(
    length: int, max_seq_len: int, batch_size: int, seed: int, epoch: int
) -> None:
    dataset = TextDataset(torch.arange(length), max_seq_len)
    tokens, targets = joined(Batches(dataset, batch_size, seed).epoch(epoch))
    T = dataset.window
    assert tokens.shape[1] == T
    assert torch.equal(targets, tokens + 1)  # full: nothing is padded
    assert torch.equal(tokens, tokens[:, :1] + torch.arange(T))
    starts = sorted(tokens[:, 0].tolist())
    assert 0 <= starts[0] < T
    assert all(after - before == T for before, after in pairwise(starts[:-1]))
    if len(starts) > 1:  # the last moves back where it would pass the end
        assert starts[-1] == min(starts[-2] + T, length - 1 - T)


@settings(deadline=None, max_examples=30)
@given(length=st.integers(2, 60), max_seq_len=st.integers(1, 12))
def test_every_token_is_trained_on_in_some_epoch(length: int, max_seq_len: int) -> None:
    batches = Batches(TextDataset(torch.arange(length), max_seq_len), 4, 0)
    seen = {
        target for epoch in range(200) for _, targets in batches.epoch(epoch) for target in targets.flatten().tolist()
    }
    assert seen == set(range(1, length))


@settings(deadline=None, max_examples=100)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=SEEDS)
def test_each_epoch_yields_len_batches_all_full_but_the_last(
    length: int, max_seq_len: int, batch_size: int, seed: int
) -> None:
    batches = Batches(TextDataset(torch.arange(length), max_seq_len), batch_size, seed)
    counts = [[len(tokens) for tokens, _ in batches.epoch(epoch)] for epoch in range(4)]
    assert len({tuple(count) for count in counts}) == 1
    assert len(counts[0]) == len(batches)
    assert all(count == batch_size for count in counts[0][:-1])
    assert 1 <= counts[0][-1] <= batch_size


@settings(deadline=None, max_examples=50)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=SEEDS, epoch=st.integers(0, 99))
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
@given(length=LENGTHS, max_seq_len=WINDOWS, seed=SEEDS, one=BATCH_SIZES, two=BATCH_SIZES)
def test_batch_size_cuts_the_order_but_does_not_change_it(
    length: int, max_seq_len: int, seed: int, one: int, two: int
) -> None:
    dataset = TextDataset(torch.arange(length), max_seq_len)
    orders = [joined(Batches(dataset, size, seed).epoch(3)) for size in (one, two)]
    assert equal([orders[0]], [orders[1]])


@pytest.mark.parametrize("dataset", [TextDataset(torch.arange(1000), 7), Pairs(100)], ids=["text", "pairs"])
def test_the_order_differs_between_epochs_and_between_seeds(dataset: Dataset[Any]) -> None:
    orders = [
        tuple(joined(Batches(dataset, 8, seed).epoch(epoch))[0][:, 0].tolist())
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("length", [1000, 1001, 1002, 1050])
def test_every_offset_comes_in_some_epoch_however_long_the_text(length: int) -> None:
    batches = Batches(TextDataset(torch.arange(length), 50), 100, seed=1)
    offsets = {int(joined(batches.epoch(epoch))[0].min()) for epoch in range(400)}
    assert offsets == set(range(50))


@settings(deadline=None, max_examples=60)
@given(length=LENGTHS, max_seq_len=WINDOWS, batch_size=BATCH_SIZES, seed=SEEDS, start=st.integers(0, 100))
def test_starting_at_a_batch_equals_skipping_those_before(
    length: int, max_seq_len: int, batch_size: int, seed: int, start: int
) -> None:
    for dataset in (TextDataset(torch.arange(length), max_seq_len), Pairs(length)):
        batches = Batches(dataset, batch_size, seed)
        assert equal(batches.epoch(5, start), list(batches.epoch(5))[start:])


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 60), batch_size=BATCH_SIZES, seed=SEEDS, epoch=st.integers(0, 9))
def test_any_dataset_gives_each_item_once_an_epoch(length: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = Batches(Pairs(length), batch_size, seed)
    got = list(batches.epoch(epoch))
    tokens, targets = joined(got)
    assert sorted(tokens[:, 0].tolist()) == list(range(length))
    assert torch.equal(targets, -tokens)
    assert len(got) == len(batches)
    assert all(len(tokens) == batch_size for tokens, _ in got[:-1])


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 40), batch_size=BATCH_SIZES)
def test_any_dataset_is_read_in_order_for_evaluation(length: int, batch_size: int) -> None:
    tokens, _ = joined(in_order(Pairs(length), batch_size))
    assert tokens[:, 0].tolist() == list(range(length))


def test_no_global_random_state_is_touched() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    for dataset in (TextDataset(torch.arange(100), 7), Pairs(20)):
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
