"""Laws of examples: they come in whole and in order whatever holds them, what is left out is told, splits are fair."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import re
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slm.config import UserError
from slm.data import decoding, example_split, tables
from slm.data.counts import Counts, Notes
from slm.data.examples import (
    Examples,
    given_examples,
    labels_of,
    read_aligned_examples,
    read_table_examples,
    split_examples,
)
from slm.data.tables import Table
from slm.storage.files import MissingError
from slm.storage.listing import FileInfo

with_files = settings(max_examples=60, deadline=None)  # a disk may be slow
Pair = tuple[str, str]
LABELS = ("text_field", "label_field")
PAIRS = ("source_field", "target_field")
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that everything crosses their borders."""
    for name, size in {"BLOCK_BYTES": 7, "SNIFF_BYTES": 4, "_ZST_BYTES": 3, "_PACKED_BYTES": 5}.items():
        monkeypatch.setattr(decoding, name, size)
    monkeypatch.setattr(tables, "PARQUET_ROWS", 2)


def write(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def write_parquet(name: str, **columns: Any) -> str:
    parquet.write_table(pyarrow.table(columns), name)
    return name


def silent(what: str, done: int, total: int | None) -> None:
    """Somebody who does not care how far it is."""


def read(*names: str, fields: Pair = ("text", "label"), flags: Pair = LABELS) -> Examples:
    return read_table_examples(names, *fields, flags=flags, on_progress=silent)


def aligned(*names: str) -> Examples:
    """Those of two lists of files, the first half and the second half of the names."""
    half = len(names) // 2
    return read_aligned_examples(names[:half], names[half:], on_progress=silent)


def pairs_of(examples: Examples) -> list[Pair]:
    return list(zip(examples.inputs, examples.outputs, strict=True))


def whole(pairs: Iterable[Pair]) -> list[Pair]:
    """What should come in: both sides without blanks at their ends, where something is left of them."""
    stripped = [(one.strip(), other.strip()) for one, other in pairs]
    return [pair for pair in stripped if all(pair)]


def skipped(examples: Examples) -> int:
    """How many rows were left out, as is told."""
    return sum(map(int, re.findall(r"(\d+) (?:line|row|pair)s? with", " ".join(examples.found))))


def made(pairs: Iterable[Pair], name: str = "made") -> Examples:
    inputs, outputs = map(list, zip(*pairs, strict=True))
    return Examples(name, inputs, outputs, ("found",), "fingerprint")


# Tables.

Rows = list[Pair]


def as_csv(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(
        [("label", "n", "text"), *((o, i, t) for i, (t, o) in enumerate(rows))]
    )
    return text.getvalue().encode()


def as_jsonl(rows: Rows) -> bytes:
    return "\n".join(json.dumps({"label": output, "n": 1, "text": text}) for text, output in rows).encode()


def as_tsv(rows: Rows) -> bytes:
    return ("\ufefftext\tn\tlabel\r\n" + "".join(f"{text}\t1\t{output}\r\n" for text, output in rows)).encode()


WRITE: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".csv": as_csv,
    ".tsv": as_tsv,
}
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ON_A_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\r\n"), max_size=8)
BLANKS = st.text(" \u3000", max_size=2)


def rows_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[Rows]:
    """Rows of which one at least has two sides."""
    padded = st.builds("{}{}{}".format, BLANKS, text, BLANKS)
    return st.lists(st.tuples(padded, padded), min_size=1, max_size=6).filter(whole)


@with_files
@given(st.data(), st.sampled_from([".jsonl", ".ndjson", ".csv", ".tsv"]), st.sampled_from(list(PACK)))
def test_every_format_gives_its_examples_however_it_is_packed(data: st.DataObject, ending: str, packing: str) -> None:
    rows = data.draw(rows_of(ON_A_LINE if ending == ".tsv" else ANY))
    path = write(f"A{ending}{packing}".upper(), PACK[packing](WRITE[ending](rows)))
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"BLOCK_BYTES": 7, "SNIFF_BYTES": 4, "_ZST_BYTES": 3, "_PACKED_BYTES": 5}.items():
            patch.setattr(decoding, name, size)
        examples = read(path)
    assert pairs_of(examples) == whole(rows)
    assert examples.name == path
    assert skipped(examples) == len(rows) - len(whole(rows))


@with_files
@given(rows_of(ANY), st.sampled_from(["string", "large_string", "binary", "dictionary"]), st.booleans())
def test_columns_of_parquet_give_their_examples(rows: Rows, kind: str, swapped: bool) -> None:
    columns = {name: pyarrow.array([row[side] for row in rows]) for side, name in enumerate(("text", "label"))}
    cast = {n: one.dictionary_encode() if kind == "dictionary" else one.cast(kind) for n, one in columns.items()}
    order = ["label", "n", "text"] if swapped else ["text", "n", "label"]
    table = pyarrow.table({**cast, "n": range(len(rows))}).select(order)
    parquet.write_table(table, "a.parquet", row_group_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "PARQUET_ROWS", 2)
        for fields in (("text", "label"), (str(order.index("text")), str(order.index("label")))):
            examples = read("a.parquet", fields=fields)
            assert pairs_of(examples) == whole(rows)
            assert skipped(examples) == len(rows) - len(whole(rows))


def test_a_column_of_parquet_is_found_beside_others_whose_names_begin_like_its_own() -> None:
    write_parquet("a.parquet", **{"text.a": ["no"], "text": ["yes"], "label.a": ["no"], "label": ["1"]})
    assert pairs_of(read("a.parquet")) == [("yes", "1")]
    write_parquet("a.parquet", text=[{"a": "no"}], label=[{"a": 2}], **{"text.a": ["yes"], "label.a": [1]})
    assert pairs_of(read("a.parquet", fields=("text.a", "label.a"))) == [("yes", "1")]


VALUES = [1, True, False, 0.5, -3, "x", 10**30]
WRITTEN = ["1", "True", "False", "0.5", "-3", "x", "1" + "0" * 30]


def test_numbers_and_booleans_are_written_out_as_outputs_and_no_texts_as_inputs() -> None:
    write("a.jsonl", "\n".join(json.dumps({"text": "t", "label": value}) for value in VALUES))
    assert read("a.jsonl").outputs == WRITTEN
    write("b.jsonl", "\n".join(json.dumps({"text": value, "label": "l"}) for value in VALUES))
    examples = read("b.jsonl")
    assert pairs_of(examples) == [("x", "l")]
    assert examples.found[1] == "skipped: 6 lines with no string in field 'text' (first: b.jsonl:1)"
    for values, written in (
        ([1, None, 2], ["1", "2"]),
        ([True, False, None], ["True", "False"]),
        ([0.5, math.nan, 1.0], ["0.5", "1.0"]),
        (pyarrow.array([3, 3, 4]).dictionary_encode(), ["3", "3", "4"]),
        (pyarrow.array([2, 1, 0], "uint8"), ["2", "1", "0"]),
    ):
        examples = read(write_parquet("a.parquet", text=["a", "b", "c"], label=values))
        assert examples.outputs == written
        if len(written) < 3:
            gone = 2 if None in values[:2] or math.nan in values else 3
            assert examples.found[1] == f"skipped: 1 row with nothing in field 'label' (a.parquet:{gone})"


def test_rows_without_a_text_or_a_label_are_skipped_and_the_first_of_each_kind_is_told() -> None:
    rows = [
        {"text": "a", "label": 1},
        {"text": " ", "label": 1},
        {"text": "b", "label": ""},
        {"text": "c", "label": None},
        {"text": "d"},
        {"label": 1},
        {},
        {"text": "e", "label": [1]},
        {"text": None, "label": 1},
        {"text": "f", "label": math.nan},
        {"text": "g\ud800", "label": "x\udfff"},
    ]
    examples = read(write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\nnot json\n"))
    assert pairs_of(examples) == [("a", "1"), ("g\ufffd", "x\ufffd")]
    assert examples.found == (
        "1 file, 2 examples, 10 bytes",
        "skipped: 2 lines with nothing in field 'text' (first: a.jsonl:2), 3 lines with nothing in field 'label' "
        "(first: a.jsonl:3), 1 line without field 'label' (a.jsonl:5), 2 lines without field 'text' (first: "
        "a.jsonl:6), 1 line with no string or number in field 'label' (a.jsonl:8), 1 line that did not parse as JSON "
        "(a.jsonl:12)",
        "2 half surrogate pairs became U+FFFD",
    )


def test_encodings_marks_and_damage_are_told_as_of_any_text(small: None) -> None:
    assert pairs_of(read(write("a.csv", "text;label\r\né, 😀;1\r\n".encode("utf-16")))) == [("é, 😀", "1")]
    examples = read(write("a.tsv", b"\xef\xbb\xbftext\tlabel\ncaf\xe9\t1\n"))
    assert pairs_of(examples) == [("caf\ufffd", "1")]
    assert examples.found[1:] == (
        "1 byte was not UTF-8 and became U+FFFD (first in a.tsv)",
        "1 byte order mark left out",
    )
    write("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}')[:-4])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged or incomplete, no whole \.gz file"):
        read("a.jsonl.gz")
    with pytest.raises(UserError, match=r"a\.csv:2 has a quote that is never closed"):
        read(write("a.csv", 'text,label\n"a,1\n'))


def test_a_row_that_an_unquoted_delimiter_cut_is_skipped_not_shifted() -> None:
    examples = read(write("a.csv", 'text,label\nYes, it is,1\n"No, it is not",0\nshort\n'))
    assert pairs_of(examples) == [("No, it is not", "0")]
    assert "1 line with more columns than the header (a.csv:2), 1 line without field 'label'" in examples.found[1]


def test_exact_copies_are_kept_and_counted() -> None:
    write("a.csv", "text,label\na,1\na ,1\na,2\nb,1\na,1\n")
    examples = read("a.csv")
    assert len(examples.inputs) == 5
    assert examples.found == ("1 file, 5 examples, 10 bytes", "2 examples repeat another word for word")
    assert (
        read(write("a.csv", "text,label\na,1\na,2\nb,1\na,1\n")).found[1] == "1 example repeats another word for word"
    )


# Which fields.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "0,x,text,more\n1,y,label\n"),
        ("a.tsv", "0\tx\ttext\tmore\n1\ty\tlabel\n"),
        ("a.jsonl", '["0", "x", "text"]\n{"2": "label", "0": 1}\n'),
    ],
)
def test_numbers_name_columns_where_there_is_no_header(name: str, content: str) -> None:
    assert pairs_of(read(write(name, content), fields=("2", "0"))) == [("text", "0"), ("label", "1")]


@pytest.mark.parametrize(("name", "content"), [("a.csv", "a,b\n"), ("a.tsv", "a\tb\n"), ("a.csv", "")])
@pytest.mark.parametrize("fields", [("1", "label"), ("text", "1")])
def test_a_number_and_a_name_do_not_go_together(name: str, content: str, fields: Pair) -> None:
    number = LABELS[fields.index("1")]
    rule = rf"{number} = 1 is the number of a column.*but .* is a name in a header: .*Give numbers only.* or names only"
    with pytest.raises(UserError, match=rule):
        read(write(name, content), fields=fields)


@pytest.mark.parametrize("fields", [("x", "x"), ("1", "1"), ("1", "01")])
def test_the_two_fields_must_differ(fields: Pair) -> None:
    with pytest.raises(UserError, match=r"source_field and target_field are both '"):
        read("a.csv", fields=fields, flags=PAIRS)


def table_of(ending: str, names: list[str]) -> str:
    """A file of one row with those fields."""
    if ending == ".parquet":
        return write_parquet("a.parquet", **{name: ["x"] for name in names})
    if ending == ".jsonl":
        return write("a.jsonl", json.dumps(dict.fromkeys(names, "x")))
    return write(f"a{ending}", "\n".join([("," if ending == ".csv" else "\t").join(names)] * 2))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["text", "n"], r"has no field 'label'; its fields are: 'text', 'n'\. Name one of them with --label_field\.$"),
        (["text", "Label "], r"no field 'label'; .*Did you mean 'Label '\? Name one of them with --label_field\.$"),
        (["text", "labels"], r"no field 'label'; .*Did you mean 'labels'\? Name one of them with --label_field\.$"),
        (["label", "txt"], r"no field 'text'; .*Did you mean 'txt'\? Name one of them with --text_field\.$"),
        (
            ["Text", "class", "lable"],
            r"has no field 'text' and no field 'label'; its fields are: 'Text', 'class', 'lable'\. "
            r"Did you mean 'Text' and 'lable'\? Name two of them with --text_field and --label_field",
        ),
    ],
)
def test_a_missing_field_leads_to_those_that_are_there(ending: str, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(table_of(ending, names))


def test_a_table_without_a_header_leads_to_the_numbers_of_its_columns() -> None:
    with pytest.raises(UserError, match=r"if there is no header, such as --source_field 0 --target_field 1\.$"):
        read(write("a.tsv", "Hello.\tHallo.\n"), fields=("source", "target"), flags=PAIRS)


@pytest.mark.parametrize(("name", "row"), [("a.csv", "a,b"), ("a.tsv", "a\tb"), ("a.jsonl", '["a", "b"]')])
def test_a_column_that_is_not_there_is_told_by_the_setting_that_names_it(name: str, row: str) -> None:
    with pytest.raises(UserError, match=r"has no column target_field = 2: it has 2 columns, 0 to 1\.$"):
        read(write(name, f"{row}\n"), fields=("0", "2"), flags=PAIRS)


def test_a_column_of_parquet_that_is_no_text_is_told_by_its_setting() -> None:
    path = write_parquet("a.parquet", text=[1], label=[1], body=["x"])
    with pytest.raises(UserError, match=r"has int64 in field 'text', not text; .*'body'\. Name one with --text_field"):
        read(path)
    write_parquet("a.parquet", text=["a"], label=[[1]])
    with pytest.raises(UserError, match=r"has list.* in field 'label', not text; .*'text'\. Name one with --label_f"):
        read(path)


def test_a_table_gives_the_texts_of_a_single_field_too() -> None:
    file = FileInfo("a.csv", None, "")
    counts = Counts()
    table = Table(Notes(file, True, counts), ".csv", "text")
    assert list(table.texts(["id,text\n1, a", " \n2,\n3"])) == [" a ", ""]
    assert counts.skipped == {"line without field 'text'": [1, "a.csv:4"]}
    with open(write_parquet("a.parquet", text=["a", None, " b "]), "rb") as source:
        texts = Table(Notes(file, True, counts), ".parquet", "text").parquet_texts(source)  # type: ignore[arg-type]
        assert list(texts) == ["a", " b "]


# Which files.


def test_folders_globs_and_urls_are_read_file_by_file_and_no_file_twice(here: Path) -> None:
    write("d/a.csv", "text,label\na,1\n")
    write("d/e/b.jsonl", '{"text": "b", "label": 2}')
    write("d/notes.txt", "notes")
    write("d/logo.png", b"\x89PNG\0")
    write("d/.hidden.csv", "text,label\nhidden,1\n")
    write("d/other.csv", "id,title\n1,x\n")
    write_parquet("c.parquet", text=["c"], label=[3])
    with fsspec.open("memory://examples/d.tsv", "wb") as file:
        file.write(b"text\tlabel\nd\t4\n")
    names = ("c.parquet", "d/a.csv", "d", str(here / "c.parquet"), "d/**/*.jsonl", "memory://examples")
    examples = read(*names)
    assert pairs_of(examples) == [("c", "3"), ("a", "1"), ("b", "2"), ("d", "4")]
    assert examples.name == "6 sources: c.parquet, d/a.csv, d, ..."
    assert examples.found == (
        "4 files, 4 examples, 8 bytes",
        "skipped: 2 files other than a table (first: logo.png), 1 file without field 'text' (other.csv)",
    )


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("notes.txt", r"such as \.tsv where tabs part the columns\.$"),
        ("notes.txt.gz", r"such as \.tsv where tabs part the columns\.$"),
        ("a.json", r"If each of its lines is a JSON object, give it the ending \.jsonl\.$"),
        ("ids.npy", r"a \.jsonl, \.ndjson, \.csv, \.tsv or \.parquet file\.$"),
    ],
)
def test_a_file_that_is_no_table_is_an_error_by_name(name: str, way_out: str) -> None:
    write(name, "a text")
    wanted = rf"^{name} is no table: text_field = 'text' and label_field = 'label' are fields of a table, .*{way_out}"
    for names in ((name,), ("t.csv", name)):
        write("t.csv", "text,label\na,1\n")
        with pytest.raises(UserError, match=wanted):
            read(*names)


def test_pairs_without_a_table_lead_to_the_file_of_targets() -> None:
    with pytest.raises(
        UserError, match=r"target_field = 'de' are fields of a table.*name the other one with --target_f"
    ):
        read(write("a.txt", "a"), fields=("en", "de"), flags=PAIRS)


@pytest.mark.parametrize("name", ["stories", "stories:2MB", "python", "dummy"])
def test_built_in_text_has_no_fields(name: str) -> None:
    with pytest.raises(UserError, match=rf"data = '{name}' is built-in text: text_field = 'text' and"):
        read(name)


def test_a_name_that_stands_for_nothing_is_an_error() -> None:
    for name in ("nothing.csv", "nothing/*.csv", "memory://nothing/a.csv"):
        with pytest.raises(MissingError, match="nothing"):
            read(name)
    with pytest.raises(UserError, match="data names 3, a int"):
        read(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv gives no example: it has no rows\.$"),
        ("a.csv", "text,label\n", r"a\.csv gives no example: it has no rows\.$"),
        ("a.jsonl", "\n\n", r"a\.jsonl gives no example: it has no rows\.$"),
        ("a.tsv", "text\tlabel\na\t\n", r"a\.tsv gives no example: line 2 has nothing in field 'label'\.$"),
        ("a.jsonl", '{"text": "a", "label": {}}', r"line 1 has \{\} in field 'label', no string or number; .*'text'\."),
        ("a.csv", "a\0b", r"a\.csv is not text: it holds zero bytes"),
    ],
)
def test_a_table_without_any_example_is_an_error_also_as_the_only_one_of_a_folder(
    name: str, content: str, message: str
) -> None:
    write(f"d/{name}", content)
    for names in ((f"d/{name}",), ("d",), ("t.csv", f"d/{name}")):
        write("t.csv", "text,label\na,1\n")
        with pytest.raises(UserError, match=message):
            read(*names)
    assert pairs_of(read("t.csv", "d")) == [("a", "1")]


def test_a_folder_without_a_table_is_an_error_that_tells_what_it_holds() -> None:
    write("d/a.txt", "a")
    write("d/b.txt", "b")
    with pytest.raises(
        UserError,
        match=r"^there is no example in d, nothing to learn from; skipped: 2 files other than a table \(first: "
        r"a\.txt\)\. text_field = 'text' and label_field = 'label' are fields of a table",
    ):
        read("d")


def test_progress_grows_up_to_the_bytes_of_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(decoding, "SNIFF_BYTES", 1000)
    write("a.csv", "text,label\n" + "a,1\n" * 1000)
    write("b.jsonl", '{"text": "b", "label": 1}\n{"text": 1}')
    write("c/c.tsv", "id\ttitle\n" * 1000)
    write_parquet("c/d.parquet", text=["d"], label=[1], more=["more" * 1000])
    names = ("a.csv", "b.jsonl", "c")
    told: list[tuple[str, int, int | None]] = []
    read_table_examples(names, "text", "label", flags=LABELS, on_progress=lambda *one: told.append(one))
    done = [one[1] for one in told]
    total = sum(file.stat().st_size for file in Path().rglob("*.*") if file.is_file())
    assert {(one[0], one[2]) for one in told} == {("reading 3 sources: a.csv, b.jsonl, c", total)}
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, total)
    assert 6 < len(done) < 20


# Two texts, line by line.


@with_files
@given(
    st.lists(st.tuples(ON_A_LINE, ON_A_LINE), min_size=1).filter(whole),
    st.tuples(st.sampled_from(list(PACK)), st.sampled_from(list(PACK))),
    st.tuples(*[st.sampled_from(["\n", "\r\n"])] * 2),
    st.tuples(st.booleans(), st.booleans()),
)
def test_line_i_of_one_text_belongs_to_line_i_of_the_other(
    rows: Rows, packing: Pair, breaks: Pair, ended: tuple[bool, bool]
) -> None:
    names = []
    for side in (0, 1):
        text = "".join(row[side] + breaks[side] for row in rows)
        if not ended[side] and rows[-1][side]:
            text = text.removesuffix(breaks[side])
        names.append(write(f"{'ab'[side]}.txt{packing[side]}", PACK[packing[side]](text.encode("utf-8-sig"))))
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"BLOCK_BYTES": 7, "SNIFF_BYTES": 4, "_ZST_BYTES": 3, "_PACKED_BYTES": 5}.items():
            patch.setattr(decoding, name, size)
        examples = aligned(*names)
    assert pairs_of(examples) == whole(rows)
    assert examples.name == f"{names[0]} and {names[1]}"
    assert skipped(examples) == len(rows) - len(whole(rows))


def test_pairs_with_an_empty_side_are_counted_and_told() -> None:
    write("a.en", "one\n\nthree\n \nfive\r\n")
    write("a.de", "eins\nzwei\n\t\n\nfünf\n")
    examples = aligned("a.en", "a.de")
    assert pairs_of(examples) == [("one", "eins"), ("five", "fünf")]
    assert examples.found == (
        "2 files, 2 examples, 16 bytes",
        "skipped: 3 pairs with an empty side (first: a.en:2)",
        "1 file with Windows line ends, read as plain ones",
    )
    write("a.en", "\n\n\n\n\n")
    with pytest.raises(UserError, match=r"no example in a\.en and a\.de, .*skipped: 5 pairs with an empty side"):
        aligned("a.en", "a.de")


def test_only_line_feeds_end_lines() -> None:
    odd = "one\u2028two\x0bthree\x85four\rfive"
    write("a.txt", f"{odd}\nsix\n")
    write("b.txt", "1\n2")
    assert pairs_of(aligned("a.txt", "b.txt")) == [(odd, "1"), ("six", "2")]


@with_files
@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_different_numbers_of_lines_are_an_error_with_both(one: int, other: int, ended: bool) -> None:
    for name, count in (("a.txt", one), ("b.txt", other)):
        write(name, "\n".join(["x"] * count) + "\n" * (ended and count > 0))
    if one == other > 0:
        assert len(aligned("a.txt", "b.txt").inputs) == one
        return
    message = (
        rf"a\.txt has {one} lines? and b\.txt {other}: line by line" if one != other else "there is no example in a"
    )
    with pytest.raises(UserError, match=message):
        aligned("a.txt", "b.txt")


def test_several_texts_are_aligned_file_by_file() -> None:
    for name in ("a/1.txt", "a/2.txt", "c.txt"):
        write(name, f"{name}\nmore {name}\n")
        write(name.replace("a/", "b/").replace("c", "d"), f"to {name}\nto more {name}\n")
    examples = aligned("a", "c.txt", "b/*.txt", "d.txt")
    assert examples.inputs == [f"{more}{name}" for name in ("a/1.txt", "a/2.txt", "c.txt") for more in ("", "more ")]
    assert examples.outputs == [f"to {text}" for text in examples.inputs]
    assert examples.name == "2 sources: a, c.txt and 2 sources: b/*.txt, d.txt"
    with pytest.raises(UserError, match=r"data has 2 files and target_file 1: line by line, each file needs one"):
        aligned("a", "d.txt")
    write("b/2.txt", "one\n")
    with pytest.raises(UserError, match=r"a/2\.txt has 2 lines and b/2\.txt 1: line by line"):
        aligned("a", "b")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t.csv", r"t\.csv is a table: with target_file, line by line, SIDE names plain text\. Leave target_file out"),
        ("t.npy", r"t\.npy holds token ids: with target_file, line by line, SIDE names plain text"),
        ("t.png", r"t\.png is not text: it looks like a picture"),
        ("stories", r"data = 'stories' is built-in text"),
    ],
)
def test_what_is_no_plain_text_has_no_lines_to_align(name: str, message: str, first: bool) -> None:
    write("a.txt", "a\n")
    write("t.png", b"\x89PNG\r\n")
    for table in ("t.csv", "t.npy"):
        write(table, "a\n")
    names = (name, "a.txt") if first else ("a.txt", name)
    with pytest.raises(UserError, match=message.replace("SIDE", "data" if first else "target_file")):
        aligned(*names)


def test_an_aligned_text_that_is_damaged_is_an_error() -> None:
    write("a.txt.gz", gzip.compress(b"a\n" * 1000)[:-8])
    write("b.txt", "b\n" * 1000)
    for names in (("a.txt.gz", "b.txt"), ("b.txt", "a.txt.gz")):
        with pytest.raises(UserError, match=r"a\.txt\.gz is damaged or incomplete"):
            aligned(*names)


# From Python.


class Row(NamedTuple):
    text: str
    label: str


class Dataset:
    """What a dataset of Hugging Face looks like: iterating gives dicts."""

    column_names = ("text", "label")

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


HOLD: list[Callable[[Rows], Any]] = [
    list,
    iter,
    lambda rows: [list(row) for row in rows],
    lambda rows: [Row(*row) for row in rows],
    lambda rows: Dataset([{"text": text, "label": output, "n": 1} for text, output in rows]),
    lambda rows: np.array([[f"{one}." for one in row] for row in rows]),
]


@given(rows_of(ANY), st.sampled_from(HOLD))
def test_examples_come_in_whatever_holds_them(rows: Rows, hold: Callable[[Rows], Any]) -> None:
    held = hold(rows)
    if isinstance(held, np.ndarray):
        rows = [(f"{one}.", f"{other}.") for one, other in rows]
    examples = given_examples(held, "text", "label")
    assert pairs_of(examples) == whole(rows)
    assert examples.name == "examples given in Python"
    assert examples.found[0].startswith(f"{len(whole(rows))} example")
    gone = [index for index, row in enumerate(rows) if not whole([row])]
    assert any(f"item {gone[0]}" in line for line in examples.found[1:]) if gone else len(examples.found) <= 2


def test_labels_that_are_numbers_or_booleans_are_written_out_as_in_a_file() -> None:
    values = [*VALUES, np.int64(7), np.bool_(True), np.float32(0.5)]
    assert given_examples([("t", value) for value in values], "a", "b").outputs == [*WRITTEN, "7", "True", "0.5"]


PAIR_RULE = r"a pair \(input, output\), or a dict with 'text' and 'label'"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("ab", rf"item 1 of data is 'ab', a str: each must be {PAIR_RULE}"),
        (7, "item 1 of data is 7, a int: each must be"),
        (("a",), r"item 1 of data is \('a',\), a tuple of 1: each must be"),
        (["a", "b", "c"], "a list of 3: each must be"),
        (
            {"text": "a", "Label": 1, "n": 2},
            r"item 1 of data has no field 'label'; .*'text', 'Label', 'n'\. Did you mean 'L",
        ),
        ({}, r"item 1 of data has no field 'text'; its fields are: \.$"),
        ((1, "x"), "the input of item 1 of data is 1: must be a str"),
        ((None, "x"), "the input of item 1 of data is None: must be a str"),
        ((math.nan, "x"), "the input of item 1 of data is nan: must be a str"),
        ((b"a", "x"), "the input of item 1 of data is b'a': must be a str"),
        (
            ("x", None),
            r"the output of item 1 of data is None: must be a str, a number or a bool\. Leave such items out",
        ),
        (("x", math.nan), "the output of item 1 of data is nan: must be a str, a number"),
        (("x", ["a"]), r"the output of item 1 of data is \['a'\]: must be"),
        (("x\ud800", "y"), "the input of item 1 of data is not Unicode"),
        (("x", "\udfff"), "the output of item 1 of data is not Unicode"),
        (("x", [1] * 999), r"1, 1,\.\.\.: must be"),
    ],
)
def test_an_item_that_is_no_example_is_told_with_its_place(item: Any, message: str) -> None:
    for kind in (list, iter):
        with pytest.raises(UserError, match=message) as error:
            given_examples(kind([("a", "b"), item]), "text", "label")
        assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a.csv", r"data = 'a\.csv' is a str: must be an iterable of examples, each a pair"),
        (b"a", "data = b'a' is a bytes: must be an iterable"),
        (7, "data = 7 is a int: must be an iterable"),
        ({"text": ["a"], "label": [1]}, r"data of 'text', 'label' is a dict: .*zip\(data\['text'\], data\['label'\]\)"),
        ({"train": [], "test": []}, r"is a dict: .*Pass one of what it holds, such as data\['train'\]"),
        ({}, "is a dict: must be an iterable"),
        (
            Dataset(["text", "label"]),
            r"item 0 of data is 'text', a str: .* Pass zip\(data\['text'\], data\['label'\]\)",
        ),
        ([], "there is no example in examples given in Python, nothing to learn from"),
        ([("a", " "), ("", "b")], r"there is no example in .*skipped: 2 examples with an empty side \(first: item 0\)"),
    ],
)
def test_what_holds_no_examples_is_refused(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        given_examples(data, "text", "label")


# What identifies them, and what they cost.


@with_files
@given(rows_of(ANY), rows_of(ANY))
def test_the_fingerprint_tells_examples_apart_however_they_came(one: Rows, other: Rows) -> None:
    fingerprints = [given_examples(rows, "a", "b").fingerprint for rows in (one, other)]
    assert (fingerprints[0] == fingerprints[1]) == (whole(one) == whole(other))
    assert read(write("a.jsonl", as_jsonl(one))).fingerprint == fingerprints[0]


def test_a_text_that_moves_to_the_other_side_changes_the_fingerprint() -> None:
    rows: list[Rows] = [[("ab", "c")], [("a", "bc")], [("a", "b"), ("c", "d")], [("a", "c"), ("b", "d")], [("c", "ab")]]
    assert len({given_examples(one, "a", "b").fingerprint for one in rows}) == len(rows)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_memory_holds_little_beside_the_texts(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 2**16)
    text = "A sentence of some length that is classified, number "
    rows = [(f"{text}{index}", "abc"[index % 3] * 20) for index in range(8_000)]
    if ending == ".parquet":
        path = write_parquet("a.parquet", text=[row[0] for row in rows], label=[row[1] for row in rows])
    else:
        path = write(f"a{ending}", WRITE[ending](rows))
    read(path)
    texts = sum(len(row[0]) + 49 for row in rows)  # as str
    del rows
    tracemalloc.start()
    try:
        examples = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(examples.inputs) == 8_000
    assert peak < 1.3 * texts + 300_000


# The split.

FRACTIONS = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9])
TEXTS = st.text("abc ", min_size=1, max_size=4).map(lambda text: f"{text}.")
LABELLED = st.lists(st.tuples(TEXTS, st.sampled_from(["x", "y", "z"])), min_size=2, max_size=60)


def inputs_of(examples: Examples) -> set[str]:
    return {text.strip() for text in examples.inputs}


@given(LABELLED, FRACTIONS, st.booleans(), st.randoms(use_true_random=False))
def test_a_split_keeps_everything_and_copies_together_whatever_the_order(
    rows: Rows, fraction: float, stratify: bool, random: Any
) -> None:
    try:
        train, val, rule = split_examples(made(rows), fraction, stratify=stratify)
    except UserError:
        alone = Counter(min(label for text, label in rows if text.strip() == one) for one in inputs_of(made(rows)))
        assert len(inputs_of(made(rows))) < 2 or (stratify and max(alone.values()) == 1) or several_only(rows)
        return
    assert sorted(pairs_of(train) + pairs_of(val)) == sorted(rows)
    for part in (train, val):  # in their old order
        left = iter(rows)
        assert all(pair in left for pair in pairs_of(part))
        assert (part.name, part.found) == ("made", ("found",))
    assert inputs_of(train)
    assert inputs_of(val)
    assert not inputs_of(train) & inputs_of(val)
    assert rule.startswith(f"{len(val.inputs)} of {len(rows)} examples, {100 * fraction:.3g} %")
    shuffled = [*rows, *rows[:3]]  # more copies change nothing
    random.shuffle(shuffled)
    again = split_examples(made(shuffled), fraction, stratify=stratify)
    assert [inputs_of(part) for part in again[:2]] == [inputs_of(train), inputs_of(val)]


def several_only(rows: Rows) -> bool:
    """Whether some text has several labels, which can leave nothing for validation."""
    labels = defaultdict(set)
    for text, label in rows:
        labels[text.strip()].add(label)
    return any(len(one) > 1 for one in labels.values())


@given(
    st.dictionaries(TEXTS.map(str.strip), st.sampled_from(["w", "x", "y", "z"]), min_size=2, max_size=80),
    st.lists(st.integers(1, 3), min_size=80, max_size=80),
    FRACTIONS,
)
def test_each_label_gives_the_same_share_one_text_at_least_and_never_all(
    label_of: dict[str, str], copies: list[int], fraction: float
) -> None:
    rows = [pair for pair, count in zip(label_of.items(), copies, strict=False) for _ in range(count)]
    sizes = Counter(label_of.values())
    if max(sizes.values()) == 1:
        with pytest.raises(
            UserError, match=r"made has too few texts to hold one out and still learn all of \d labels?: "
        ):
            split_examples(made(rows), fraction, stratify=True)
        return
    train, val, rule = split_examples(made(rows), fraction, stratify=True)
    held_out = Counter(label_of[text] for text in inputs_of(val))
    for label, size in sizes.items():
        wanted = min(max(math.floor(fraction * size + 0.5), 1), size - 1)
        assert held_out[label] == wanted
    assert set(train.outputs) == set(sizes)
    alone = sum(size == 1 for size in sizes.values())
    assert (f"{alone} label" in rule) == (alone > 0)


@given(LABELLED, FRACTIONS)
def test_training_knows_every_label_also_where_texts_have_several(rows: Rows, fraction: float) -> None:
    try:
        train, _, rule = split_examples(made(rows), fraction, stratify=True)
    except UserError:
        return
    assert set(train.outputs) == {label for _, label in rows}
    assert ("with several labels" in rule) == several_only(rows)


def test_a_share_of_many_inputs_is_held_out_and_more_examples_move_none() -> None:
    rows = [(f"text {index % 3000}", f"target {index}") for index in range(4000)]
    train, val, rule = split_examples(made(rows), 0.1, stratify=False)
    assert abs(len(inputs_of(val)) / 3000 - 0.1) < 0.02
    assert rule == f"{len(val.inputs)} of 4,000 examples, 10 % chosen by a hash of their input"
    more = [(f"another {index}", "target") for index in range(2000)]
    train_2, val_2, _ = split_examples(made([*more, *rows]), 0.1, stratify=False)
    assert inputs_of(val) <= inputs_of(val_2)
    assert inputs_of(train) <= inputs_of(train_2)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_inputs_are_enough_for_a_split_whatever_their_hashes(fraction: float) -> None:
    for index in range(20):
        rows = [(f"one {index}", "x"), (f"other {index}", "x"), (f"one {index}", "x")]
        for stratify in (True, False):
            train, val, _ = split_examples(made(rows), fraction, stratify=stratify)
            assert len(inputs_of(train)) == len(inputs_of(val)) == 1


def test_the_split_is_the_same_on_every_machine() -> None:
    rows = [(f"text {index}", "ab"[index % 2]) for index in range(1000)]
    for stratify, expected in ((False, "b096b781013f"), (True, "2c2993bad829")):
        val = split_examples(made(rows), 0.05, stratify=stratify)[1]
        assert hashlib.sha256("\n".join(val.inputs).encode()).hexdigest()[:12] == expected


def test_blanks_around_an_input_make_no_other_input() -> None:
    rows = [(f"{' ' * (index % 3)}text {index // 3}\n", "t") for index in range(300)]
    train, val, _ = split_examples(made(rows), 0.3, stratify=False)
    assert not inputs_of(train) & inputs_of(val)
    assert len(train.inputs) % 3 == len(val.inputs) % 3 == 0


def test_the_parts_have_fingerprints_of_their_own() -> None:
    whole_set = given_examples([(f"text {index}", "t") for index in range(50)], "a", "b")
    parts = split_examples(whole_set, 0.3, stratify=False)[:2]
    for part in parts:
        assert part.fingerprint == given_examples(pairs_of(part), "a", "b").fingerprint
    assert len({whole_set.fingerprint, *(part.fingerprint for part in parts)}) == 3


def test_what_is_told_of_texts_with_several_labels_and_labels_with_one_text() -> None:
    rows = [("a", "x"), ("b", "x"), ("b", "x"), ("c", "y"), ("c", "y"), ("d", "x"), ("d", "z"), ("d", "w"), ("e", "z")]
    train, val, rule = split_examples(made(rows), 0.1, stratify=True)
    assert {("c", "y"), ("d", "w")} <= set(pairs_of(train))
    assert rule == (
        f"{len(val.inputs)} of 9 examples, 10 % of each label, chosen by a hash of the text; 1 text with several "
        "labels; 2 labels with a single text, for training"
    )


@pytest.mark.parametrize("stratify", [True, False])
def test_a_split_with_an_empty_side_is_refused(stratify: bool) -> None:
    with pytest.raises(UserError, match=r"made has 1 example: training and validation need an input each"):
        split_examples(made([("a", "b")]), 0.1, stratify=stratify)
    with pytest.raises(UserError, match=r"made has 3 examples, all with the same input: .*--val_data"):
        split_examples(made([("a", "b"), ("a ", "b"), ("a", "c")]), 0.1, stratify=stratify)
    for fraction in (0, 1, -1, math.nan):
        with pytest.raises(UserError, match=rf"val_fraction = {fraction}: must be above 0 and below 1"):
            split_examples(made([("a", "b"), ("b", "b")]), fraction, stratify=stratify)


# Labels.


@given(st.lists(st.sampled_from(["b", "a", "10", "9", "é"]), min_size=1))
def test_labels_are_the_different_outputs_sorted(outputs: list[str]) -> None:
    examples = made([(str(index), output) for index, output in enumerate(outputs)])
    if len(set(outputs)) == 1:
        with pytest.raises(UserError, match=rf"made has only the label '{outputs[0]}': there is nothing to tell apart"):
            labels_of(examples)
    else:
        assert labels_of(examples) == tuple(sorted(set(outputs)))


def test_outputs_that_nearly_all_differ_are_no_labels() -> None:
    def of(labels: int, count: int) -> Examples:
        return made([("t", str(index % labels)) for index in range(count)])

    assert len(labels_of(of(19, 19))) == 19
    assert len(labels_of(of(80, 100))) == 80
    for labels, count in ((20, 20), (81, 100)):
        with pytest.raises(UserError, match=rf"{labels} different labels in {count} examples: .*no classes to learn"):
            labels_of(of(labels, count))


def test_there_are_not_more_labels_than_a_head_should_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert example_split.MOST_LABELS == 1000
    monkeypatch.setattr(example_split, "MOST_LABELS", 30)
    for labels in (30, 31):
        examples = made([("t", str(index % labels)) for index in range(100)])
        if labels == 30:
            assert len(labels_of(examples)) == 30
        else:
            with pytest.raises(UserError, match="made has 31 labels: at most 30 are possible"):
                labels_of(examples)
