"""A path, a URL, a built-in name or a list of texts, read into documents."""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slm.config import UserError
from slm.data.tokenizer import check_unicode
from slm.storage import files

BUILT_IN = ("dummy", "python")
_LONGEST_PATH = 1000
_NOT_SOURCES = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Corpus:
    """Documents, and where they came from in words."""

    name: str
    documents: list[str]

    @property
    def num_bytes(self) -> int:
        """The size of all documents in UTF-8."""
        return sum(len(document.encode()) for document in self.documents)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the documents, to tell whether a run's data is still the same."""
        digest = hashlib.sha256()
        for document in self.documents:
            encoded = document.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def split(self, val_fraction: float) -> tuple[Corpus, Corpus]:
        """The text before and after the cut that leaves val_fraction of its characters, at the end, for validation."""
        before = int(sum(map(len, self.documents)) * (1 - val_fraction))
        train: list[str] = []
        for index, document in enumerate(self.documents):
            if before < len(document):
                head = [document[:before]] if before else []
                tail = [document[before:], *self.documents[index + 1 :]]
                return Corpus(self.name, train + head), Corpus(self.name, tail)
            train.append(document)
            before -= len(document)
        return Corpus(self.name, train), Corpus(self.name, [])


def read_corpus(source: str | Iterable[str]) -> Corpus:
    """The documents of a file, a URL, the built-in "python", or a list of texts.

    Raises UserError where there is no text or it is not UTF-8, and OSError where it cannot be read.
    """
    if isinstance(source, str):
        if source == "python":
            return python_sources()
        if "\n" in source or len(source) > _LONGEST_PATH:
            raise UserError(f"data = {source[:30]!r}... is a text, not a path: literal text goes in a list, [text].")
        if source == "dummy":
            raise UserError("'dummy' is random tokens, not text. Pass a file, a URL or 'python'.")
        try:
            corpus = Corpus(source, [_decoded(files.read_bytes(source), source)])
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} A str names a file, a URL or a built-in corpus ({', '.join(BUILT_IN)}); "
                "in Python, literal text goes in a list."
            ) from error
    else:
        corpus = Corpus("text given in Python", _checked_texts(source))
    if not any(corpus.documents):
        raise UserError(f"{corpus.name} is empty: there is no text to learn from.")
    return corpus


def python_sources() -> Corpus:
    """The sources of the installed Python's standard library, one document a file, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    kept = [path for path in paths if _NOT_SOURCES.isdisjoint(path.split("/"))]
    documents = [(root / path).read_bytes().decode(errors="replace") for path in kept]
    if not documents:
        raise UserError(f"data = 'python': this Python has no sources in {root}. Pass a file instead.")
    return Corpus("python (standard library sources)", [document for document in documents if document])


def _decoded(data: bytes, path: str) -> str:
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[start:].decode()
    except UnicodeDecodeError as error:
        place = start + error.start
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
        raise UserError(
            f"{path} is not UTF-8 text: byte 0x{data[place]:02x} at position {place} does not fit. "
            f"Convert it first, for instance: iconv -f {encoding} -t utf-8 {path} > converted.txt"
        ) from error


def _checked_texts(texts: Iterable[str]) -> list[str]:
    if not isinstance(texts, Iterable):
        raise UserError(f"data = {texts!r}: must be a path, URL, built-in name, or a list of str.")
    documents = list(texts)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise UserError(
                f"text {index} of data is a {type(document).__name__}: data must be a path, URL, built-in name, "
                "or a list of str."
            )
        check_unicode(document, f"text {index} of data")
    return documents
