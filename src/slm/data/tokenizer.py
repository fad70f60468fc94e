"""Byte, character and BPE tokenizers; inside each is one of Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from slm.config import UserError
from slm.storage import files

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"  # what a character that the text never showed becomes, with the character tokenizer
NUM_BYTES = 256
TOKENIZERS = ("bpe", "char", "byte")  # made by slm; any other name is the path of a tokenizer.json
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_PIECE_CHARS = 1 << 16
_PIECES_AT_ONCE = 64


def check_unicode(text: str, name: str) -> None:
    """Raises UserError where a str is not Unicode text, as after a decoding that went wrong."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not Unicode: {text[error.start]!r} at position {error.start} is half a surrogate pair. "
            "Decode the bytes it came from with errors='replace'."
        ) from error


class Tokenizer:
    """Text to token ids and back. One JSON text, `to_json`, holds all of it and is stored in every model."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # A user's text may spell a special token; it is text all the same, and must decode to itself.
        backend.encode_special_tokens = True
        # A tokenizer.json can ask for a cut or filled up text; ids here are all of a text and nothing else.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.end_id: int | None = next((vocabulary[name] for name in _END_NAMES if name in vocabulary), None)
        self._cuts = _safe_cuts(backend)

    @classmethod
    def from_json(cls, text: str, name: str = "the tokenizer") -> Tokenizer:
        """The tokenizer that `to_json` described. Raises UserError where `tokenizers` cannot read it."""
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # what `tokenizers` raises has no narrower name
            raise UserError(f"{name} is not a Hugging Face tokenizer.json: {error}.") from error

    def to_json(self) -> str:
        """The whole tokenizer as the text of a Hugging Face tokenizer.json."""
        return self.backend.to_str()

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without any special token. Raises UserError for half a surrogate pair."""
        check_unicode(text, "the text")
        return list(chain.from_iterable(self._encode_pieces(_pieces(text, self._cuts))))

    def encode_documents(self, documents: Iterable[str]) -> Tensor:
        """The ids of all documents in one tensor (N,), int32, with end_id between each two."""
        parts: list[Tensor] = []
        for index, document in enumerate(documents):
            if index and self.end_id is not None:
                parts.append(torch.tensor([self.end_id], dtype=torch.int32))
            parts.extend(
                torch.tensor(ids, dtype=torch.int32) for ids in self._encode_pieces(_pieces(document, self._cuts))
            )
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_stream(self, prompt: list[int], ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids that follow a prompt's, in pieces that never end within a character."""
        stream = decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
        for id in ids:
            if piece := stream.step(self.backend, id):
                yield piece

    def bytes_per_token(self) -> Tensor:
        """The UTF-8 bytes that each id stands for, (vocab_size,), int64; 0 for special tokens."""
        table = torch.zeros(self.vocab_size, dtype=torch.int64)
        byte_level = isinstance(self.backend.decoder, decoders.ByteLevel)
        # Many decoders drop the space before a text's first token, so each is measured behind another one.
        first = next(iter(self.encode("a")), 0)
        first_bytes = len(self.decode([first]).encode())
        for token, id in self.backend.get_vocab(with_added_tokens=False).items():
            # A byte-level token spells each of its bytes, also half a character, as one printable character.
            table[id] = len(token) if byte_level else len(self.decode([first, id]).encode()) - first_bytes
        for id, added in self.backend.get_added_tokens_decoder().items():
            table[id] = 0 if added.special else len(added.content.encode())
        return table

    def _encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        # `tokenizers` encodes the pieces of a batch in parallel; batches bound the memory of its bookkeeping.
        waiting = list(pieces)
        for start in range(0, len(waiting), _PIECES_AT_ONCE):
            batch = waiting[start : start + _PIECES_AT_ONCE]
            for encoding in self.backend.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids


def make_tokenizer(name: str, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer of that name: "bpe", "char" or "byte" made for the documents, else a tokenizer.json read.

    vocab_size bounds "bpe" alone; the others have as many tokens as they need. Raises UserError.
    """
    if name == "bpe":
        return train_bpe(documents, vocab_size)
    if name == "char":
        return char_tokenizer(documents)
    if name == "byte":
        return byte_tokenizer()
    try:
        text = files.read_bytes(name).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer = {name!r}: must be bpe, char, byte or the path of a Hugging Face tokenizer.json ({error})"
        ) from error
    return Tokenizer.from_json(text, name)


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; GPT-2's splitting into words) of at most vocab_size tokens."""
    smallest = NUM_BYTES + 1
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size = {vocab_size}: the bpe tokenizer needs at least {smallest}, one token a byte and "
            f"{END_OF_TEXT}. Raise --vocab_size or take --tokenizer char."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = chain.from_iterable(_pieces(document, _BETWEEN_LINES) for document in documents)
    backend.train_from_iterator(pieces, trainer)
    return Tokenizer(backend)


def char_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """One token for each character of the documents; any other character becomes UNKNOWN."""
    characters = sorted(set().union(*documents) - {UNKNOWN})
    backend = _without_merges([UNKNOWN, *characters], unknown=UNKNOWN)
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def byte_tokenizer() -> Tokenizer:
    """One token for each of the 256 bytes."""
    backend = _without_merges(sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def _without_merges(tokens: list[str], unknown: str | None = None) -> tokenizers.Tokenizer:
    # A BPE that never merges splits a text into its characters, three times as fast as a pattern does.
    vocabulary = {token: id for id, token in enumerate([END_OF_TEXT, *tokens])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    backend.add_special_tokens([END_OF_TEXT])
    return backend


# GPT-2's splitting into words never joins a lone line break to what stands beside it.
_BETWEEN_LINES = re.compile(r"(?<=[!-~]\n)(?=[!-~])")
_ANYWHERE = re.compile("")


def _safe_cuts(backend: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing a token; None where no rule is sure, as for most tokenizers not ours."""
    description = json.loads(backend.to_str())
    model, split = (
        description["model"],
        description["pre_tokenizer"] or {"type": "ByteLevel", "use_regex": False},
    )
    if description["normalizer"] or model["type"] != "BPE" or split["type"] != "ByteLevel":
        return None
    if split.get("add_prefix_space") or model["fuse_unk"] or any(not t["special"] for t in description["added_tokens"]):
        return None
    if split["use_regex"]:
        return _BETWEEN_LINES
    return None if model["merges"] else _ANYWHERE


def _pieces(text: str, cuts: re.Pattern[str] | None) -> Iterator[str]:
    """A text in pieces of about _PIECE_CHARS, cut where the pattern allows."""
    start = 0
    while start < len(text):
        cut = cuts.search(text, start + _PIECE_CHARS) if cuts else None
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end
