"""How good a model is on a text, with standard errors, and how sure one can be that another model is better.

Shapes: B windows in a batch, T positions in a window, U units of text, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from slm.config import IGNORE_INDEX, UserError
from slm.data.dataset import TextDataset
from slm.data.tokens import Tokens
from slm.metrics.yardsticks import Yardstick
from slm.model.loss import logits_in_pieces
from slm.model.transformer import LanguageModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_POSITIONS_AT_ONCE = 4096
_PLACES_AT_ONCE = 1 << 16  # of windows
_TOKENS_AT_ONCE = 1 << 20
_FEWEST_DOCUMENTS = 30  # from so many on, documents are the units of a text
_MOST_UNITS = 1000
_FEWEST_BYTES = 1000  # of a unit that is no document: what stands near each other is alike
_SUMS = ("nats", "tokens", "bytes", "correct", "among_5")  # of each unit
_CLEAR = 2.0  # standard errors
_BYTES_OF_A_TOKEN = 64


class Estimate(NamedTuple):
    """A number and its standard error, which is not a number where there are fewer than two units of text."""

    value: float
    standard_error: float


class PositionLoss(NamedTuple):
    """The mean loss of targets that have from `fewest` to `most` tokens before them in their window."""

    fewest: int
    most: int
    loss: float


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one model on one text; each standard error is over the units that `units_told` names."""

    loss: Estimate  # nats per token
    perplexity: Estimate
    bits_per_byte: Estimate | None  # None where the bytes of tokens are unknown
    accuracy: Estimate  # 0-1: the likeliest token is the right one
    top5_accuracy: Estimate  # 0-1: the right one is among the five likeliest
    loss_by_position: list[PositionLoss]
    num_tokens: int  # that were predicted
    num_bytes: int | None
    units_told: str
    text: str  # what was read, in words
    yardsticks: list[Yardstick] = field(default_factory=list)
    yardsticks_missing: str = ""  # why there are none
    units: dict[str, Floats] = field(default_factory=dict, repr=False)  # (U,) each: sums over a unit

    @property
    def as_yardstick(self) -> Yardstick:
        """The model's numbers as those of any other predictor."""
        bits = self.bits_per_byte and self.bits_per_byte.value
        loss, accuracies = self.loss.value, (self.accuracy.value, self.top5_accuracy.value)
        return Yardstick("this model", bits, loss, "", *accuracies)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same text: by how much the second is better or worse than the first."""

    difference: Estimate  # second less first; bits per byte, or nats per token where bytes are unknown
    unit: str
    first: Evaluation
    second: Evaluation

    def verdict(self, first: str = "A", second: str = "B") -> str:
        """The result in words: a difference below two standard errors is none that one could tell."""
        value, error = self.difference
        if math.isnan(error):
            return f"Which is better cannot be told on so little text: they differ by {abs(value):.4f} {self.unit}."
        size = f"{abs(value):.4f} +- {error:.4f} {self.unit}"
        if not abs(value) > _CLEAR * error:
            return f"No difference between {first} and {second} can be told on this text: {size}."
        better, worse = (second, first) if value < 0 else (first, second)
        return f"{better} is better than {worse} by {size}."

    def __str__(self) -> str:
        return self.verdict("the first run", "the second run")


def evaluate_text(
    model: LanguageModel,
    dataset: TextDataset,
    *,
    bytes_per_token: Tensor | None,
    end_id: int | None,
    text: str,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The evaluation of a model on every target of a dataset, in constant memory.

    bytes_per_token: (V,). end_id: the token after each document. stride: None reads the windows side by side; else
    each window moves on by so many tokens and only its last ones are scored, so that every target has at least
    T - stride tokens before it, as far as the text has them. on_progress is told the targets done, and of how many.
    The model is left in the mode it was in.
    """
    sizes = torch.ones(model.config.vocab_size) if bytes_per_token is None else bytes_per_token
    units, told = _units(dataset, sizes.numpy(), end_id, "tokens" if bytes_per_token is None else "bytes")
    sums = {name: np.zeros(len(units)) for name in _SUMS}
    by_position = np.zeros((2, dataset.window))  # nats, count
    total = int(sum(counts.sum() for _, counts in _regions(dataset, _PLACES_AT_ONCE)))
    done = 0
    was_training = model.training
    model.eval()
    try:
        for starts, first, end in _windows(dataset, stride):
            tokens, targets = dataset.windows_at(torch.from_numpy(starts))
            columns = np.arange(dataset.window)
            scored = (columns >= first[:, None]) & (columns < end[:, None])  # (B, T)
            targets[torch.from_numpy(~scored)] = IGNORE_INDEX
            nats, correct, among_5 = _scores(model, tokens, targets)
            place = np.searchsorted(units, (starts[:, None] + columns)[scored], side="right") - 1
            found = (nats[scored], np.ones(scored.sum()), sizes.numpy()[targets.numpy()[scored]])
            for name, values in zip(_SUMS, (*found, correct[scored], among_5[scored]), strict=True):
                sums[name] += np.bincount(place, values, len(units))
            by_position += (np.where(scored, nats, 0).sum(axis=0), scored.sum(axis=0))
            done += int(scored.sum())
            on_progress(done, total)
    finally:
        model.train(was_training)
    return _evaluation(sums, by_position, told, text, bytes_per_token is not None)


def _evaluation(sums: dict[str, Floats], by_position: Floats, told: str, text: str, has_bytes: bool) -> Evaluation:
    units, read = sums, sums["tokens"] > 0
    sums = {name: values[read] for name, values in sums.items()}
    loss = ratio(sums["nats"], sums["tokens"])
    perplexity = math.inf if loss.value > 700 else math.exp(loss.value)
    bits = sums["nats"] / math.log(2)
    return Evaluation(
        loss=loss,
        perplexity=Estimate(perplexity, perplexity * loss.standard_error),
        bits_per_byte=ratio(bits, sums["bytes"]) if has_bytes else None,
        accuracy=ratio(sums["correct"], sums["tokens"]),
        top5_accuracy=ratio(sums["among_5"], sums["tokens"]),
        loss_by_position=_by_doubling(*by_position),
        num_tokens=int(sums["tokens"].sum()),
        num_bytes=int(sums["bytes"].sum()) if has_bytes else None,
        units_told=told.format(f"{read.sum():,}") if read.sum() > 1 else "one stretch of text: too few to tell any",
        text=text,
        units=units,
    )


def ratio(parts: Floats, sizes: Floats) -> Estimate:
    """The sum of parts (U,) over the sum of sizes (U,), with the standard error over units (Cochran 1977, 6.4)."""
    whole = sizes.sum()
    value = float(parts.sum() / whole) if whole else math.nan
    return Estimate(value, _standard_error((parts - value * sizes) / whole) if whole else math.nan)


def _standard_error(deviations: Floats) -> float:
    """The standard error of a sum to which each unit contributes what (U,) it deviates from its share."""
    U = len(deviations)
    return math.sqrt(U / (U - 1) * float((deviations**2).sum())) if U > 1 else math.nan


def compare_evaluations(first: Evaluation, second: Evaluation) -> Comparison:
    """The paired comparison of two models on the same units of the same text, whatever their tokenizers are.

    Raises UserError where the units are not the same.
    """
    both = (first.units["tokens"], second.units["tokens"])
    if len(both[0]) != len(both[1]):
        raise UserError(
            f"one model read {len(both[0]):,} parts of text and the other {len(both[1]):,}, so that they do not "
            "compare: they read different texts, or the tokenizer of one does not know many characters of this text. "
            f"Compare them on another text, or on one of at least {_FEWEST_DOCUMENTS} documents."
        )
    read = (both[0] > 0) | (both[1] > 0)
    _check_bytes(*(one.num_bytes for one in (first, second)))
    has_bytes = first.bits_per_byte is not None and second.bits_per_byte is not None
    per, scale = ("bytes", 1 / math.log(2)) if has_bytes else ("tokens", 1.0)
    values, deviations = [], []
    for one in (first, second):
        nats, sizes = one.units["nats"][read] * scale, one.units[per][read]
        values.append(float(nats.sum() / sizes.sum()))
        deviations.append((nats - values[-1] * sizes) / sizes.sum())
    # What makes a unit hard makes it hard for both, and so the difference is far surer than either number.
    error = _standard_error(deviations[1] - deviations[0])
    return Comparison(Estimate(values[1] - values[0], error), "bits/byte" if has_bytes else "nats/token", first, second)


def _check_bytes(first: int | None, second: int | None) -> None:
    """Raises UserError where two models predicted texts of different sizes, but for what the first token may make."""
    if first is None or second is None or abs(first - second) <= _BYTES_OF_A_TOKEN + first / 1000:
        return
    raise UserError(
        f"one model read {first:,} bytes of text and the other {second:,}, so that bits per byte do not compare: they "
        "read different texts, or the tokenizer of one does not know many characters of this text."
    )


@torch.no_grad()
def _scores(model: LanguageModel, tokens: Tensor, targets: Tensor) -> tuple[Floats, ...]:
    """The loss in nats of each target, and whether it is the likeliest, and among the five likeliest: (B, T) each."""
    device = next(model.parameters()).device
    found: list[tuple[Tensor, ...]] = []
    for logits, ids in logits_in_pieces(model, tokens.to(device), targets.to(device)):
        logits = logits.float()
        losses = F.cross_entropy(logits, ids, ignore_index=IGNORE_INDEX, reduction="none")
        score = logits.gather(1, ids.clamp(min=0)[:, None])
        # Counted from below: what is not a number is above nothing.
        among_5 = (logits <= score).sum(dim=-1) > logits.size(-1) - 5
        found.append((losses, logits.argmax(dim=-1) == ids, among_5))
    return tuple(torch.cat(parts).cpu().double().numpy().reshape(targets.shape) for parts in zip(*found, strict=True))


def _regions(dataset: TextDataset, at_once: int) -> Iterator[tuple[Ints, Ints]]:
    """Where the dataset's windows begin and how many targets they have, many windows at a time."""
    for start in range(0, len(dataset), at_once):
        yield dataset.places(np.arange(start, min(start + at_once, len(dataset))))


def _windows(dataset: TextDataset, stride: int | None) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Batches of windows: where they begin, and the first and the end of those of their targets that count, (B,)."""
    T = dataset.window
    batch_size = max(1, _POSITIONS_AT_ONCE // T)
    parts_each = 1 if stride is None else -(-T // stride)
    for starts, counts in _regions(dataset, max(1, _PLACES_AT_ONCE // parts_each)):
        first, end = np.zeros_like(counts), counts
        if stride is not None:
            parts = -(-counts // stride)
            number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... in each window
            begin = np.repeat(starts, parts) + number * stride
            stop = np.minimum(begin + stride, np.repeat(starts + counts, parts))
            starts = np.maximum(stop - T, 0)
            first, end = begin - starts, stop - starts
        for place in range(0, len(starts), batch_size):
            chosen = slice(place, place + batch_size)
            yield starts[chosen], first[chosen], end[chosen]


def _units(dataset: TextDataset, sizes: NDArray[np.generic], end_id: int | None, what: str) -> tuple[Ints, str]:
    """Where the units of the text begin, (U,) in targets, and what they are, in words.

    They are documents, several together where there are many, or else stretches of about equal size.
    """
    (last,), (count,) = dataset.places(np.array([len(dataset) - 1]))
    stop = int(last + count)  # of the targets: a dataset may read the first documents only
    if end_id is not None:
        # The token that ends a document is the last target of it.
        ends = dataset.tokens.positions(end_id, stop)
        starts = np.unique(np.concatenate((np.zeros(1, np.int64), ends)))
        if len(starts) >= _FEWEST_DOCUMENTS:
            together = -(-len(starts) // _MOST_UNITS)
            told = "{} documents" if together == 1 else f"{{}} groups of {together} documents"
            return starts[::together], told
    return _stretches(dataset.tokens.part(0, stop + 1), sizes, what)


def _stretches(tokens: Tokens, sizes: NDArray[np.generic], what: str) -> tuple[Ints, str]:
    """Stretches of about as many bytes each, the same for every tokenizer; a token is of that in which it begins."""
    total = max(float(ends[-1]) for _, ends in _ends(tokens, sizes))
    U = min(max(int(total // _FEWEST_BYTES), 1), _MOST_UNITS)
    borders = total * np.arange(1, U) / U
    starts = np.zeros(len(borders) + 1, np.int64)
    done = 0
    for position, ends in _ends(tokens, sizes):
        here = borders[done : done + int((borders[done:] <= ends[-1]).sum())]
        starts[done + 1 : done + 1 + len(here)] = position + np.searchsorted(ends, here)
        done += len(here)
    return starts, f"{{}} stretches of about {total / U:,.0f} {what}"


def _ends(tokens: Tokens, sizes: NDArray[np.generic]) -> Iterator[tuple[int, Floats]]:
    """At how many bytes each token of the text ends, block by block, with the block's first position."""
    before = 0.0
    for position in range(0, len(tokens), _TOKENS_AT_ONCE):
        ends = before + sizes[tokens[position : position + _TOKENS_AT_ONCE]].cumsum(dtype=np.float64)
        yield position, ends
        before = float(ends[-1])


def _by_doubling(nats: Floats, counts: Floats) -> list[PositionLoss]:
    """Sums by position, (T,) each, as means over positions 1, 2, 3-4, 5-8, ...; without those of hardly any target."""
    found, first, last = [], 1, 1
    while first <= len(counts):
        part = slice(first - 1, last)
        if counts[part].sum() > counts.sum() / 1000:
            found.append(PositionLoss(first, min(last, len(counts)), float(nats[part].sum() / counts[part].sum())))
        first, last = last + 1, 2 * last
    return found
