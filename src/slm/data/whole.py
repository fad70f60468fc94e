"""A whole text as one dataset, in the tokens of a model that is there already, to evaluate that model on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from slm.config import DataConfig, UserError
from slm.data.dataset import TextDataset
from slm.data.prepare import EVALUATED_TOKENS, Job, Progress
from slm.data.shards import Prepared
from slm.data.sources import check_name
from slm.data.splits import ids_or_texts, prepared_folder, token_rows
from slm.data.tokenizer import Tokenizer
from slm.data.tokens import Tokens


@dataclass(frozen=True)
class WholeText:
    """A text to evaluate on."""

    dataset: TextDataset
    name: str
    source_bits_per_byte: float | None = None  # the entropy of all of it, where it is known


def read_whole(
    config: DataConfig,
    given: Any,
    *,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    max_seq_len: int,
    on_progress: Progress,
) -> WholeText:
    """All of config.data, or of the texts or token ids given instead, in windows of max_seq_len.

    Of data that slm-prepare made, the validation part. Raises UserError where the model's tokenizer does not fit, or
    where there are fewer than two tokens.
    """
    names = config.data or ()
    for name in names:
        check_name(name)
    ids, texts = (None, None) if given is None else ids_or_texts(given, "data")
    prepared = prepared_folder(names, config, vocab_size, asked=(), recheck=False, on_progress=on_progress)
    if ids is not None:
        rows: Tokens | None = Tokens([ids])
    else:
        rows = None if prepared else token_rows(names, on_progress)
    if rows is not None:
        return _of_ids(rows, ", ".join(names) or "token ids from Python", vocab_size, max_seq_len)
    if tokenizer is None:
        raise UserError("this model has no tokenizer: it can be evaluated on token ids only (.npy or .bin files).")
    if prepared is not None:
        if prepared.tokenizer.to_json() != tokenizer.to_json():
            raise UserError(f"{names[0]} was prepared with another tokenizer than this model's: name the text itself.")
        name = f"the validation part of {names[0]}"
    else:
        prepared = _prepared(config, texts, tokenizer, on_progress)
        name = prepared.about["name"]
    about, tokens = prepared.about, prepared.val
    known = about["source_bits_per_byte"] if len(tokens) <= EVALUATED_TOKENS else None
    return WholeText(_dataset(tokens, max_seq_len, about["start_id"]), name, known)


def _prepared(config: DataConfig, texts: Iterable[str] | None, tokenizer: Tokenizer, on_progress: Progress) -> Prepared:
    job = Job(
        config,
        texts,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer,
        only_validation=True,
        on_progress=on_progress,
    )
    return job.run()


def _of_ids(rows: Tokens, name: str, vocab_size: int, max_seq_len: int) -> WholeText:
    if len(rows):
        low, high = rows.id_range()
        if not 0 <= low <= high < vocab_size:
            raise UserError(
                f"{name} holds ids from {low} to {high}, and the model's vocabulary has {vocab_size}, from 0 on: these "
                "are the tokens of another tokenizer."
            )
    return WholeText(_dataset(rows, max_seq_len, None), name)


def _dataset(tokens: Tokens, max_seq_len: int, start_id: int | None) -> TextDataset:
    if len(tokens) < 2:
        raise UserError(f"the text has fewer than two tokens ({len(tokens)}): one to look at and one to predict.")
    return TextDataset(tokens, max_seq_len, start_id=start_id)
