"""Byte, character and BPE tokenizers; inside each is one of Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from slm.config import UserError
from slm.data.formats import check_unicode
from slm.storage import files

if TYPE_CHECKING:  # slm-prepare makes tokens without torch, which takes two seconds and 200 MB
    from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"  # what a character that the text never showed becomes, with the character tokenizer
NUM_BYTES = 256
MOST_IDS = 1 << 24
TOKENIZERS = ("bpe", "char", "byte")  # made by slm; any other name is the path of a tokenizer.json
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_PIECE_CHARS = 1 << 14  # 16,384 characters: `tokenizers` is fastest at texts of about this length
_LONGEST_PIECE = 1 << 20
_BLIND_PIECE = 1 << 17  # of a foreign tokenizer: long, since a cut may change a token, and short enough for all threads
_PIECES_AT_ONCE = 64
_CONTEXT = 8  # ids, of which the last ones may be parts of one character


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
        unknown = getattr(backend.model, "unk_token", None)
        self.unknown_id: int | None = vocabulary.get(unknown or "")  # for text that no other token spells
        self.end_name: str | None = next((name for name in _END_NAMES if name in vocabulary), None)
        self.end_id: int | None = vocabulary[self.end_name] if self.end_name else None
        self._cuts = _safe_cuts(backend)

    @classmethod
    def from_json(cls, text: str, name: str = "the tokenizer") -> Tokenizer:
        """The tokenizer that `to_json` described. Raises UserError where `tokenizers` cannot read it."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
            # `tokenizers` goes through all ids up to the largest, and a model has a row for each.
            largest = max(backend.get_vocab(with_added_tokens=True).values())
            if largest >= MOST_IDS:
                raise ValueError(f"its largest token id is {largest}, and must be below {MOST_IDS}")
            return cls(backend)
        except BaseException as error:
            _explain(error, f"{name} is not a Hugging Face tokenizer.json")

    def to_json(self) -> str:
        """The whole tokenizer as the text of a Hugging Face tokenizer.json."""
        return self.backend.to_str()

    def id_of(self, token: str) -> int:
        """The id of a token by its name. Raises LookupError where there is none."""
        id = self.backend.token_to_id(token)
        if id is None:
            raise LookupError(f"the tokenizer has no token {token!r}")
        return id

    def has_all_of(self, other: Tokenizer) -> bool:
        """Whether text becomes the same ids with both, but for special tokens that only this one has."""
        mine, theirs = (json.loads(one.to_json()) for one in (self, other))
        specials = [token for token in mine.pop("added_tokens") if token in theirs["added_tokens"]]
        return bool(specials == theirs.pop("added_tokens") and mine == theirs)

    def with_special_tokens(self, names: Iterable[str]) -> Tokenizer:
        """This tokenizer with special tokens, which no text spells; those that are new get the ids after all others."""
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        backend.add_special_tokens([name for name in names if backend.token_to_id(name) is None])
        return Tokenizer(backend)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without any special token. Raises UserError for half a surrogate pair."""
        check_unicode(text, "the text")
        pieces = list(self.pieces([text]))
        batches = (pieces[i : i + _PIECES_AT_ONCE] for i in range(0, len(pieces), _PIECES_AT_ONCE))
        return [id for batch in batches for ids in self.encode_pieces(batch) for id in ids.tolist()]

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """The text of the chunks in pieces of about 16,000 characters that can be encoded each by itself.

        With a tokenizer made by slm the tokens are those of the whole text. A foreign one gives no place that is
        sure, and a text may have none: it is then cut after 131,072 characters, where a token may differ.
        """
        return _pieces(chunks, self._cuts)

    def encode_pieces(self, pieces: list[str]) -> Iterator[np.ndarray[Any, Any]]:
        """The token ids of each piece, uint32, encoded in parallel by the threads of `tokenizers`.

        All are encoded when this returns; taking them from it is what is left to do, on whatever thread takes them.
        """
        try:
            return map(_ids, self.backend.encode_batch_fast(pieces, add_special_tokens=False))
        except BaseException as error:
            _explain(error, "The tokenizer cannot encode this text")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decoder(self, prompt: list[int]) -> Callable[[int], str]:
        """A function from the ids that follow a prompt's, one by one, to their text.

        Within a character it gives nothing yet, and with its last byte all of it.
        """
        # Where the prompt itself ends in an unknown character, the stream would wait for the rest of it, and repeat it.
        context = list(prompt)
        while context and self.decode(context[-_CONTEXT:]).endswith(UNKNOWN):
            context.pop()
        stream = decoders.DecodeStream(ids=context, skip_special_tokens=True)
        return lambda id: stream.step(self.backend, id) or ""

    def bytes_per_token(self) -> Tensor:
        """The UTF-8 bytes that each id stands for, (vocab_size,), int64; 0 for special tokens."""
        import torch

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


def _ids(encoding: tokenizers.Encoding) -> np.ndarray[Any, Any]:
    return np.frombuffer(array("I", encoding.ids), dtype=np.uint32)  # from a list, array is faster than numpy


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
    return Tokenizer.from_json(read_tokenizer_file(name), name)


def read_tokenizer_file(name: str) -> str:
    """The text of a tokenizer.json: its path or URL, or the folder that holds it. Raises UserError."""
    try:
        path = files.join(name, "tokenizer.json") if files.is_folder(name) else name
        return files.read_bytes(path).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer = {name!r}: must be bpe, char, byte or the path of a Hugging Face tokenizer.json ({error})"
        ) from error


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
    # Long texts in pieces, which are counted in parallel.
    backend.train_from_iterator((piece for text in documents for piece in _pieces([text], _BETWEEN_WORDS)), trainer)
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


# GPT-2's splitting into words never joins a lone line break to what stands beside it, and a lone space only to what
# follows. _SOLID is neither white space nor control character, in the opinion of every regular expression engine.
_SOLID = "[!-~\u00a1-\u00ac\u00ae-\u167f\u1681-\u180d\u180f-\u1fff\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff\uf900-\ufdff]"
_BETWEEN_WORDS = re.compile(rf"(?<={_SOLID}\n)(?={_SOLID})|(?<={_SOLID})(?= {_SOLID})")
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
        return _BETWEEN_WORDS
    return None if model["merges"] else _ANYWHERE


def _pieces(chunks: Iterable[str], cuts: re.Pattern[str] | None) -> Iterator[str]:
    """The text of the chunks in pieces, cut where the pattern allows."""
    rest = ""
    for chunk in chunks:
        text, start = rest + chunk, 0
        while (end := _next_cut(text, start, cuts)) is not None:
            yield text[start:end]
            start = end
        rest = text[start:]
    if rest:
        yield rest


def _next_cut(text: str, start: int, cuts: re.Pattern[str] | None) -> int | None:
    """Where the piece that begins at `start` ends; None where that depends on what follows the text."""
    longest = start + (_LONGEST_PIECE if cuts else _BLIND_PIECE)
    if cuts and len(text) > start + _PIECE_CHARS:
        # Two characters more than the longest, for what the pattern looks at beyond a cut.
        cut = cuts.search(text, start + _PIECE_CHARS, longest + 2)
        if cut and start < cut.start() <= longest:
            return cut.start()
    return longest if len(text) > longest else None


def _explain(error: BaseException, what: str) -> NoReturn:
    """Raises a UserError in place of what `tokenizers` raised, which has no narrower name; a panic is no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    raise UserError(f"{what}: {error!s:.300}.") from error
