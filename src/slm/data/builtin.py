"""Text that needs no file: the sources of the installed Python, and stories from a grammar."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slm.config import UserError
from slm.data.counts import size_in_words
from slm.data.formats import Chunk, Counts, documents
from slm.storage.listing import FileInfo

DEFAULT_STORIES = 10_000_000  # bytes
_NOT_SOURCES = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class PythonSources:
    """The sources of the installed Python's standard library, one document a file, in the order of their paths."""

    name = "python (standard library sources)"
    aligned = False

    def __post_init__(self) -> None:
        _ = self.files  # there must be some

    @cached_property
    def files(self) -> list[FileInfo]:
        """The files that count. Raises UserError where this Python came without its sources."""
        root = sysconfig.get_paths()["stdlib"]
        paths: list[str] = []
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in _NOT_SOURCES]
            paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
        if not paths:
            raise UserError(f"data = 'python': this Python has no sources in {root}. Pass a file instead.")
        paths.sort(key=lambda path: path.replace(os.sep, "/"))
        stats = ((path, os.stat(path)) for path in paths if os.path.isfile(path))
        return [FileInfo(path, stat.st_size, str(stat.st_mtime_ns // 10**6)) for path, stat in stats]

    @property
    def stored_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.size or 0 for file in self.files)

    @property
    def key(self) -> list[Any]:
        """Another one for another Python or other files."""
        told = "\n".join(f"{file.path} {file.size} {file.stamp}" for file in self.files)
        return ["python", sys.version, hashlib.sha256(told.encode(errors="replace")).hexdigest()]

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        """The documents."""
        for file in self.files:
            yield from documents(file, named=False, text_field="text", split_documents_on=None, counts=counts)


@dataclass(frozen=True)
class Stories:
    """So many bytes of stories made by a grammar, each one a document that knows its entropy."""

    stored_bytes: int
    aligned = True

    @property
    def name(self) -> str:
        """The corpus in words."""
        return f"stories ({size_in_words(self.stored_bytes)} from a grammar)"

    @property
    def key(self) -> list[Any]:
        """Another one for another size or grammar."""
        from slm.data.stories import VERSION

        return ["stories", self.stored_bytes, VERSION]

    def chunks(self, counts: Counts) -> Iterator[Chunk]:
        """The stories."""
        from slm.data.stories import stories

        for story in stories(0, self.stored_bytes):
            chunk = Chunk(story.text, True, story.bits)
            before = counts.num_bytes
            counts.add(chunk)
            counts.stored_bytes += counts.num_bytes - before
            yield chunk


def stories_of_size(name: str) -> Stories:
    """What 'stories' or 'stories:50MB' stands for; UserError for any other size."""
    _, colon, size = name.partition(":")
    if not colon:
        return Stories(DEFAULT_STORIES)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(KB|MB|GB)", size.strip().upper())
    num_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if num_bytes < 1:
        raise UserError(f"data = {name!r}: the size of the stories must be above 0 and in KB, MB or GB: stories:50MB.")
    return Stories(num_bytes)
