"""The texts in the fields of a table, be it JSON lines, CSV, TSV or Parquet, and what the rows without them lack."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
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
_ALIKE = 0.7  # of two names, where 1 is the same: one letter too many, too few or out of place
_NUMBER = re.compile(r"[-+]?[0-9.,]+")
_LINE = re.compile("[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # the csv module wants a lone CR to end a line, too
_Rows = Iterator[tuple[int, list[str]]]  # with the number of the line where each begins


@dataclass(frozen=True)
class Field:
    """One field of a table, and what may stand in it.

    filled: blanks at both ends are dropped, and a row where nothing is left is skipped. scalar: numbers and booleans
    are written out as Python does, such as 1, 0.5 or True.
    """

    name: str
    setting: str = "text_field"  # that names it
    filled: bool = False
    scalar: bool = False

    @cached_property
    def column(self) -> int | None:
        """The number that the name is, where it is one: columns count from 0, and there is no header."""
        return int(self.name) if self.name.isascii() and self.name.isdigit() else None

    @property
    def without(self) -> str:
        """What is told of a row or a file that lacks the field."""
        return f"without field {self.name!r}"

    def text_of(self, value: Any) -> str | None:
        """The text that a value stands for; None where it stands for none, also "" where the field must be filled."""
        if isinstance(value, str):
            return value.strip() if self.filled else value
        if self.filled and (value is None or value != value):  # NaN, what pandas writes where nothing is
            return ""
        return str(value) if self.scalar and isinstance(value, bool | int | float | Decimal) else None


class Table:
    """The reading of the rows of one file, with notes of those that lack a text."""

    def __init__(self, notes: Notes, ending: str, fields: str | Sequence[Field]) -> None:
        """fields: those that make a row, or the name of a single one, which may be empty."""
        self.notes, self.ending = notes, ending
        self.fields = (Field(fields),) if isinstance(fields, str) else tuple(fields)
        self.delimiter = "," if ending == ".csv" else "\t"
        self.has_header = all(field.column is None for field in self.fields)

    def texts(self, blocks: Iterable[str]) -> Iterator[str]:
        """The text of the first field in each row of a table that is itself text, which comes in blocks."""
        return (texts[0] for texts in self.rows(blocks))

    def parquet_texts(self, source: decoding.Source) -> Iterator[str]:
        """The text of the first field in each row of a Parquet file. Raises UserError where the package is missing."""
        return (texts[0] for texts in self.parquet_rows(source))

    def rows(self, blocks: Iterable[str]) -> Iterator[tuple[str, ...]]:
        """The texts of all fields for each row of a table that is itself text, which comes in blocks."""
        lines = decoding.lines(blocks, LONGEST_LINE, self.notes.path)
        if self.ending in (".jsonl", ".ndjson"):
            return self._json_lines(lines)
        return self._columns(self._csv(lines) if self.ending == ".csv" else _tabs(lines))

    def parquet_rows(self, source: decoding.Source) -> Iterator[tuple[str, ...]]:
        """The texts of all fields for each row of a Parquet file. Raises UserError where the package is missing."""
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(
                f"{self.notes.path}: a .parquet file needs the package pyarrow: pip install pyarrow"
            ) from error
        # With a buffer, a column of a row group is read piece by piece.
        return self._parquet_columns(parquet.ParquetFile(source, buffer_size=decoding.BLOCK_BYTES, pre_buffer=False))

    def _json_lines(self, lines: Iterable[str]) -> Iterator[tuple[str, ...]]:
        self._begin()
        names: list[str | int] = [field.name for field in self.fields]
        numbers = [field.name if field.column is None else field.column for field in self.fields]
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
            is_list = isinstance(row, list)
            cells: dict[str | int, Any] = row if isinstance(row, dict) else dict(enumerate(row)) if is_list else {}
            keys = numbers if is_list else names
            try:
                values = [cells[key] for key in keys]
            except KeyError:
                lacking = [field for field, key in zip(self.fields, keys, strict=True) if key not in cells]
                by_number = is_list and lacking[0].column is not None
                problem = self._too_few(lacking[0], len(row)) if by_number else self._missing(list(cells), lacking)
                self.notes.skip_row(number, f"line {lacking[0].without}", problem)
                continue
            if (texts := self._texts_of("line", number, values, cells)) is not None:
                yield texts

    def _texts_of(
        self, row: str, number: int, values: Iterable[Any], cells: Mapping[str | int, Any] | None = None
    ) -> tuple[str, ...] | None:
        """The texts of a row's values, one for each field; None once the row was skipped.

        row: what it is called. cells: all of them, where they tell which field to name instead.
        """
        texts = []
        for field, value in zip(self.fields, values, strict=True):
            text = value if isinstance(value, str) and not field.filled else field.text_of(value)
            if text is not None and (text or not field.filled):
                texts.append(text)
                continue
            lack = "nothing" if text is not None else "no string or number" if field.scalar else "no string"
            problem = f"has nothing in field {field.name!r}"
            if text is None and cells is not None:
                others = _with_text([name for name, one in cells.items() if isinstance(one, str)], field.setting)
                problem = f"has {_short(value)} in field {field.name!r}, {lack}; {others}"
            self.notes.skip_row(number, f"{row} with {lack} in field {field.name!r}", problem)
            return None
        return tuple(texts)

    def _csv(self, lines: Iterable[str]) -> _Rows:
        # The limit is one of the process, 131,072 characters unless somebody sets it.
        csv.field_size_limit(LONGEST_LINE)
        parts = (part for line in lines for part in (_LINE.findall(line) if "\r" in line else (line,)))
        begun: list[str] = []
        for part in parts:
            begun.append(part)
            if part.strip("\r\n"):
                break
        if self.has_header and begun:
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

    def _columns(self, rows: _Rows) -> Iterator[tuple[str, ...]]:
        """The texts of each row: under their names in the first one, or in the columns of those numbers."""
        start, first = next(rows, (0, [field.name for field in self.fields]))
        most: int | None = len(first)
        if self.has_header:
            if (columns := self._places(first)) is None:
                return
        else:
            columns = self._numbers()
            if start:  # without a header a row may have any number of columns
                rows, most = chain([(start, first)], rows), None
        self._begin()
        last, filled = max(columns), any(field.filled for field in self.fields)
        for number, row in rows:
            if most is not None and any(surplus.strip() for surplus in row[most:]):
                problem = f"has {many(len(row), 'column')}, the header {most}: {self._what_splits()}"
                self.notes.skip_row(number, "line with more columns than the header", problem)
            elif last < len(row):
                cells = tuple([row[column] for column in columns])
                texts = self._texts_of("line", number, cells) if filled else cells
                if texts is not None:
                    yield texts
            else:
                field = next(one for one, column in zip(self.fields, columns, strict=True) if column >= len(row))
                problem = f"has {many(len(row), 'column')}, the header {len(first)}: none for field {field.name!r}"
                problem = problem if self.has_header else self._too_few(field, len(row))
                self.notes.skip_row(number, f"line {field.without}", problem)

    def _what_splits(self) -> str:
        if self.ending == ".tsv":
            return "a .tsv file is split at every tab, so its texts can hold none"
        return f"a text that holds {_DELIMITERS[self.delimiter]} must stand in quotes"

    def _parquet_columns(self, table: Any) -> Iterator[tuple[str, ...]]:
        names, kinds = table.schema_arrow.names, table.schema_arrow.types
        if (places := self._places(names)) is None:
            return
        for field, place in zip(self.fields, places, strict=True):
            if not (_is_text(kinds[place]) or (field.scalar and _is_scalar(kinds[place]))):
                others = [other for other, of in zip(names, kinds, strict=True) if _is_text(of)]
                error = f"has {kinds[place]} in field {names[place]!r}, not text; {_with_text(others, field.setting)}."
                self.notes.skip_file(f"file with no text in field {names[place]!r}", error)
                return
        self._begin()
        number = 0
        for batch in table.iter_batches(PARQUET_ROWS, columns=[names[place] for place in places], use_threads=False):
            # More may come than was asked for: with a column named a.b also the part b of a column a.
            found = [batch.column(batch.schema.names.index(names[place])) for place in places]
            cells = [self._cells(one, kinds[place]) for one, place in zip(found, places, strict=True)]
            for values in zip(*cells, strict=True):
                number += 1
                if (texts := self._texts_of("row", number, values)) is not None:
                    yield texts

    def _cells(self, column: Any, kind: Any) -> Iterator[Any]:
        """The values of a Parquet column, a text decoded when its turn comes."""
        column = column.cast(_of_words(kind))
        if not _is_text(kind):
            yield from column.to_pylist()
            return
        # As bytes, since nobody checks that a file's strings are UTF-8.
        for data in column.cast("large_binary").to_pylist():
            text, undecodable = (None, 0) if data is None else decoding.decoded(data)
            self.notes.undecodable(undecodable)
            yield text

    def _begin(self) -> None:
        """Counts the file as one that is read, once its fields are found."""
        self.notes.counts.files += 1
        self.notes.counts.tables += 1

    def _numbers(self) -> list[int]:
        """The columns that all fields give by their numbers. Raises UserError where one gives a name."""
        columns = [field.column for field in self.fields]
        given = [column for column in columns if column is not None]
        if len(given) < len(columns):
            number, name = self.fields[columns.index(given[0])], self.fields[columns.index(None)]
            raise UserError(
                f"{number.setting} = {number.column} is the number of a column, for a table without a header, but "
                f"{name.setting} = {name.name!r} is a name in a header: {self.notes.path} has the one or the other. "
                "Give numbers only, columns count from 0, or names only."
            )
        return given

    def _places(self, names: list[str]) -> list[int] | None:
        """Where the fields stand among the names of a header; None once the table was skipped for want of one."""
        places = [self._place(field, names) for field in self.fields]
        if lacking := [field for field, place in zip(self.fields, places, strict=True) if place is None]:
            self._no_field(names, lacking)
            return None
        return [place for place in places if place is not None]

    def _place(self, field: Field, names: list[str]) -> int | None:
        """Where a field stands among the names of a header, of which blanks around them are no part if need be."""
        if field.column is not None:
            return field.column if field.column < len(names) else None
        if field.name in names:
            return names.index(field.name)
        alike = [index for index, name in enumerate(names) if name.strip() == field.name.strip()]
        return alike[0] if len(alike) == 1 else None

    def _too_few(self, field: Field, count: int) -> str:
        """What to tell of a row of so many columns, none of which has the number that was asked for."""
        lack = f"has no column {field.setting} = {field.column}"
        if count > 1:
            return f"{lack}: it has {count} columns, 0 to {count - 1}"
        rule = {
            ".csv": " (without a header, a .csv file is split at commas)",
            ".tsv": " (a .tsv file is split at tabs)",
        }
        there = "its only column is 0" if count else "it has none"
        return f"{lack}: {there}{rule.get(self.ending, '')}"

    def _missing(self, names: Sequence[str | int], lacking: Sequence[Field]) -> str:
        """What to tell of a row or header without fields of those names."""
        lack = " and ".join(f"no field {field.name!r}" for field in lacking)
        problem = f"has {lack}; its fields are: {_told(names) or 'none'}"
        if not names:
            return problem
        close = [repr(name) for field in lacking if (name := near(field.name, names)) is not None]
        meant = f"Did you mean {' and '.join(close)}? " if close else ""
        flags = " and ".join(f"--{field.setting}" for field in lacking)
        return f"{problem}. {meant}Name {'one' if len(lacking) == 1 else 'two'} of them with {flags}"

    def _no_field(self, names: list[str], lacking: Sequence[Field]) -> None:
        """Skips a table that lacks fields as a whole."""
        by_number = lacking[0].column is not None
        problem = self._too_few(lacking[0], len(names)) if by_number else self._missing(names, lacking)
        looks_like_data = any(len(one) > _LONG_NAME or not one or _NUMBER.fullmatch(one) for one in names)
        if not by_number and (looks_like_data or len(lacking) > 1):
            problem += f", or {self._by_numbers(names)}"
        if len(names) == 1 and self.ending in (".csv", ".tsv"):
            problem += f". {_SPLIT_AT}"
        self.notes.skip_file(f"file {lacking[0].without}", f"{problem}.")

    def _by_numbers(self, names: list[str]) -> str:
        """How to name columns where the first line is no header; of one field, the longest text is meant."""
        if len(self.fields) > 1:
            flags = " ".join(f"--{field.setting} {number}" for number, field in enumerate(self.fields))
            return f"columns by their numbers if there is no header, such as {flags}"
        longest = max(range(len(names)), key=lambda index: len(names[index]))
        return f"a column by its number if there is no header: --{self.fields[0].setting} {longest}"


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


def _is_scalar(kind: Any) -> bool:
    """True for a Parquet column of numbers or booleans."""
    return re.match("bool|u?int|float|halffloat|double|decimal", str(_of_words(kind))) is not None


def _with_text(names: Sequence[str | int], setting: str) -> str:
    """Which fields to name instead."""
    return f"fields with text: {_told(names)}. Name one with --{setting}" if names else "no field of it holds text"


def near(wanted: str, names: Iterable[Any]) -> str | None:
    """The name that was probably meant: the same but for capitals and blanks, or else one much like it."""
    folded: dict[str, str] = {}
    for name in names:
        if isinstance(name, str):
            folded.setdefault(name.strip().casefold(), name)
    close = difflib.get_close_matches(wanted.strip().casefold(), folded, n=1, cutoff=_ALIKE)
    return folded[close[0]] if close else None


def _told(names: Sequence[str | int]) -> str:
    """The first few names in quotes, so that blanks in them show; numbers are those of columns."""
    told = (repr(name if isinstance(name, int) else _cut(name)) for name in names[:_FIELDS_TOLD])
    return ", ".join(told) + (", ..." if len(names) > _FIELDS_TOLD else "")


def _short(value: Any) -> str:
    """A value for a message, on one line and not long."""
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONG_NAME else f"{text[: _LONG_NAME - 3]}..."
