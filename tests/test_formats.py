"""Laws of slm.data.formats: whatever the format, the packing and the size of blocks, documents come out unchanged."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slm.config import UserError
from slm.data import decoding, formats, tables
from slm.data.decoding import TextStream
from slm.data.formats import Chunk, Counts, documents, is_token_file, open_tokens
from slm.storage import files, listing
from slm.storage.files import StorageError

DOCUMENTS = ["one", "two\nlines é", "漢字 😀 e\u0301", ' "quoted", \\n', "a" * 60, "\ufffd is a letter", "\n\n", "last"]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


WRITE: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": lambda texts: "\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode(),
    ".ndjson": lambda texts: "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode(),
    ".csv": lambda texts: as_csv([["id", "text"], *([str(i), text] for i, text in enumerate(texts))]),
    ".txt": lambda texts: "\n|\n".join(texts).encode(),
    ".py": lambda texts: "|".join(texts).encode("utf-16"),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and parts so small that everything crosses their borders."""
    for name, size in {"BLOCK_BYTES": 7, "SNIFF_BYTES": 4, "_ZST_BYTES": 3, "_PACKED_BYTES": 5}.items():
        monkeypatch.setattr(decoding, name, size)
    for name, size in {"PART_CHARS": 11, "MIN_PART_CHARS": 5}.items():
        monkeypatch.setattr(formats, name, size)
    monkeypatch.setattr(tables, "PARQUET_ROWS", 2)


def write(folder: Path, name: str, data: bytes | str) -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def chunks(
    path: str, *, named: bool = True, text_field: str = "text", on: str | None = None, counts: Counts | None = None
) -> Iterator[Chunk]:
    (file,) = listing.find(path)
    counts = Counts() if counts is None else counts
    return documents(file, named=named, text_field=text_field, split_documents_on=on, counts=counts)


def joined(pieces: Any) -> list[str]:
    """Whole documents of chunks; every chunk has some text."""
    found, parts = [], []
    for text, ends, *_ in pieces:
        assert text
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def read(path: str, **how: Any) -> tuple[list[str], Counts]:
    counts = Counts()
    return joined(chunks(path, counts=counts, **how)), counts


# From bytes to text.

BITS = [
    b"a",
    b"\n",
    b"\r",
    b"\xff",
    b"\xe2\x82",
    b"\x80",
    "é".encode(),
    "😀".encode(),
    "\ufffd".encode(),
    b"\xed\xa0\x80",
]
BLOCKS = st.lists(st.lists(st.sampled_from(BITS), max_size=4).map(b"".join) | st.binary(min_size=1, max_size=3))


def misfits(data: bytes) -> int:
    """The bytes that a strict decoder stumbles over, one error after the other."""
    count = 0
    while True:
        try:
            data.decode()
            return count
        except UnicodeDecodeError as error:
            count += error.end - error.start
            data = data[error.end :]


@given(BLOCKS, st.integers(1, 9))
def test_blocks_decode_as_the_whole_does_and_misfits_are_counted_exactly(blocks: list[bytes], sniffed: int) -> None:
    data = b"a" + b"".join(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "SNIFF_BYTES", sniffed)
        stream = TextStream(block for block in [b"a", *blocks] if block)
        assert "".join(stream) == data.decode(errors="replace")
        assert stream.undecodable == misfits(data)
        stream = TextStream(block for block in [b"a", *blocks] if block)
        unix = "".join(stream.unix_lines())
        assert unix == data.decode(errors="replace").replace("\r\n", "\n")
        assert stream.has_crlf == (b"\r\n" in data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_tells_the_encoding_and_is_no_text(small: None, tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    text = "é漢😀\r\n\ufeff" * 9
    found, counts = read(write(tmp_path, "a.txt", (mark + text).encode(encoding)))
    assert found == [text.replace("\r\n", "\n")]
    assert (counts.byte_order_marks, counts.crlf_files, counts.undecodable_bytes) == (1, 1, 0)


def test_half_a_utf_16_character_is_counted(small: None, tmp_path: Path) -> None:
    found, counts = read(write(tmp_path, "a.txt", "\ufeffabcdefg".encode("utf-16-le") + b"\x00\xd8x\x00y"))
    assert found == ["abcdefg\ufffdx\ufffd"]
    assert counts.undecodable_bytes == 3


@given(st.lists(st.text("ab\n", max_size=5)), st.text("ab\n", min_size=1, max_size=4))
def test_a_separator_is_found_across_blocks(blocks: list[str], separator: str) -> None:
    found, part = [], ""
    for piece, ends in decoding.split(blocks, separator):
        part += piece
        if ends:
            found.append(part)
            part = ""
    assert part == ""
    assert found == "".join(blocks).split(separator)


@given(st.lists(st.text("a\n\r", min_size=1, max_size=6)))
def test_lines_are_found_across_blocks(blocks: list[str]) -> None:
    found = list(decoding.lines(blocks, 100, "x"))
    assert found == list(io.StringIO("".join(blocks), newline="\n"))


# From a file to documents.


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("ending", WRITE)
def test_every_format_gives_its_documents_however_it_is_packed(
    small: None, tmp_path: Path, ending: str, packing: str
) -> None:
    texts = [text.strip("\n") or "x" for text in DOCUMENTS] if ending in (".txt", ".py") else DOCUMENTS
    path = write(tmp_path, f"A{ending}{packing}".upper(), PACK[packing](WRITE[ending](texts)))
    found, counts = read(path, on="|")
    assert found == texts
    assert (counts.files, counts.documents) == (1, len(texts))
    assert counts.num_bytes == sum(len(text.encode()) for text in texts)
    assert counts.stored_bytes == Path(path).stat().st_size
    assert (counts.undecodable_bytes, counts.empty_documents, counts.skipped) == (0, 0, {})


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\r\n"), min_size=1)))
def test_tabs_split_a_row_and_quotes_do_not_matter(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tsv")
    path = write(folder, "a.tsv", "\ufefftext\tid\r\n" + "".join(f"{text}\t1\n" for text in texts))
    assert read(path)[0] == texts


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_a_column_of_parquet_gives_its_documents(small: None, tmp_path: Path, kind: str) -> None:
    column = pyarrow.array(DOCUMENTS)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"id": range(len(DOCUMENTS)), "text": column}), path, row_group_size=3)
    for field in ("text", "1"):
        found, counts = read(path, text_field=field)
        assert found == DOCUMENTS
        assert counts.stored_bytes == Path(path).stat().st_size


def test_rows_of_parquet_without_text_are_skipped_and_bytes_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": [b"caf\xe9", None, b"\xff\xfea", b"", None]}), path)
    found, counts = read(path)
    assert found == ["caf\ufffd", "\ufffd\ufffda"]
    assert counts.skipped == {"row with no string in field 'text'": [2, "a.parquet:2"]}
    assert (counts.undecodable_bytes, counts.undecodable_file, counts.empty_documents) == (3, "a.parquet", 1)


@given(st.text("ab\n|", max_size=60), st.sampled_from([1, 2, 7]), st.sampled_from(["|", "\n\n", "a\n", "b|"]))
def test_documents_are_what_stands_between_separators_without_line_breaks_at_their_ends(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, separator: str
) -> None:
    path = write(tmp_path_factory.mktemp("split"), "a.txt", text)
    whole = [piece.strip("\n") for piece in text.split(separator)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK_BYTES", block)
        patch.setattr(decoding, "SNIFF_BYTES", 1)
        patch.setattr(formats, "MIN_PART_CHARS", 3)
        counts = Counts()
        given = list(chunks(path, on=separator.replace("\n", "\\n"), counts=counts))
    assert min((len(chunk.text) for chunk in given if not chunk.ends), default=3) >= 3
    found = joined(given)
    assert found == [piece for piece in whole if piece]
    assert counts.empty_documents == (whole_gaps(whole) if found else 1)


def whole_gaps(pieces: list[str]) -> int:
    """Empty pieces between two documents; before the first and after the last they are none."""
    full = [index for index, piece in enumerate(pieces) if piece]
    return full[-1] - full[0] + 1 - len(full)


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_parts_of_a_long_document_are_long_and_the_same_in_every_reading(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "é😀a\n" * 300_000
    path = write(tmp_path, f"a{ending}", text if ending == ".txt" else json.dumps({"text": text}))
    first = list(chunks(path))
    assert len(first) > 1
    assert "".join(chunk.text for chunk in first) == text
    assert [chunk.ends for chunk in first] == [False] * (len(first) - 1) + [True]
    assert min(len(chunk.text) for chunk in first[:-1]) >= 65_536
    assert max(len(chunk.text) for chunk in first) <= 2**21

    class Stutter(io.FileIO):
        """A file whose reads are short, as those of a network are."""

        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 999_983))

    monkeypatch.setattr(files, "open_read", Stutter)
    assert list(chunks(path)) == first


@given(st.text("ab|\n", max_size=30), st.sampled_from([1, 3]))
def test_separators_of_plain_text_are_counted(tmp_path_factory: pytest.TempPathFactory, text: str, block: int) -> None:
    folder = tmp_path_factory.mktemp("separators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK_BYTES", block)
        assert read(write(folder, "a.txt", text), on="|\n")[1].separators == text.count("|\n")
    assert read(write(folder, "a.txt", text))[1].separators == 0
    assert read(write(folder, "a.jsonl", json.dumps({"text": text})), on="|")[1].separators == 0


def test_a_file_that_was_read_as_a_table_is_counted_and_one_that_was_left_out_is_not(tmp_path: Path) -> None:
    column = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"], "n": [1]}), column)
    tables = [
        column,
        *(write(tmp_path, f"a{ending}", WRITE[ending](["a"])) for ending in (".csv", ".jsonl", ".ndjson")),
    ]
    tables.append(write(tmp_path, "a.tsv", "text\na\n"))
    for path in tables:
        counts = read(path, named=False)[1]
        assert (counts.tables, counts.files, counts.documents) == (1, 1, 1)
        counts = read(path, named=False, text_field="n")[1]
        assert (counts.tables, counts.files) == ((1, 1) if "json" in path else (0, 0))
    for path in (write(tmp_path, "a.txt", "text"), write(tmp_path, "b.csv", "\0"), write(tmp_path, "a.bin", "ab")):
        assert read(path, named=False)[1].tables == 0


def test_a_crlf_becomes_a_line_feed_and_a_lone_return_stays(small: None, tmp_path: Path) -> None:
    found, counts = read(write(tmp_path, "a.txt", b"a\r\n\r\r\nb\rc\n" * 5 + b"\r"))
    assert found == ["a\n\r\nb\rc\n" * 5 + "\r"]
    assert counts.crlf_files == 1


@pytest.mark.parametrize("separator", ["\\n\\n", "\n\n", "\r\n\r\n", "\\r\\n\\r\\n"])
def test_a_separator_may_be_typed_or_given_as_it_is(tmp_path: Path, separator: str) -> None:
    assert read(write(tmp_path, "a.txt", "a\\n\\nb\n\nc"), on=separator)[0] == ["a\\n\\nb", "c"]
    assert read(write(tmp_path, "a.txt", "a\\nb\tc"), on="\\\\n")[0] == ["a", "b\tc"]


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split_documents_on = ''"):
        read(write(tmp_path, "a.txt", "a"), on="")


# Which field.


def test_a_number_names_a_column_where_there_is_no_header(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", "1,text\n2,b\n"), text_field="1")[0] == ["text", "b"]
    assert read(write(tmp_path, "a.tsv", "text\t1\nb\n"), text_field="0")[0] == ["text", "b"]
    found, counts = read(write(tmp_path, "a.jsonl", '["a", "b"]\n{"1": "c"}\n["d"]\n'), text_field="1")
    assert found == ["b", "c"]
    assert counts.skipped == {"line without field '1'": [1, "a.jsonl:3"]}
    for ending, rows in ((".csv", "a title\n1,b,\n2,c,more\n"), (".tsv", "a title\n1\tb\n2\tc\tmore\n")):
        found, counts = read(write(tmp_path, f"b{ending}", rows), text_field="1")
        assert (found, sum(count for count, _ in counts.skipped.values())) == (["b", "c"], 1)


def test_a_field_of_any_size_is_read(tmp_path: Path) -> None:
    text = "a, " * 200_000
    assert read(write(tmp_path, "a.csv", f'text\n"{text}"\n'))[0] == [text]


@pytest.mark.parametrize("last", ["c", "c\n", '"c"', '"c"\n', '"c\nd"\n', ""])
def test_a_quote_of_csv_that_is_never_closed_is_told_with_its_line(tmp_path: Path, last: str) -> None:
    rows = "text\na\nb\n"
    expected = [last.strip().strip('"')] if last else []
    assert read(write(tmp_path, "a.csv", rows + last))[0] == ["a", "b", *expected]
    with pytest.raises(UserError, match=r"a\.csv:3 has a quote that is never closed"):
        read(write(tmp_path, "a.csv", 'text\na\n"b\n' + "c\n" * 5 + last.replace('"', "")))


def test_a_lone_carriage_return_ends_a_row_of_csv(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", 'text\r"a\rb"\rc'))[0] == ["a\rb", "c"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_missing_field_is_an_error_that_names_the_fields_or_a_file_skipped(tmp_path: Path, ending: str) -> None:
    path = str(tmp_path / f"a{ending}")
    if ending == ".parquet":
        parquet.write_table(pyarrow.table({"id": [1], "content": ["x"]}), path)
    else:
        row = {".csv": "id,content\n1,x\n", ".tsv": "id\tcontent\n1\tx\n", ".jsonl": '{"id": 1, "content": "x"}\n'}
        write(tmp_path, f"a{ending}", row[ending])
    with pytest.raises(UserError, match=r"no field 'text'; its fields are: 'id', 'content'. .*--text_field") as error:
        read(path)
    assert path in str(error.value)
    assert "header" not in str(error.value)
    found, counts = read(path, named=False)
    assert found == []
    kind = "line" if ending == ".jsonl" else "file"
    assert list(counts.skipped) == [f"{kind} without field 'text'"]
    assert f"a{ending}" in counts.no_text("x")


# (ending, text_field, the rows, the documents, the first row skipped, what is told where no other row is there)
SURPLUS = [
    (
        ".csv",
        "text",
        'id,text\n1,a, b\n2,"c, d"\n3,e,,\n4,f, \n',
        ["c, d", "e", "f"],
        "the header 2: a text that holds commas must",
    ),
    (
        ".csv",
        "text",
        "text;id;\na;b;1;x\nc,d;2\n",
        ["c,d"],
        "the header 3: a text that holds semicolons must",
    ),
    (".tsv", "text", "text\tid\na\tb\t1\nc\t2\t\t\n", ["c"], "the header 2: a .tsv file is split at every tab"),
]


@pytest.mark.parametrize(("ending", "field", "data", "texts", "problem"), SURPLUS)
def test_a_row_that_an_unquoted_delimiter_cut_is_skipped_not_shortened(
    tmp_path: Path, ending: str, field: str, data: str, texts: list[str], problem: str
) -> None:
    path = write(tmp_path, f"a{ending}", data)
    found, counts = read(path, text_field=field)
    assert found == texts
    assert counts.skipped == {"line with more columns than the header": [1, f"a{ending}:2"]}
    without = "".join(data.splitlines(keepends=True)[:2])
    with pytest.raises(UserError, match=f"gives no text: line 2 has . columns, .*{problem}"):
        read(write(tmp_path, f"a{ending}", without), text_field=field)


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    _, counts = read(write(tmp_path, "a.csv", '\n\ntext\n\n"a\nb"\n"c\nd",e\n"f\ng",h\n'))
    assert counts.skipped == {"line with more columns than the header": [2, "a.csv:7"]}
    assert counts.lines()[1] == "skipped: 2 lines with more columns than the header (first: a.csv:7)"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@given(st.lists(st.text('ab ,;\t\n\r"', min_size=1), min_size=1))
def test_the_header_of_a_csv_file_tells_what_splits_it(
    tmp_path_factory: pytest.TempPathFactory, delimiter: str, texts: list[str]
) -> None:
    text = io.StringIO(newline="")
    rows = [["id", "text", "a b"], *(["1", one, ""] for one in texts)]
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", "\r\n\n" + text.getvalue())
    assert read(path)[0] == texts


def test_a_comma_goes_before_other_delimiters_and_a_number_means_commas(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", "a;b,text\n1;2,c;d\n"))[0] == ["c;d"]
    assert read(write(tmp_path, "a.csv", "text\na;b\n"))[0] == ["a;b"]
    assert read(write(tmp_path, "a.csv", "a;b\nc;d\n"), text_field="0")[0] == ["a;b", "c;d"]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_header_that_nothing_splits_leads_to_what_would(tmp_path: Path, ending: str) -> None:
    rule = (
        r"its fields are: 'id\|text'\. .*A \.csv file is split at commas, semicolons or tabs.*, a \.tsv file at tabs\.$"
    )
    with pytest.raises(UserError, match=rule):
        read(write(tmp_path, f"a{ending}", "id|text\n1|a\n"))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_blanks_around_the_name_in_a_header_do_no_harm_where_one_name_is_meant(tmp_path: Path, ending: str) -> None:
    def table(*names: str) -> str:
        path = str(tmp_path / f"a{ending}")
        if ending == ".parquet":
            parquet.write_table(pyarrow.table({name: [name] for name in names}), path)
        else:
            rows = "\n".join([("," if ending == ".csv" else "\t").join(names)] * 2)
            write(tmp_path, f"a{ending}", rows)
        return path

    assert read(table("id", " text "))[0] == [" text "]
    assert read(table(" text ", "text"))[0] == ["text"]
    with pytest.raises(UserError, match=r"its fields are: ' text ', 'text '\. Did you mean ' text '\?"):
        read(table(" text ", "text "))
    with pytest.raises(UserError, match=r"its fields are: 'id', 'Text'\. Did you mean 'Text'\?"):
        read(table("id", "Text"))
    with pytest.raises(UserError, match=r"its fields are: ' Id', 'x{37}\.\.\.'\. Name one of them"):
        read(table(" Id", "x" * 41))


@pytest.mark.parametrize("field", ["7", "2"])
@pytest.mark.parametrize(
    ("ending", "row"), [(".tsv", "a\tb"), (".csv", "a,b"), (".jsonl", '["a", "b"]'), (".parquet", "")]
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, ending: str, row: str, field: str
) -> None:
    path = write(tmp_path, f"a{ending}", f"{row}\n{row}\n")
    if ending == ".parquet":
        parquet.write_table(pyarrow.table({"x": ["a"], "y": ["b"]}), path)
    with pytest.raises(UserError, match=rf"has no column text_field = {field}: it has 2 columns, 0 to 1\.$"):
        read(path, text_field=field)


@pytest.mark.parametrize(("ending", "rule"), [(".csv", "at commas"), (".tsv", "at tabs")])
def test_a_line_of_one_column_leads_to_what_splits_it(tmp_path: Path, ending: str, rule: str) -> None:
    with pytest.raises(UserError, match=rf"line 1 has no column text_field = 1: its only column is 0 \(.*{rule}\)"):
        read(write(tmp_path, f"a{ending}", "a;b\n"), text_field="1")


def test_a_row_shorter_than_the_header_is_told_with_both_lengths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2 has 1 column, the header 2: none for field 'text'\.$"):
        read(write(tmp_path, "a.csv", "id,text\n1\n"))


def test_a_first_line_that_looks_like_data_leads_to_the_number_of_its_column(tmp_path: Path) -> None:
    for header in ("1,some text,0.5", f"x,{'a long text ' * 9},y", ",some text,y"):
        with pytest.raises(UserError, match=r"--text_field 1\.") as error:
            read(write(tmp_path, "a.csv", header + "\n"))
        assert len(str(error.value)) < 400


def test_a_parquet_column_that_is_no_text_is_an_error_or_a_file_skipped(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    for column, kind in (([["a"]], "list"), ([1, 2], "int64")):
        parquet.write_table(pyarrow.table({"text": column}), path)
        with pytest.raises(UserError, match=f"has {kind}.* in field 'text', not text; no field of it holds text"):
            read(path)
    parquet.write_table(pyarrow.table({"text": [1], "body": ["a"], "n": [2], " title": [b"b"]}), path)
    with pytest.raises(UserError, match=r"; fields with text: 'body', ' title'\. Name one with --text_field\.$"):
        read(path)
    found, counts = read(path, named=False)
    assert (found, counts.files) == ([], 0)
    assert counts.skipped == {"file with no text in field 'text'": [1, "a.parquet"]}


# What is skipped, and what is an error.

MIXED = ["{", '{"a": 1}', '{"text": null}', '{"text": ""}', '{"text": 1}', "3", '{"text": "x\\ud800y"}', "[" * 9999]


def test_lines_without_a_text_are_skipped_and_the_first_of_each_kind_is_told(tmp_path: Path) -> None:
    found, counts = read(write(tmp_path, "a.jsonl", "\n".join(MIXED)))
    assert found == ["x\ufffdy"]
    assert counts.skipped == {
        "line that did not parse as JSON": [2, "a.jsonl:1"],
        "line without field 'text'": [2, "a.jsonl:2"],
        "line with no string in field 'text'": [2, "a.jsonl:3"],
    }
    assert (counts.empty_documents, counts.half_surrogates) == (1, 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('[{"text": "a"},', r"line 1 is not JSON \(.*\); each line of a .jsonl file is one JSON object"),
        ('{"text": [1]}', r"line 1 has \[1\] in field 'text', no string; no field of it holds text\.$"),
        (
            '{"text": 1, "body": "a", "n": 2, "title": "b"}',
            r"has 1 in field 'text', no string; fields with text: 'body', 'title'\. Name one with --text_field\.$",
        ),
        ('{"Text": "a"}', r"its fields are: 'Text'\. Did you mean 'Text'\? Name one"),
        ('["a", "b"]', r"has no field 'text'; its fields are: 0, 1\. Name one of them"),
        ('{"a": 1}', "line 1 has no field 'text'; its fields are: 'a'"),
        ("7", "line 1 has no field 'text'; its fields are: none\\.$"),
    ],
)
def test_a_named_table_without_any_text_is_an_error_about_its_first_line(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = write(tmp_path, "a.jsonl", f"{line}\n{{}}\n")
    with pytest.raises(UserError, match=problem) as error:
        read(path)
    assert str(error.value).count("line 1") == 1
    assert read(path, named=False)[0] == []


@pytest.mark.parametrize("data", [b"a\0b", b"%PDF-1.7", b"\x89PNG\r\n", gzip.compress(b"a")])
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_what_is_no_text_is_an_error_by_name_and_skipped_in_a_folder(tmp_path: Path, data: bytes, name: str) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(UserError, match="is not text"):
        read(path)
    found, counts = read(path, named=False)
    assert (found, counts.files, counts.stored_bytes) == ([], 0, len(data))
    assert counts.skipped == {"file of binary data": [1, name]}


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (gzip.compress(b"a"), "gzip: name it NAME.gz"),
        (lzma.compress(b"a"), "xz: name it NAME.xz"),
        (bz2.compress(b"a", 3), "bzip2: name it NAME.bz2"),
        (bz2.compress(b""), "bzip2: name it NAME.bz2"),
        (zstandard.compress(b"a"), "zstd: name it NAME.zst"),
        (b"PK\x03\x04", "zip: unpack it first"),
        (b"%PDF-1.7", "PDF: convert it to text first"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "b.jsonl", "c"])
def test_what_a_file_looks_like_is_told_with_the_way_out(tmp_path: Path, data: bytes, advice: str, name: str) -> None:
    with pytest.raises(UserError, match=f"is not text: it looks like {advice.replace('NAME', name)}"):
        read(write(tmp_path, name, data))
    with pytest.raises(UserError, match=f"what it holds looks like {advice.partition(':')[0]}: (unpack|convert) it"):
        read(write(tmp_path, f"{name}.gz", gzip.compress(data)))


def test_a_text_about_bzip2_is_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", "BZh9 is how it begins"))[0] == ["BZh9 is how it begins"]


def test_a_late_zero_byte_is_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", "a" * 8192 + "\0"))[0] == ["a" * 8192 + "\0"]


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("named", [True, False])
def test_damage_is_an_error_whichever_byte_is_hit(tmp_path: Path, packing: str, named: bool) -> None:
    packed = PACK[packing](bytes(range(10, 120)) * 20)
    twice = PACK[packing](b"first") + packed
    damaged = [b"plain text", packed[:3], packed[:-1], packed[: len(packed) // 2], twice[:-1], packed + b"garbage"]
    for data in damaged:
        path = write(tmp_path, f"a.txt{packing}", data)
        with pytest.raises(UserError, match=rf"damaged or incomplete, no whole \{packing} file") as error:
            read(path, named=named)
        assert path in str(error.value)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst"])
def test_joined_packed_files_give_joined_texts(small: None, tmp_path: Path, packing: str) -> None:
    pack = PACK[packing]
    data = pack(b"first ") + pack(b"") + pack(b"second " * 50)
    assert read(write(tmp_path, f"a.txt{packing}", data))[0] == ["first " + "second " * 50]
    if packing != ".zst":  # the others may be padded, as tapes and some tools do
        data = data.replace(pack(b""), bytes(12) + pack(b"")) + bytes(64)
        assert read(write(tmp_path, f"a.txt{packing}", data))[0] == ["first " + "second " * 50]


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": DOCUMENTS * 50}), path)
    data = Path(path).read_bytes()
    for damaged in (data[:-9], data[:20], data[:4] + bytes(60) + data[64:]):
        with pytest.raises(UserError, match=r"damaged or incomplete, no whole .parquet file"):
            read(write(tmp_path, "b.parquet", damaged))
    with pytest.raises(UserError, match="unpack it first"):
        read(write(tmp_path, "a.parquet.gz", gzip.compress(data)))


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        read(write(tmp_path, name, b"x"))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.bz2", "a.parquet"])
@pytest.mark.parametrize("error", [OSError("the line is cut"), RuntimeError("the line is cut")])
def test_a_storage_that_fails_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    path = write(tmp_path, name, b"x" * 100)

    class Cut(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    monkeypatch.setattr(files, "open", lambda path, mode: Cut(path), raising=False)
    with pytest.raises(StorageError, match=r"Cannot read .*the line is cut"):
        read(path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_LINE", 1000)
    with pytest.raises(UserError, match="line of more than 1,000 characters"):
        read(write(tmp_path, "a.jsonl", "[" + "1," * 1000))
    with pytest.raises(UserError, match=r"a.csv:\d+ cannot be read as CSV"):
        read(write(tmp_path, "a.csv", 'text\n"never closed' + "\nmore" * 1000))


def test_memory_stays_small(tmp_path: Path) -> None:
    line = "A line of text, not long.\n"
    packed = write(tmp_path, "a.txt.zst", zstandard.compress(line.encode() * 1_200_000))
    column = str(tmp_path / "a.parquet")
    table = pyarrow.table({"text": [line * 400] * 3_000})
    parquet.write_table(table, column, compression="none", use_dictionary=False, write_batch_size=64)
    for path in (packed, column):
        tracemalloc.start()
        try:
            size = sum(len(chunk.text) for chunk in chunks(path))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size == 1_200_000 * len(line) > 30_000_000
        assert peak < 8_000_000


# In words.


def test_nothing_is_told_of_what_did_not_happen(tmp_path: Path) -> None:
    _, counts = read(write(tmp_path, "a.txt", "x" * 1500))
    assert counts.lines() == ["1 file, 1 document, 1.5 KB"]
    assert Counts(documents=2, num_bytes=1).lines() == ["2 documents, 1 byte"]


def test_everything_that_happened_is_told() -> None:
    counts = Counts(12, 3456, 10_200_000, 1, 1234, "x.txt", 2, 1, 3, 12)
    for name in ("logo.png", "b.png"):
        counts.skip("file of binary data", name)
    counts.skip("line without field 'text'", "a.jsonl:17")
    assert counts.lines() == [
        "12 files, 3,456 documents, 10.2 MB",
        "skipped: 2 files of binary data (first: logo.png), 1 line without field 'text' (a.jsonl:17), "
        "12 empty documents",
        "1,234 bytes were not UTF-8 and became U+FFFD (first in x.txt)",
        "2 half surrogate pairs became U+FFFD",
        "3 files with Windows line ends, read as plain ones",
        "1 byte order mark left out",
    ]
    assert counts.no_text("folder").startswith("folder is empty: there is no text to learn from; skipped: 2 files")


# Token ids.


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "<u4", ">u2", "int64", "uint64"])
def test_ids_of_every_integer_type_are_mapped_from_npy(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "ids.npy")
    np.save(path, np.arange(100, dtype=kind))
    ids = open_tokens(path)
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == list(range(100))


@pytest.mark.parametrize(("name", "kind"), [("a.bin", "<u2"), ("a.u32.bin", "<u4"), ("A.UINT32.BIN", "<u4")])
def test_ids_are_mapped_from_bin(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path, name, np.array([1, 2, 65535], dtype=kind).tobytes())
    assert open_tokens(path).tolist() == [1, 2, 65535]
    with pytest.raises(UserError, match=r"no multiple of .: a .bin file holds little-endian uint16"):
        open_tokens(write(tmp_path, name, b"abc"))
    with pytest.raises(UserError, match="empty"):
        open_tokens(write(tmp_path, name, b""))


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros(3, bool), np.zeros((2, 2), int), np.array(3), np.array(["a"]), np.zeros(0, int)]
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any) -> None:
    path = str(tmp_path / "a.npy")
    np.save(path, array)
    with pytest.raises(UserError, match=r"one row of integers|empty"):
        open_tokens(path)


def test_what_is_no_array_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npy")
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    objects = Path(path).read_bytes()
    np.save(path, np.arange(100))
    for data in (objects, b"", b"text", Path(path).read_bytes()[:-8], b"\x93NUMPY\x01\x00"):
        with pytest.raises(UserError, match=r"a.npy is no .npy file of numbers"):
            open_tokens(write(tmp_path, "a.npy", data))
    with pytest.raises(StorageError):
        open_tokens(str(tmp_path / "missing.npy"))
    with pytest.raises(UserError, match="unpack it first"):
        open_tokens("a.npy.gz")


def test_token_files_are_known_by_their_names() -> None:
    for name in ("a.npy", "d/A.BIN", "a.u32.bin", "a.npy.gz", "https://x.org/a.npy?x=1"):
        assert is_token_file(name)
    for name in ("npy", "a.npz", "a.bin.txt", "a.bin/b.txt", "a.txt.gz"):
        assert not is_token_file(name)
