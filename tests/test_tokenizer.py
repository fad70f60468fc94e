"""Laws of tokenizers: text comes back as it was, in pieces or whole, and every byte is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def small_pieces(characters: int = 1, at_once: int = 2) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_CHARS", characters)
        patch.setattr(module, "_PIECES_AT_ONCE", at_once)
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
@given(text=TEXTS, characters=st.integers(1, 6), batch=st.integers(1, 3))
def test_encoding_in_pieces_equals_encoding_at_once(
    tokenizer: Tokenizer, text: str, characters: int, batch: int
) -> None:
    with small_pieces(characters, batch):
        assert tokenizer.encode(text) == at_once(tokenizer, text)
        assert tokenizer.encode_documents([text]).tolist() == at_once(tokenizer, text)


@ours
@settings(deadline=None, max_examples=50)
@given(text=TEXTS, characters=st.integers(1, 6))
def test_pieces_joined_are_the_text(tokenizer: Tokenizer, text: str, characters: int) -> None:
    with small_pieces(characters):
        pieces = list(module._pieces(text, tokenizer._cuts))
    assert "".join(pieces) == text
    assert all(pieces)


@ours
def test_long_text_is_really_cut_and_memory_bounded(tokenizer: Tokenizer) -> None:
    line = "the fox sees the hen and runs.\n"
    with small_pieces(100):
        pieces = list(module._pieces(line * 50, tokenizer._cuts))
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 100 + len(line)


@ours
@settings(deadline=None, max_examples=100)
@given(documents=st.lists(TEXTS.filter(bool), max_size=5), characters=st.integers(1, 20))
def test_the_end_token_stands_exactly_between_documents(
    tokenizer: Tokenizer, documents: list[str], characters: int
) -> None:
    with small_pieces(characters):
        ids = tokenizer.encode_documents(documents)
    assert ids.dtype == torch.int32
    assert ids.dim() == 1
    expected: list[int] = []
    for index, document in enumerate(documents):
        expected += [tokenizer.end_id] * (index > 0) + at_once(tokenizer, document)
    assert ids.tolist() == expected


@pytest.mark.parametrize(
    ("documents", "ends"),
    [
        (["a", "", "b"], 2),
        (["a", ""], 1),
        (["", "a"], 1),
    ],
)
def test_empty_documents_are_documents_too(documents: list[str], ends: int) -> None:
    assert BYTE.encode_documents(documents).tolist().count(BYTE.end_id) == ends


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


def test_bpe_training_does_not_depend_on_the_size_of_pieces() -> None:
    with small_pieces(1):
        assert train_bpe(TRAINING, 400).to_json() == BPE.to_json()


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


@pytest.mark.parametrize("name", ["bpee", "no/such/tokenizer.json"])
def test_an_unknown_tokenizer_is_a_user_error_that_names_value_and_choices(name: str) -> None:
    with pytest.raises(UserError, match=f"tokenizer = '{name}': must be bpe, char, byte or the path"):
        make_tokenizer(name, [], 300)


def test_json_that_is_no_tokenizer_names_where_it_came_from() -> None:
    with pytest.raises(UserError, match="my model is not a Hugging Face tokenizer"):
        Tokenizer.from_json("nonsense", "my model")


def test_a_tokenizer_without_an_end_token_puts_nothing_between_documents() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.end_id is None
    assert tokenizer.encode_documents(["a", "b"]).tolist() == [0, 1]
