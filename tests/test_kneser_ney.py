"""Laws of slm.metrics.kneser_ney: probabilities worked by hand, sums of one, a slow twin, a text of known entropy.

Shapes: V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.metrics.kneser_ney import KneserNey

A, B, C, D = range(4)
ABABAC = [A, B, A, B, A, C]  # D is in the vocabulary and never seen

laws = settings(derandomize=True, database=None, deadline=None, max_examples=60)
ORDERS = st.integers(1, 6)


@st.composite
def texts(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """A vocabulary's size, a training text and another text; small, so that contexts repeat, are new, or partly so."""
    vocab_size = draw(st.integers(1, 4))
    ids = st.integers(0, vocab_size - 1)
    return vocab_size, draw(st.lists(ids, max_size=30)), draw(st.lists(ids, max_size=12))


def distribution(model: KneserNey, context: Sequence[int]) -> list[float]:
    """p of every token after a context."""
    rows = (np.array([*context, token]) for token in range(model.vocab_size))
    return [math.exp(-model.nats(row)[-1]) for row in rows]


def slow_probability(text: list[int], vocab_size: int, order: int, context: tuple[int, ...], token: int) -> float:
    """p(token | context) by the formula of the class, with sets and dictionaries and no other thought."""

    def counts(k: int) -> dict[tuple[int, ...], int]:
        left: dict[tuple[int, ...], list[object]] = {}
        for start in range(len(text) - k + 1):
            before = text[start - 1] if start else "beginning"
            left.setdefault(tuple(text[start : start + k]), []).append(before)
        return {gram: len(found if k == order else set(found)) for gram, found in left.items()}

    def p(context: tuple[int, ...]) -> float:
        lower = p(context[1:]) if context else 1 / vocab_size
        all_counts = counts(len(context) + 1)
        after = {gram[-1]: count for gram, count in all_counts.items() if gram[:-1] == context}
        if not after:
            return lower
        n1, n2 = (sum(count == wanted for count in all_counts.values()) for wanted in (1, 2))
        discount = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
        own = max(after.get(token, 0) - discount, 0)
        return (own + discount * len(after) * lower) / sum(after.values())

    return p(context[max(0, len(context) - order + 1) :])


def test_bigrams_worked_by_hand() -> None:
    # Bigrams of ABABAC: AB twice, BA twice, AC once. n1 = 1, n2 = 2: D = 1 / (1 + 2 * 2) = 1/5.
    # Left neighbours: A has two (the beginning and B), B one (A), C one (A); in all 4. n1 = 2, n2 = 1: D = 2/4 = 1/2.
    # Three different tokens were seen: 1/2 * 3 / 4 * 1/4 = 3/32 goes to each of the four tokens.
    single = {
        A: Fraction(3, 2) / 4 + Fraction(3, 32),  # 15/32
        B: Fraction(1, 2) / 4 + Fraction(3, 32),  # 7/32
        C: Fraction(1, 2) / 4 + Fraction(3, 32),  # 7/32
        D: Fraction(3, 32),
    }
    # After A: B twice, C once; two different ones: 1/5 * 2 / 3 = 2/15 goes to the single tokens.
    after_a = {
        A: Fraction(2, 15) * single[A],  # 15/240
        B: Fraction(9, 5) / 3 + Fraction(2, 15) * single[B],  # 151/240
        C: Fraction(4, 5) / 3 + Fraction(2, 15) * single[C],  # 71/240
        D: Fraction(2, 15) * single[D],  # 3/240
    }
    # After B: A twice; 1/5 * 1 / 2 = 1/10 goes to the single tokens.
    after_b = {token: Fraction(1, 10) * p for token, p in single.items()}
    after_b[A] += Fraction(9, 5) / 2  # 303/320
    assert list(single.values()) == [Fraction(n, 32) for n in (15, 7, 7, 3)]
    assert list(after_a.values()) == [Fraction(n, 240) for n in (15, 151, 71, 3)]
    assert list(after_b.values()) == [Fraction(n, 320) for n in (303, 7, 7, 3)]
    model = KneserNey(np.array(ABABAC), 4, 2)
    # Nothing follows C, and D is unknown: what is left is the single tokens. The same at the beginning.
    cases = [((), single), ((A,), after_a), ((B,), after_b), ((C,), single), ((D,), single), ((D, C, A), after_a)]
    for context, expected in cases:
        assert distribution(model, context) == pytest.approx([float(p) for p in expected.values()], rel=1e-14), context


def test_trigrams_worked_by_hand() -> None:
    # Trigrams of ABABAC: ABA twice, BAB and BAC once. n1 = 2, n2 = 1: D = 2/4 = 1/2.
    # Left neighbours of bigrams: AB has two (the beginning and B), BA one (A), AC one (B). n1 = 2, n2 = 1: D = 1/2.
    # Single tokens are those of the bigram model: 15, 7, 7, 3 of 32.
    # After A: B counts 2, C counts 1: 1/2 * 2 / 3 = 1/3 goes down. (0 + 15/32) / 3 = 15/96 for A,
    # (3/2 + 7/32) / 3 = 55/96 for B, (1/2 + 7/32) / 3 = 23/96 for C, 3/96 for D.
    after_a = [Fraction(n, 96) for n in (15, 55, 23, 3)]
    # After B: A counts 1: 1/2 goes down. 1/2 + 15/64 = 47/64 for A, then 7/64, 7/64, 3/64.
    after_b = [Fraction(n, 64) for n in (47, 7, 7, 3)]
    # After AB: A twice: 1/2 * 1 / 2 = 1/4 goes down. 3/4 + 47/256 = 239/256 for A, then 7/256, 7/256, 3/256.
    after_ab = [Fraction(n, 256) for n in (239, 7, 7, 3)]
    # After BA: B once, C once: 1/2 * 2 / 2 = 1/2 goes down. 15/192, 1/4 + 55/192 = 103/192, 1/4 + 23/192 = 71/192,
    # 3/192.
    after_ba = [Fraction(n, 192) for n in (15, 103, 71, 3)]
    single = [Fraction(n, 32) for n in (15, 7, 7, 3)]
    assert all(sum(row) == 1 for row in (single, after_a, after_b, after_ab, after_ba))
    model = KneserNey(np.array(ABABAC), 4, 3)
    # AA and DA are unknown, A is not; AC is at the end only, and so is C.
    cases = [((A, B), after_ab), ((C, A, B), after_ab), ((B, A), after_ba), ((A, A), after_a), ((D, A), after_a)]
    cases += [((), single), ((A,), after_a), ((B,), after_b), ((A, C), single), ((A, D), single)]
    for context, expected in cases:
        assert distribution(model, context) == pytest.approx([float(p) for p in expected], rel=1e-14), context


def test_order_one_counts_tokens_as_often_as_they_stand() -> None:
    # A 3 times, B twice, C once: n1 = n2 = 1, D = 1/3, of which three tokens leave 1/3 * 3 / 6 * 1/4 = 1/24 to each.
    expected = [Fraction(8, 18) + Fraction(1, 24), Fraction(5, 18) + Fraction(1, 24), Fraction(2, 18) + Fraction(1, 24)]
    found = distribution(KneserNey(np.array(ABABAC), 4, 1), (B,))
    assert found == pytest.approx([float(p) for p in (*expected, Fraction(1, 24))], rel=1e-14)


def test_a_discount_without_counts_of_one_or_of_two_is_a_half() -> None:
    # All three tokens once: n2 = 0. (1 - 1/2) / 3 + 1/2 * 3 / 3 * 1/4 = 1/6 + 1/8, and 1/8 for the unseen.
    found = distribution(KneserNey(np.array([A, B, C]), 4, 1), ())
    assert found == pytest.approx([7 / 24, 7 / 24, 7 / 24, 1 / 8], rel=1e-14)
    # Two tokens thrice: n1 = 0. (3 - 1/2) / 6 + 1/2 * 2 / 6 * 1/4 = 5/12 + 1/24.
    found = distribution(KneserNey(np.array([A, B] * 3), 4, 1), ())
    assert found == pytest.approx([11 / 24, 11 / 24, 1 / 24, 1 / 24], rel=1e-14)


@laws
@given(texts=texts(), order=ORDERS)
def test_probabilities_of_all_tokens_sum_to_one_after_any_context(
    texts: tuple[int, list[int], list[int]], order: int
) -> None:
    vocab_size, train, context = texts
    model = KneserNey(np.array(train, np.int64), vocab_size, order)
    for end in range(len(context) + 1):
        found = distribution(model, context[:end])
        assert math.fsum(found) == pytest.approx(1, abs=1e-12)
        assert min(found) > 0


@laws
@given(texts=texts(), order=ORDERS)
def test_nats_are_those_of_a_slow_model_of_dictionaries(texts: tuple[int, list[int], list[int]], order: int) -> None:
    vocab_size, train, text = texts
    found = KneserNey(np.array(train, np.int64), vocab_size, order).nats(np.array(text, np.int64))
    expected = [
        -math.log(slow_probability(train, vocab_size, order, tuple(text[:place]), token))
        for place, token in enumerate(text)
    ]
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@laws
@given(texts=texts(), order=ORDERS, cut=st.integers(0, 12))
def test_nats_do_not_depend_on_what_comes_after_nor_on_what_lies_before_the_context(
    texts: tuple[int, list[int], list[int]], order: int, cut: int
) -> None:
    vocab_size, train, text = texts
    model = KneserNey(np.array(train, np.int64), vocab_size, order)
    ids = np.array(text, np.int64)
    found = model.nats(ids)
    assert model.nats(ids[:cut]).tolist() == found[:cut].tolist()
    assert model.nats(ids[cut:])[order - 1 :].tolist() == found[cut + order - 1 :].tolist()


def test_a_token_never_seen_has_a_chance_and_costs_more_than_any_seen() -> None:
    model = KneserNey(np.array(ABABAC * 50), 4, 5)
    for context in ([], [A], [A, B, A], [D, D], [A, D], [D, A]):
        found = distribution(model, context)
        assert 0 < found[D] == min(found)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_nats_are_the_same_for_every_type_of_integer(dtype: type[np.integer]) -> None:
    ids = np.random.default_rng(0).integers(0, 250, 3000)
    expected = KneserNey(ids, 250, 4).nats(ids)
    assert KneserNey(ids.astype(dtype), 250, 4).nats(ids.astype(dtype)).tolist() == expected.tolist()


def test_a_large_vocabulary_and_a_long_ngram_do_not_overflow() -> None:
    ids = np.tile(np.array([0, 9_999_999, 5_000_000, 9_999_998]), 200)
    nats = KneserNey(ids, 10_000_000, 12).nats(ids)
    assert np.isfinite(nats).all()
    assert nats[12:].max() < 0.01  # the same four tokens again and again


def test_the_bigram_loss_of_a_markov_chain_is_its_entropy_and_longer_ones_lose_little() -> None:
    draw = np.random.default_rng(1)
    chances = draw.dirichlet(np.full(6, 0.5), size=6)
    uniform = draw.random(120_000)
    steps = [0]
    for number in uniform:
        steps.append(int(min(np.searchsorted(chances[steps[-1]].cumsum(), number), 5)))
    ids = np.array(steps)
    train, val = ids[:100_000], ids[100_000:]
    true = -np.log(chances[val[:-1], val[1:]]).mean()  # of the chain itself on the same tokens
    loss = {order: KneserNey(train, 6, order).nats(val)[1:].mean() for order in (1, 2, 3, 5)}
    assert abs(loss[2] - true) < 0.001
    assert loss[1] > true + 0.3
    assert true - 0.001 < loss[3] < true + 0.01
    assert loss[5] < true + 0.1


def test_an_order_below_one_and_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="order = 0"):
        KneserNey(np.array(ABABAC), 4, 0)
    with pytest.raises(ValueError, match="0 to 2"):
        KneserNey(np.array([0, 3]), 3, 2)
    with pytest.raises(ValueError, match="from -1 to 2"):
        KneserNey(np.array(ABABAC), 4, 2).nats(np.array([-1, 2]))
