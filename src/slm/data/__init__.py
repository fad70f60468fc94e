"""Text from anywhere, turned into tokens, windows and batches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.data.batches import Batches
    from slm.data.dataset import TextDataset
    from slm.data.sources import Corpus, read_corpus, read_texts
    from slm.data.stories import Story, story
    from slm.data.tokenizer import Tokenizer, make_tokenizer

_HOMES = {
    "Batches": "batches",
    "TextDataset": "dataset",
    "Corpus": "sources",
    "read_corpus": "sources",
    "read_texts": "sources",
    "Story": "stories",
    "story": "stories",
    "Tokenizer": "tokenizer",
    "make_tokenizer": "tokenizer",
}

__all__ = [
    "Batches",
    "Corpus",
    "Story",
    "TextDataset",
    "Tokenizer",
    "make_tokenizer",
    "read_corpus",
    "read_texts",
    "story",
]


def __getattr__(name: str) -> object:
    """Loads a module when its name is first used: preparing tokens needs no torch."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"slm.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'slm.data' has no attribute {name!r}")
