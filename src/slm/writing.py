"""From prompts to the text that a model writes after them: as a stream, or as samples with all about them."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slm.config import UserError
from slm.data.tasks import Encoder
from slm.data.tokenizer import Tokenizer
from slm.fields import signature_with
from slm.model.generation import stream_tokens
from slm.sampling import Sampling

if TYPE_CHECKING:
    from slm.run import Run

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    ended_by: str  # "length", "end" of the document, or "stop", one of whose texts would come next
    tokens: list[int]  # that were written; the last of them may reach into a stop text, or be half a character
    log_probabilities: list[float] | None  # natural, of each token, by the model itself without any filter
    seed: int
    row: int  # with the seed, it names the random stream: first_row = row writes the same again


def stream(run: Run, prompt: str = "", **sampling: Any) -> Iterator[str]:
    """Pieces of the text that the model writes after the prompt, without the prompt.

    It ends after max_new_tokens, before a stop text, or where the model ends its document. A model that was trained on
    100 documents or more takes the prompt as the beginning of one. sampling: the settings of `slm.Sampling`, by name.
    Raises UserError for a run without a tokenizer (the dummy data has none) and for settings that make no sense.
    """
    settings = Sampling.from_names(sampling)
    tokenizer, ids = _tokenizer_of(run), _ids_of(run, prompt)
    row = _Row(tokenizer, ids, settings.stop or ())
    steps = stream_tokens(run.model, [ids], dataclasses.replace(settings, stop=None))

    def pieces() -> Iterator[str]:
        for new in steps:
            if piece := row.add(new.ids[0]):
                yield piece
            if row.ended_by:
                return
        if piece := row.rest():
            yield piece

    return pieces()


def samples(
    run: Run,
    prompts: str | Sequence[str],
    *,
    num_samples: int = 1,
    log_probabilities: bool = False,
    first_row: int = 0,
    **sampling: Any,
) -> list[Sample]:
    """What the model writes after each prompt, num_samples times, computed many at a time.

    Sample i draws from the random stream of (seed, first_row + i): it is the same in any batch. Arguments and errors
    are otherwise those of `stream`.
    """
    settings = Sampling.from_names(sampling)
    if num_samples < 1:
        raise UserError(f"num_samples = {num_samples}: must be at least 1.")
    if settings.seed is None:
        settings = dataclasses.replace(settings, seed=random.SystemRandom().getrandbits(32))
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    encoded = [(prompt, _ids_of(run, prompt)) for prompt in prompts]
    wanted = [row for row in encoded for _ in range(num_samples)]
    made: list[Sample] = []
    for start in range(0, len(wanted), _ROWS_AT_ONCE):
        part = wanted[start : start + _ROWS_AT_ONCE]
        made += _samples(run, part, settings, first_row + start, log_probabilities)
    return made


def _samples(
    run: Run, prompts: list[tuple[str, list[int]]], settings: Sampling, first_row: int, log_probabilities: bool
) -> Iterator[Sample]:
    """One for each prompt, each with its ids."""
    tokenizer = _tokenizer_of(run)
    rows = [_Row(tokenizer, ids, settings.stop or ()) for _, ids in prompts]
    pieces: list[list[str]] = [[] for _ in rows]
    steps = stream_tokens(
        run.model,
        [ids for _, ids in prompts],
        dataclasses.replace(settings, stop=None),
        first_row=first_row,
        log_probabilities=log_probabilities,
    )
    for new in steps:
        for number, (row, id) in enumerate(zip(rows, new.ids, strict=True)):
            if not row.ended_by:
                pieces[number].append(row.add(id, new.log_probabilities[number] if new.log_probabilities else None))
        if all(row.ended_by for row in rows):
            break
    for number, ((prompt, _), row) in enumerate(zip(prompts, rows, strict=True)):
        assert settings.seed is not None
        yield Sample(
            prompt,
            "".join(pieces[number]) + row.rest(),
            row.ended_by or "length",
            row.tokens,
            row.log_probabilities if log_probabilities else None,
            settings.seed,
            first_row + number,
        )


stream.__signature__ = signature_with(stream, dataclasses.fields(Sampling))  # type: ignore[attr-defined]
samples.__signature__ = signature_with(samples, dataclasses.fields(Sampling))  # type: ignore[attr-defined]


def _tokenizer_of(run: Run) -> Tokenizer:
    if run.task and run.task.labels:
        raise UserError("this model tells labels, and writes no text: use run.classify.")
    if run.tokenizer is None:
        raise UserError(
            "this model has no tokenizer, for it was trained on dummy tokens or on token ids: it cannot write text."
        )
    return run.tokenizer


def _ids_of(run: Run, prompt: str) -> list[int]:
    """The ids of a prompt, in the template of the run's task; a prompt longer than the model can look at is told."""
    if not isinstance(prompt, str):
        raise UserError(f"prompt = {prompt!r:.60}: must be a str. slm.samples takes several, and slm.stream one.")
    tokenizer, window = _tokenizer_of(run), run.model.config.max_seq_len
    if run.task:
        (ids,) = Encoder(run.task, tokenizer, window).prompts([prompt])
    else:
        start = [] if run.start_id is None else [run.start_id]
        ids = [*start, *tokenizer.encode(prompt)] or [tokenizer.end_id or 0]
    if len(ids) > window:
        warnings.warn(
            f"the prompt has {len(ids):,} tokens, and this model looks at {window:,} at most: it goes on from the last "
            f"{window:,}.",
            stacklevel=3,
        )
    return ids


class _Row:
    """One text as it grows: tokens in, text out as soon as it is sure not to begin a stop text."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...]) -> None:
        self.decode, self.end_id, self.stop = tokenizer.decoder(prompt), tokenizer.end_id, stop
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.held = ""
        self.ended_by = ""

    def add(self, id: int, log_probability: float | None = None) -> str:
        """The text that is sure after one more token."""
        if id == self.end_id:
            self.ended_by = "end"
            return self.rest()
        self.tokens.append(id)
        if log_probability is not None:
            self.log_probabilities.append(log_probability)
        self.held += self.decode(id)
        if found := [place for text in self.stop if (place := self.held.find(text)) >= 0]:
            self.ended_by = "stop"
            sure, self.held = self.held[: min(found)], ""
            return sure
        keep = max((_overlap(self.held, text) for text in self.stop), default=0)
        cut = len(self.held) - keep
        sure, self.held = self.held[:cut], self.held[cut:]
        return sure

    def rest(self) -> str:
        """What was held back; nothing comes after it."""
        sure, self.held = self.held, ""
        return sure


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
