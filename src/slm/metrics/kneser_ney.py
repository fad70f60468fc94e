"""An n-gram model of token ids with Kneser-Ney smoothing: how well counting alone predicts a text.

Shapes: N training tokens, M ids to predict, V vocab_size; of one order k, U distinct k-grams and C distinct contexts,
the (k-1)-grams, which are all the k-grams of the order below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_UNSEEN = -1  # in place of the rank of a k-gram that the training tokens do not hold
# Where no k-gram has a count of 1, or none one of 2: the formula's 0 would leave nothing for tokens never seen, and its
# 1 nothing for those seen once.
_EVEN_DISCOUNT = 0.5


class KneserNey:
    """Predicts the next token from counts of n-grams: an interpolated Kneser-Ney model of the training tokens.

    Kneser and Ney, "Improved backing-off for m-gram language modeling" (1995), in the interpolated form of Chen and
    Goodman, "An empirical study of smoothing techniques for language modeling" (1999), with one discount D an order:

        p(w | h) = max(c(hw) - D, 0) / c(h) + D n(h) / c(h) p(w | h without its first token)

    c(hw) is, for n-grams, how often hw stands in the text; for shorter ones, after how many different tokens it does,
    and the beginning of the text counts as one. c(h) is the sum of c(hw) over w, and n(h) the number of different w
    seen after h. Below the 1-gram lies 1/V: no token has probability 0. Where h was not seen, p is that of the shorter
    context. D = n1 / (n1 + 2 n2), of n1 k-grams with a count of 1 and n2 with 2; where one of those is 0, D = 1/2.
    """

    def __init__(self, tokens: NDArray[Any], vocab_size: int, order: int) -> None:
        """tokens: (N,) integers. order: n, the length of the longest n-gram, of which n - 1 tokens are context.

        Raises ValueError for an order below 1, and for ids outside 0 to vocab_size - 1.
        """
        if order < 1:
            raise ValueError(f"order = {order}: must be at least 1.")
        self.vocab_size, self.order = vocab_size, order
        tokens = self._checked(tokens)
        self._orders: list[_Order] = []
        # A k-gram is the number rank * V + last token, with the rank of its first k - 1 tokens among all those of the
        # text: small enough for 64 bits, however long it is. ranks[i] is that of the one which begins at token i.
        keys, ranks = np.zeros(1, np.int64), np.zeros(len(tokens) + 1, np.int64)  # of the empty 0-gram
        for k in range(1, order + 1):
            contexts, context_keys = ranks, keys
            keys, ranks, places = _distinct(contexts[:-1] * vocab_size + tokens[k - 1 :])
            if k > 1:
                self._add(context_keys, _left_neighbours(contexts, places, len(context_keys)))
        self._add(keys, np.bincount(ranks, minlength=len(keys)))

    def nats(self, ids: NDArray[Any]) -> Floats:
        """-ln p of each of the ids (M,) after the order - 1 ids before it, or after the fewer there are: (M,) float64.

        Raises ValueError for ids outside 0 to vocab_size - 1.
        """
        ids = self._checked(ids)
        p = np.full(len(ids), 1 / self.vocab_size)
        contexts = np.zeros(len(ids), np.int64)  # ranks of the k - 1 ids before each
        for order in self._orders:
            ranks = order.interpolate(contexts, ids, p)
            contexts = np.append(_UNSEEN, ranks)[:-1]
        nats: Floats = -np.log(np.minimum(p, 1.0))  # rounding may have made it larger
        return nats

    def _add(self, keys: Ints, counts: Ints) -> None:
        num_contexts = len(self._orders[-1].keys) if self._orders else 1
        self._orders.append(_Order(keys, counts, num_contexts, self.vocab_size))

    def _checked(self, ids: NDArray[Any]) -> Ints:
        """The ids as int64."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"ids from {ids.min()} to {ids.max()}: must be 0 to {self.vocab_size - 1}.")
        return ids.astype(np.int64)


class _Order:
    """The k-grams of one k: their counts, and what these give to a context as a whole."""

    def __init__(self, keys: Ints, counts: Ints, num_contexts: int, vocab_size: int) -> None:
        """keys: (U,) sorted, each the rank of its context times V plus its last token. counts: (U,), at least 1."""
        self.keys, self.vocab_size = keys, vocab_size
        contexts = keys // vocab_size
        n1, n2 = (int(np.count_nonzero(counts == count)) for count in (1, 2))
        discount = n1 / (n1 + 2 * n2) if n1 and n2 else _EVEN_DISCOUNT
        self.discounted = counts - discount
        self.totals = np.bincount(contexts, counts, num_contexts)  # (C,)
        self.left_over = np.bincount(contexts, minlength=num_contexts) * discount  # (C,)

    def interpolate(self, contexts: Ints, ids: Ints, p: Floats) -> Ints:
        """The ranks (M,) of the k-grams that the ids end; p (M,), of the shorter contexts, is replaced in place.

        contexts: (M,) ranks of what stands before each id.
        """
        ranks = np.full(len(ids), _UNSEEN, np.int64)
        # The one at the very end of the training tokens is a context that nothing follows.
        known = np.flatnonzero(contexts != _UNSEEN)
        known = known[self.totals[contexts[known]] > 0]
        contexts = contexts[known]
        keys = contexts * self.vocab_size + ids[known]
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        seen = self.keys[places] == keys
        own = np.where(seen, self.discounted[places], 0.0)
        p[known] = (own + self.left_over[contexts] * p[known]) / self.totals[contexts]
        ranks[known[seen]] = places[seen]
        return ranks


def _distinct(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """The distinct keys in order, the rank among them of each key, and a place where each distinct one stands."""
    order = np.argsort(keys)
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.cumsum(new) - 1
    return ordered[new], ranks, order[new]


def _left_neighbours(ranks: Ints, places: Ints, size: int) -> Ints:
    """After how many different tokens each k-gram stands, (size,).

    ranks: of the k-gram at each token. places: where each distinct (k+1)-gram stands; it ends with the k-gram that
    begins one token later.
    """
    counts = np.bincount(ranks[places + 1], minlength=size)
    counts[ranks[:1]] += 1  # the beginning
    return counts
