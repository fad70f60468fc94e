"""Laws of the text that comes in: files, URLs, lists and the built-in corpus become documents unchanged."""

from __future__ import annotations

import sysconfig
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import UserError
from slm.data.sources import Corpus, python_sources, read_corpus

DOCUMENTS = st.lists(st.text(max_size=30), max_size=6)


def write(folder: Path, content: bytes) -> str:
    path = folder / "text.txt"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("text", ["one\r\ntwo\rthree\n\n", " \t", "é漢😀e\u0301", "a\x00b", "\ufffd"], ids=ascii)
def test_a_file_is_one_document_with_every_character_kept(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text.encode())
    corpus = read_corpus(path)
    assert corpus.documents == [text]
    assert corpus.name == path
    assert corpus.num_bytes == len(text.encode())


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_corpus(write(tmp_path, b"\xef\xbb\xbfabc\r\n")).documents == ["abc\r\n"]


def test_only_the_first_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read_corpus(write(tmp_path, b"\xef\xbb\xbf\xef\xbb\xbfabc")).documents == ["\ufeffabc"]


@pytest.mark.parametrize(
    ("content", "byte", "position"),
    [
        (b"caf\xe9 au lait", "0xe9", 3),
        (b"\xff\xfea\x00", "0xff", 0),
        ("漢".encode() + b"\xc3", "0xc3", 3),
        (b"\xef\xbb\xbfabc\xff.", "0xff", 6),
    ],
    ids=ascii,
)
def test_text_that_is_not_utf8_is_refused_with_byte_position_and_cure(
    tmp_path: Path, content: bytes, byte: str, position: int
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"is not UTF-8 text: byte {byte} at position {position} ") as caught:
        read_corpus(path)
    assert str(caught.value).startswith(path)
    encoding = "utf-16" if content.startswith(b"\xff\xfe") else "latin1"
    assert f"iconv -f {encoding} -t utf-8 {path}" in str(caught.value)


def test_a_missing_file_is_told_how_to_pass_literal_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="literal text goes in a list") as caught:
        read_corpus(str(tmp_path / "nowhere.txt"))
    assert "nowhere.txt" in str(caught.value)
    assert "python" in str(caught.value)


def test_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=tmp_path.name):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=ascii)
def test_an_empty_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"text\.txt is empty"):
        read_corpus(write(tmp_path, content))


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ()], ids=repr)
def test_a_list_without_a_character_is_refused(texts: Any) -> None:
    with pytest.raises(UserError, match="is empty"):
        read_corpus(texts)


@pytest.mark.parametrize(
    ("texts", "index", "kind"),
    [([b"x"], 0, "bytes"), (["x", 3], 1, "int"), (["x", None], 1, "NoneType"), (b"x", 0, "int")],
)
def test_a_list_of_anything_but_str_is_refused_with_place_and_type(texts: Any, index: int, kind: str) -> None:
    with pytest.raises(UserError, match=f"text {index} of data is a {kind}"):
        read_corpus(texts)


@settings(deadline=None, max_examples=60)
@given(documents=DOCUMENTS.filter(any))
def test_a_list_or_generator_of_texts_is_its_documents(documents: list[str]) -> None:
    assert read_corpus(documents).documents == documents
    assert read_corpus(text for text in documents).documents == documents


def test_literal_text_in_a_list_may_look_like_a_path() -> None:
    assert read_corpus(["python"]).documents == ["python"]


@settings(deadline=None, max_examples=300)
@given(documents=DOCUMENTS, val_fraction=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_split_loses_nothing_and_keeps_the_end_for_validation(documents: list[str], val_fraction: float) -> None:
    train, val = Corpus("mine", documents).split(val_fraction)
    text = "".join(documents)
    held_out = "".join(val.documents)
    assert "".join(train.documents) + held_out == text
    assert abs(len(held_out) - val_fraction * len(text)) <= 1
    assert train.name == val.name == "mine"


@settings(deadline=None, max_examples=100)
@given(documents=DOCUMENTS, val_fraction=st.floats(0.01, 0.99))
def test_the_split_cuts_at_most_one_document(documents: list[str], val_fraction: float) -> None:
    train, val = Corpus("mine", documents).split(val_fraction)
    whole = [*train.documents, *val.documents]
    if whole != documents:
        cut = len(train.documents) - 1
        assert [*whole[:cut], whole[cut] + whole[cut + 1], *whole[cut + 2 :]] == documents
        assert whole[cut] and whole[cut + 1]


def test_splitting_leaves_the_corpus_as_it_was() -> None:
    corpus = Corpus("mine", ["abcdef", "gh"])
    corpus.split(0.5)
    assert corpus.documents == ["abcdef", "gh"]


@settings(deadline=None, max_examples=60)
@given(documents=DOCUMENTS)
def test_equal_documents_have_equal_fingerprints_whatever_their_name(documents: list[str]) -> None:
    assert Corpus("a", documents).fingerprint == Corpus("b", list(documents)).fingerprint


@settings(deadline=None, max_examples=100)
@given(one=DOCUMENTS, two=DOCUMENTS)
def test_different_documents_have_different_fingerprints(one: list[str], two: list[str]) -> None:
    assert (Corpus("a", one).fingerprint == Corpus("a", two).fingerprint) == (one == two)


@settings(deadline=None, max_examples=60)
@given(text=st.text(min_size=1, max_size=20), data=st.data())
def test_the_fingerprint_moves_with_a_document_boundary(text: str, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, len(text))) for _ in range(2))
    one, two = (Corpus("a", [text[:cut], text[cut:]]).fingerprint for cut in (first, second))
    assert (one == two) == (first == second)
    assert one != Corpus("a", [text]).fingerprint


def test_the_fingerprint_tells_the_order_of_documents() -> None:
    assert Corpus("a", ["x", "y"]).fingerprint != Corpus("a", ["y", "x"]).fingerprint


def test_the_built_in_python_sources_are_the_same_each_time() -> None:
    one, two = read_corpus("python"), read_corpus("python")
    assert len(one.documents) > 100
    assert all(one.documents)
    assert one.documents == two.documents
    assert one.fingerprint == two.fingerprint


def test_the_built_in_python_sources_come_by_path_without_tests_and_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "site-packages" / "tests" / "lib"  # where Python lies says nothing about what is in it
    kept = ["a.py", "b/__init__.py", "b/latest.py", "b/test_of_time.py", "c.py"]
    left = ["site-packages/p.py", "dist-packages/p.py", "test/t.py", "b/tests/t.py", "b/test/x/t.py", "notes.txt"]
    for name in [*reversed(kept), *left]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "empty.py").write_text("")
    (root / "latin.py").write_bytes(b"# caf\xe9")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    assert python_sources().documents == [*kept, "# caf\ufffd"]


def test_a_python_without_sources_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="python"):
        read_corpus("python")


def test_a_url_is_read_like_a_file() -> None:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/text.txt"
    with fsspec.open(url, "wb") as file:
        file.write(b"\xef\xbb\xbfone\r\ntwo \xe6\xbc\xa2")
    corpus = read_corpus(url)
    assert corpus.documents == ["one\r\ntwo 漢"]
    assert corpus.name == url
    with pytest.raises(FileNotFoundError, match="literal text goes in a list"):
        read_corpus(url + ".not")
