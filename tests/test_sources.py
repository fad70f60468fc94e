"""Laws of the text that comes in: whatever names it, its documents come out unchanged, as often as wanted."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.config import UserError
from slm.data import sources
from slm.data.formats import Counts
from slm.data.manifest import FORMAT
from slm.data.sources import Corpus, read_corpus, read_texts
from slm.data.survey import take_survey
from slm.storage.files import MissingError
from slm.storage.listing import FileInfo

DOCUMENTS = st.lists(st.text(max_size=30), max_size=6)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def read(corpus: Corpus, counts: Counts | None = None) -> list[str]:
    """All documents of a corpus, whole."""
    found, parts = [], []
    for part in range(corpus.num_parts):
        for chunk in corpus.chunks(part, Counts() if counts is None else counts):
            parts.append(chunk.text)
            if chunk.ends:
                found.append("".join(parts))
                parts = []
    assert not parts
    return found


# Names of files.


@pytest.mark.parametrize("text", ["one\rtwo\n\n", " \t", "é漢😀e\u0301", "\ufffd", "\ufeff"], ids=ascii)
def test_a_file_is_one_document_with_every_character_kept(text: str) -> None:
    corpus = read_corpus(write("a.txt", text.encode("utf-8-sig")))
    assert read(corpus) == read(corpus) == [text]
    assert (corpus.name, corpus.num_parts, corpus.aligned) == ("a.txt", 1, False)
    assert corpus.stored_bytes == len(text.encode()) + 3


def test_several_sources_are_read_one_after_the_other_and_no_file_twice(here: Path) -> None:
    write("d/a.txt", "a")
    write("d/e/b.py", "b")
    write("c.jsonl", '{"body": "c"}\n{"body": "d"}')
    corpus = read_corpus(("c.jsonl", "d/a.txt", "d", str(here / "c.jsonl"), "d/**/*.py"), text_field="body")
    counts = Counts()
    assert read(corpus, counts) == ["c", "d", "a", "b"]
    assert corpus.num_parts == counts.files == 3
    assert corpus.stored_bytes == counts.stored_bytes == 29
    assert corpus.name == "5 sources: c.jsonl, d/a.txt, d, ..."


def test_a_folder_skips_what_a_name_would_make_an_error() -> None:
    write("d/a.txt", "a")
    write("d/b.png", b"\x89PNG\0")
    write("d/c.csv", "no,header\n")
    counts = Counts()
    assert read(read_corpus("d"), counts) == read(read_corpus("d/*")) == ["a"]
    assert counts.skipped == {"file of binary data": [1, "b.png"], "file without field 'text'": [1, "c.csv"]}
    for name in ("d/b.png", "d/c.csv"):
        with pytest.raises(UserError, match=r"not text|no field"):
            read(read_corpus(("d", name))) and read(read_corpus(name))


def test_documents_are_split_where_asked() -> None:
    assert read(read_corpus(write("a.txt", "a\r\n---\r\nb\n"), split_documents_on="---")) == ["a", "b"]


def test_the_key_changes_with_the_file_and_not_with_the_way_to_name_it(here: Path) -> None:
    write("d/a.txt", "a")
    key = read_corpus("d/a.txt").key
    assert key == read_corpus(str(here / "d" / "a.txt")).key
    # What a file named itself must hold, a folder may skip: the two are not the same request.
    assert key != read_corpus("d").key == read_corpus("d/../d/*").key
    assert json.loads(json.dumps(key)) == key
    assert key is not None
    assert key[0][:2] == [str(here / "d" / "a.txt"), 1]
    write("d/a.txt", "ab")
    assert read_corpus("d/a.txt").key != key


def test_a_remote_file_without_a_stamp_is_known_by_its_content_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stamp, known in (("7", True), ("", False)):
        found = [FileInfo("https://host/a.txt", 3, stamp)]
        monkeypatch.setattr(sources.listing, "find", lambda name, found=found: found)
        assert (read_corpus("https://host/a.txt").key is not None) == known


def test_prepared_data_is_no_text() -> None:
    write("notes/a.txt", "text")
    before = read_corpus("notes").key
    write("notes/done/manifest.json", json.dumps({"format": FORMAT}))
    write("notes/half/progress.json", json.dumps({"format": FORMAT}))
    for folder in ("done", "half", "mine"):
        write(f"notes/{folder}/train-00000.bin", "ab")
        write(f"notes/{folder}/tokenizer.json", "{}")
    for name in ("manifest", "progress"):
        write(f"notes/mine/{name}.json", '{"chapter": 3}')
    corpus = read_corpus("notes")
    texts = [chunk.text for part in range(corpus.num_parts) for chunk in corpus.chunks(part, Counts())]
    assert texts == ["text", '{"chapter": 3}', '{"chapter": 3}', "{}"]
    assert [os.path.normpath(folder) for folder in corpus.left_out] == ["notes/done", "notes/half"]
    counts = take_survey(corpus, characters=False, on_progress=lambda done: None).counts
    assert counts.skipped["folder that slm-prepare made"][0] == 2
    for names in (("notes/done", "notes/a.txt"), ("notes/half/",)):
        with pytest.raises(UserError, match=r"slm-prepare made.*only slm-train takes it, as its only --data"):
            read_corpus(names)
    shutil.rmtree("notes/mine")
    write("notes/half/more.txt", "more")
    assert [part.path for part in read_corpus("notes").parts] == [
        os.path.abspath(f"notes/{name}") for name in ("a.txt", "half/more.txt")
    ]
    os.remove("notes/half/more.txt")
    assert read_corpus("notes").key == before


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UserError, match="is not Unicode"):
        read_corpus("a\udcff.txt")


def test_nothing_is_read_before_it_is_asked_for() -> None:
    corpus = read_corpus((write("a.txt.gz", b"no gzip"), write("b.jsonl", "")))
    with pytest.raises(UserError, match="damaged"):
        next(corpus.chunks(0, Counts()))


@pytest.mark.parametrize("name", ["nothing.txt", "nothing/*.txt", "memory://nothing/a.txt"])
def test_a_missing_file_leads_to_the_other_meanings_of_a_name(name: str) -> None:
    with pytest.raises(
        MissingError, match=r"nothing.*Built-in corpora are dummy, python, stories\. In Python, literal"
    ):
        read_corpus(("python", name))


def test_a_list_of_texts_with_the_name_of_a_file_is_a_mistake() -> None:
    for name in ("a.txt", "b.txt"):
        write(name, "text")
    for names in (["a.txt"], ("a.txt", "b.txt"), ["a text", "a.txt"], [Path("a.txt"), "a text"]):
        with pytest.raises(UserError, match=r"val_data is a list.*path objects only, \[Path\('a\.txt'\), \.\.\.\]"):
            read_texts(names, "val_data")
    assert read_texts(["a.txt"] * 101).num_parts == 1


@pytest.mark.parametrize("text", ["two\nlines", "word " * 300])
def test_a_text_given_as_a_name_is_told_to_go_in_a_list(text: str) -> None:
    for source in (text, ("a.txt", text)):
        write("a.txt", "a")
        with pytest.raises(UserError, match=r"is a text, not a path: literal text goes in a list, \[text\]"):
            read_corpus(source)


def test_what_is_no_source_is_refused() -> None:
    write("a.txt", "a")
    with pytest.raises(UserError, match="random tokens"):
        read_corpus(("a.txt", "dummy"))
    with pytest.raises(UserError, match="data is empty"):
        read_corpus(())
    with pytest.raises(UserError, match="data names 3, a int"):
        read_corpus(["a.txt", 3])  # type: ignore[list-item]


def test_token_ids_and_text_do_not_mix() -> None:
    write("d/a.txt", "a")
    write("d/ids.npy", "")
    write("packed/ids.bin.gz", "")
    counts = Counts()
    corpus = read_corpus("d")  # a folder may hold anything
    texts = [chunk.text for part in range(corpus.num_parts) for chunk in corpus.chunks(part, counts)]
    assert "".join(texts) == "a"
    assert counts.skipped == {"file of token ids": [1, "ids.npy"]}
    with pytest.raises(UserError, match=r"ids.npy holds token ids and other sources hold text"):
        read_corpus(("d/ids.npy", "python"))
    with pytest.raises(UserError, match=r"ids.npy holds token ids, not text"):
        read_corpus("d/ids.npy")
    with pytest.raises(UserError, match="unpack it first"):
        read_corpus("packed")


# Built-in names.


def test_python_is_the_standard_library_one_document_a_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = here / "stdlib"
    for name in ("b.py", "a/c.py", "a/tests/t.py", "site-packages/s.py", "test/t.py", "a/data.txt", "a/idle_test/i.py"):
        write(f"stdlib/{name}", f"# {name}")
    write("stdlib/z.py", "# café".encode("latin-1"))
    write("stdlib/empty.py", "")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    corpus = read_corpus("python")
    counts = Counts()
    assert read(corpus, counts) == read(corpus) == ["# a/c.py", "# b.py", "# caf\ufffd"]
    assert (counts.files, counts.empty_documents, counts.undecodable_file) == (4, 1, "z.py")
    assert corpus.stored_bytes == counts.stored_bytes == 20
    assert (corpus.name, corpus.num_parts, corpus.aligned) == ("python (standard library sources)", 1, False)
    key = corpus.key
    assert json.loads(json.dumps(key)) == key == read_corpus(("python", "python")).key
    write("stdlib/new.py", "new")
    assert read_corpus("python").key != key


def test_the_real_standard_library_is_found() -> None:
    corpus = read_corpus("python")
    assert corpus.stored_bytes is not None
    assert corpus.stored_bytes > 1_000_000
    assert len(next(corpus.chunks(0, Counts())).text) > 0


def test_a_python_without_sources_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(here)})
    with pytest.raises(UserError, match="no sources in"):
        read_corpus("python")


class Told(NamedTuple):
    text: str
    bits: float


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar of numbered stories in place of the real one."""

    def stories(seed: int, num_bytes: int) -> Iterator[Told]:
        yield from (Told(f"story {seed} {index}", index / 2) for index in range(num_bytes // 9))

    module = types.ModuleType("slm.data.stories")
    vars(module).update(stories=stories, VERSION=7)
    monkeypatch.setitem(sys.modules, "slm.data.stories", module)


def test_stories_are_documents_that_know_their_entropy(told: None) -> None:
    corpus = read_corpus("stories:0.09KB")
    counts = Counts()
    assert [tuple(chunk) for chunk in corpus.chunks(0, counts)] == [
        (f"story 0 {index}", True, index / 2) for index in range(10)
    ]
    assert (counts.documents, counts.num_bytes, counts.stored_bytes) == (10, 90, 90)
    assert (corpus.key, corpus.stored_bytes, corpus.num_parts) == ([["stories", 90, 7]], 90, 1)
    assert corpus.aligned
    assert corpus.name == "stories (90 bytes from a grammar)"


@pytest.mark.parametrize(
    ("name", "size"), [("stories", 10_000_000), ("stories:50MB", 50_000_000), ("stories:1.5gb", 1_500_000_000)]
)
def test_the_size_of_the_stories_is_part_of_their_name(told: None, name: str, size: int) -> None:
    assert read_corpus(name).stored_bytes == size


@pytest.mark.parametrize("size", ["", "50", "MB", "-1MB", "0KB", "1TB", "nan MB", "1e3MB"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UserError, match=r"must be above 0 and in KB, MB or GB: stories:50MB"):
        read_corpus(f"stories:{size}")


def test_stories_beside_other_text_are_not_aligned(told: None) -> None:
    corpus = read_corpus(("stories:1KB", write("a.txt", "a")))
    assert not corpus.aligned
    assert read(corpus)[-1] == "a"
    assert read_corpus(("stories:1KB", "stories:2KB")).aligned


def test_the_real_stories_are_told() -> None:
    story = next(read_corpus("stories:2KB").chunks(0, Counts()))
    assert story.ends
    assert 50 < story.bits < len(story.text)


# Texts from Python.


class Column:
    """A column of a table: iterable again and again, and no list."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


@given(DOCUMENTS.filter(any), st.sampled_from([list, tuple, iter, Column, lambda texts: (text for text in texts)]))
def test_texts_are_documents_whatever_holds_them(texts: list[str], kind: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART_CHARS", 4)
        corpus = read_texts(kind(texts))
        counts = Counts()
        assert read(corpus, counts) == read(corpus) == [text for text in texts if text]
    assert counts.documents + counts.empty_documents == len(texts)
    assert counts.num_bytes == sum(len(text.encode()) for text in texts)
    assert (corpus.name, corpus.key, corpus.stored_bytes) == ("text given in Python", None, None)
    assert (corpus.num_parts, corpus.aligned) == (1, False)


def test_two_readings_of_a_generator_do_not_disturb_each_other() -> None:
    corpus = read_texts(str(index) for index in range(5))
    pairs = zip(corpus.chunks(0, Counts()), corpus.chunks(0, Counts()), strict=True)
    assert [(one.text, other.text) for one, other in pairs] == [(str(index), str(index)) for index in range(5)]


def test_the_file_of_a_generator_goes_with_the_corpus() -> None:
    corpus = read_texts(iter(["a"]))
    file = corpus.parts[0]._file  # type: ignore[attr-defined]
    assert not file.closed
    del corpus
    gc.collect()
    assert file.closed


@pytest.mark.parametrize("texts", [[], [""], iter([]), (), iter(["", ""])])
def test_no_text_at_all_is_an_error(texts: Iterable[str]) -> None:
    with pytest.raises(UserError, match="text given in Python is empty"):
        read_texts(texts)


class Table:
    """What a data frame looks like: iterating gives the names of its columns."""

    columns = ("id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a path", r"data = 'a path': a str names a path; literal text goes in a list"),
        (b"bytes", r"data = b'bytes' is bytes: decode it"),
        (7, "data = 7: must be a path, URL, built-in name, or a list of str"),
        ({"id": [1], "text": ["a"]}, r"data is a dict of id, text, not a list of texts: .* data\['text'\]"),
        ({"train": [], "test": []}, r"data\['train'\]"),
        (Table(), r"data is a Table of id, text, not a list of texts: .* data\['text'\]"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_texts(texts)


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "text 1 of data is a int: data must be a path, URL"),
        (None, "text 1 of data is a NoneType"),
        (b"x", r"text 1 of data is a bytes: decode it first"),
        ({"id": 1, "text": "a"}, r"text 1 of data is a dict: its fields are id, text; .* data\['text'\]"),
        ("\ud800", "text 1 of data is not Unicode: .* at position 0 is half a surrogate pair"),
    ],
)
def test_an_item_that_is_no_text_is_named_by_its_index(kind: Any, item: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(read_texts(kind(["a", item])))
