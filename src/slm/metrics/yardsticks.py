"""What predictors without weights score on the text that a model is evaluated on, to hold its numbers against.

Shapes: M targets, V vocab_size.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm.data.dataset import TextDataset
from slm.data.tokenizer import Tokenizer
from slm.data.tokens import Tokens
from slm.metrics.kneser_ney import KneserNey

Ints = NDArray[np.int64]

# At most so much is read. A slow core, half as fast as the one that was measured, trains the n-gram on a million tokens
# a second and packs 1.7 MB of text a second, the training text twice: it needs FULL_SECONDS. With fewer seconds all of
# these shrink in proportion.
TRAIN_TOKENS = 2_000_000  # for the unigram and the n-gram
TRAIN_BYTES = 2_000_000  # for xz
TARGETS = 100_000
FULL_SECONDS = 5.0

_PIECES = 16  # of the training tokens: a text may change from its beginning to its end
_SHORTEST_ORDER, _LONGEST_ORDER, _NGRAM_BITS = 6, 10, 45  # see ngram_order
FEWEST_TARGETS = 20_000  # whatever the seconds: they take a few hundredths, and the model was measured on all of them
FEWEST_TRAINED = 200_000  # training tokens, and bytes for xz, whatever the seconds: they take some tenths
_FEWEST_BYTES = 1000  # for xz, whose files grow in steps of four bytes


@dataclass(frozen=True)
class Yardstick:
    """What one predictor scores on the validation targets."""

    name: str
    bits_per_byte: float | None  # None where the bytes of tokens are unknown
    loss: float | None  # nats per token; None for what knows no tokens
    told: str = ""  # of which part of the text it was made and on which measured; "" where that is all of it
    accuracy: float | None = None  # 0-1; None where there is no likeliest token, or to find it takes too long
    top5_accuracy: float | None = None


def yardsticks(
    train: Tokens,
    val_dataset: TextDataset,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    seconds: float,
    source_bits_per_byte: float | None = None,
) -> list[Yardstick]:
    """What equal chances, token counts, a Kneser-Ney n-gram and xz score on the targets that val_dataset gives.

    All know the training tokens. The n-gram also sees the tokens before a target in the validation text, even those
    before its window. xz counts what the text of the targets adds to the size of the training text; it is left out
    without a tokenizer and for a text below 1000 bytes. source_bits_per_byte, where given, comes last.

    seconds: what this may take on a slow core. It bounds what is read, and no clock is looked at: with the same data
    and seconds the results are the same.
    """
    share = min(max(seconds / FULL_SECONDS, 0.0), 1.0)
    positions, num_targets = _positions(val_dataset, max(FEWEST_TARGETS, int(share * TARGETS)))
    ids, places, runs = _with_context(val_dataset.tokens, positions, _LONGEST_ORDER - 1)
    targets = ids[places]
    most_tokens, most_bytes = (max(min(FEWEST_TRAINED, all), int(share * all)) for all in (TRAIN_TOKENS, TRAIN_BYTES))
    sample = np.concatenate(_spread(train, most_tokens))
    on = f"on {len(targets):,} of {num_targets:,} targets" if len(targets) < num_targets else ""
    of = f"of {len(sample):,} training tokens" if len(sample) < len(train) else ""

    sizes = tokenizer.bytes_per_token().numpy() if tokenizer else np.zeros(vocab_size, np.int64)
    num_bytes = int(sizes[targets].sum())
    tokens_per_byte = len(targets) / num_bytes if num_bytes else None

    def scored(name: str, loss: float, of: str, accuracies: tuple[float | None, float | None]) -> Yardstick:
        bits_per_byte = loss / math.log(2) * tokens_per_byte if tokens_per_byte else None
        return Yardstick(name, bits_per_byte, loss, _told(of, on), *accuracies)

    counts = np.bincount(sample, minlength=vocab_size)
    unigram = np.log((counts + 1).sum()) - np.log(counts + 1)
    order = ngram_order(counts)
    ngram = KneserNey(sample, vocab_size, order).nats(ids)[places]
    likeliest = np.argsort(-counts, kind="stable")[:5]
    right = [float(np.isin(targets, likeliest[:most]).mean()) for most in (1, 5)]
    found = [
        scored("uniform", math.log(vocab_size), "", (1 / vocab_size, min(5 / vocab_size, 1.0))),
        scored("unigram", float(unigram[targets].mean()), of, (right[0], right[1])),
        scored(f"Kneser-Ney {order}-gram", float(ngram.mean()), of, (None, None)),
    ]
    if tokenizer and num_bytes >= _FEWEST_BYTES:
        text, of = _train_text(train, tokenizer, float(sizes[sample].mean()), most_bytes)
        added = _packed(text + _text(tokenizer, runs)) - _packed(text)
        found.append(Yardstick("xz", 8 * max(added, 0) / num_bytes, None, _told(of, on)))
    if source_bits_per_byte is not None:
        found.append(Yardstick("entropy of the source", source_bits_per_byte, None, ""))
    return found


def ngram_order(counts: Ints) -> int:
    """The length of n-grams for a text of those token counts (V,): 45 bits' worth of tokens, but from 6 to 10 tokens.

    A token's worth is the entropy of the counts. Characters are worth 4 to 5 bits, and the best n-grams of them are
    long. In real text one too long loses little: where it has seen nothing, it leaves the matter to shorter ones.
    """
    p = counts[counts > 0] / max(counts.sum(), 1)
    bits = float(-(p * np.log2(p)).sum())
    return min(max(round(_NGRAM_BITS / max(bits, 1.0)), _SHORTEST_ORDER), _LONGEST_ORDER)


def _positions(dataset: TextDataset, most: int) -> tuple[Ints, int]:
    """(where targets of the dataset stand in its row of tokens (M,), in order; how many targets it has in all).

    They are those of all windows, or, so as to be at most so many, of windows evenly spread among them. Where a single
    window has more, they are its first ones.
    """
    starts, counts = dataset.places(np.arange(len(dataset)))
    num_targets = int(counts.sum())
    if num_targets > most:
        kept = max(1, most // dataset.window)
        chosen = np.arange(kept) * len(starts) // kept
        starts, counts = starts[chosen], np.minimum(counts[chosen], most)
    before = np.cumsum(counts) - counts  # targets of earlier windows
    return np.arange(counts.sum()) + np.repeat(starts + 1 - before, counts), num_targets


def _with_context(row: Tokens, positions: Ints, context: int) -> tuple[Ints, Ints, list[Ints]]:
    """(ids in which each target follows the `context` tokens before it in the row, or the fewer there are; the places
    of the targets in them, (M,); the targets in runs, each of which is about one stretch of text).
    """
    # Targets that are near each other are of one stretch, so that only the first stretch can reach the beginning of the
    # row: there a target has fewer tokens before it, and in a later stretch it would see the end of an earlier one.
    stretches = np.split(positions, np.flatnonzero(np.diff(positions) > context) + 1)
    ids, places, runs, read = [], [], [], 0
    for stretch in stretches:
        begin = max(0, int(stretch[0]) - context)
        part = row[begin : int(stretch[-1]) + 1]
        ids.append(part)
        places.append(stretch - begin + read)
        runs.append(part[stretch - begin])
        read += len(part)
    return np.concatenate(ids), np.concatenate(places), runs


def _spread(row: Tokens, most: int) -> list[Ints]:
    """All tokens of a row as one piece, or at most so many in pieces of one length, evenly spread from end to end."""
    if len(row) <= most:
        return [row[:]]
    pieces = min(_PIECES, most)
    length = most // pieces
    return [row[start : start + length] for start in np.linspace(0, len(row) - length, pieces).astype(int).tolist()]


def _train_text(train: Tokens, tokenizer: Tokenizer, bytes_per_token: float, most: int) -> tuple[bytes, str]:
    """(the training text, or at most so many bytes of it, evenly spread; which part it is, in words)."""
    pieces = _spread(train, math.ceil(most / max(bytes_per_token, 1.0)))
    text = _text(tokenizer, pieces)
    is_part = sum(map(len, pieces)) < len(train) or len(text) > most
    return text[:most], f"of {min(len(text), most):,} bytes of training text" if is_part else ""


def _text(tokenizer: Tokenizer, runs: Iterable[Ints]) -> bytes:
    """The text of tokens in UTF-8, without those that end documents: they stand for no bytes."""
    return "".join(tokenizer.decode(run.tolist()) for run in runs).encode()


def _packed(text: bytes) -> int:
    """The size of a text as an .xz file with the settings that xz has when none is given."""
    return len(lzma.compress(text))


def _told(*parts: str) -> str:
    return ", ".join(filter(None, parts))
