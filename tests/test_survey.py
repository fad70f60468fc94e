"""Laws of the first reading: which text validates, what the sample holds, and what tells one text from another."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import formats, sources, survey
from slm.data.counts import Counts
from slm.data.sources import Corpus, read_corpus, read_texts
from slm.data.survey import TRAIN, VAL, Split, Survey, share, take_survey

TEXTS = st.lists(st.text("ab\n\u00e4\U0001f600", min_size=1, max_size=20), min_size=1, max_size=12)


def surveyed(corpus: Corpus | Iterable[str], *, characters: bool = False) -> Survey:
    corpus = corpus if isinstance(corpus, Corpus) else read_texts(corpus)
    return take_survey(corpus, characters=characters, on_progress=lambda done: None)


def split_of(corpus: Corpus | Iterable[str], split: Split) -> tuple[list[str], list[str]]:
    """The documents of training and of validation."""
    corpus = corpus if isinstance(corpus, Corpus) else read_texts(corpus)
    documents: tuple[list[str], list[str]] = ([], [])
    position, held = 0, ""
    for part in range(corpus.num_parts):
        chunks = list(corpus.chunks(part, Counts()))
        for span in split.spans(iter(chunks), position):
            held += span.text
            if span.ends:
                documents[span.where].append(held)
                held = ""
        position += sum(len(chunk.text) for chunk in chunks)
    assert held == ""
    return documents


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents come in parts of 8 characters, of which the first alone is hashed."""
    monkeypatch.setattr(sources, "PART_CHARS", 8)
    monkeypatch.setattr(survey, "HASHED_CHARS", 8)


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"document {number}" for number in range(first, first + count)]


@pytest.mark.parametrize("count", [99, 100])
def test_whole_documents_are_held_out_from_100_on_and_the_end_below(count: int) -> None:
    found = surveyed(numbered(count))
    assert found.split(0.1) == (
        Split(0.1, by_hash=True) if count == 100 else Split(0.1, cut=int(found.num_chars * 0.9))
    )


def test_where_the_hash_would_hold_out_no_document_it_is_the_end() -> None:
    found = surveyed(numbered(100))
    smallest = min(map(share, numbered(100)))
    assert found.split(smallest) == Split(smallest, cut=int(found.num_chars * (1 - smallest)))
    assert found.split(smallest * 1.001).by_hash
    assert len(split_of(numbered(100), found.split(smallest * 1.001))[VAL]) == 1


@settings(deadline=None)
@given(texts=TEXTS, val_fraction=st.floats(0.01, 0.99))
def test_a_cut_leaves_the_end_of_the_text_and_loses_no_character(texts: list[str], val_fraction: float) -> None:
    whole = "".join(texts)
    cut = int(len(whole) * (1 - val_fraction))
    train, val = split_of(texts, surveyed(texts).split(val_fraction))
    assert ("".join(train), "".join(val)) == (whole[:cut], whole[cut:])
    assert len(train) + len(val) - len(texts) in (0, 1)  # one document at most is cut in two


@pytest.mark.usefixtures("short_parts")
@settings(deadline=None)
@given(texts=TEXTS, val_fraction=st.floats(0.01, 0.99))
def test_by_hash_every_document_stays_whole_and_its_copies_with_it(texts: list[str], val_fraction: float) -> None:
    train, val = split_of([*texts, *reversed(texts)], Split(val_fraction, by_hash=True))
    assert sorted(train + val) == sorted(texts * 2)
    assert not set(train) & set(val)


@pytest.mark.parametrize("val_fraction", [0.02, 0.1, 0.5])
def test_the_share_of_documents_is_close_to_what_was_asked(val_fraction: float) -> None:
    train, val = split_of(numbered(4000), Split(val_fraction, by_hash=True))
    assert len(val) / (len(train) + len(val)) == pytest.approx(val_fraction, rel=0.15)


def test_more_documents_move_none_and_a_larger_share_takes_none_back() -> None:
    split = Split(0.2, by_hash=True)
    before, after = (split_of(texts, split) for texts in (numbered(300), numbered(200, 1000) + numbered(300)))
    assert set(before[TRAIN]) <= set(after[TRAIN])
    assert set(before[VAL]) <= set(after[VAL])
    assert set(before[VAL]) < set(split_of(numbered(300), Split(0.4, by_hash=True))[VAL])


def test_a_long_document_has_one_split_in_every_format(tmp_path: Path) -> None:
    texts = [f"{number} " + "word " * 60_000 for number in range(8)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    paths = [tmp_path / f"{number}.txt" for number in range(8)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress("<|>".join(texts).encode()))
    split = Split(0.5, by_hash=True)
    expected = split_of(texts, split)
    assert all(expected)
    assert split_of(read_corpus(str(tmp_path / "table.jsonl")), split) == expected
    assert split_of(read_corpus([str(path) for path in paths]), split) == expected
    assert split_of(read_corpus(str(tmp_path / "packed.txt.gz"), split_documents_on="<|>"), split) == expected


def test_the_first_part_of_a_document_is_long_enough_to_be_hashed() -> None:
    assert min(formats.MIN_PART_CHARS, formats.PART_CHARS, sources.PART_CHARS) >= survey.HASHED_CHARS
    assert share("a" * survey.HASHED_CHARS) == share("a" * survey.HASHED_CHARS + "b") != share("a")


@settings(deadline=None)
@given(texts=TEXTS)
def test_counts_are_those_of_the_text(texts: list[str]) -> None:
    found = surveyed([*texts, ""], characters=True)
    whole = "".join(texts)
    assert (found.num_chars, found.part_chars) == (len(whole), [len(whole)])
    assert (found.counts.documents, found.counts.empty_documents) == (len(texts), 1)
    assert found.counts.num_bytes == len(whole.encode())
    assert found.characters == set(whole)


def test_each_file_has_its_number_of_characters(tmp_path: Path) -> None:
    for name, text in {"a.txt": "\u00e4bc", "b.txt": "", "c.txt": "de"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    told: list[int] = []
    found = take_survey(read_corpus(str(tmp_path)), characters=False, on_progress=told.append)
    assert found.part_chars == [3, 0, 2]
    assert told[-1] == 6
    assert found.characters == set()


def contents(*several: list[str]) -> set[str]:
    return {surveyed(texts).content for texts in several}


def test_the_content_differs_with_a_letter_a_border_and_the_order() -> None:
    several = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "d"], ["ab", "c", "c"], ["ab"], ["ab\xff", "c"]]
    assert len(contents(*several)) == len(several)
    assert len(contents(["ab", "c"], ["ab", "", "c"])) == 1


def test_the_content_is_that_of_the_text_wherever_it_lies_and_in_whatever_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a line\n" * 30_000
    expected = surveyed([text]).content
    for name, data in {"a.txt": text.encode(), "b/c.md.gz": gzip.compress(text.encode())}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        assert surveyed(read_corpus(str(tmp_path / name))).content == expected
    os.rename(tmp_path / "a.txt", tmp_path / "z.txt")
    assert surveyed(read_corpus(str(tmp_path / "z.txt"))).content == expected
    monkeypatch.setattr(sources, "PART_CHARS", 1000)
    assert surveyed([text]).content == expected


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLE_CHARS", 4000)
    monkeypatch.setattr(survey, "_SAMPLE_PIECE", 50)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("texts", [["x" * 100_000], ["x" * 30] * 3000, ["x"] * 20_000], ids=["one", "many", "letters"])
def test_the_sample_is_bounded_whatever_the_documents(texts: list[str]) -> None:
    found = surveyed(texts)
    assert found.sample.size <= 2 * survey.SAMPLE_CHARS + 50 + 64
    sample = found.sample_of_training(Split())
    assert sum(map(len, sample)) <= survey.SAMPLE_CHARS
    assert len(sample) > 20
    assert surveyed(texts).sample_of_training(Split()) == sample


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("count", [180, 300, 5000])
def test_the_sample_is_evenly_spread_also_over_documents_of_two_kinds_in_turn(count: int) -> None:
    texts = [f"{number:05} {'even' if number % 2 == 0 else 'odd'} {'x' * 30}" for number in range(count)]
    sample = surveyed(texts).sample_of_training(Split())
    places = [int(text[:5]) for text in sample]
    assert places == sorted(places)
    steps = [after - before for before, after in zip([0, *places], [*places, count], strict=True)]
    assert max(steps) < 5 * count / len(places)
    assert 0.3 < sum("even" in text for text in sample) / len(sample) < 0.7


def test_a_text_smaller_than_the_sample_is_all_of_it() -> None:
    texts = numbered(300)
    assert surveyed(texts).sample_of_training(Split()) == texts


@pytest.mark.usefixtures("small_sample", "short_parts")
@pytest.mark.parametrize("split", [Split(0.3, by_hash=True), Split(0.3, cut=9000)], ids=["hash", "cut"])
def test_the_sample_has_no_text_of_the_validation_part(split: Split) -> None:
    texts = [f"{number:04} " + "x" * (number % 40) for number in range(600)]
    train, val = split_of(texts, split)
    sample = surveyed(texts).sample_of_training(split)
    assert all(map(len, (train, val)))
    # A document comes in parts of 8 characters, of which the first alone has its number.
    in_sample = {text[:4] for text in sample if text[4:5] == " "}
    assert in_sample
    assert in_sample <= {text[:4] for text in train}


def test_only_what_a_cut_leaves_whole_keeps_its_bits() -> None:
    chunks = [formats.Chunk("abcd", True, 4.0), formats.Chunk("efgh", True, 5.0), formats.Chunk("ij", True, 6.0)]
    spans = list(Split(cut=6).spans(iter(chunks), 0))
    assert [(span.where, span.text, span.bits) for span in spans] == [
        (TRAIN, "abcd", 4.0),
        (TRAIN, "ef", 0.0),
        (VAL, "gh", 0.0),
        (VAL, "ij", 6.0),
    ]


def test_the_two_readings_of_a_corpus_agree_on_every_split() -> None:
    texts = numbered(400)
    corpus = dataclasses.replace(read_texts(texts), aligned=True)
    for val_fraction in (0.1, 0.5):
        train, val = split_of(corpus, surveyed(corpus).split(val_fraction))
        assert surveyed(corpus).sample_of_training(surveyed(corpus).split(val_fraction)) == train
        assert len(train) + len(val) == 400
