"""Laws of a row of ids in several arrays: it reads as one, finds what is there, and never copies the whole."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import UserError
from slm.data import tokens as module
from slm.data.tokens import Tokens

KINDS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", ">u2"]
ARRAYS = st.lists(
    st.builds(np.array, st.lists(st.integers(0, 5), max_size=12), st.sampled_from(KINDS)), min_size=1, max_size=5
)
FILLED = ARRAYS.filter(lambda arrays: sum(map(len, arrays)) > 0)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 5)
        yield


def joined(arrays: list[np.ndarray]) -> list[int]:
    return [int(id) for array in arrays for id in array]


@settings(deadline=None)
@given(arrays=ARRAYS, start=st.integers(-40, 70), stop=st.integers(-40, 70))
def test_several_arrays_read_as_one_list(arrays: list[np.ndarray], start: int, stop: int) -> None:
    tokens, ids = Tokens(arrays), joined(arrays)
    assert len(tokens) == len(ids)
    assert tokens[start:stop].tolist() == ids[start:stop]
    assert tokens[:].tolist() == ids
    assert tokens[:].dtype == np.int64


@settings(deadline=None)
@given(arrays=ARRAYS, start=st.integers(0, 70), stop=st.integers(0, 70))
def test_a_part_is_a_row_of_the_same_memory(arrays: list[np.ndarray], start: int, stop: int) -> None:
    part, ids = Tokens(arrays).part(start, stop), joined(arrays)[start:stop]
    assert len(part) == len(ids)
    assert part[:].tolist() == ids
    assert all(any(np.shares_memory(held, array) for array in arrays) for held in part._arrays)
    if ids:
        assert part.id_range() == (min(ids), max(ids))


def test_bounds_that_are_known_hold_for_a_part() -> None:
    assert Tokens([np.arange(9)], vocab_size=20).part(2, 5).id_range() == (0, 19)
    tokens = Tokens([np.arange(9)])
    assert tokens.id_range() == tokens.part(2, 5).id_range() == (0, 8)


@settings(deadline=None)
@given(arrays=FILLED, starts=st.lists(st.integers(0, 70), max_size=6), length=st.integers(0, 30))
def test_windows_cross_borders_and_repeat_the_last_id_at_the_end(
    arrays: list[np.ndarray], starts: list[int], length: int
) -> None:
    ids = joined(arrays)
    windows = Tokens(arrays).windows(np.array(starts, np.int64), length)
    assert windows.dtype == np.int64
    assert windows.shape == (len(starts), length)
    for start, window in zip(starts, windows.tolist(), strict=True):
        assert window == [ids[min(start + place, len(ids) - 1)] for place in range(length)]


@settings(deadline=None)
@given(arrays=FILLED)
def test_the_range_is_the_smallest_and_the_largest_id(arrays: list[np.ndarray]) -> None:
    tokens = Tokens(arrays)
    assert tokens.id_range() == tokens.id_range() == (min(joined(arrays)), max(joined(arrays)))


def test_negative_and_huge_ids_are_told_as_they_are() -> None:
    assert Tokens([np.array([3, -7, 2])]).id_range() == (-7, 3)
    assert Tokens([np.array([3, 2**32 - 1], np.uint32)]).id_range() == (3, 2**32 - 1)


def test_a_known_vocabulary_spares_the_look_and_a_range_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens([np.arange(5)])
    assert tokens.id_range() == (0, 4)
    monkeypatch.setattr(Tokens, "_blocks", None)
    assert tokens.id_range() == (0, 4)
    assert Tokens([np.arange(5)], vocab_size=100).id_range() == (0, 99)


@settings(deadline=None)
@given(arrays=ARRAYS, id=st.integers(-1, 6), stop=st.integers(0, 70))
def test_all_positions_before_a_place_are_found(arrays: list[np.ndarray], id: int, stop: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 3)
        found = Tokens(arrays).positions(id, stop)
    assert found.dtype == np.int64
    assert found.tolist() == [place for place, held in enumerate(joined(arrays)) if held == id and place < stop]


def test_an_id_that_the_type_cannot_hold_is_not_found() -> None:
    tokens = Tokens([np.array([1, 0, 2**16 - 1], np.uint16)])
    assert not len(tokens.positions(2**16 + 1, 3))
    assert not len(tokens.positions(-1, 3))


@pytest.mark.parametrize("array", [np.ones(3), np.ones(3, bool), np.ones((2, 2), int), np.array(3), np.array(["a"])])
def test_what_is_no_row_of_integers_is_a_user_error(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="must be one row of integers"):
        Tokens([np.arange(3), array])


def test_only_neighbours_are_read_at_once() -> None:
    with pytest.raises(IndexError, match="step"):
        Tokens([np.arange(9)])[::2]


def test_files_larger_than_what_may_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**16)
    size = 4_000_000
    for name in "ab":
        held = np.lib.format.open_memmap(tmp_path / name, "w+", np.uint16, (size,))
        held[size // 2] = 9
    tracemalloc.start()
    try:
        tokens = Tokens([np.load(tmp_path / name, mmap_mode="r") for name in "ab"])
        assert len(tokens) == 2 * size
        assert tokens.id_range() == (0, 9)
        assert tokens.positions(9, 2 * size).tolist() == [size // 2, size + size // 2]
        assert tokens.windows(np.array([size - 1, 0]), 3).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def test_tokens_are_read_without_torch() -> None:
    code = "import slm.data.tokens, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_id_that_no_vocabulary_has_is_told_when_it_is_read() -> None:
    tokens = Tokens([np.array([1, 2, 9, 3])], vocab_size=9)
    assert tokens.windows(np.array([0]), 2).tolist() == [[1, 2]]
    with pytest.raises(UserError, match=r"the id 9.*--recheck"):
        tokens.windows(np.array([1]), 2)
