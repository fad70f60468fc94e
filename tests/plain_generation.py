"""Generation in plain Python, a number at a time in float64: what every faster way must equal.

Written from the rules alone. A choice may hang on the last digits of a score, which differ from one way of computing
it to another; the reference tells where, and only there another choice is as good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch

from slm.model import LanguageModel
from slm.sampling import Sampling

NEAR = 1e-5  # of scores at temperature 0 and for top_k, else of probabilities


class Choice(NamedTuple):
    """A token id, and whether it was chosen by less than NEAR."""

    id: int
    is_near_tie: bool


def plain_penalty(scores: Sequence[float], seen: Collection[int], penalty: float) -> list[float]:
    """Keskar et al. 2019, section 4.1; a score below 0 is multiplied, or it would become better."""
    return [
        (score / penalty if score > 0 else score * penalty) if id in seen else score for id, score in enumerate(scores)
    ]


def plain_choice(scores: Sequence[float], sampling: Sampling, draw: float) -> Choice:
    """The token on which a draw falls; the filters apply in the order of Sampling's fields."""
    ids = sorted(range(len(scores)), key=lambda id: -scores[id])  # likeliest first; of equal ones the lowest id
    if sampling.temperature == 0:
        return Choice(ids[0], len(ids) > 1 and scores[ids[0]] - scores[ids[1]] < NEAR)
    near = False
    weights = [math.exp((score - scores[ids[0]]) / sampling.temperature) for score in scores]
    if sampling.top_k is not None and sampling.top_k < len(ids):
        near = scores[ids[sampling.top_k - 1]] - scores[ids[sampling.top_k]] < NEAR
        ids = ids[: sampling.top_k]
    if sampling.top_p is not None and sampling.top_p < 1:
        kept, near_p = plain_nucleus(ids, weights, sampling.top_p)
        ids, near = kept, near or near_p
    if sampling.min_p is not None:
        near = near or any(abs(weights[id] - sampling.min_p) < NEAR for id in ids[1:])
        ids = [id for id in ids if weights[id] >= sampling.min_p]
    chosen, border, total = None, 0.0, sum(weights[id] for id in ids)
    for id in sorted(ids):
        border += weights[id]
        if chosen is None and draw * total < border:
            chosen = id
        near = near or (id != max(ids) and abs(draw - border / total) < NEAR)
    return Choice(max(ids) if chosen is None else chosen, near)


def plain_nucleus(ids: list[int], weights: list[float], top_p: float) -> tuple[list[int], bool]:
    """The fewest likeliest ids that have the probability top_p among those given, and whether it is a near tie."""
    total, sum_of_kept, kept, near = sum(weights[id] for id in ids), 0.0, 0, False
    while kept < len(ids) and sum_of_kept < top_p * total:
        sum_of_kept += weights[ids[kept]]
        kept += 1
        near = near or abs(sum_of_kept / total - top_p) < NEAR
    if kept < len(ids):
        near = near or (weights[ids[kept - 1]] - weights[ids[kept]]) / total < NEAR
    return ids[:kept], near


def plain_stream(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling, draw: Callable[[], float]
) -> Iterator[Choice]:
    """Everything that the model may look at is read anew for each token; past the window, its last half is."""
    window, text, seen = model.config.max_seq_len, list(prompt)[-model.config.max_seq_len :], set(prompt)
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([text]))[0, -1].tolist()
        choice = plain_choice(plain_penalty(scores, seen, sampling.repetition_penalty), sampling, draw())
        yield choice
        seen.add(choice.id)
        text.append(choice.id)
        if len(text) > window:
            text = text[-max(1, window // 2) :]


def first_difference(ids: Sequence[int], choices: Sequence[Choice]) -> int | None:
    """Where two texts part, if they do."""
    assert len(ids) == len(choices)
    return next((place for place, choice in enumerate(choices) if ids[place] != choice.id), None)


def assert_same_text(ids: Sequence[int], choices: Sequence[Choice]) -> None:
    """They are the same, or part where two tokens were all but equally good."""
    place = first_difference(ids, choices)
    if place is not None and not choices[place].is_near_tie:
        raise AssertionError(f"token {place} is {ids[place]} in {list(ids)}, and {[choice.id for choice in choices]}")
