"""Examples, pairs of an input and an output, and what they are cut into: a training and a validation part, labels.

Shapes: N examples, M different inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm.config import UserError
from slm.data.counts import many
from slm.data.survey import share

MOST_LABELS = 1000  # whose confusion matrix has a million places
_OWN_LABELS = 0.8  # labels for each example, from which on they are no classes
_FEW = 20  # examples, of which each may well have a label of its own


@dataclass(frozen=True)
class Examples:
    """Texts and what belongs to each of them: a target to be written, or a label."""

    name: str  # where they come from, in words
    inputs: list[str]
    outputs: list[str]
    found: tuple[str, ...]  # what was read and what was skipped, in words
    fingerprint: str  # a SHA-256 over all inputs and outputs in order


def fingerprint_of(inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, int]:
    """(a SHA-256 over examples in their order, the bytes of their texts in UTF-8)."""
    digest, num_bytes = hashlib.sha256(), 0
    for pair in zip(inputs, outputs, strict=True):
        for text in pair:
            data = text.encode()
            digest.update(data + b"\xff")  # a byte that UTF-8 never has
            num_bytes += len(data)
    return digest.hexdigest(), num_bytes


def split_examples(examples: Examples, val_fraction: float, *, stratify: bool) -> tuple[Examples, Examples, str]:
    """The training and the validation examples in their old order, and the rule that parts them, in words.

    A hash of each input decides, so that examples with the same input stay together and neither their order nor a seed
    matters; more examples move none from one part to the other. stratify: instead every label gives the same share of
    its inputs, at least one where it has two of its own, and never all. Raises UserError where a part would be empty.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction = {val_fraction}: must be above 0 and below 1.")
    count = len(examples.inputs)
    shares = np.fromiter((share(text.strip()) for text in examples.inputs), np.float64, count)
    if len(np.unique(shares)) < 2:
        same = ", all with the same input" if count > 1 else ""
        raise UserError(
            f"{examples.name} has {many(count, 'example')}{same}: training and validation need an input each. "
            "Give more examples, or name others with --val_data."
        )
    percent = f"{100 * val_fraction:.3g} %"
    if stratify:
        held_out, told = _by_label(examples, shares, val_fraction)
        rule = f"{percent} of each label, chosen by a hash of the text{told}"
    else:
        held_out = _by_hash(shares, val_fraction)
        rule = f"{percent} chosen by a hash of their input"
    train, val = (_part(examples, chosen) for chosen in (~held_out, held_out))
    return train, val, f"{len(val.inputs):,} of {many(count, 'example')}, {rule}"


def _by_hash(shares: NDArray[np.float64], val_fraction: float) -> NDArray[np.bool_]:
    """(N,): whether each example is for validation; the same for equal shares, True and False at least once."""
    smallest, largest = shares.min(), shares.max()
    held_out: NDArray[np.bool_] = (shares == smallest) | ((shares < val_fraction) & (shares < largest))
    return held_out


def _by_label(examples: Examples, shares: NDArray[np.float64], val_fraction: float) -> tuple[NDArray[np.bool_], str]:
    """((N,) whether each example is for validation, what is to be told of the labels). Raises UserError."""
    numbers = {label: number for number, label in enumerate(sorted(set(examples.outputs)))}
    labels = np.fromiter((numbers[label] for label in examples.outputs), np.int64, len(shares))
    order = np.lexsort((labels, shares))
    sorted_shares, sorted_labels = shares[order], labels[order]
    # An input with several labels stands among those of the first one.
    inputs, first = np.unique(sorted_shares, return_index=True)  # (M,), ascending
    label_of = sorted_labels[first]
    counts = np.bincount(label_of, minlength=len(numbers))
    wanted = np.floor(val_fraction * counts + 0.5).clip(1)
    # Within its label, the inputs with the smallest hashes are held out.
    by_label = np.argsort(label_of, kind="stable")
    rank = np.arange(len(inputs)) - np.repeat(np.cumsum(counts) - counts, counts)
    held_out = np.isin(shares, inputs[by_label[rank < wanted[label_of[by_label]]]])
    # Where all inputs of a label are, the one with the largest hash goes back.
    learned = np.bincount(labels[~held_out], minlength=len(numbers))
    largest = np.zeros(len(numbers))
    np.maximum.at(largest, labels, shares)
    held_out &= ~np.isin(shares, largest[learned == 0])
    if not held_out.any():
        raise UserError(
            f"{examples.name} has too few texts to hold one out and still learn all of {many(len(numbers), 'label')}: "
            "one label at least needs two texts. Are text_field and label_field exchanged? Else give more examples, or "
            "name others with --val_data."
        )
    return held_out, _told_of_labels(sorted_shares, sorted_labels)


def _told_of_labels(shares: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
    """What is to be told of inputs with several labels and of labels with one input; both (N,), sorted together."""
    differs = np.ones(len(shares), bool)  # from the example before
    differs[1:] = (shares[1:] != shares[:-1]) | (labels[1:] != labels[:-1])
    several = int((np.unique(shares[differs], return_counts=True)[1] > 1).sum())
    alone = int((np.bincount(labels[differs]) == 1).sum())
    told = f"; {many(several, 'text')} with several labels" if several else ""
    return told + (f"; {many(alone, 'label')} with a single text, for training" if alone else "")


def _part(examples: Examples, chosen: NDArray[np.bool_]) -> Examples:
    """The examples that are chosen, (N,)."""
    places = np.flatnonzero(chosen).tolist()
    inputs, outputs = ([texts[place] for place in places] for texts in (examples.inputs, examples.outputs))
    return Examples(examples.name, inputs, outputs, examples.found, fingerprint_of(inputs, outputs)[0])


def labels_of(examples: Examples) -> tuple[str, ...]:
    """The different outputs, sorted. Raises UserError where they are no labels: one, too many, or all different."""
    labels, count = tuple(sorted(set(examples.outputs))), len(examples.outputs)
    if len(labels) < 2:
        told = f"only the label {labels[0]!r}" if labels else "no label"
        raise UserError(f"{examples.name} has {told}: there is nothing to tell apart. Give examples of two at least.")
    way_out = "Name the field that holds the class, or train on pairs (--task pairs) to have the outputs written."
    if count >= _FEW and len(labels) > _OWN_LABELS * count:
        raise UserError(
            f"{examples.name} has {len(labels):,} different labels in {count:,} examples: where nearly every example "
            f"has its own, there are no classes to learn. {way_out}"
        )
    if len(labels) > MOST_LABELS:
        raise UserError(f"{examples.name} has {len(labels):,} labels: at most {MOST_LABELS:,} are possible. {way_out}")
    return labels
