"""Paths, URLs, folders, globs, built-in names or texts from Python, read into documents as often as wanted."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slm.config import UserError
from slm.data import formats
from slm.data.builtin import PythonSources, Stories, stories_of_size
from slm.data.formats import PART_CHARS, Chunk, Counts, check_unicode
from slm.data.manifest import MANIFEST, PROGRESS, SHARD_NAME, TOKENIZER, is_ours
from slm.storage import files, listing
from slm.storage.files import MissingError
from slm.storage.listing import FileInfo

BUILT_IN = ("dummy", "python", "stories")
_LONGEST_PATH = 1000
_NAMES_TOLD = 3
_MANY_NAMES = 100  # a longer list is texts, whatever they look like
_LONGEST_NAME = 60
_UNPACKED = 3  # times the size of a packed text, about


class Part(Protocol):
    """Something that documents are read from."""

    @property
    def key(self) -> list[Any] | None:
        """Plain values that change when the content may have changed; None where only the content itself tells."""

    @property
    def stored_bytes(self) -> int | None:
        """About what counts.stored_bytes grows by in a reading."""

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        """The documents, in each call from the beginning; `counts` is told of everything."""


@dataclass(frozen=True)
class Corpus:
    """Documents in parts, none of them in memory, and where they come from in words."""

    name: str
    parts: tuple[Part, ...]
    aligned: bool = False  # whether windows should begin where documents do
    left_out: tuple[str, ...] = ()  # folders of prepared data among the sources

    @property
    def num_parts(self) -> int:
        """The number of files, or 1 for texts given in Python and for each built-in corpus."""
        return len(self.parts)

    @property
    def key(self) -> list[list[Any]] | None:
        """What identifies the sources, without a look at their content, as plain values; None where nothing does."""
        keys = [part.key for part in self.parts]
        return None if None in keys else [key for key in keys if key is not None]

    @property
    def stored_bytes(self) -> int | None:
        """The bytes of all sources as stored, None where one does not tell."""
        sizes = [part.stored_bytes for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def text_bytes(self) -> float:
        """About the size of the text, infinite where a source does not tell."""
        sizes = [
            _UNPACKED * size if isinstance(part, _FilePart) and part.is_packed else size
            for part in self.parts
            if (size := part.stored_bytes) is not None
        ]
        return sum(sizes) if len(sizes) == len(self.parts) else math.inf

    def chunks(self, part: int, counts: Counts) -> Iterator[Chunk]:
        """The documents of one part; the same chunks in every reading while its file stays the same."""
        return self.parts[part].chunks(counts)


@dataclass(frozen=True)
class _FilePart:
    """The documents of one file."""

    file: FileInfo
    named: bool  # itself, not only its folder or a glob
    text_field: str
    split_documents_on: str | None

    @property
    def path(self) -> str:
        return self.file.path if files.is_remote(self.file.path) else os.path.abspath(self.file.path)

    @property
    def key(self) -> list[Any] | None:
        # A server that tells no stamp may have other content at the same size.
        known = self.file.stamp or not files.is_remote(self.file.path)
        return [self.path, self.file.size, self.file.stamp, self.named] if known else None

    @property
    def is_packed(self) -> bool:
        ending, packing = formats.endings(self.path)
        return bool(packing) or ending == ".parquet"

    @property
    def stored_bytes(self) -> int | None:
        return self.file.size

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        return formats.documents(
            self.file,
            named=self.named,
            text_field=self.text_field,
            split_documents_on=self.split_documents_on,
            counts=counts,
        )


_NamedPart = _FilePart | PythonSources | Stories


def read_corpus(
    source: str | Iterable[str], *, text_field: str = "text", split_documents_on: str | None = None
) -> Corpus:
    """The documents of one or several sources: files, folders, globs, URLs, 'python', 'stories' or 'stories:50MB'.

    A file that is named twice is read once. Raises UserError where a name means no text, MissingError where there is
    nothing of that name, and StorageError where looking fails; reading itself is left to Corpus.chunks.
    """
    names = (source,) if isinstance(source, str) else tuple(source)
    if not names:
        raise UserError("data is empty: name a file, a folder, a URL or a built-in corpus.")
    parts: dict[str, _NamedPart] = {}
    told: list[str] = []
    left_out: dict[str, None] = {}
    for name in names:
        check_name(name)
        if name == "python" or name.partition(":")[0] == "stories":
            built_in = PythonSources() if name == "python" else stories_of_size(name)
            told.append(built_in.name)
            found: Sequence[_NamedPart] = [built_in]
        else:
            told.append(name)
            listed = find_files(name)
            prepared = _prepared_folders(name, listed)
            left_out |= dict.fromkeys(sorted(prepared))
            named = listing.is_single(name, listed)
            texts = (file for file in listed if not _is_of(prepared, file))
            found = [_FilePart(file, named, text_field, split_documents_on) for file in texts]
        for part in found:
            parts.setdefault(part.path if isinstance(part, _FilePart) else part.name, part)
    _check_token_files(parts.values())
    aligned = all(isinstance(part, Stories) for part in parts.values())
    return Corpus(in_words(told), tuple(parts.values()), aligned, tuple(left_out))


def check_name(name: Any) -> None:
    """Raises UserError where a source is no name at all, or names random tokens."""
    if not isinstance(name, str):
        raise UserError(f"data names {name!r}, a {type(name).__name__}: must be a path, a URL or a built-in name.")
    if "\n" in name or len(name) > _LONGEST_PATH:
        raise UserError(f"data = {name[:30]!r}... is a text, not a path: literal text goes in a list, [text].")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"data = {name!r}: the name is not Unicode. Rename the file, or name its folder.") from error
    if name == "dummy":
        raise UserError("'dummy' is random tokens, not text. Pass a file, a URL or 'python'.")


def find_files(name: str) -> list[FileInfo]:
    """The files that one source names: itself, or those of a folder or glob. Raises MissingError where it is none."""
    check_name(name)
    try:
        return listing.find(name)
    except MissingError as error:
        raise MissingError(
            f"{error} Built-in corpora are {', '.join(BUILT_IN)}. In Python, literal text goes in a list, [text]."
        ) from error


def _is_of(folders: set[str], file: FileInfo) -> bool:
    """True for a file of prepared data in one of those folders."""
    ours = file.name in (MANIFEST, PROGRESS, TOKENIZER) or SHARD_NAME.fullmatch(file.name)
    return bool(ours) and _folder(file) in folders


def _prepared_folders(name: str, found: list[FileInfo]) -> set[str]:
    """The folders among the files that slm-prepare made; raises UserError where the name itself is one."""
    of_name = {one: {_folder(file) for file in found if file.name == one} for one in (MANIFEST, TOKENIZER, PROGRESS)}
    folders = {folder for folder in of_name[MANIFEST] & of_name[TOKENIZER] | of_name[PROGRESS] if is_ours(folder)}
    if any(folder.rstrip("/\\") == name.rstrip("/\\") for folder in folders):
        raise UserError(
            f"{name} holds data that slm-prepare made, with its own validation part: only slm-train takes it, as its "
            "only --data."
        )
    return folders


def _folder(file: FileInfo) -> str:
    return file.path.removesuffix(file.name)


def _check_token_files(parts: Collection[_NamedPart]) -> None:
    """Raises UserError where all is token ids, or a file of them was named beside text; in a folder it is skipped."""
    found = [part for part in parts if isinstance(part, _FilePart) and formats.is_token_file(part.file.path)]
    if not found:
        return
    packed = next((part.file.path for part in found if formats.endings(part.file.path)[1]), None)
    only = len(found) == len(parts)
    if packed and only:
        raise UserError(f"{packed} is packed, and token ids are read in place: unpack it first.")
    if only:
        raise UserError(f"{found[0].file.path} holds token ids, not text.")
    if named := next((part.file.path for part in found if part.named), None):
        raise UserError(f"{named} holds token ids and other sources hold text: give the one or the other.")


def in_words(names: Sequence[str]) -> str:
    """One name as it is; of several their number, and the first few."""
    if len(names) == 1:
        return names[0]
    shown = [one if len(one) <= _LONGEST_NAME else f"...{one[3 - _LONGEST_NAME :]}" for one in names[:_NAMES_TOLD]]
    return f"{len(names)} sources: {', '.join(shown)}{', ...' if len(names) > _NAMES_TOLD else ''}"


def read_texts(texts: Iterable[str], name: str = "data") -> Corpus:
    """The texts of a list, a column of a table, a generator or anything else that yields str, each one a document.

    What can be iterated only once is kept in a temporary file, as long as the Corpus lives. Raises UserError where an
    item is no str, also later from Corpus.chunks, and where there is no text at all. name: of the argument.
    """
    _check_texts(texts, name)
    part = _Spool(texts, name) if iter(texts) is texts else _Texts(texts, name)
    corpus = Corpus("text given in Python" if name == "data" else f"{name} given in Python", (part,))
    if next(part.chunks(Counts()), None) is None:
        raise UserError(f"{corpus.name} is empty: there is no text to learn from.")
    return corpus


def _check_texts(texts: Any, name: str) -> None:
    """Raises UserError where iterating would give something else than the texts that were meant."""
    if isinstance(texts, str):
        raise UserError(f"{name} = {_start(texts)}: a str names a path; literal text goes in a list, [text].")
    if isinstance(texts, bytes | bytearray):
        raise UserError(f"{name} = {_start(texts)} is bytes: decode it, and put the text in a list: [data.decode()].")
    if not isinstance(texts, Iterable):
        raise UserError(f"{name} = {_start(texts)}: must be a path, URL, built-in name, or a list of str.")
    few = texts if isinstance(texts, list | tuple) and len(texts) <= _MANY_NAMES else ()
    if (path := next(filter(_names_a_file, few), None)) is not None:
        raise UserError(
            f"{name} is a list, where each str is a literal text, but {os.fspath(path)!r} is the name of a file: to "
            f"read files pass path objects only, [Path({os.fspath(path)!r}), ...]."
        )
    names = list(texts) if isinstance(texts, Mapping) else None
    for attribute in ("column_names", "columns"):  # of a table of datasets, pyarrow, pandas or polars
        names = getattr(texts, attribute, None) if names is None else names
    if names is not None:
        told = ", ".join(map(str, names))
        example = "text" if "text" in names else next(iter(names), "text")
        raise UserError(
            f"{name} is a {type(texts).__name__} of {told}, not a list of texts: pass one of them, data[{example!r}]."
        )


def _names_a_file(text: Any) -> bool:
    is_path = isinstance(text, os.PathLike)
    return is_path or (isinstance(text, str) and len(text) <= _LONGEST_PATH and os.path.isfile(text))


def _start(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _LONGEST_NAME else f"{told[: _LONGEST_NAME - 3]}..."


def _checked(item: Any, index: int, name: str) -> str:
    """The item, a str that is Unicode; UserError names its index otherwise."""
    if isinstance(item, str):
        check_unicode(item, f"text {index} of {name}")
        return str(item)
    hint = f"{name} must be a path, URL, built-in name, or a list of str."
    if isinstance(item, Mapping):
        hint = f"its fields are {', '.join(map(str, item))}; pass the texts alone, such as data['text']."
    elif isinstance(item, bytes | bytearray):
        hint = "decode it first, text.decode()."
    raise UserError(f"text {index} of {name} is a {type(item).__name__}: {hint}")


@dataclass(frozen=True)
class _Texts:
    """Texts that can be iterated again and again."""

    texts: Iterable[str]
    name: str
    key = None
    stored_bytes = None

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        for index, item in enumerate(self.texts):
            yield from _text_chunks(_checked(item, index, self.name), counts)


class _Spool:
    """Texts that could be iterated only once, in a temporary file that goes with the object."""

    key = None
    stored_bytes = None

    def __init__(self, texts: Iterable[str], name: str) -> None:
        with self._explaining():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the object
        weakref.finalize(self, self._file.close)
        for index, item in enumerate(texts):
            data = _checked(item, index, name).encode()
            with self._explaining():
                self._file.write(len(data).to_bytes(8, "little") + data)
        with self._explaining():
            self._file.flush()

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        return files.explaining(tempfile.gettempdir(), "keep the texts in")

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        place = 0
        while True:
            self._file.seek(place)  # another reading may be under way
            if not (size := self._file.read(8)):
                return
            text = self._file.read(int.from_bytes(size, "little")).decode()
            place = self._file.tell()
            yield from _text_chunks(text, counts)


def _text_chunks(text: str, counts: Counts) -> Iterator[Chunk]:
    """The chunks of one document."""
    if not text:
        counts.empty_documents += 1
    for start in range(0, len(text), PART_CHARS):
        chunk = Chunk(text[start : start + PART_CHARS], start + PART_CHARS >= len(text))
        counts.add(chunk)
        yield chunk
