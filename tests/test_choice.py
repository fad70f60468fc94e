"""Laws of slm.model.choice: which token a draw falls on, by which odds, and what may not be sorted for it.

Shapes: B rows, V vocab_size.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_generation import plain_choice, plain_penalty
from torch import Tensor

from slm.config import UserError
from slm.model import choice
from slm.model.choice import choose_tokens, penalize, random_stream
from slm.sampling import Sampling

V = 23
EVEN_DRAWS = [(number + 0.5) / 400 for number in range(400)]
LAST_DRAW = 1 - 2**-53  # the largest that there is
few_examples = settings(derandomize=True, database=None, deadline=None, max_examples=40)
seeds = st.integers(0, 2**32)
temperatures = st.floats(0.01, 100.0)
counts = st.integers(1, V)


def random_logits(seed: int, *shape: int) -> Tensor:
    """Logits of that shape, (V,) by default, no two of which are close."""
    generator = torch.Generator().manual_seed(seed)
    *_, size = shape = shape or (V,)
    ranks = torch.stack([torch.randperm(size, generator=generator) for _ in range(math.prod(shape[:-1]))])
    return (6 * ranks / size + torch.rand(1, generator=generator)).view(shape)


def chosen(logits: Tensor, draws: list[float] | None = None, **sampling: Any) -> list[int]:
    """The token that each draw chooses from logits (V,)."""
    draws = EVEN_DRAWS if draws is None else draws
    return choose_tokens(logits.expand(len(draws), -1), sampling_of(**sampling), draws)


def sampling_of(**sampling: Any) -> Sampling:
    """Those settings, and no top_k unless it is among them."""
    return Sampling(**({"temperature": 1.0, "top_k": None} | sampling))


# The random numbers


def test_a_stream_is_the_same_everywhere_and_always() -> None:
    first, second, other = random_stream(0, 0), random_stream(0, 1), random_stream(2**63 - 1, 0)
    promised = [0.12837652677816147, 0.44631028286749275, 0.5438252437618784, 0.7057595130151809]
    assert [first(), first(), second(), other()] == promised


def test_every_seed_and_row_has_a_stream_of_its_own() -> None:
    streams = {(seed, row): random_stream(seed, row) for seed in range(30) for row in range(30)}
    assert len({tuple(draw() for _ in range(2)) for draw in streams.values()}) == 900


def test_streams_are_even_and_rows_independent() -> None:
    rows = np.array([[draw() for _ in range(200)] for draw in (random_stream(7, row) for row in range(200))])
    assert 0 <= rows.min() < 1e-3 and 1 - 1e-3 < rows.max() < 1
    counted, _ = np.histogram(rows, bins=10, range=(0, 1))
    assert np.abs(counted - 4000).max() < 4 * math.sqrt(4000)
    for numbers in (rows, rows.T):  # row by row, and place by place
        between = np.corrcoef(numbers) - np.eye(200)
        assert np.abs(between).max() < 6 / math.sqrt(200)
        assert abs(between.mean()) < 0.01


# The choice against the reference


def test_every_choice_is_that_of_the_reference() -> None:
    has_near_tie: list[bool] = []

    @settings(derandomize=True, database=None, deadline=None, max_examples=500)
    @given(
        size=st.sampled_from([2, 3, V, 70, 600]),
        seed=seeds,
        draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
        sampling=st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.3, 1.0, 3.0, 20.0]),
                "top_k": st.none() | st.integers(1, 700),
                "top_p": st.none() | st.floats(0.01, 0.99),
                "min_p": st.none() | st.floats(0.001, 0.99),
            }
        ),
    )
    def check(size: int, seed: int, draws: list[float], sampling: dict[str, Any]) -> None:
        logits, rules = random_logits(seed, len(draws), size), Sampling(**sampling)
        expected = [plain_choice(row.tolist(), rules, draw) for row, draw in zip(logits, draws, strict=True)]
        for id, one in zip(choose_tokens(logits, rules, draws), expected, strict=True):
            assert id == one.id or one.is_near_tie
        has_near_tie.append(any(one.is_near_tie for one in expected))

    check()
    assert sum(has_near_tie) < 0.2 * len(has_near_tie)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 2, 4])
def test_frequencies_are_those_of_softmax(temperature: float, top_k: int | None) -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.9, -0.4])
    floor = sorted(logits.tolist())[-top_k] if top_k else -math.inf
    weights = [math.exp(score / temperature) if score >= floor else 0.0 for score in logits.tolist()]
    ids = chosen(logits, temperature=temperature, top_k=top_k)
    for id, weight in enumerate(weights):
        assert abs(ids.count(id) / len(ids) - weight / sum(weights)) <= 1 / len(ids)


@few_examples
@given(seed=seeds, temperature=temperatures, top_k=st.none() | counts)
def test_a_greater_draw_chooses_no_lower_id(seed: int, temperature: float, top_k: int | None) -> None:
    ids = chosen(random_logits(seed), temperature=temperature, top_k=top_k)
    assert ids == sorted(ids)


@few_examples
@given(seed=seeds, filters=st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}, {"temperature": 0.0}]))
def test_a_row_is_chosen_as_it_is_alone(seed: int, filters: dict[str, Any]) -> None:
    logits, sampling = random_logits(seed, 5, 200), sampling_of(**filters)
    draws = [random_stream(seed, row)() for row in range(5)]
    alone = [choose_tokens(logits[row : row + 1], sampling, draws[row : row + 1])[0] for row in range(5)]
    assert choose_tokens(logits, sampling, draws) == alone


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.001}], ids=str)
def test_the_ends_of_the_draws_fall_on_the_first_and_the_last_candidate(filters: dict[str, Any]) -> None:
    logits = torch.tensor([-math.inf, 0.0, 1.0, 0.5, -math.inf])
    assert chosen(logits, [0.0, LAST_DRAW], **filters) == [1, 3]
    for size in range(1, 60):  # however the sum of the weights is rounded
        assert chosen(torch.cat((torch.rand(size), torch.tensor([-math.inf]))), [LAST_DRAW], **filters)[0] < size


# Temperature


@few_examples
@given(seed=seeds, top_k=st.none() | counts, draw=st.floats(0, 1, exclude_max=True))
def test_temperature_zero_takes_the_argmax_whatever_is_drawn(seed: int, top_k: int | None, draw: float) -> None:
    logits = random_logits(seed)
    sampling = {"temperature": 0.0, "top_k": top_k, "top_p": 0.5, "min_p": 0.5}
    assert chosen(logits, [draw], **sampling) == [logits.argmax().item()]


def test_of_equally_likely_tokens_temperature_zero_takes_the_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert choose_tokens(logits, sampling_of(temperature=0.0), [0.9] * 3) == [1, 0, 4]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 5e-324])
def test_a_temperature_near_zero_takes_the_argmax(temperature: float) -> None:
    logits = 10 * random_logits(0)
    for filters in ({}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert set(chosen(logits, temperature=temperature, **filters)) == {logits.argmax().item()}


def test_an_endless_temperature_takes_all_alike() -> None:
    ids = chosen(random_logits(0), temperature=1e300)
    assert all(abs(ids.count(id) - len(ids) / V) <= 1 for id in range(V))


# The filters


@few_examples
@given(seed=seeds, temperature=temperatures, top_k=counts)
def test_top_k_never_yields_a_token_outside_the_k_likeliest(seed: int, temperature: float, top_k: int) -> None:
    logits = random_logits(seed)
    assert set(chosen(logits, temperature=temperature, top_k=top_k)) <= set(logits.topk(top_k).indices.tolist())


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_yields_each_of_the_k_likeliest(top_k: int) -> None:
    logits = torch.tensor([0.5, 3.0, -1.0, 2.0])
    assert set(chosen(logits, temperature=100.0, top_k=top_k)) == set([1, 3, 0, 2][:top_k])


def test_of_equally_likely_tokens_top_k_takes_just_k() -> None:
    for size, k in ((5, 2), (100, 7), (100, 99)):
        assert len(set(chosen(torch.zeros(size), top_k=k))) == k


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.3}, {"top_p": 0.9, "min_p": 0.1}], ids=str)
@pytest.mark.parametrize("size", [3, 600])
def test_top_k_of_the_whole_vocabulary_or_more_is_no_top_k(size: int, filters: dict[str, Any]) -> None:
    logits = random_logits(0, size)
    without = chosen(logits, temperature=3.0, **filters)
    for above in (0, 1, 1000):
        assert chosen(logits, temperature=3.0, top_k=size + above, **filters) == without


@few_examples
@given(seed=seeds, size=st.sampled_from([3, 70, 300]), top_p=st.floats(0.01, 0.99))
def test_top_p_yields_the_fewest_likeliest_that_have_that_probability(seed: int, size: int, top_p: float) -> None:
    logits = random_logits(seed, size)
    probabilities, order = torch.softmax(logits.double(), 0).sort(descending=True)
    reached = set(chosen(logits, [number / 4000 for number in range(4000)], top_p=top_p))
    count = len(reached)
    assert reached == set(order[:count].tolist())
    assert probabilities[: count - 1].sum() < top_p + 1e-9
    # The last of them may be thinner than the distance of two draws.
    assert probabilities[: count + 1].sum() > top_p - 1e-3


@pytest.mark.parametrize("filters", [{"top_p": 1.0}, {"min_p": 0.0}, {"top_p": 1.0, "min_p": 0.0}], ids=str)
def test_a_filter_that_lets_all_pass_changes_nothing(filters: dict[str, Any]) -> None:
    for size in (3, 600):
        assert chosen(random_logits(0, size), **filters) == chosen(random_logits(0, size))


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}], ids=str)
def test_the_strictest_filter_takes_the_argmax(filters: dict[str, Any]) -> None:
    for size in (3, 600):
        logits = random_logits(1, size)
        assert set(chosen(logits, temperature=50.0, **filters)) == {logits.argmax().item()}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.1, 0.4, 0.19, 0.21, 0.1]).log()
    assert set(chosen(logits, min_p=0.5)) == {1, 3}
    assert set(chosen(logits, min_p=0.47)) == {1, 2, 3}
    assert set(chosen(logits, min_p=0.5, temperature=0.5)) == {1}  # what the temperature made of them counts
    assert set(chosen(logits, min_p=0.5, temperature=4.0)) == {0, 1, 2, 3, 4}


def test_filters_apply_in_the_order_of_the_settings() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    # Of the two likeliest, 0.4 is more than half; of all four it is less.
    assert set(chosen(logits, top_p=0.5)) == {1, 2}
    assert set(chosen(logits, top_k=2, top_p=0.5)) == {1}
    # min_p compares with the likeliest, so that it does not matter what was cut before.
    assert set(chosen(logits, top_p=0.95, min_p=0.45)) == {1, 2, 3}
    assert set(chosen(logits, top_p=0.85, min_p=0.6)) == {1, 2}


# Repetition


@few_examples
@given(seed=seeds, penalty=st.floats(0.1, 10), seen=st.sets(st.integers(0, V - 1)))
def test_the_penalty_divides_scores_above_zero_and_multiplies_those_below(
    seed: int, penalty: float, seen: set[int]
) -> None:
    logits = random_logits(seed) - 3
    mask = torch.tensor([id in seen for id in range(V)])
    expected = torch.tensor(plain_penalty(logits.tolist(), seen, penalty))
    torch.testing.assert_close(penalize(logits[None], mask[None], penalty)[0], expected)
    assert torch.equal(penalize(logits[None], mask[None], 1.0)[0], logits)


@few_examples
@given(seed=seeds, penalty=st.floats(1.01, 10), id=st.integers(0, V - 1))
def test_a_token_that_was_seen_becomes_less_likely(seed: int, penalty: float, id: int) -> None:
    logits = random_logits(seed, 2, V) - 3
    seen = torch.zeros(2, V, dtype=torch.bool)
    seen[1, id] = True
    before, after = (scores.softmax(1) for scores in (logits, penalize(logits, seen, penalty)))
    assert after[1, id] < before[1, id] or logits[1, id] == 0
    assert torch.equal(after[0], before[0])  # another row's tokens are its own


# What is left alone, and what is refused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_can_be_chosen_from_logits_of_any_precision(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([0.5, 3.0, -1.0, 2.0])  # exact in all of them
    for filters in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}):
        sampling = {"temperature": temperature} | filters
        assert chosen(logits.to(dtype), **sampling) == chosen(logits, **sampling)


def test_half_precision_logits_do_not_overflow_at_a_low_temperature() -> None:
    assert set(chosen(torch.tensor([0.0, 6e4]).half(), temperature=0.1)) == {1}


def test_choosing_leaves_the_logits_alone() -> None:
    logits = random_logits(0, 2, 200)
    kept = logits.clone()
    for filters in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"temperature": 0.0}):
        choose_tokens(logits, sampling_of(**filters), [0.1, 0.9])
        assert torch.equal(logits, kept)


FILTERS = [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 1, "top_p": 0.5}]
any_filter = pytest.mark.parametrize("filters", FILTERS, ids=str)


@any_filter
@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]], ids=str)
def test_scores_that_are_no_numbers_are_told_and_not_drawn_from(filters: dict[str, Any], bad: list[float]) -> None:
    for size in (2, 300):
        good, row = torch.zeros(size), torch.full((size,), bad[0])
        row[-1] = bad[1]
        for rows in ((row, good), (good, row)):
            with pytest.raises(UserError, match="no finite numbers"):
                choose_tokens(torch.stack(rows), sampling_of(**filters), [0.5, 0.5])


@any_filter
def test_a_token_whose_score_is_minus_infinity_is_never_chosen(filters: dict[str, Any]) -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert set(chosen(logits, [0.0, *EVEN_DRAWS, LAST_DRAW], **filters)) <= {1, 3}


# What it costs


class Watched(np.ndarray):  # type: ignore[type-arg]
    """An array that notes what is sorted, and how long it is; so does all that is computed from it."""

    sorted_lengths: list[int]

    def sort(self, *arguments: Any, **keywords: Any) -> None:
        self.sorted_lengths.append(self.shape[-1])
        super().sort(*arguments, **keywords)

    def argsort(self, *arguments: Any, **keywords: Any) -> Any:
        self.sorted_lengths.append(self.shape[-1])
        return super().argsort(*arguments, **keywords)

    def __array_function__(self, function: Any, *arguments: Any) -> Any:
        if function.__name__ in ("sort", "argsort", "lexsort", "unique", "sort_complex"):
            self.sorted_lengths.append(self.shape[-1])
        return super().__array_function__(function, *arguments)


class WatchedLogits:
    """All that choose_tokens asks of logits."""

    dtype = torch.float32

    def __init__(self, logits: Tensor) -> None:
        self.scores = logits.numpy().view(Watched)

    def cpu(self) -> WatchedLogits:
        return self

    def numpy(self) -> Watched:
        return self.scores


@pytest.mark.parametrize(
    ("filters", "most"),
    [
        ({}, 0),
        ({"temperature": 0.0}, 0),
        ({"min_p": 0.1}, 0),
        ({"top_k": 50}, 50),
        ({"top_k": 50, "top_p": 0.9, "min_p": 0.1}, 50),
        ({"top_p": 0.9}, 64),
        ({"top_p": 0.9, "top_k": 5000}, 64),
        ({"top_p": 0.9, "temperature": 1000.0}, 5000),  # where all are alike, most of them are needed
    ],
    ids=str,
)
def test_no_more_is_sorted_than_is_needed(filters: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, lengths = random_logits(0, 3, 5000), list[int]()
    logits[:, 7] += 20  # one token has nearly all of the probability
    monkeypatch.setattr(Watched, "sorted_lengths", lengths, raising=False)
    sampling, draws = sampling_of(**filters), [0.1, 0.5, 0.9]
    assert choose_tokens(WatchedLogits(logits), sampling, draws) == choose_tokens(logits, sampling, draws)  # type: ignore[arg-type]
    assert max(lengths, default=0) <= most
    assert bool(lengths) == (most > 0)  # the watch sees


def test_few_candidates_are_tried_before_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_FEW", 2)
    logits = random_logits(3, 40)
    for top_p, temperature in itertools.product((0.1, 0.5, 0.9), (0.3, 1.0, 10.0)):
        sampling = sampling_of(top_p=top_p, temperature=temperature)
        ids = choose_tokens(logits.expand(len(EVEN_DRAWS), -1), sampling, EVEN_DRAWS)
        assert ids == [plain_choice(logits.tolist(), sampling, draw).id for draw in EVEN_DRAWS]
