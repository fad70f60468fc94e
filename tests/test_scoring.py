"""Laws of slm.metrics.scoring: numbers equal a plain computation, windows promise context, memory stays constant."""

from __future__ import annotations

import copy
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_scoring import DOCUMENTS, TEXT, Source, T, ids_of, model_of, plain, scored, targets_of, tokenizer_of

from slm.data.dataset import TextDataset
from slm.data.tokens import Tokens
from slm.metrics import scoring
from slm.metrics.evaluate import evaluate
from slm.model.loss import has_many_logits

laws = settings(derandomize=True, database=None, deadline=None, max_examples=60)
STRIDES = (None, 1, 3, T)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", ["byte", "char", "bpe"])
@pytest.mark.parametrize("kind", ["text", "documents", "packed", "some windows", "first documents"])
def test_all_numbers_equal_those_of_plain_loops(kind: str, name: str, stride: int | None) -> None:
    tokenizer = tokenizer_of(name)
    documents = [TEXT] if kind in ("text", "some windows") else [TEXT[:5], *DOCUMENTS[:12], "é", "😀 naïve"]
    is_packed, is_part = kind in ("packed", "first documents"), kind in ("some windows", "first documents")
    dataset = TextDataset(
        ids_of(tokenizer, documents, bracketed=is_packed),
        T,
        start_id=tokenizer.end_id if is_packed else None,
        max_targets=100 if is_part else None,
    )
    model = model_of(tokenizer.vocab_size)
    found = scored(model, dataset, tokenizer.bytes_per_token(), end_id=tokenizer.end_id, stride=stride)
    nats, rank, before = plain(model, dataset, stride).T
    targets = dataset.tokens[:][targets_of(dataset) + 1]
    assert found.num_tokens == len(targets)
    assert found.loss.value == pytest.approx(nats.mean(), rel=1e-6)
    assert found.perplexity.value == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert found.accuracy.value == (rank == 0).mean()
    assert found.top5_accuracy.value == (rank < 5).mean()
    for one in found.loss_by_position:
        chosen = (one.fewest <= before) & (before <= one.most)
        assert one.loss == pytest.approx(nats[chosen].mean(), rel=1e-6)
    assert found.num_bytes is not None
    if not is_part:  # else a piece may end within a character
        assert found.num_bytes == len(tokenizer.decode(targets.tolist()).encode())
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.value == pytest.approx(nats.sum() / math.log(2) / found.num_bytes, rel=1e-6)


@pytest.mark.parametrize("kind", ["text", "packed", "some windows"])
def test_loss_and_accuracy_are_those_of_training(kind: str) -> None:
    tokenizer = tokenizer_of("bpe")
    start_id = tokenizer.end_id if kind == "packed" else None
    most = 100 if kind == "some windows" else None
    dataset = TextDataset(ids_of(tokenizer, DOCUMENTS, bracketed=True), T, start_id=start_id, max_targets=most)
    model, sizes = model_of(tokenizer.vocab_size), tokenizer.bytes_per_token()
    found, metrics = scored(model, dataset, sizes), evaluate(model, dataset, bytes_per_token=sizes)
    assert found.loss.value == pytest.approx(metrics["val_loss"], rel=1e-6)
    assert found.perplexity.value == pytest.approx(metrics["val_perplexity"], rel=1e-5)
    assert found.accuracy.value == metrics["val_accuracy"]
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.value == pytest.approx(metrics["val_bits_per_byte"], rel=1e-6)


def test_a_head_in_pieces_and_a_mask_of_documents_change_nothing() -> None:
    ids = np.random.default_rng(0).integers(0, 5000, 700)
    ids[::9] = 0
    dataset = TextDataset(ids, T)
    masked: dict[str, Any] = {"document_start": 0}
    for model in (model_of(5000), model_of(5000, **masked)):
        assert has_many_logits(model, torch.zeros(87, T, dtype=torch.long))
        found, (nats, rank, _) = scored(model, dataset, stride=3), plain(model, dataset, 3).T
        assert found.loss.value == pytest.approx(nats.mean(), rel=1e-6)
        assert (found.accuracy.value, found.top5_accuracy.value) == ((rank == 0).mean(), (rank < 5).mean())


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("positions", [1, 7, 24, 100])
def test_a_targets_score_does_not_depend_on_batches(
    positions: int, stride: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("char")
    dataset = TextDataset(ids_of(tokenizer, DOCUMENTS), T)
    keys = {"end_id": tokenizer.end_id, "stride": stride}
    expected = scored(model_of(tokenizer.vocab_size), dataset, **keys)
    monkeypatch.setattr(scoring, "_POSITIONS_AT_ONCE", positions)
    monkeypatch.setattr(scoring, "_PLACES_AT_ONCE", positions)
    found = scored(model_of(tokenizer.vocab_size), dataset, **keys)
    for name, sums in found.units.items():
        np.testing.assert_allclose(sums, expected.units[name], rtol=1e-5)


@st.composite
def datasets(draw: st.DrawFn) -> TextDataset:
    """With or without documents and a bound. 0 begins a document."""
    ids = np.arange(draw(st.integers(2, 200)))
    has_documents = draw(st.booleans())
    if has_documents:
        ids[draw(st.lists(st.integers(0, len(ids) - 1), max_size=20))] = 0
    bound = draw(st.none() | st.integers(1, 60))
    return TextDataset(ids, draw(st.integers(1, 40)), start_id=0 if has_documents else None, max_targets=bound)


@laws
@given(dataset=datasets(), stride=st.none() | st.integers(1, 40), places=st.integers(1, 50))
def test_every_target_is_scored_once_with_all_the_context_that_was_promised(
    dataset: TextDataset, stride: int | None, places: int
) -> None:
    window = dataset.window
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_PLACES_AT_ONCE", places)
        patch.setattr(scoring, "_POSITIONS_AT_ONCE", 3 * window)
        batches = list(scoring._windows(dataset, stride and min(stride, window)))
    starts, first, end = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert all(1 <= len(part) <= 3 for part, _, _ in batches)
    assert (first >= 0).all() and (end <= window).all() and (starts >= 0).all()
    places_of = [np.arange(*pair) for pair in zip(starts + first, starts + end, strict=True)]
    assert np.concatenate(places_of).tolist() == targets_of(dataset).tolist()
    if stride:
        before = np.concatenate([place - start + 1 for place, start in zip(places_of, starts, strict=True)])
        promised = window - min(stride, window)
        assert (before >= np.minimum(promised, targets_of(dataset) + 1)).all()


def test_the_longest_stride_is_side_by_side_and_the_shortest_gives_every_token_a_full_window() -> None:
    ids = ids_of(tokenizer_of("byte"), [TEXT])[: 10 * T + 1]
    dataset, model = TextDataset(ids, T), model_of(257)
    longest, plainly = scored(model, dataset, stride=T), scored(model, dataset)
    assert longest.loss_by_position == plainly.loss_by_position
    assert all((longest.units[name] == sums).all() for name, sums in plainly.units.items())
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        losses = [
            -exact(torch.tensor([ids[max(0, end - T) : end]])).log_softmax(dim=-1)[0, -1, ids[end]].item()
            for end in range(1, len(ids))
        ]
    found = scored(model, dataset, stride=1)
    assert found.loss.value == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.loss_by_position[-1].loss == pytest.approx(np.mean(losses[4:]), rel=1e-6)


def test_positions_are_told_by_doubling_and_without_those_of_hardly_any_target() -> None:
    uniform = Source([0.25] * 4)
    ids = np.arange(100 * 11 + 1) % 4
    told = [(one.fewest, one.most) for one in scored(uniform, TextDataset(ids, 11)).loss_by_position]
    assert told == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]
    told = [(one.fewest, one.most) for one in scored(uniform, TextDataset(ids, 11), stride=1).loss_by_position]
    assert told == [(3, 4), (5, 8), (9, 11)]  # the first two of 1,100 targets are too few


def test_of_what_is_no_number_nothing_is_right_and_of_few_tokens_all_are_among_five() -> None:
    found = scored(Source([math.nan] * 8), TextDataset([1, 2, 3], 2))
    assert math.isnan(found.loss.value)
    assert (found.accuracy.value, found.top5_accuracy.value) == (0, 0)
    assert scored(Source([0.25] * 4), TextDataset([1, 2, 3], 2)).top5_accuracy.value == 1


@pytest.mark.parametrize("stride", [None, 100])
def test_a_text_ten_times_as_long_takes_no_more_memory(stride: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    windows = Tokens.windows

    def spy(self: Tokens, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        read.append(len(starts) * length)
        return windows(self, starts, length)

    monkeypatch.setattr(Tokens, "windows", spy)
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", 5000)
    monkeypatch.setattr(scoring, "_PLACES_AT_ONCE", 100)
    peaks = []
    for length in (400_000, 40_000, 400_000):  # the first fills what Python keeps of freed objects, which is not ours
        row = Tokens([(np.arange(length) % 4).astype(np.uint16)])
        model = Source([0.25] * 4)
        tracemalloc.start()
        scored(model, TextDataset(row, 256), stride=stride)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert max(model.asked) <= 4096
        assert sum(model.asked) >= length - 1
    assert max(read) <= 5000
    assert peaks[2] < 1.3 * peaks[1]


def test_a_short_stride_over_a_long_text_takes_no_more_memory() -> None:
    dataset = TextDataset(Tokens([np.zeros(4_000_000, np.uint8)]), 1024)
    tracemalloc.start()
    next(scoring._windows(dataset, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000  # all windows would take 32 MB a number


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_and_the_random_state_are_left_as_they_were(training: bool, fails: bool) -> None:
    tokenizer = tokenizer_of("char")
    model = copy.deepcopy(model_of(tokenizer.vocab_size, dropout=0.5)).train(training)
    model.lm_head.weight.requires_grad_(False)
    model.norm.weight.grad = torch.ones(16)
    weights = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    dataset = TextDataset(ids_of(tokenizer, DOCUMENTS), T)

    def on_progress(done: int, total: int) -> None:
        assert not model.training
        assert 0 < done <= total == dataset.num_targets
        if fails:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            scored(model, dataset, on_progress=on_progress)
    else:
        plainly = scored(model_of(tokenizer.vocab_size), dataset)
        assert scored(model, dataset, on_progress=on_progress).loss == plainly.loss  # no dropout
    assert {module.training for module in model.modules()} == {training}
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert model.norm.weight.grad.tolist() == [1] * 16
    assert all(p.grad is None for name, p in model.named_parameters() if name != "norm.weight")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]  # type: ignore[index, union-attr]
