"""Beam search: from prompts to their likeliest completions, where one right answer is wanted, such as a translation.

Shapes: B rows, each of them a beam of a prompt, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from slm.config import UserError
from slm.model.generation import CachedReader, Prompts, rows_of
from slm.model.kv_cache import KVCache
from slm.model.transformer import LanguageModel

_MOST_ROWS = 64  # that are searched at once, more only where a single prompt has more beams
_MOST_POSITIONS = 2**15  # of all rows together: so many keys and values of each layer are held
_LARGEST_PENALTY = 10


class Hypothesis(NamedTuple):
    """A completion of a prompt."""

    ids: list[int]  # new tokens, without the end token
    log_probability: float  # natural, of all new tokens, and of the end where it was reached
    score: float  # log_probability / length ** length_penalty; the length counts the end token
    ended: bool  # False where max_new_tokens or the model's max_seq_len cut it


def beam_search(
    model: LanguageModel,
    prompts: Prompts,
    *,
    end_id: int,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int = 200,
    on_done: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """For each prompt up to num_beams hypotheses, the best score first; of equal ones that which was found first.

    A prompt begins with one live beam, an empty one. At each step every token extends every live beam. The best
    2 * num_beams of these candidates by log-probability, of equal ones the lower id first, then that of the better
    beam, are looked at in order until num_beams that do not end are found: the new live beams. Those on the way that
    end are finished; the num_beams finished ones of the best scores are kept. A token of probability 0 is no candidate.

    A prompt is done when num_beams are finished and the best live beam, scored as it stands, is no better than the
    worst of them; else after max_new_tokens, the end included, or where prompt and new tokens fill max_seq_len, and
    then the live beams compete as they stand, with ended = False. For a length_penalty of 0 or below, going on would
    change nothing: whatever follows lowers the score. Above 0 it could still find a better hypothesis, one whose last
    tokens are so much likelier than those before that its score rises; but until that is ruled out, nearly every
    search would go on for max_new_tokens, and num_beams = 1 would not be greedy decoding, which it is, exactly.

    A prompt gets the same in any batch, to rounding. on_done is told how many more prompts are done. Raises UserError
    where an argument makes no sense, and for a prompt that leaves no room in max_seq_len.
    """
    rows = rows_of(prompts, model.config.vocab_size)
    _check(model, rows, end_id, num_beams, length_penalty, max_new_tokens)
    window = model.config.max_seq_len
    searches = [_Search(row, end_id, num_beams, length_penalty, min(max_new_tokens, window - len(row))) for row in rows]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            reader = CachedReader(model)
            for group in _groups(searches, num_beams):
                _run(group, reader, num_beams)
                if on_done:
                    on_done(len(group))
    finally:
        model.train(was_training)
    return [search.finished for search in searches]


def _check(
    model: LanguageModel,
    rows: list[list[int]],
    end_id: int,
    num_beams: int,
    length_penalty: float,
    max_new_tokens: int,
) -> None:
    """Raises UserError where an argument makes no sense."""
    vocab_size, window = model.config.vocab_size, model.config.max_seq_len
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if type(value) is not int or value < 1:
            raise UserError(f"{name} = {value!r}: must be a whole number (int), at least 1.")
    if type(end_id) is not int or not 0 <= end_id < vocab_size:
        raise UserError(f"end_id = {end_id!r}: must be a token id (int), at least 0 and below {vocab_size}.")
    is_number = isinstance(length_penalty, int | float)
    if not is_number or not -_LARGEST_PENALTY <= length_penalty <= _LARGEST_PENALTY:
        raise UserError(
            f"length_penalty = {length_penalty!r}: must be a number from -{_LARGEST_PENALTY} to {_LARGEST_PENALTY}. "
            "0 compares log-probabilities as they are, 1 their mean per token."
        )
    for number, row in enumerate(rows):
        if len(row) >= window:
            raise UserError(
                f"prompt {number} has {len(row)} tokens: must have at most {window - 1}, so that a new one has room in "
                f"max_seq_len = {window}. Shorten it, or train a model with a larger max_seq_len."
            )


class _Beam(NamedTuple):
    ids: list[int]
    log_probability: float


_Candidate = tuple[float, int]  # the log-probability of a token that may come next, and its id


class _Search:
    """The search for completions of one prompt."""

    def __init__(self, prompt: list[int], end_id: int, num_beams: int, length_penalty: float, room: int) -> None:
        self.prompt, self.end_id, self.num_beams, self.room = prompt, end_id, num_beams, room
        self.length_penalty, self.length = length_penalty, 0  # of the live beams
        self.live = [_Beam([], 0.0)]  # the best first; none when it is done
        self.finished: list[Hypothesis] = []  # the best first

    def step(self, candidates: list[list[_Candidate]]) -> list[int]:
        """Makes all live beams a token longer by the candidates of each; which beam each of the new ones comes from."""
        self.length += 1
        ordered = sorted(
            (-(beam.log_probability + log_probability), id, number)
            for number, (beam, its_candidates) in enumerate(zip(self.live, candidates, strict=True))
            for log_probability, id in its_candidates
        )
        old, self.live, origins = self.live, [], list[int]()
        for cost, id, number in ordered:
            if id == self.end_id:
                self.finished.append(self._hypothesis(old[number].ids, -cost, ended=True))
                continue
            self.live.append(_Beam([*old[number].ids, id], -cost))
            origins.append(number)
            if len(origins) == self.num_beams:
                break
        if self.length == self.room:
            self.finished += [self._hypothesis(*beam, ended=False) for beam in self.live]
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)  # of equal ones, the first found stays first
        del self.finished[self.num_beams :]
        if self.length == self.room or self._cannot_improve():
            self.live = []
        return origins if self.live else []

    def _hypothesis(self, ids: list[int], log_probability: float, ended: bool) -> Hypothesis:
        return Hypothesis(ids, log_probability, log_probability / self.length**self.length_penalty, ended)

    def _cannot_improve(self) -> bool:
        """True where enough are finished and no live beam, as it stands, has a better score than the worst of them."""
        if len(self.finished) < self.num_beams or not self.live:
            return False
        return self._hypothesis(*self.live[0], ended=False).score <= self.finished[-1].score


def _groups(searches: list[_Search], num_beams: int) -> Iterator[list[_Search]]:
    """The searches to run at once: those after prompts of about one length, so that little is read in vain."""
    group: list[_Search] = []
    for search in sorted(searches, key=lambda search: len(search.prompt)):
        longest = len(search.prompt) + search.room  # that any in the group may become: the prompts get longer
        if group and (len(group) + 1) * num_beams > min(_MOST_ROWS, _MOST_POSITIONS // longest):
            yield group
            group = []
        group.append(search)
    if group:
        yield group


def _run(searches: list[_Search], reader: CachedReader, num_beams: int) -> None:
    """Searches until all are done. A row is a live beam; those of a search lie side by side."""
    reader.cache = KVCache(reader.model.config.num_layers)
    while searches:
        logits = reader.next_logits([search.prompt + beam.ids for search in searches for beam in search.live])
        # Of a beam, one candidate ends, and of the others no more than num_beams can live on.
        candidates = _likeliest(logits, num_beams + 1)
        rows, counts, first = list[int](), [len(search.live) for search in searches], 0
        for search, count in zip(searches, counts, strict=True):
            rows += [first + origin for origin in search.step(candidates[first : first + count])]
            first += count
        # Where each row stays with its prompt, the prompt itself need not be copied from beam to beam.
        stays = counts == [len(search.live) for search in searches]
        reader.cache.select(rows, min(len(search.prompt) for search in searches) if stays else 0)
        searches = [search for search in searches if search.live]


def _likeliest(logits: Tensor, count: int) -> list[list[_Candidate]]:
    """So many likeliest tokens of each row of logits (B, V), of equal ones those of the lower ids.

    Raises UserError where a score that matters is no finite number.
    """
    scores = logits.float() if logits.dtype.itemsize < 4 else logits
    totals = scores.logsumexp(dim=1).tolist()
    if not all(map(math.isfinite, totals)):
        raise UserError("the model's scores are no finite numbers: its training went wrong. Lower its learning_rate.")
    V = scores.size(1)
    values, ids = scores.topk(min(count + 1, V))
    if count < V:
        # topk may take any of equal ones, which matters where the last one taken equals the first one left.
        tied = (values[:, count - 1] == values[:, count]).nonzero()[:, 0]
        ids[tied] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, : count + 1]
        values = scores.gather(1, ids)[:, :count]
    return [
        [(value - total, id) for value, id in zip(*row, strict=False) if value > -math.inf]
        for total, *row in zip(totals, values.tolist(), ids.tolist(), strict=True)
    ]
