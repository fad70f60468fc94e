"""Writing on: from rows of tokens to the tokens that come after them, one after the other.

Shapes: B rows, T prompt tokens, N new tokens, V vocab_size.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm.config import UserError
from slm.fields import signature_with
from slm.model.choice import choose_tokens, penalize, random_stream
from slm.model.decoder import Decoder
from slm.model.kv_cache import KVCache
from slm.model.transformer import LanguageModel
from slm.sampling import Sampling

Prompts = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


class NewTokens(NamedTuple):
    """The next token of each row, and, where asked for, the natural logarithm of the probability that it had."""

    ids: list[int]
    log_probabilities: list[float] | None = None


def generate_tokens(
    model: LanguageModel,
    tokens: Prompts,
    *,
    end_id: int | None = None,
    first_row: int = 0,
    use_cache: bool = True,
    **sampling: Any,
) -> Tensor:
    """(B, N) new token ids after the prompts: a tensor (B, T), or B rows of any lengths.

    N is max_new_tokens, or less where every row has reached end_id; a row that has goes on with end_id.
    sampling: the settings of `slm.Sampling`, by name. For the rest see `stream_tokens`.
    """
    settings, prompts = Sampling.from_names(sampling), rows_of(tokens, model.config.vocab_size)
    rows: list[list[int]] = []
    ended = [False] * len(prompts)
    for new in stream_tokens(model, prompts, settings, first_row=first_row, use_cache=use_cache):
        rows.append([end_id if end else id for id, end in zip(new.ids, ended, strict=True)])  # type: ignore[misc]
        ended = [id == end_id for id in rows[-1]]
        if all(ended):
            break
    new_tokens = torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(prompts)).t()
    return new_tokens.to(tokens.device) if isinstance(tokens, Tensor) else new_tokens


generate_tokens.__signature__ = signature_with(  # type: ignore[attr-defined]
    generate_tokens, (field for field in dataclasses.fields(Sampling) if field.name != "stop")
)


def stream_tokens(
    model: LanguageModel,
    prompts: Prompts,
    sampling: Sampling,
    *,
    first_row: int = 0,
    use_cache: bool = True,
    log_probabilities: bool = False,
) -> Iterator[NewTokens]:
    """The new tokens of all rows, step by step, max_new_tokens times.

    Row i draws from a stream of its own, that of (seed, first_row + i), so that it gets the same tokens in any batch,
    and alone. Once max_seq_len positions are filled, the last half of them is read again as a new prompt, so that the
    text can go on for ever; of a longer prompt the last max_seq_len tokens are read. use_cache = False reads
    everything again for each token, which changes nothing but the time.
    log_probabilities: of the model itself, at temperature 1 and without any filter.
    Raises UserError where an argument makes no sense.
    """
    rows = rows_of(prompts, model.config.vocab_size)
    if sampling.stop:
        raise UserError(f"stop = {sampling.stop!r}: token ids are no text. Give end_id, or generate from a run.")
    if first_row < 0:
        raise UserError(f"first_row = {first_row}: must be 0 or above.")
    seed = random.SystemRandom().getrandbits(62) if sampling.seed is None else sampling.seed
    draws = [random_stream(seed, first_row + number) for number in range(len(rows))]
    return _stream(model, rows, sampling, draws, use_cache, log_probabilities)


def rows_of(prompts: Prompts, vocab_size: int) -> list[list[int]]:
    """Rows of ids as lists. Raises UserError where they are no such rows, empty, or not of the vocabulary."""
    if isinstance(prompts, Tensor) and (prompts.dim() != 2 or prompts.is_floating_point()):
        raise UserError(
            f"tokens has shape {tuple(prompts.shape)} and type {prompts.dtype}: must be (B, T) integers. "
            "tokens[None] makes a batch of one sequence."
        )
    rows: list[Any] = [row.tolist() if hasattr(row, "tolist") else row for row in prompts]
    for row in rows:
        if not isinstance(row, Sequence) or not all(type(id) is int for id in row):
            raise UserError(f"a prompt is {row!r:.60}, a {type(row).__name__}: must be a row of token ids (int).")
    for number, row in enumerate(rows):
        if not row:
            raise UserError(f"prompt {number} has no token: at least one is needed to predict from.")
        if not 0 <= min(row) <= max(row) < vocab_size:
            bad = min(row) if min(row) < 0 else max(row)
            raise UserError(f"prompt {number} holds the id {bad}: must be at least 0 and below {vocab_size}.")
    return [list(row) for row in rows]


@torch.inference_mode()
def _stream(
    model: LanguageModel,
    rows: list[list[int]],
    sampling: Sampling,
    draws: list[Callable[[], float]],
    use_cache: bool,
    log_probabilities: bool,
) -> Iterator[NewTokens]:
    was_training = model.training
    model.eval()
    try:
        window = model.config.max_seq_len
        reader = CachedReader(model) if use_cache else _Reader(model)
        seen = _Seen(rows, model) if sampling.repetition_penalty != 1 else None
        rows = [row[-window:] for row in rows]
        for _ in range(sampling.max_new_tokens if rows else 0):
            raw = logits = reader.next_logits(rows)
            if seen:
                logits = penalize(raw, seen.mask, sampling.repetition_penalty)
            ids = choose_tokens(logits, sampling, [draw() for draw in draws])
            yield NewTokens(ids, _log_probabilities(raw, ids) if log_probabilities else None)
            if seen:
                seen.add(ids)
            for row, id in zip(rows, ids, strict=True):
                row.append(id)
                if len(row) > window:
                    del row[: -max(window // 2, 1)]
    finally:
        model.train(was_training)


def _log_probabilities(logits: Tensor, ids: list[int]) -> list[float]:
    scores = logits.cpu().double()
    chosen = scores.gather(1, torch.tensor(ids)[:, None]).squeeze(1)
    return (chosen - scores.logsumexp(dim=1)).tolist()


class _Seen:
    """Which tokens the rows have held so far, however long ago: (B, V)."""

    def __init__(self, rows: list[list[int]], model: LanguageModel) -> None:
        self.mask = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=_device(model))
        for number, row in enumerate(rows):
            self.mask[number, row] = True
        self.rows = torch.arange(len(rows), device=self.mask.device)

    def add(self, ids: list[int]) -> None:
        self.mask[self.rows, torch.tensor(ids, device=self.mask.device)] = True


class _Reader:
    """Reads all tokens of each row again for each new one."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def next_logits(self, rows: list[list[int]]) -> Tensor:
        """(B, V): the scores of what comes after each row."""
        last = torch.tensor([len(row) - 1 for row in rows])
        features = self.model.features(_padded(rows).to(_device(self.model)))
        return self.model.lm_head(features[torch.arange(len(rows)), last])  # type: ignore[no-any-return]


class CachedReader:
    """Reads each token once, but for the rows that were cut since the last call."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.cache = model, KVCache(model.config.num_layers)
        self.decode: Callable[[Tensor, KVCache], Tensor] = self._plain
        self.device = _device(model)
        self.is_first = True

    def next_logits(self, rows: list[list[int]]) -> Tensor:
        """(B, V): the scores of what comes after each row."""
        held = self.cache.lengths or [-1] * len(rows)
        changed = [number for number, row in enumerate(rows) if len(row) != held[number] + 1]
        if changed:
            self._read([rows[number][:-1] for number in changed], changed, len(rows))
        tokens = torch.tensor([row[-1:] for row in rows], device=self.device)  # (B, 1)
        if self.is_first:
            self.is_first = False
            return self._first(tokens)
        return self.decode(tokens, self.cache)

    def _plain(self, tokens: Tensor, cache: KVCache) -> Tensor:
        logits: Tensor = self.model(tokens, cache)[:, -1]
        return logits

    def _first(self, tokens: Tensor) -> Tensor:
        """Takes the decoder where it gives what the model gives: who changes the model's code shall see the change."""
        if not Decoder.fits(self.model):
            return self._plain(tokens, self.cache)
        decoder = Decoder(self.model)
        quick = decoder(tokens, self.cache)
        self.cache.shorten([length - 1 for length in self.cache.lengths])
        plain = self._plain(tokens, self.cache)  # the last to write into the cache
        rounding = 1e-3 if plain.dtype.itemsize >= 4 else 0.05
        if (quick - plain).abs().max() <= rounding * plain.abs().max():
            self.decode = decoder
        return plain

    def _read(self, parts: list[list[int]], changed: list[int], num_rows: int) -> None:
        """Fills the cache of the changed rows anew, in one pass; a part is all of a row but its newest token."""
        cache = KVCache(self.model.config.num_layers)
        if any(parts):
            self.model.features(_padded(parts).to(self.device), cache)
        cache.shorten([len(part) for part in parts])
        if len(changed) == num_rows:
            self.cache = cache
        else:
            self.cache.replace(changed, cache)


def _padded(rows: list[list[int]]) -> Tensor:
    """(B, T) for the longest row. What comes after the others is never looked at: attention is causal."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device
