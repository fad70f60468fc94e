"""Choosing the next token of each row from a model's scores.

Shapes: B rows, V vocab_size, C candidates of a row.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm.config import UserError
from slm.sampling import Sampling

_FEW = 64  # candidates that are tried first where a probability, not a number, says how many are needed
Floats = NDArray[np.floating[Any]]


def random_stream(seed: int, row: int) -> Callable[[], float]:
    """Draws from 0 up to but not 1, one for each token of a row: the same ones everywhere and always."""
    key = hashlib.sha256(f"row {row} of seed {seed}".encode()).digest()
    # Of all that `random` offers, an integer's seeding and random() alone are promised to stay as they are.
    return random.Random(int.from_bytes(key[:16], "little")).random


def choose_tokens(logits: Tensor, sampling: Sampling, draws: Sequence[float]) -> list[int]:
    """A token id for each row of logits (B, V): the likeliest at temperature 0, else by a draw from 0 to 1 (B).

    The draw falls on one of the candidates laid side by side in the order of their ids, each as wide as it is
    probable: a change of the scores in their last digits moves the borders as little, and hardly ever the choice.
    Raises UserError where a score that matters is no finite number.
    """
    scores = (logits.float() if logits.dtype.itemsize < 4 else logits).cpu().numpy()  # (B, V), of numpy's types
    rows = np.arange(len(scores))[:, None]
    if sampling.temperature == 0:
        best = scores.argmax(axis=1)
        _check_finite(scores[rows[:, 0], best])
        return best.tolist()  # type: ignore[no-any-return]
    ids, total = _candidates(scores, sampling)  # (B, C), (B, 1)
    weights = _weights(scores if ids is None else scores[rows, ids], sampling.temperature)
    if sampling.top_p is not None:
        total = weights.sum(axis=1, keepdims=True) if total is None else total
        weights *= _nucleus(weights, sampling.top_p * total)
    if sampling.min_p is not None:
        weights *= weights >= sampling.min_p  # of the likeliest's, which is 1
    borders = weights.cumsum(axis=1)
    _check_finite(borders[:, -1])
    # A border is the sum of a candidate's weight and of those before. The last is at least 1, so that a draw below 1,
    # times that, is below it in floating point, too.
    places = [int(row.searchsorted(draw * row[-1], side="right")) for row, draw in zip(borders, draws, strict=True)]
    return places if ids is None else ids[rows[:, 0], places].tolist()


def _weights(scores: Floats, temperature: float) -> NDArray[np.float64]:
    """Probabilities (B, C) in proportion: the likeliest has 1."""
    # In float64, less the largest: a tiny temperature must not make them infinite. What is far below becomes 0, and
    # scores that are infinite become no numbers, which is told later.
    with np.errstate(over="ignore", invalid="ignore"):
        distance: Floats = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        distance /= temperature
        return np.exp(distance, out=distance)


def _candidates(scores: Floats, sampling: Sampling) -> tuple[NDArray[np.intp] | None, Floats | None]:
    """The ids (B, C) that may be chosen, rising, None where these are all V; and the weight of all V (B, 1).

    That is None where top_k alone says which they are.
    """
    V, total = scores.shape[1], None
    count = min(sampling.top_k or V, V)
    if count == V and sampling.top_p is not None:
        weights = _weights(scores, sampling.temperature)
        total = weights.sum(axis=1, keepdims=True)
        count = _enough(weights, sampling.top_p * total)
    if count == V:
        return None, total
    # The vocabulary itself is never sorted: it is large, and what remains of it is small.
    ids = scores.argpartition(V - count, axis=1)[:, V - count :]
    ids.sort(axis=1)
    return ids, total


def _enough(weights: Floats, wanted: Floats) -> int:
    """A number of likeliest tokens whose weights, of all (B, V), add up to what is wanted (B, 1) in every row."""
    V, count = int(weights.shape[1]), _FEW
    while count < V:
        likeliest = np.partition(weights, V - count, axis=1)[:, V - count :]
        if (likeliest.sum(axis=1, keepdims=True) >= wanted).all():
            return count
        count = 8 * count
    return V


def _nucleus(weights: Floats, wanted: Floats) -> NDArray[np.bool_]:
    """True for the fewest likeliest candidates whose weights (B, C) add up to what is wanted (B, 1)."""
    order = (-weights).argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1)
    before = ordered.cumsum(axis=1) - ordered  # of those that are likelier
    kept = np.empty(weights.shape, bool)
    np.put_along_axis(kept, order, before < wanted, axis=1)
    return kept


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits (B, V) with the scores of tokens that are `seen` (B, V) made less likely (Keskar et al. 2019, 4.1)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _check_finite(numbers: Floats) -> None:
    """Raises UserError where one of the numbers (B,), each of which all scores that matter went into, is not finite."""
    if not all(map(math.isfinite, numbers.tolist())):
        raise UserError("the model's scores are no finite numbers: its training went wrong. Lower its learning_rate.")
