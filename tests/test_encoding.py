"""Laws of encoding: the prepared tokens are those of the text, whatever the sizes of its parts, pieces and batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from slm.config import DataConfig
from slm.data import encoding, sources, survey
from slm.data import tokenizer as tokenizer_module
from slm.data.counts import Counts
from slm.data.encoding import Place, pieces
from slm.data.prepare import Job
from slm.data.shards import Prepared
from slm.data.sources import read_texts
from slm.data.survey import Split, share
from slm.data.tokenizer import Tokenizer, byte_tokenizer

LETTERS = st.sampled_from(["a", "b", "the ", " cat", "\n", "\n\n", "  ", "\u00e9", "\U0001f600", "\u3000", "1", "'s"])
DOCUMENTS = st.lists(st.lists(LETTERS, min_size=1, max_size=12).map("".join), min_size=1, max_size=12)


def made(texts: list[str], *, aligned: bool = False, **keys: Any) -> Prepared:
    job = Job(DataConfig(**keys), texts, vocab_size=280, on_progress=lambda *_: None)
    job.corpus = dataclasses.replace(job.corpus, aligned=aligned)
    return job.run()


def parts_of(texts: list[str], val_fraction: float) -> list[list[str]]:
    """The documents of training and of validation, by the rule as the documentation tells it."""
    held_out = [share(text) < val_fraction for text in texts]
    if len(texts) >= survey.FEWEST_DOCUMENTS and any(held_out):
        return [[text for text, out in zip(texts, held_out, strict=True) if out == val] for val in (False, True)]
    train, val = [], []
    left = int(len("".join(texts)) * (1 - val_fraction))
    for text in texts:
        train.append(text[:left])
        val.append(text[left:])
        left = max(left - len(text), 0)
    return [[text for text in part if text] for part in (train, val)]


def joined(texts: list[str], tokenizer: Tokenizer, *, bracketed: bool) -> list[int]:
    """end_id exactly between the documents, and around all of them where they are bracketed."""
    end = [] if tokenizer.end_id is None else [tokenizer.end_id]
    rows = [tokenizer.encode(text) for text in texts]
    ids = [id for number, row in enumerate(rows) for id in [*(end if number or bracketed else []), *row]]
    return ids + (end if bracketed and rows else [])


@pytest.mark.parametrize("name", ["bpe", "char", "byte"])
@settings(deadline=None, max_examples=60)
@given(
    texts=DOCUMENTS,
    val_fraction=st.sampled_from([0.1, 0.5, 0.9]),
    aligned=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 20)] * 5),
)
def test_the_tokens_are_those_of_the_text(
    name: str, texts: list[str], val_fraction: float, aligned: bool, sizes: tuple[int, ...]
) -> None:
    part, hashed, piece, batch_chars, batch_pieces = sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "FEWEST_DOCUMENTS", 4)
        patch.setattr(survey, "HASHED_CHARS", min(part, hashed))
        patch.setattr(sources, "PART_CHARS", part)
        patch.setattr(tokenizer_module, "_PIECE_CHARS", piece)
        patch.setattr(encoding, "_BATCH_CHARS", batch_chars)
        patch.setattr(encoding, "_BATCH_PIECES", batch_pieces)
        prepared = made(texts, aligned=aligned, tokenizer=name, val_fraction=val_fraction)
        parts = parts_of(texts, val_fraction)
    rows = [joined(part, prepared.tokenizer, bracketed=aligned) for part in parts]
    assert [prepared.train[:].tolist(), prepared.val[:].tolist()] == rows
    assert prepared.about["tokens"] == [len(row) for row in rows]
    assert prepared.about["documents"] == [len(part) for part in parts]
    assert prepared.about["start_id"] == (prepared.tokenizer.end_id if aligned else None)


def test_at_a_cut_within_a_document_there_is_no_separator() -> None:
    prepared = made(["abcdefgh"], tokenizer="char", val_fraction=0.25)
    assert prepared.tokenizer.decode(prepared.train[:].tolist()) == "abcdef"
    assert prepared.tokenizer.decode(prepared.val[:].tolist()) == "gh"
    assert prepared.tokenizer.end_id not in [*prepared.train[:], *prepared.val[:]]


def test_a_tokenizer_without_safe_cuts_has_work_for_all_threads() -> None:
    backend = word_level({"?": 0, "the": 1})
    split = Split(cut=2**40)
    source = pieces(read_texts(["the " * 2**19]), split, backend, [2**21], Place(), Counts())
    assert min(map(len, encoding._batches(source))) >= 8


def word_level(words: dict[str, int]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def test_without_an_end_token_documents_follow_each_other(tmp_path: Any) -> None:
    words = {"<unk>": 0, "a": 1, "b": 2}
    (tmp_path / "tokenizer.json").write_text(word_level(words).to_json())
    for aligned in (False, True):
        prepared = made(["a b"] * 10, tokenizer=str(tmp_path), aligned=aligned)
        assert prepared.about["tokens"] == [18, 2]
        assert prepared.train[:].tolist() == [1, 2] * 9
        assert prepared.about["start_id"] is None


def test_a_document_that_gives_no_token_keeps_its_border(tmp_path: Any) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    (tmp_path / "text.txt").write_text("??|a|??|a")
    config = DataConfig(
        data=(str(tmp_path / "text.txt"),),
        split_documents_on="|",
        val_data=(str(tmp_path / "none.txt"),),
        tokenizer=str(tmp_path),
    )
    (tmp_path / "none.txt").write_text("???")
    for out in (None, str(tmp_path / "out")):
        prepared = Job(config, None, vocab_size=280, out=out, on_progress=lambda *_: None).run()
        assert prepared.train[:].tolist() == [1, 0, 1, 1, 0]
        assert len(prepared.val) == 0


@pytest.mark.parametrize("by_hash", [False, True])
def test_from_any_place_on_the_same_pieces_follow(monkeypatch: pytest.MonkeyPatch, by_hash: bool) -> None:
    monkeypatch.setattr(tokenizer_module, "_PIECE_CHARS", 8)
    monkeypatch.setattr(sources, "PART_CHARS", 10)
    texts = [f"{number} " + "word and word " * (number % 4) for number in range(12)]
    several = tuple(read_texts(texts[start : start + 4]).parts[0] for start in (0, 4, 8))
    corpus = sources.Corpus("several", several)
    part_chars = [sum(map(len, texts[start : start + 4])) for start in (0, 4, 8)]
    split = Split(0.5, by_hash=True) if by_hash else Split(0.5, cut=sum(part_chars) // 2)
    of_all = list(pieces(corpus, split, byte_tokenizer(), part_chars, Place(), Counts()))
    assert "".join(piece.text for piece in of_all) == "".join(texts)
    assert {piece.where for piece in of_all} == {0, 1}
    for number, piece in enumerate(of_all, 1):
        assert list(pieces(corpus, split, byte_tokenizer(), part_chars, piece.place, Counts())) == of_all[number:]


def test_ids_are_appended_as_they_come() -> None:
    class Seen(encoding.Rows):
        def write(self, where: int, ids: encoding.Ids) -> None:
            seen.append((where, ids.dtype, ids.tolist()))

    seen: list[Any] = []
    rows = Seen(9, bracketed=False, most_counted=0)
    ids = np.array([5, 70_000], dtype=np.uint32)
    batch = [(encoding.Piece(where, "x", True, 0.0, Place()), ids) for where in (0, 1, 0)]
    rows.add(batch)
    rows.finish()
    assert seen == [(0, np.uint32, [5, 70_000, 9, 5, 70_000]), (1, np.uint32, [5, 70_000])]
    assert (rows.tokens, rows.documents) == ([5, 2], [2, 1])
