"""Laws of tokenizers: text comes back as it was, in pieces or whole, and every byte is counted once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from slm.config import UserError
from slm.data import tokenizer as module
from slm.data.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    Tokenizer,
    byte_tokenizer,
    char_tokenizer,
    make_tokenizer,
    train_bpe,
)

# Code and verse: merges of words, of spaces, of line breaks with spaces, of punctuation with line breaks.
TRAINING = [
    "def f(x):\n    if x:\n        return x\n\n    return f(x - 1)\n\n\n" * 5,
    "The fox's den, the fox's hen;\r\nwe'll see them all again.\r\n\r\nThe end!!\n" * 5,
    "naïve café 漢字 😀😀 e\u0301 \u00a0\u2028\t\x00 <|endoftext|> 12 345\n" * 5,
]
ATOMS = [
    "\n", "\n\n", "\n\n\n", "\r\n", "\r", " ", "  ", "    ", "\t", "\x00", "\x0b", "\x85", "\u00a0", "\u2028", "\u3000",
    "a", "fox", " fox", "'s", "'ll", "we'll", "I'm", "12", " 345", "!", "!!", "...", ")", "):", "_", "-", "~", "\x7f",
    "é", "e\u0301", "\u0301", "漢", "😀", "\U0001f468\u200d\U0001f469", "\ufeff", "\ufffd", "\ufffe", "Ġ", "<|",
    END_OF_TEXT,
]  # fmt: skip
# Mostly places between words and lines, where a text may be cut, and such as only look like them.
WORDS = st.lists(st.sampled_from([*" \n\r!é", " ", "fox", "the", "'s", "I", "12", "\u00a0", "\u0301"]), max_size=25)
PLACES = st.lists(st.integers(0, 60), max_size=8)
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(ATOMS), max_size=25).map("".join)
BPE = train_bpe(TRAINING, 400)
BYTE = byte_tokenizer()
CHAR = char_tokenizer([*TRAINING, *ATOMS])
OURS = {"bpe": BPE, "byte": BYTE, "char": CHAR}
ours = pytest.mark.parametrize("tokenizer", OURS.values(), ids=OURS)


def char_for(tokenizer: Tokenizer, text: str) -> Tokenizer:
    """The tokenizer, or where it is the character tokenizer, one that knows the text's characters."""
    return char_tokenizer([text]) if tokenizer is CHAR else tokenizer


def at_once(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that the backend gives in one call for the whole text."""
    return list(tokenizer.backend.encode(text, add_special_tokens=False).ids)


def in_pieces(tokenizer: Tokenizer, chunks: Iterable[str]) -> list[int]:
    """The ids of the pieces, one after the other."""
    return [id for ids in tokenizer.encode_pieces(list(tokenizer.pieces(chunks))) for id in ids.tolist()]


def chunks_of(text: str, places: list[int]) -> list[str]:
    """The text cut at the places, as far as it has them; two that are equal give an empty chunk."""
    places = sorted(min(place, len(text)) for place in places)
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@contextmanager
def small_pieces(characters: int = 1, at_once: int = 2, longest: int = module._LONGEST_PIECE) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_CHARS", characters)
        patch.setattr(module, "_PIECES_AT_ONCE", at_once)
        patch.setattr(module, "_LONGEST_PIECE", longest)
        patch.setattr(module, "_BLIND_PIECE", min(longest, module._BLIND_PIECE))
        yield


@ours
@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_any_text_decodes_to_itself(tokenizer: Tokenizer, text: str) -> None:
    tokenizer = char_for(tokenizer, text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= id < tokenizer.vocab_size for id in ids)


@ours
@pytest.mark.parametrize("text", ["", END_OF_TEXT, f"a{END_OF_TEXT * 2}b", "\u0301", "\r\n", "\x00\x1b"], ids=ascii)
def test_texts_that_are_often_spoiled_decode_to_themselves(tokenizer: Tokenizer, text: str) -> None:
    tokenizer = char_for(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("begins", [False, True])
@ours
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(prompt=TEXTS, text=TEXTS)
def test_text_decoded_token_by_token_comes_with_the_last_byte_of_each_character(
    tokenizer: Tokenizer, begins: bool, prompt: str, text: str
) -> None:
    # What ends in the character that stands for no character looks like the beginning of one.
    prompt, text = prompt.rstrip(UNKNOWN), text.replace(UNKNOWN, "")
    tokenizer = char_for(tokenizer, prompt + text)
    decode, seen = tokenizer.decoder([tokenizer.end_id or 0] * begins + tokenizer.encode(prompt)), ""
    ids = tokenizer.encode(text)
    for number, id in enumerate(ids, 1):
        seen += decode(id)
        whole = tokenizer.decode(ids[:number])
        assert seen == whole or (whole.endswith(UNKNOWN) and whole.startswith(seen))
    assert seen == text


@ours
@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_text_that_spells_the_end_token_never_becomes_it(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.end_id not in tokenizer.encode(text + END_OF_TEXT)


@settings(deadline=None, max_examples=200)
@given(known=TEXTS, text=TEXTS)
def test_unseen_characters_become_unknown_one_for_one(known: str, text: str) -> None:
    tokenizer = char_tokenizer([known])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == "".join(c if c in known else UNKNOWN for c in text)


def test_the_character_vocabulary_is_the_characters_unknown_and_end() -> None:
    tokenizer = char_tokenizer(["banana", "nab"])
    assert tokenizer.backend.get_vocab(with_added_tokens=True).keys() == {END_OF_TEXT, UNKNOWN, "a", "b", "n"}
    assert tokenizer.vocab_size == 5


def test_the_byte_vocabulary_is_the_bytes_and_end() -> None:
    assert BYTE.vocab_size == 257
    assert sorted(BYTE.encode("".join(chr(code) for code in range(0x80)))) == sorted(
        {id for code in range(0x80) for id in BYTE.encode(chr(code))}
    )


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_bytes_are_tokens_one_for_one(text: str) -> None:
    assert len(BYTE.encode(text)) == len(text.encode())


@ours
@settings(deadline=None, max_examples=250)
@given(text=TEXTS | WORDS.map("".join), places=PLACES, characters=st.integers(1, 6), batch=st.integers(1, 3))
def test_encoding_in_pieces_equals_encoding_at_once(
    tokenizer: Tokenizer, text: str, places: list[int], characters: int, batch: int
) -> None:
    with small_pieces(characters, batch):
        assert tokenizer.encode(text) == at_once(tokenizer, text)
        assert in_pieces(tokenizer, chunks_of(text, places)) == at_once(tokenizer, text)


@ours
@settings(deadline=None, max_examples=100)
@given(text=TEXTS | WORDS.map("".join), places=PLACES, characters=st.integers(1, 6), extra=st.integers(0, 6))
def test_pieces_joined_are_the_text_however_it_came_in_chunks(
    tokenizer: Tokenizer, text: str, places: list[int], characters: int, extra: int
) -> None:
    with small_pieces(characters, longest=characters + extra):
        pieces = list(tokenizer.pieces([text]))
        assert list(tokenizer.pieces(chunks_of(text, places))) == pieces
        assert list(tokenizer.pieces(iter(text))) == pieces
    assert "".join(pieces) == text
    assert all(pieces)


@ours
def test_long_text_is_really_cut_and_memory_bounded(tokenizer: Tokenizer) -> None:
    line = "the fox sees the hen and runs.\n"
    for chunks in ([line * 50], [line] * 50, line * 50):
        with small_pieces(100):
            pieces = list(tokenizer.pieces(chunks))
        assert len(pieces) > 10
        assert max(map(len, pieces)) <= 100 + len(line)


@pytest.mark.parametrize("line", ["the fox sees the hen ", "the-fox-sees-the-hen\n"], ids=["words", "lines"])
def test_bpe_text_is_cut_between_words_and_between_lines(line: str) -> None:
    with small_pieces(100):
        pieces = list(BPE.pieces([line * 50]))
    assert len(pieces) > 8
    assert max(map(len, pieces)) <= 100 + len(line)


@ours
def test_a_piece_comes_before_the_text_has_ended(tokenizer: Tokenizer) -> None:
    asked: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            asked.append(1)
            yield "the fox sees the hen\n"

    with small_pieces(100):
        pieces = tokenizer.pieces(endless())
        for number in range(1, 6):
            next(pieces)
            assert len(asked) <= 8 * number


@settings(deadline=None, max_examples=100)
@given(text=TEXTS, places=PLACES, longest=st.integers(1, 8), name=st.sampled_from(["bpe", "foreign"]))
def test_text_without_a_safe_place_is_cut_all_the_same_and_decodes_to_itself(
    text: str, places: list[int], longest: int, name: str
) -> None:
    tokenizer = BPE if name == "bpe" else Tokenizer(with_added_words())
    assert (tokenizer._cuts is None) == (name == "foreign")
    with small_pieces(longest, longest=longest):
        pieces = list(tokenizer.pieces(chunks_of(text, places)))
        ids = in_pieces(tokenizer, chunks_of(text, places))
        assert tokenizer.encode(text) == ids
    assert "".join(pieces) == text
    # The last two characters tell whether the place before them is safe: they may stay with the last piece.
    assert max(map(len, pieces), default=0) <= longest + 2
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tokenizer", [BPE, CHAR, BYTE], ids=["bpe", "char", "byte"])
def test_no_piece_is_longer_than_the_longest(tokenizer: Tokenizer) -> None:
    longest = module._LONGEST_PIECE
    pieces = list(tokenizer.pieces(["x" * 100_000] * 25))
    assert "".join(pieces) == "x" * 2_500_000
    assert max(map(len, pieces)) <= longest
    if tokenizer is BPE:
        assert list(map(len, pieces)) == [longest, longest, 2_500_000 - 2 * longest]


@ours
@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(TEXTS, max_size=8))
def test_each_piece_gets_its_own_ids_in_order(tokenizer: Tokenizer, pieces: list[str]) -> None:
    encoded = tokenizer.encode_pieces(pieces)
    assert [ids.tolist() for ids in encoded] == [at_once(tokenizer, piece) for piece in pieces]
    assert all(ids.dtype == np.uint32 and ids.ndim == 1 for ids in encoded)


@ours
@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_a_tokenizer_read_back_from_its_json_is_the_same(tokenizer: Tokenizer, text: str) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    ids = tokenizer.encode(text)
    assert again.encode(text) == ids
    assert again.decode(ids) == tokenizer.decode(ids)
    assert (again.vocab_size, again.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
    assert again.to_json() == tokenizer.to_json()
    with small_pieces():
        assert again.encode(text) == ids


@ours
@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_bytes_of_all_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokenizer = char_for(tokenizer, text)
    table = tokenizer.bytes_per_token()
    assert table.shape == (tokenizer.vocab_size,)
    assert table.dtype == torch.int64
    assert int(table[tokenizer.encode(text)].sum()) == len(text.encode())


@ours
def test_the_end_token_stands_for_no_bytes_and_every_other_for_some(tokenizer: Tokenizer) -> None:
    table = tokenizer.bytes_per_token()
    assert table[tokenizer.end_id] == 0
    assert int((table == 0).sum()) == 1


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 10_000])
@pytest.mark.parametrize("texts", [TRAINING, ["a"], []], ids=["much", "one letter", "nothing"])
def test_bpe_keeps_to_vocab_size_and_holds_all_bytes(vocab_size: int, texts: list[str]) -> None:
    tokenizer = train_bpe(texts, vocab_size)
    assert 257 <= tokenizer.vocab_size <= vocab_size
    assert tokenizer.decode(tokenizer.encode("😀\x00é")) == "😀\x00é"
    if texts is TRAINING and vocab_size <= 300:
        assert tokenizer.vocab_size == vocab_size


@pytest.mark.parametrize("vocab_size", [256, 2, 1])
def test_bpe_refuses_a_vocabulary_without_room_for_all_bytes(vocab_size: int) -> None:
    with pytest.raises(UserError, match=rf"vocab_size = {vocab_size}: .* at least 257"):
        make_tokenizer("bpe", TRAINING, vocab_size)


def test_bpe_training_gives_the_same_tokenizer_each_time() -> None:
    # Many pairs are equally frequent here: ties must be broken the same way by every thread.
    ties = [" ".join(f"{a}{b}{a}" for a in "abcdefgh" for b in "ijklmnop") + "\n" for _ in range(40)]
    assert len({train_bpe([*TRAINING, *ties], 500).to_json() for _ in range(4)}) == 1


def test_bpe_learns_from_all_of_a_long_text_as_from_its_parts() -> None:
    lines = ["the fox sees the hen.\n", "hens flee from a fox.\n", "no den is safe, none.\n"] * 7
    whole = train_bpe(lines, 300).to_json()
    with small_pieces(longest=2 * len(lines[0])):
        assert train_bpe(["".join(lines)], 300).to_json() == whole


def test_bpe_learns_from_a_generator() -> None:
    assert train_bpe((text for text in TRAINING), 400).to_json() == BPE.to_json()


def test_bpe_is_shorter_than_bytes_on_its_own_text() -> None:
    assert len(BPE.encode(TRAINING[0])) < len(BYTE.encode(TRAINING[0])) / 2


@pytest.mark.parametrize("name", OURS)
def test_a_tokenizer_is_made_by_name(name: str) -> None:
    makers = {"bpe": train_bpe(TRAINING, 300), "byte": BYTE, "char": char_tokenizer(TRAINING)}
    assert make_tokenizer(name, TRAINING, 300).to_json() == makers[name].to_json()


def word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TRAINING, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TRAINING, trainer)
    return backend


def metaspace_bpe() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "</s>"], show_progress=False)
    backend.train_from_iterator(TRAINING, trainer)
    return backend


def prefixed_byte_bpe() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TRAINING, trainer)
    return backend


def normalizing_byte_bpe() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(BPE.to_json())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    return backend


FOREIGN = {
    "WordPiece": (word_piece, "[SEP]", "the end"),
    "Unigram": (unigram, "</s>", "The end!!"),
    "Metaspace BPE": (metaspace_bpe, "</s>", "The end!!"),
    "normalizing byte BPE": (normalizing_byte_bpe, END_OF_TEXT, "The end!!"),
    "prefixed byte BPE": (prefixed_byte_bpe, END_OF_TEXT, " The end!!"),
}


@pytest.mark.parametrize(("build", "end", "text"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_tokenizer_json_is_read_by_path_and_encodes_as_its_library_does(
    tmp_path: Path, build: Callable[[], tokenizers.Tokenizer], end: str, text: str
) -> None:
    backend = build()
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str(), encoding="utf-8")
    tokenizer = make_tokenizer(str(path), [], 2)
    assert tokenizer.vocab_size == backend.get_vocab_size()
    assert tokenizer.end_id == backend.token_to_id(end)
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text.strip()
    for sample in (*TRAINING, "", "\n\nThe fox", "x\ny"):
        expected = backend.encode(sample, add_special_tokens=False).ids
        # Spelled special tokens are text to us: compare where there are none.
        if END_OF_TEXT not in sample:
            with small_pieces():
                assert tokenizer.encode(sample) == expected
        assert all(0 <= id < tokenizer.vocab_size for id in tokenizer.encode(sample))
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode(text) == tokenizer.encode(text)
    # These tokenizers forget some spaces; what they do keep is counted, but for a space before the first word.
    kept = "the end of the fox"
    counted = tokenizer.bytes_per_token()[tokenizer.encode(kept)].sum().item()
    assert counted - len(tokenizer.decode(tokenizer.encode(kept)).encode()) in (0, 1)


@pytest.mark.parametrize("spoil", ["truncation", "padding"])
def test_truncation_and_padding_of_a_foreign_tokenizer_are_not_applied(tmp_path: Path, spoil: str) -> None:
    backend = word_piece()
    expected = backend.encode("the end the end", add_special_tokens=False).ids
    if spoil == "truncation":
        backend.enable_truncation(2)
    else:
        backend.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str(), encoding="utf-8")
    assert make_tokenizer(str(path), [], 2).encode("the end the end") == expected


def fusing() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.BPE(vocab={"?": 0, "a": 1}, merges=[], unk_token="?", fuse_unk=True))


def with_added_words() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(BPE.to_json())
    backend.add_tokens(["d\nf", "abab"])
    return backend


def with_added_words_and_no_merges() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(CHAR.to_json())
    backend.add_tokens(["abab"])
    return backend


@pytest.mark.parametrize(
    ("build", "text"),
    [(fusing, "axxxxa"), (with_added_words, "bad\nfox"), (with_added_words_and_no_merges, "aababb")],
    ids=["fuse_unk", "added token across lines", "added token"],
)
def test_a_foreign_tokenizer_is_cut_only_where_no_token_can_change(
    build: Callable[[], tokenizers.Tokenizer], text: str
) -> None:
    tokenizer = Tokenizer(build())
    with small_pieces():
        assert tokenizer.encode(text) == at_once(tokenizer, text)


def test_bytes_of_an_added_word_are_counted_as_utf8() -> None:
    backend = tokenizers.Tokenizer.from_str(BPE.to_json())
    backend.add_tokens(["漢漢"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("漢漢")
    assert tokenizer.decode(ids) == "漢漢"
    assert int(tokenizer.bytes_per_token()[ids].sum()) == len("漢漢".encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe{}"], ids=ascii)
def test_a_broken_tokenizer_json_is_a_user_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.json"):
        make_tokenizer(str(path), [], 300)


def test_a_tokenizer_json_may_be_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BPE.to_json(), encoding="utf-8")
    assert make_tokenizer(str(tmp_path), [], 2).to_json() == BPE.to_json()
    assert make_tokenizer(f"{tmp_path}/", [], 2).to_json() == BPE.to_json()


def test_a_folder_without_a_tokenizer_json_is_a_user_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"tokenizer = {str(tmp_path)!r}: must be ") + r".*tokenizer\.json"):
        make_tokenizer(str(tmp_path), [], 2)


@pytest.mark.parametrize("name", ["bpee", "no/such/tokenizer.json"])
def test_an_unknown_tokenizer_is_a_user_error_that_names_value_and_choices(name: str) -> None:
    with pytest.raises(UserError, match=f"tokenizer = '{name}': must be bpe, char, byte or the path"):
        make_tokenizer(name, [], 300)


def test_json_that_is_no_tokenizer_names_where_it_came_from() -> None:
    with pytest.raises(UserError, match="my model is not a Hugging Face tokenizer"):
        Tokenizer.from_json("nonsense", "my model")


def test_a_tokenizer_without_an_end_token_says_so_and_encodes() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.end_id is None
    assert tokenizer.encode("a b") == [0, 1]


def test_a_tokenizer_that_cannot_encode_a_text_says_so() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="?")))
    with pytest.raises(UserError, match="cannot encode this text"):
        tokenizer.encode("c")
