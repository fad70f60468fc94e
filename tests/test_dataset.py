"""Laws of windows: every target once, shifted by one, at documents or side by side, in order or in batches."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from slm.config import IGNORE_INDEX, UserError
from slm.data.batches import Batches, in_order
from slm.data.dataset import TextDataset
from slm.data.tokens import Tokens

LENGTHS = st.integers(2, 90)
WINDOWS = st.integers(1, 40)
BATCH_SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**40)


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
        [[1, 2], [3]],
        ["a", "b"],
        3,
        np.ones(3),
        torch.ones(3),
        torch.zeros(0, dtype=torch.long),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, dtype=torch.bfloat16),
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
        Tokens([np.arange(3), np.arange(3, 8, dtype=np.uint16)]),
        *(torch.arange(8).to(kind) for kind in KINDS),
        torch.arange(16)[::2] // 2 * 2,
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)
def test_lists_arrays_and_tensors_of_any_integers_give_the_same_windows(ids: Any) -> None:
    dataset = TextDataset(ids, 3)
    expected = TextDataset([int(id) for id in (ids[:] if isinstance(ids, Tokens) else ids)], 3)
    assert equal((dataset[i] for i in range(len(dataset))), (expected[i] for i in range(len(expected))))
    assert {tensor.dtype for item in dataset for tensor in item} == {torch.int64}


def test_a_read_only_array_is_taken_without_a_warning() -> None:
    ids = np.arange(8)
    ids.flags.writeable = False
    assert TextDataset(ids, 3)[0][0].tolist() == [0, 1, 2]


def test_an_array_is_neither_copied_nor_looked_through_when_a_dataset_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.lib.format.open_memmap(tmp_path / "ids", "w+", np.uint16, (1_000_000,))
    monkeypatch.setattr(Tokens, "_blocks", None)  # by which a row is looked through
    tracemalloc.start()
    try:
        dataset = TextDataset(ids, 100, start_id=1, max_targets=1000)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert np.shares_memory(dataset.tokens._arrays[0], ids)


@pytest.mark.parametrize("ids", [[3, 1, 4], torch.tensor([3, 1, 4]), Tokens([np.array([3, 1]), np.array([4])])])
def test_the_range_of_ids(ids: Any) -> None:
    assert TextDataset(ids, 2).id_range() == (1, 4)


def test_writing_into_targets_leaves_the_tokens_and_the_text_alone() -> None:
    ids = torch.arange(10)
    for tokens, targets in (TextDataset(ids, 3)[0], TextDataset(ids, 4)[2]):
        before = tokens.clone()
        targets.fill_(IGNORE_INDEX)
        assert torch.equal(tokens, before)
        tokens.fill_(7)
    assert ids.tolist() == list(range(10))


@settings(deadline=None)
@given(length=LENGTHS, max_seq_len=WINDOWS, max_targets=st.integers(1, 120))
def test_a_limit_takes_windows_evenly_and_all_where_they_fit(length: int, max_seq_len: int, max_targets: int) -> None:
    every, some = (
        TextDataset(range(length), max_seq_len),
        TextDataset(range(length), max_seq_len, max_targets=max_targets),
    )
    if length - 1 <= max_targets:
        assert equal(some, every)
        return
    total, count = len(every), len(some)
    assert count == max(1, max_targets // some.window)
    assert equal(some, (every[i * total // count] for i in range(count)))
    assert equal(zip(*joined(in_order(some, 3)), strict=True), some)
    places = [int(tokens[0]) // some.window for tokens, _ in some]
    assert {after - before for before, after in pairwise(places)} <= {total // count, -(-total // count)}


def test_a_limit_is_at_least_one_target() -> None:
    with pytest.raises(UserError, match="max_targets = 0: must be at least 1"):
        TextDataset([1, 2, 3], 2, max_targets=0)


START = 9
TEXTS = st.lists(st.sampled_from([0, 1, 2, 3, START]), min_size=2, max_size=80)
LONG_DOCUMENTS = st.builds(
    lambda length, starts: [START if place in starts else place % 4 for place in range(length)],
    st.integers(2, 80),
    st.sets(st.integers(0, 79), max_size=5),
)


def counted(targets: Tensor) -> int:
    """The number of targets that count, which are the first ones of a window."""
    count = int((targets != IGNORE_INDEX).sum())
    assert (targets[:count] != IGNORE_INDEX).all()
    return count


def documents_of(ids: list[int]) -> list[int]:
    """The number of targets of each document, the next start token among them."""
    starts = [0, *(place for place in range(1, len(ids) - 1) if ids[place] == START), len(ids) - 1]
    return [after - before for before, after in pairwise(starts)]


@settings(deadline=None, max_examples=300)
@given(ids=TEXTS, max_seq_len=st.integers(1, 30))
def test_windows_of_documents_hold_every_target_once_and_begin_at_documents(ids: list[int], max_seq_len: int) -> None:
    dataset = TextDataset(ids, max_seq_len, start_id=START)
    T, place, left = dataset.window, 0, documents_of(ids)
    for tokens, targets in dataset:
        count = counted(targets)
        assert tokens.tolist() == [ids[min(at, len(ids) - 1)] for at in range(place, place + T)]
        assert targets[:count].tolist() == ids[place + 1 : place + count + 1]
        place += count
        if left[0] > T:  # goes on in the next window, which is its own
            assert count == T
            left[0] -= T
            continue
        fitting = 0
        alone = place - count > 0 and ids[place - count] != START
        while left and fitting + left[0] <= T and not (alone and fitting):
            fitting += left.pop(0)
        assert count == fitting
    assert place == len(ids) - 1
    assert not left


@settings(deadline=None, max_examples=200)
@given(ids=TEXTS, max_seq_len=st.integers(1, 30), max_targets=st.integers(1, 90))
def test_a_limit_takes_the_first_whole_documents(ids: list[int], max_seq_len: int, max_targets: int) -> None:
    every = TextDataset(ids, max_seq_len, start_id=START)
    some = TextDataset(ids, max_seq_len, start_id=START, max_targets=max_targets)
    limit = max(max_targets, some.window)
    borders = [0, *accumulate(documents_of(ids))]
    expected = max(border for border in borders if border <= limit) or limit
    assert sum(counted(targets) for _, targets in some) == expected
    if limit >= len(ids) - 1:
        assert equal(some, every)
    got = torch.cat([targets[: counted(targets)] for _, targets in some])
    assert got.tolist() == ids[1 : expected + 1]


def test_a_limit_bounds_what_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[int] = []
    positions = Tokens.positions
    monkeypatch.setattr(Tokens, "positions", lambda *given: stops.append(given[2]) or positions(*given))
    dataset = TextDataset(np.arange(100_000) % 10, 32, start_id=START, max_targets=200)
    assert not stops
    list(dataset)
    assert stops == [201]


@settings(deadline=None, max_examples=200)
@given(ids=TEXTS | LONG_DOCUMENTS, max_seq_len=st.integers(1, 30), seed=SEEDS, epoch=st.integers(0, 9))
def test_training_windows_begin_at_the_first_document_that_begins_in_them(
    ids: list[int], max_seq_len: int, seed: int, epoch: int
) -> None:
    aligned, plain = TextDataset(ids, max_seq_len, start_id=START), TextDataset(range(len(ids)), max_seq_len)
    tokens, targets = joined(Batches(aligned, 4, seed).epoch(epoch))
    nominal = joined(Batches(plain, 4, seed).epoch(epoch))[0][:, 0].tolist()
    starts = [place for place in range(len(ids) - 1) if place == 0 or ids[place] == START]
    for at, row, row_targets in zip(nominal, tokens, targets, strict=True):
        place = next((start for start in starts if at <= start < at + aligned.window), at)
        assert row.tolist() == [ids[min(i, len(ids) - 1)] for i in range(place, place + aligned.window)]
        assert row_targets[: counted(row_targets)].tolist() == ids[place + 1 : place + 1 + aligned.window]
        assert counted(row_targets) > 0


class Watched(TextDataset):
    """A dataset that remembers which positions of the text it gave as targets in training."""

    seen: set[int]

    def windows_at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        tokens, targets = super().windows_at(starts)
        for start, row in zip(starts.tolist(), targets, strict=True):
            self.seen.update(range(start + 1, start + 1 + counted(row)))
        return tokens, targets


@settings(deadline=None, max_examples=60)
@given(ids=TEXTS | LONG_DOCUMENTS, max_seq_len=st.integers(1, 12))
@example([START, *[0] * 60], 8)  # one long document
@example([START, *[0] * 40, START, *[0] * 10], 8)
@example([0, 0, 0, START, *[0] * 20], 8)  # tokens before the first start, fewer than a window
@example([0] * 12 + [START, 0, 0], 8)  # and more
@example([START, *[0] * 20, START], 8)  # the last token begins a document without targets
@example([0] * 20, 8)
def test_every_target_of_documents_is_trained_on_in_some_epoch(ids: list[int], max_seq_len: int) -> None:
    dataset = Watched(ids, max_seq_len, start_id=START)
    dataset.seen, every = set(), set(range(1, len(ids)))
    batches = Batches(dataset, 100, 0)
    for epoch in range(400):
        list(batches.epoch(epoch))
        if dataset.seen == every:
            return
    raise AssertionError(f"never seen: {sorted(every - dataset.seen)}")


def test_training_never_looks_through_a_text_for_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "_blocks", None)
    batches = Batches(TextDataset(np.zeros(10_000, np.uint16), 32, start_id=START), 8, 0)
    assert len(list(batches.epoch(0))) == len(batches)


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


@settings(deadline=None, max_examples=12)
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


@pytest.mark.parametrize("length", [1000, 1001, 1002, 1050])
def test_every_offset_comes_in_some_epoch_however_long_the_text(length: int) -> None:
    batches = Batches(TextDataset(torch.arange(length), 50), 100, seed=1)
    offsets = {int(joined(batches.epoch(epoch))[0].min()) for epoch in range(400)}
    assert offsets == set(range(50))


def test_the_only_window_of_a_short_text_comes_evenly_from_all_offsets() -> None:
    batches = Batches(TextDataset(torch.arange(60), 50), 100, seed=1)
    offsets = [int(joined(batches.epoch(epoch))[0].min()) for epoch in range(400)]
    assert set(offsets) == set(range(10))
    assert max(offsets.count(offset) for offset in range(10)) < 80
