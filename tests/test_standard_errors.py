"""Laws of standard errors and comparisons: units hold every target once, errors cover the truth, pairs are surer."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_scoring import DOCUMENTS, TEXT, Source, T, ids_of, model_of, plain, scored, targets_of, tokenizer_of

from slm.config import UserError
from slm.data.dataset import TextDataset
from slm.metrics import scoring
from slm.metrics.scoring import compare_evaluations, ratio
from slm.model import LanguageModel

laws = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@laws
@given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=30), data=st.data())
def test_a_ratio_has_the_standard_error_of_the_textbook(sizes: list[int], data: st.DataObject) -> None:
    parts = np.array([data.draw(st.floats(0, 100)) for _ in sizes])
    value, error = ratio(parts, np.array(sizes, float))
    assert value == pytest.approx(parts.sum() / sum(sizes))
    # Cochran 1977, equation 6.13, where the population is far larger than the sample.
    n, mean = len(sizes), np.mean(sizes)
    squares = sum((y - value * x) ** 2 for x, y in zip(sizes, parts, strict=True)) / (n - 1)
    assert error == pytest.approx(math.sqrt(squares / n) / mean, abs=1e-9)


def test_documents_are_the_units_where_there_are_thirty() -> None:
    tokenizer = tokenizer_of("char")
    for count in (29, 30, 50):
        ids = ids_of(tokenizer, DOCUMENTS[:count])
        dataset, model = TextDataset(ids, T), model_of(tokenizer.vocab_size)
        found = scored(model, dataset, tokenizer.bytes_per_token(), end_id=tokenizer.end_id, stride=2)
        if count < 30:
            assert found.units_told == "one stretch of text: too few to tell any"
            assert [math.isnan(one.standard_error) for one in (found.loss, found.accuracy)] == [True, True]
            continue
        assert found.units_told == f"{count} documents"
        nats = plain(model, dataset, 2)[:, 0]
        ends = np.flatnonzero(np.array(ids[1:]) == tokenizer.end_id) + 1  # each with the token that ends it
        sums = [part.sum() for part in np.split(nats, ends)]
        np.testing.assert_allclose(found.units["nats"], sums, rtol=1e-5)
        num_bytes = [len(document) for document in DOCUMENTS[:count]]
        num_bytes[0] -= 1  # which nothing predicts
        assert found.units["bytes"].tolist() == num_bytes
        assert found.bits_per_byte == pytest.approx(ratio(np.array(sums) / math.log(2), np.array(num_bytes)), rel=1e-5)


@laws
@given(
    lengths=st.lists(st.integers(0, 12), min_size=30, max_size=90),
    bracketed=st.booleans(),
    bound=st.none() | st.integers(1, 500),
    most=st.integers(5, 40),
)
def test_every_target_is_of_one_unit_and_units_are_bounded(
    lengths: list[int], bracketed: bool, bound: int | None, most: int
) -> None:
    ids = [id for length in lengths for id in (0, *range(1, length + 1))] + [0]
    ids = ids if bracketed else ids[1:]
    if len(ids) < 2:
        return
    dataset = TextDataset(ids, T, start_id=0 if bracketed else None, max_targets=bound)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_MOST_UNITS", most)
        patch.setattr(scoring, "_FEWEST_BYTES", 20)
        found = scored(Source([1 / 16] * 16), dataset, end_id=0)
    assert len(found.units["tokens"]) <= most
    assert found.units["tokens"].sum() == found.num_tokens == len(targets_of(dataset))
    assert found.loss.value == pytest.approx(math.log(16))


def test_the_documents_of_a_part_of_the_text_are_units_and_not_those_of_all_of_it() -> None:
    ids = ([0] + [1] * 9) * 20_000 + [0]
    found = scored(Source([0.5] * 2), TextDataset(ids, 100, start_id=0, max_targets=5000), end_id=0)
    assert found.units_told == "500 documents"
    found = scored(Source([0.5] * 2), TextDataset(ids[: 10 * 2500], 100, start_id=0), end_id=0)
    assert found.units_told == "834 groups of 3 documents"


@pytest.mark.parametrize("block", [1 << 20, 1000, 7])
def test_stretches_hold_the_same_bytes_whatever_the_tokenizer_is(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", block)
    text = TEXT * 12
    size = len(text.encode()) / (len(text.encode()) // 1000)
    for name in ("byte", "char", "bpe"):
        tokenizer = tokenizer_of(name)
        uniform = Source([1 / tokenizer.vocab_size] * tokenizer.vocab_size)
        sizes = tokenizer.bytes_per_token()
        found = scored(uniform, TextDataset(tokenizer.encode(text), 64), sizes)
        assert found.units_told == f"{len(text.encode()) // 1000} stretches of about {size:,.0f} bytes"
        first = int(sizes[tokenizer.encode(text)[0]])
        ends = first + found.units["bytes"].cumsum()
        expected = size * np.arange(1, len(ends) + 1)
        assert ((ends >= expected - 1e-6) & (ends < expected + int(sizes.max()))).all()
    assert scored(Source([1 / 4] * 4), TextDataset(np.arange(4000) % 4, 9)).units_told.endswith("about 1,000 tokens")


def drawn(seed: int, *, documents: bool) -> list[int]:
    """A text of zeros and ones; 2 ends a document, of which each is of one of two kinds.

    Who took tokens for independent would think the numbers of such documents far surer than they are.
    """
    rng = np.random.default_rng(seed)
    if not documents:
        return (rng.random(20_000) < 0.35).astype(int).tolist()
    ids: list[int] = []
    for _ in range(60):
        ids += [*(rng.random(rng.integers(5, 40)) < rng.choice((0.1, 0.6))).astype(int).tolist(), 2]
    return ids


@pytest.mark.parametrize("documents", [True, False])
def test_two_standard_errors_cover_the_truth_95_times_in_100(documents: bool) -> None:
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.7, 0.2, 0.1])
    truth = np.array([0.65, 0.35, 0])
    if documents:  # of 22 tokens and an end on average
        truth = np.array([0.65 * 22, 0.35 * 22, 1]) / 23
    covered: dict[str, list[bool]] = {"loss": [], "accuracy": [], "difference": []}
    for seed in range(200):
        dataset = TextDataset(drawn(seed, documents=documents), 500)
        first, second = (scored(Source(one), dataset, end_id=2 if documents else None) for one in (p, q))
        found = {
            "loss": (first.loss, -(truth * np.log(p)).sum()),
            "accuracy": (first.accuracy, truth[0]),
            "difference": (compare_evaluations(first, second).difference, (truth * np.log(p / q)).sum()),
        }
        for name, (estimate, value) in found.items():
            covered[name].append(abs(estimate.value - value) <= 2 * estimate.standard_error)
    shares = {name: np.mean(hits) for name, hits in covered.items()}
    assert all(0.91 <= share <= 0.985 for share in shares.values()), shares


def related(seed: int, change: float) -> LanguageModel:
    """A model near that of seed 0."""
    model = copy.deepcopy(model_of(tokenizer_of("char").vocab_size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += change * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_comparison_is_paired_antisymmetric_and_says_which_is_better() -> None:
    tokenizer = tokenizer_of("char")
    dataset, sizes = TextDataset(ids_of(tokenizer, DOCUMENTS), T), tokenizer.bytes_per_token()
    first, second = (
        scored(related(1, change), dataset, sizes, end_id=tokenizer.end_id, stride=2) for change in (0, 0.02)
    )
    found, back = compare_evaluations(first, second), compare_evaluations(second, first)
    assert (found.unit, back.unit) == ("bits/byte", "bits/byte")
    assert first.bits_per_byte is not None and second.bits_per_byte is not None
    assert found.difference.value == pytest.approx(second.bits_per_byte.value - first.bits_per_byte.value)
    assert found.difference == pytest.approx((-back.difference.value, back.difference.standard_error))
    unpaired = math.hypot(first.bits_per_byte.standard_error, second.bits_per_byte.standard_error)
    assert 0 < found.difference.standard_error < unpaired / 3
    same = compare_evaluations(first, first)
    assert same.difference == (0, 0)
    assert same.verdict() == "No difference between A and B can be told on this text: 0.0000 +- 0.0000 bits/byte."


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (-0.021, 0.004, "new is better than old by 0.0210 +- 0.0040 bits/byte."),
        (0.021, 0.004, "old is better than new by 0.0210 +- 0.0040 bits/byte."),
        (0.021, 0.011, "No difference between old and new can be told on this text: 0.0210 +- 0.0110 bits/byte."),
        (-0.021, math.nan, "Which is better cannot be told on so little text: they differ by 0.0210 bits/byte."),
    ],
)
def test_the_verdict_takes_two_standard_errors(value: float, error: float, verdict: str) -> None:
    one = scored(Source([0.5] * 2), TextDataset([0, 1], 1))
    comparison = scoring.Comparison(scoring.Estimate(value, error), "bits/byte", one, one)
    assert comparison.verdict("old", "new") == verdict


def test_other_texts_do_not_compare_and_without_bytes_the_unit_is_a_token() -> None:
    first, second, third = (scored(Source([0.5] * 2), TextDataset([0, 1] * n, 9)) for n in (1500, 1500, 2500))
    assert compare_evaluations(first, second).unit == "nats/token"
    with pytest.raises(UserError, match=r"one model read 3 parts of text and the other 5.*at least 30 documents"):
        compare_evaluations(first, third)


def test_models_of_any_tokenizers_compare_by_their_bits_per_byte() -> None:
    text, found = TEXT * 12, {}
    for name in ("byte", "char", "bpe"):
        tokenizer = tokenizer_of(name)
        dataset = TextDataset(tokenizer.encode(text), 64)
        found[name] = scored(
            Source([1 / tokenizer.vocab_size] * tokenizer.vocab_size), dataset, tokenizer.bytes_per_token()
        )
    for first, second in (("byte", "char"), ("char", "bpe"), ("bpe", "byte")):
        comparison = compare_evaluations(found[first], found[second])
        a, b = found[first].bits_per_byte, found[second].bits_per_byte
        assert a is not None and b is not None
        assert comparison.difference.value == pytest.approx(b.value - a.value)
        assert comparison.difference.standard_error < abs(b.value - a.value) / 10
        assert comparison.verdict(first, second).startswith(f"{first if a.value < b.value else second} is better")
