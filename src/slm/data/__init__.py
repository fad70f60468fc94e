"""Text from anywhere, turned into tokens, windows and batches."""

from slm.data.batches import Batches
from slm.data.dataset import TextDataset
from slm.data.sources import Corpus, read_corpus
from slm.data.tokenizer import Tokenizer, make_tokenizer

__all__ = ["Batches", "Corpus", "TextDataset", "Tokenizer", "make_tokenizer", "read_corpus"]
