"""Files, folders, globs, URLs or anything from Python, read into examples: pairs of an input and an output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.config import UserError
from slm.data import formats
from slm.data.counts import Counts, many, size_in_words
from slm.data.example_split import MOST_LABELS, Examples, fingerprint_of, labels_of, split_examples
from slm.data.sources import BUILT_IN, check_name, in_words
from slm.data.tables import TABLES, Field, near
from slm.storage import files, listing
from slm.storage.listing import FileInfo

if TYPE_CHECKING:
    from slm.data.prepare import Progress

__all__ = [
    "Examples",
    "given_examples",
    "labels_of",
    "read_aligned_examples",
    "read_table_examples",
    "split_examples",
]

_KINDS = f"{', '.join(TABLES[:-1])} or {TABLES[-1]}"
_TOLD = 60  # characters of a value, at most


class _Gathered:
    """Examples as they come in, each output that is a label in memory once."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._labels: dict[str, str] = {}

    def add(self, given: str, output: str) -> None:
        if len(self._labels) < MOST_LABELS:
            self._labels.setdefault(output, output)
        self.inputs.append(given)
        self.outputs.append(self._labels.get(output, output))

    def examples(self, name: str, counts: Counts, hint: str = "") -> Examples:
        """All of them; UserError where there is none. counts: what was read and skipped. hint: what else to say."""
        if not self.inputs:
            problem = "; ".join([f"there is no example in {name}, nothing to learn from", *counts.lines()[1:]])
            raise UserError(f"{problem}.{hint}")
        fingerprint, num_bytes = fingerprint_of(self.inputs, self.outputs)
        told = f"{many(len(self.inputs), 'example')}, {size_in_words(num_bytes)}"
        found = [f"{many(counts.files, 'file')}, {told}" if counts.files else told, *counts.lines()[1:]]
        hashes = np.fromiter(map(hash, zip(self.inputs, self.outputs, strict=True)), np.int64, len(self.inputs))
        if copies := len(hashes) - len(np.unique(hashes)):
            found.append(f"{many(copies, 'example')} {'repeats' if copies == 1 else 'repeat'} another word for word")
        return Examples(name, self.inputs, self.outputs, tuple(found), fingerprint)


class _Told:
    """What on_progress is told while files are read: the bytes so far, whenever there are more."""

    def __init__(self, name: str, found: Iterable[FileInfo], on_progress: Progress) -> None:
        sizes = [file.size for file in found]
        self._total = None if None in sizes else sum(size for size in sizes if size is not None)
        self._what, self._done, self._on_progress = f"reading {name}", 0, on_progress
        on_progress(self._what, 0, self._total)

    def __call__(self, done: int) -> None:
        if self._total is not None:
            done = min(done, self._total)  # of a Parquet file some bytes are read twice
        if done > self._done:
            self._done = done
            self._on_progress(self._what, done, self._total)


def read_table_examples(
    names: Sequence[str], input_field: str, output_field: str, *, flags: tuple[str, str], on_progress: Progress
) -> Examples:
    """The examples in two fields of tables: .jsonl, .csv, .tsv or .parquet files, or folders, globs and URLs of them.

    A field is a name, or a number where there is no header: columns count from 0. Blanks at both ends of a text are
    dropped, numbers and booleans as outputs are written out. A row that lacks one of the two is skipped and counted.
    flags: the settings that name the fields, for messages. Raises UserError, MissingError and StorageError.
    """
    fields = (Field(input_field, flags[0], filled=True), Field(output_field, flags[1], filled=True, scalar=True))
    _check_fields(*fields)
    wanted = " and ".join(f"{field.setting} = {field.name!r}" for field in fields)
    needed = f"{wanted} are fields of a table, a {_KINDS} file"
    if flags[0] == "source_field":
        needed += ". For two plain texts, line by line, name the other one with --target_file"
    counts, gathered = Counts(), _Gathered()
    found = list(_tables(names, needed, counts))
    name = in_words(names)
    tell = _Told(name, (file for file, _ in found), on_progress)
    for file, named in found:
        for given, output in formats.rows(file, named=named, fields=fields, counts=counts):
            gathered.add(given, output)
            tell(counts.stored_bytes)
        tell(counts.stored_bytes)  # of a whole file, of which only two columns were read, or nothing
    if not gathered.inputs and found:  # in a folder: what is wrong with its first table, as if it had been named
        list(formats.rows(found[0][0], named=True, fields=fields, counts=Counts()))
    return gathered.examples(name, counts, f" {needed}.")


def _check_fields(one: Field, other: Field) -> None:
    """Raises UserError where the two fields are the same."""
    if one.name == other.name or (one.column is not None and one.column == other.column):
        raise UserError(
            f"{one.setting} and {other.setting} are both {one.name!r}: the one names what is given, the other what "
            "belongs to it."
        )


def _tables(names: Sequence[str], needed: str, counts: Counts) -> Iterator[tuple[FileInfo, bool]]:
    """Each table that the names stand for, once, and whether it was named itself; `counts` is told of other files.

    Raises UserError where something else was named. needed: what to say then.
    """
    done = set()
    for name in names:
        listed = _listed(name, needed)
        named = listing.is_single(name, listed)
        for file in listed:
            place = file.path if files.is_remote(file.path) else os.path.abspath(file.path)
            if place in done:
                continue
            done.add(place)
            if formats.is_table(file.path):
                yield file, named
            elif named:
                raise UserError(f"{file.path} is no table: {needed}.{_other_name(file)}")
            else:
                counts.skip("file other than a table", _shown(file))


def _listed(name: str, needed: str) -> list[FileInfo]:
    """The files that one name stands for."""
    if isinstance(name, str) and name.partition(":")[0] in BUILT_IN:
        raise UserError(f"data = {name!r} is built-in text: {needed}. A file or folder of that name is ./{name}")
    check_name(name)
    return listing.find(name)


def _other_name(file: FileInfo) -> str:
    """What a file that is no table by its name may be all the same."""
    ending = formats.endings(file.path)[0]
    if ending == ".json":
        return " If each of its lines is a JSON object, give it the ending .jsonl."
    if formats.is_token_file(file.path):
        return ""
    return " If it is one by another name, give it the ending of its kind, such as .tsv where tabs part the columns."


def read_aligned_examples(names: Sequence[str], target_names: Sequence[str], *, on_progress: Progress) -> Examples:
    """The examples that two plain texts give line by line, or two lists of texts, file by file.

    Blanks at both ends of a line are dropped; a pair with an empty side is skipped and counted. Raises UserError where
    files or lines of the two sides differ in number, MissingError and StorageError.
    """
    counts, gathered = Counts(), _Gathered()
    inputs, outputs = (
        [file for one in side for file in _plain_texts(one, setting)]
        for side, setting in ((names, "data"), (target_names, "target_file"))
    )
    if len(inputs) != len(outputs):
        raise UserError(
            f"data has {many(len(inputs), 'file')} and target_file {len(outputs)}: line by line, each file needs one "
            "with its targets, in the same order."
        )
    name = f"{in_words(names)} and {in_words(target_names)}"
    tell = _Told(name, (*inputs, *outputs), on_progress)
    for pair in zip(inputs, outputs, strict=True):
        for number, (given, output) in enumerate(_lines(*pair, counts), 1):
            if given and output:
                gathered.add(given, output)
            else:
                counts.skip("pair with an empty side", f"{_shown(pair[0])}:{number}")
            tell(counts.stored_bytes)
    return gathered.examples(name, counts)


def _plain_texts(name: str, setting: str) -> list[FileInfo]:
    """The files that one name stands for; UserError where one of them is no plain text."""
    needed = f"with target_file, line by line, {setting} names plain text"
    found = _listed(name, needed)
    for file in found:
        if formats.is_table(file.path):
            raise UserError(
                f"{file.path} is a table: {needed}. Leave target_file out, and name the fields with --source_field "
                "and --target_field."
            )
        if formats.is_token_file(file.path):
            raise UserError(f"{file.path} holds token ids: {needed}.")
    return found


def _lines(one: FileInfo, other: FileInfo, counts: Counts) -> Iterator[tuple[str, str]]:
    """The lines of two files side by side, without blanks at their ends. UserError where one has more."""
    number = 0
    with closing(formats.lines_of(one, counts)) as inputs, closing(formats.lines_of(other, counts)) as outputs:
        for number, given in enumerate(inputs, 1):
            if (output := next(outputs, None)) is None:
                numbers = number + sum(1 for _ in inputs), number - 1
                break
            yield given.strip(), output.strip()
        else:
            numbers = number, number + sum(1 for _ in outputs)
    if numbers[0] != numbers[1]:
        raise UserError(
            f"{one.path} has {many(numbers[0], 'line')} and {other.path} {numbers[1]:,}: line by line, both need the "
            "same number. Look for a line that one of them lacks."
        )


def _shown(file: FileInfo) -> str:
    """A file's name, which on disk need not be Unicode."""
    return file.name.encode(errors="replace").decode()


def given_examples(given: Iterable[Any], input_field: str, output_field: str) -> Examples:
    """The examples that something in Python holds: pairs of two str, or dicts with those two fields.

    Such as a list, a generator, or a dataset of Hugging Face. Blanks at both ends are dropped, numbers and booleans as
    outputs are written out, and an example with an empty side is skipped and counted. Raises UserError where an item
    is anything else.
    """
    fields = (Field(input_field, filled=True), Field(output_field, filled=True, scalar=True))
    rule = f"a pair (input, output), or a dict with {input_field!r} and {output_field!r}"
    _check_iterable(given, *fields, rule)
    of_columns = any(hasattr(given, name) for name in ("column_names", "columns"))
    hint = f" Pass zip(data[{input_field!r}], data[{output_field!r}])." if of_columns else ""
    counts, gathered = Counts(), _Gathered()
    for index, item in enumerate(given):
        pair = item.tolist() if isinstance(item, np.ndarray) else item
        if isinstance(pair, Mapping):
            pair = [_value(pair, field, index) for field in fields]
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            of = f" of {len(pair)}" if isinstance(pair, list | tuple) else ""
            kind = f"a {type(item).__name__}{of}"
            raise UserError(f"item {index} of data is {_start(repr(item))}, {kind}: each must be {rule}.{hint}")
        sides = (f"the {side} of item {index} of data" for side in ("input", "output"))
        text, output = (_text_of(*one) for one in zip(pair, fields, sides, strict=True))
        if text and output:
            gathered.add(text, output)
        else:
            counts.skip("example with an empty side", f"item {index}")
    return gathered.examples("examples given in Python", counts)


def _check_iterable(given: Any, one: Field, other: Field, rule: str) -> None:
    """Raises UserError where iterating would give something else than examples."""
    told = f"is a {type(given).__name__}: must be an iterable of examples, each {rule}"
    if isinstance(given, Mapping):
        way_out = f"zip(data[{one.name!r}], data[{other.name!r}])"
        if given and not (one.name in given and other.name in given):
            way_out = f"one of what it holds, such as data[{next(iter(given))!r}]"
        raise UserError(f"data of {_start(', '.join(map(repr, given)))} {told}. Pass {way_out}.")
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Iterable):
        raise UserError(f"data = {_start(repr(given))} {told}.")


def _value(item: Mapping[Any, Any], field: Field, index: int) -> Any:
    """What a dict holds in a field; UserError where it has none."""
    if field.name in item:
        return item[field.name]
    close = near(field.name, item)
    raise UserError(
        f"item {index} of data has no field {field.name!r}; its fields are: {_start(', '.join(map(repr, item)))}."
        f"{f' Did you mean {close!r}?' if close else ''}"
    )


def _text_of(value: Any, field: Field, side: str) -> str:
    """The text that a value stands for; UserError where it stands for none."""
    value = value.item() if isinstance(value, np.generic) else value
    text = field.text_of(value)
    if text is None or (not text and not isinstance(value, str)):
        rule = "a str, a number or a bool" if field.scalar else "a str"
        raise UserError(f"{side} is {_start(repr(value))}: must be {rule}. Leave such items out.")
    formats.check_unicode(text, side)
    return text


def _start(told: str) -> str:
    return told if len(told) <= _TOLD else f"{told[: _TOLD - 3]}..."
