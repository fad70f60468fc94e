"""Settings -> tokenizer and the train and validation datasets of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.config import DataConfig, UserError
from slm.data.dataset import TextDataset
from slm.data.sources import Corpus, read_corpus
from slm.data.tokenizer import Tokenizer, make_tokenizer

DUMMY_TOKENS = 10_000


@dataclass(frozen=True)
class PreparedData:
    """What training needs of the data, and what the header tells of it."""

    train_dataset: TextDataset
    val_dataset: TextDataset
    tokenizer: Tokenizer | None  # None for the dummy data
    name: str
    num_bytes: int
    vocab_size: int
    fingerprint: str
    split: str  # how validation text was chosen, in words


def prepare_data(
    config: DataConfig,
    texts: Iterable[str] | None,
    *,
    vocab_size: int,
    max_seq_len: int,
    seed: int,
    on_status: Callable[[str], None],
) -> PreparedData:
    """Reads the text (config.data, or `texts` where they are given), makes its tokenizer, and splits it.

    Raises UserError where there is too little text. on_status is told what takes long.
    """
    if texts is None and config.data in (None, "dummy"):
        return _dummy_data(config, vocab_size, max_seq_len, seed)
    corpus = read_corpus(config.data or "" if texts is None else texts)
    train, val, split = _split(corpus, config)
    on_status(f"making tokens ({config.tokenizer}) of {corpus.num_bytes:,} bytes")
    tokenizer = make_tokenizer(config.tokenizer, train.documents, vocab_size)
    return PreparedData(
        train_dataset=_dataset(tokenizer.encode_documents(train.documents), max_seq_len, "training", config),
        val_dataset=_dataset(tokenizer.encode_documents(val.documents), max_seq_len, "validation", config),
        tokenizer=tokenizer,
        name=corpus.name,
        num_bytes=train.num_bytes + val.num_bytes,
        vocab_size=tokenizer.vocab_size,
        fingerprint=Corpus("", [*train.documents, *val.documents, tokenizer.to_json()]).fingerprint,
        split=split,
    )


def _dummy_data(config: DataConfig, vocab_size: int, max_seq_len: int, seed: int) -> PreparedData:
    if config.val_data is not None:
        raise UserError(f"val_data = {config.val_data!r}: the dummy data has its own validation part; set data too.")
    tokens = torch.randint(0, vocab_size, (DUMMY_TOKENS,), generator=torch.Generator().manual_seed(seed))
    cut = int(DUMMY_TOKENS * (1 - config.val_fraction))
    return PreparedData(
        train_dataset=_dataset(tokens[:cut], max_seq_len, "training", config),
        val_dataset=_dataset(tokens[cut:], max_seq_len, "validation", config),
        tokenizer=None,
        name="dummy",
        num_bytes=0,
        vocab_size=vocab_size,
        fingerprint=f"dummy {seed} {vocab_size}",
        split=f"the last {config.val_fraction:.3g} of it",
    )


def _split(corpus: Corpus, config: DataConfig) -> tuple[Corpus, Corpus, str]:
    """Training text, validation text, and the rule in words."""
    if config.val_data is not None:
        return corpus, read_corpus(config.val_data), f"all of {config.val_data}"
    train, val = corpus.split(config.val_fraction)
    return train, val, f"the last {100 * config.val_fraction:.3g} % of the text"


def _dataset(tokens: Tensor, max_seq_len: int, part: str, config: DataConfig) -> TextDataset:
    if len(tokens) < 2:
        raise UserError(
            f"the {part} part of the text has {len(tokens)} token{'s' * (len(tokens) != 1)}: at least 2 are needed, "
            "one to look at and one to predict. Give more text, another val_fraction, or val_data."
        )
    return TextDataset(tokens, max_seq_len)
