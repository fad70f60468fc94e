"""The texts in one field of a table, be it JSON lines, CSV, TSV or Parquet, and what the rows without one lack."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from slm.config import UserError
from slm.data import decoding
from slm.data.counts import Notes, many

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
LONGEST_LINE = 2**26  # characters; what a whole file without a line break would be
PARQUET_ROWS = 64  # at once
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of .csv, the most likely first
_SPLIT_AT = "A .csv file is split at commas, semicolons or tabs as its header tells, a .tsv file at tabs"
_END_OF_CSV = "\0end of file\0"
_FIELDS_TOLD = 8
_LONG_NAME = 40  # characters; a longer name of a field is rather a text
_NUMBER = re.compile(r"[-+]?[0-9.,]+")
_LINE = re.compile("[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # the csv module wants a lone CR to end a line, too
_Rows = Iterator[tuple[int, list[str]]]  # with the number of the line where each begins


class Table:
    """The reading of one file's texts, with notes of the rows that gave none."""

    def __init__(self, notes: Notes, ending: str, text_field: str) -> None:
        self.notes, self.ending, self.text_field = notes, ending, text_field
        self.column = int(text_field) if text_field.isascii() and text_field.isdigit() else None
        self.without = f"without field {text_field!r}"
        self.delimiter = "," if ending == ".csv" else "\t"

    def texts(self, blocks: Iterable[str]) -> Iterator[str]:
        """The text of each row of a table that is itself text, which comes in blocks."""
        lines = decoding.lines(blocks, LONGEST_LINE, self.notes.path)
        if self.ending in (".jsonl", ".ndjson"):
            return self._json_lines(lines)
        return self._columns(self._csv(lines) if self.ending == ".csv" else _tabs(lines))

    def parquet_texts(self, source: decoding.Source) -> Iterator[str]:
        """The text of each row of a Parquet file. Raises UserError where the package is missing."""
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(
                f"{self.notes.path}: a .parquet file needs the package pyarrow: pip install pyarrow"
            ) from error
        # With a buffer, a column of a row group is read piece by piece.
        return self._parquet_column(parquet.ParquetFile(source, buffer_size=decoding.BLOCK_BYTES, pre_buffer=False))

    def _json_lines(self, lines: Iterable[str]) -> Iterator[str]:
        self._begin()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                rule = f"each line of a {self.ending} file is one JSON object; other text takes an ending such as .txt"
                problem = f"is not JSON ({_json_problem(error)}); {rule}"
                self.notes.skip_row(number, "line that did not parse as JSON", problem)
                continue
            fields = row if isinstance(row, dict) else dict(enumerate(row)) if isinstance(row, list) else {}
            key = self.column if isinstance(row, list) and self.column is not None else self.text_field
            if key not in fields:
                by_number = isinstance(row, list) and self.column is not None
                problem = self._too_few(len(row)) if by_number else self._missing(list(fields))
                self.notes.skip_row(number, f"line {self.without}", problem)
            elif isinstance(value := fields[key], str):
                yield value
            else:
                others = _with_text([name for name in fields if isinstance(fields[name], str)])
                problem = f"has {_short(value)} in field {self.text_field!r}, no string; {others}"
                self.notes.skip_row(number, f"line with no string in field {self.text_field!r}", problem)

    def _csv(self, lines: Iterable[str]) -> _Rows:
        # The limit is one of the process, 131,072 characters unless somebody sets it.
        csv.field_size_limit(LONGEST_LINE)
        parts = (part for line in lines for part in (_LINE.findall(line) if "\r" in line else (line,)))
        begun: list[str] = []
        for part in parts:
            begun.append(part)
            if part.strip("\r\n"):
                break
        if self.column is None and begun:
            self.delimiter = _delimiter(begun[-1])
        reader = csv.reader(chain(begun, parts, ["\n", _END_OF_CSV]), delimiter=self.delimiter)
        before = 0
        try:
            for row in reader:
                if row and row != [_END_OF_CSV]:
                    # A quote that nobody closes takes all lines to the end, that of ours too.
                    if row[-1].endswith(_END_OF_CSV):
                        raise UserError(
                            f"{self.notes.path}:{before + 1} has a quote that is never closed. Mend that line."
                        )
                    yield before + 1, row
                before = reader.line_num
        except csv.Error as error:
            raise UserError(
                f"{self.notes.path}:{before + 1} cannot be read as CSV: {error}. Is a quote never closed?"
            ) from error

    def _columns(self, rows: _Rows) -> Iterator[str]:
        """The text of each row: under its name in the first one, or in the column of that number."""
        start, first = next(rows, (0, [self.text_field]))
        column = self.column
        most: int | None = len(first)
        if column is None:
            if (column := self._place(first)) is None:
                self._no_field(first)
                return
        elif start:  # without a header a row may have any number of columns
            rows, most = chain([(start, first)], rows), None
        self._begin()
        for number, row in rows:
            if most is not None and any(surplus.strip() for surplus in row[most:]):
                problem = f"has {many(len(row), 'column')}, the header {most}: {self._what_splits()}"
                self.notes.skip_row(number, "line with more columns than the header", problem)
            elif column < len(row):
                yield row[column]
            else:
                problem = f"has {many(len(row), 'column')}, the header {len(first)}: none for field {self.text_field!r}"
                problem = problem if self.column is None else self._too_few(len(row))
                self.notes.skip_row(number, f"line {self.without}", problem)

    def _what_splits(self) -> str:
        if self.ending == ".tsv":
            return "a .tsv file is split at every tab, so its texts can hold none"
        return f"a text that holds {_DELIMITERS[self.delimiter]} must stand in quotes"

    def _parquet_column(self, table: Any) -> Iterator[str]:
        names, kinds = table.schema_arrow.names, table.schema_arrow.types
        if (column := self._place(names)) is None:
            self._no_field(names)
            return
        name, kind = names[column], kinds[column]
        if not _is_text(kind):
            others = _with_text([other for other, of in zip(names, kinds, strict=True) if _is_text(of)])
            error = f"has {kind} in field {name!r}, not text; {others}."
            self.notes.skip_file(f"file with no text in field {name!r}", error)
            return
        self._begin()
        number = 0
        for batch in table.iter_batches(PARQUET_ROWS, columns=[name], use_threads=False):
            # As bytes, since nobody checks that a file's strings are UTF-8.
            for data in batch.column(0).cast(_of_words(kind)).cast("large_binary").to_pylist():
                number += 1
                if data is None:
                    reason = f"row with no string in field {name!r}"
                    self.notes.skip_row(number, reason, f"has nothing in field {name!r}")
                    continue
                text, undecodable = decoding.decoded(data)
                self.notes.undecodable(undecodable)
                yield text

    def _begin(self) -> None:
        """Counts the file as one that is read, once its field is found."""
        self.notes.counts.files += 1
        self.notes.counts.tables += 1

    def _place(self, names: list[str]) -> int | None:
        """Where the field stands among the names of a header, of which blanks around them are no part if need be."""
        if self.column is not None:
            return self.column if self.column < len(names) else None
        if self.text_field in names:
            return names.index(self.text_field)
        alike = [index for index, name in enumerate(names) if name.strip() == self.text_field.strip()]
        return alike[0] if len(alike) == 1 else None

    def _too_few(self, count: int) -> str:
        """What to tell of a row of so many columns, none of which has the number that was asked for."""
        if count > 1:
            return f"has no column text_field = {self.column}: it has {count} columns, 0 to {count - 1}"
        rule = {
            ".csv": " (without a header, a .csv file is split at commas)",
            ".tsv": " (a .tsv file is split at tabs)",
        }
        there = "its only column is 0" if count else "it has none"
        return f"has no column text_field = {self.column}: {there}{rule.get(self.ending, '')}"

    def _missing(self, names: Sequence[str | int]) -> str:
        """What to tell of a row or header without a field of that name."""
        problem = f"has no field {self.text_field!r}; its fields are: {_told(names) or 'none'}"
        if not names:
            return problem
        wanted = self.text_field.strip().casefold()
        near = next((name for name in names if isinstance(name, str) and name.strip().casefold() == wanted), None)
        return f"{problem}. {f'Did you mean {near!r}? ' if near else ''}Name one of them with --text_field"

    def _no_field(self, names: list[str]) -> None:
        """Skips a table that lacks the field as a whole."""
        problem = self._missing(names) if self.column is None else self._too_few(len(names))
        if self.column is None and any(len(one) > _LONG_NAME or not one or _NUMBER.fullmatch(one) for one in names):
            longest = max(range(len(names)), key=lambda index: len(names[index]))
            problem += f", or a column by its number if there is no header: --text_field {longest}"
        if len(names) == 1 and self.ending in (".csv", ".tsv"):
            problem += f". {_SPLIT_AT}"
        self.notes.skip_file(f"file {self.without}", f"{problem}.")


def _tabs(lines: Iterable[str]) -> _Rows:
    """The columns of each line that is not empty, split at tabs without a look at quotes."""
    for number, line in enumerate(lines, 1):
        if line := line.removesuffix("\n").removesuffix("\r"):
            yield number, line.split("\t")


def _delimiter(header: str) -> str:
    """What splits a .csv file: the comma, or what Excel writes in Europe where that alone splits the header."""
    return next((one for one in _DELIMITERS if len(next(csv.reader([header], delimiter=one), "")) > 1), ",")


def _json_problem(error: Exception) -> str:
    """What is wrong with one line, without the number of the line, which is always 1."""
    return f"{error.msg}: column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


def _of_words(kind: Any) -> Any:
    """The type of a Parquet column's values, where they are written as numbers of words in a dictionary."""
    return kind.value_type if str(kind).startswith("dictionary") else kind


def _is_text(kind: Any) -> bool:
    return str(_of_words(kind)).endswith(("string", "binary", "string_view", "binary_view"))


def _with_text(names: Sequence[str | int]) -> str:
    """Which fields to name instead."""
    return f"fields with text: {_told(names)}. Name one with --text_field" if names else "no field of it holds text"


def _told(names: Sequence[str | int]) -> str:
    """The first few names in quotes, so that blanks in them show; numbers are those of columns."""
    told = (repr(name if isinstance(name, int) else _cut(name)) for name in names[:_FIELDS_TOLD])
    return ", ".join(told) + (", ..." if len(names) > _FIELDS_TOLD else "")


def _short(value: Any) -> str:
    """A value for a message, on one line and not long."""
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONG_NAME else f"{text[: _LONG_NAME - 3]}..."
