"""The numbers of a model on a text by plain loops, and models and texts to try evaluations on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from conftest import make_text
from models import with_large_weights
from numpy.typing import NDArray
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.data.dataset import TextDataset
from slm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe
from slm.metrics.scoring import Evaluation, evaluate_text
from slm.model import LanguageModel

T = 8
TEXT = make_text(120) + "naïve 😀 "
DOCUMENTS = [line for line in make_text(300).splitlines() if line]  # 50


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    made: dict[str, Callable[[], Tokenizer]] = {
        "byte": byte_tokenizer,
        "char": lambda: char_tokenizer([TEXT]),
        "bpe": lambda: train_bpe([TEXT], 300),
    }
    return made[name]()


@functools.cache
def model_of(vocab_size: int, seed: int = 0, **settings: Any) -> LanguageModel:
    sizes = {"embed_dim": 16, "num_heads": 2, "num_layers": 1, "hidden_dim": 32, "max_seq_len": T}
    return with_large_weights(LanguageModel(ModelConfig(vocab_size=vocab_size, **(sizes | settings))), seed)


class Source(nn.Module):
    """Thinks every token to be as likely as it is told, whatever comes before it, and notes what it is asked."""

    def __init__(self, p: Any) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(np.log(p)))
        self.config = ModelConfig(vocab_size=len(p))
        self.asked: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.asked.append(tokens.numel())
        return self.logits.expand(*tokens.shape, -1)


def ids_of(tokenizer: Tokenizer, documents: list[str], *, bracketed: bool = False) -> list[int]:
    assert tokenizer.end_id is not None
    ids = [id for document in documents for id in (tokenizer.end_id, *tokenizer.encode(document))]
    return [*ids, tokenizer.end_id] if bracketed else ids[1:]


def scored(model: Any, dataset: TextDataset, sizes: Tensor | None = None, **keys: Any) -> Evaluation:
    return evaluate_text(model, dataset, **({"bytes_per_token": sizes, "end_id": None, "text": "a text"} | keys))


def targets_of(dataset: TextDataset) -> NDArray[np.int64]:
    """Where the targets that a dataset gives stand, counted from the text's second token."""
    starts, counts = dataset.places(np.arange(len(dataset)))
    return np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])


def plain(model: LanguageModel, dataset: TextDataset, stride: int | None) -> NDArray[np.float64]:
    """For each target in order, in float64 and one by one: nats, tokens that are likelier, tokens before it; (M, 3)."""
    exact, ids = copy.deepcopy(model).double(), dataset.tokens[:]
    starts, counts = dataset.places(np.arange(len(dataset)))
    found = []
    with torch.no_grad():
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            for begin in range(start, start + count, stride or T):
                stop = min(begin + (stride or T), start + count)
                window = start if stride is None else max(0, stop - dataset.window)
                log_p = exact(torch.from_numpy(ids[window:stop])[None])[0].log_softmax(dim=-1)
                for target in range(begin, stop):
                    row, id = log_p[target - window], ids[target + 1]
                    found.append((-row[id].item(), (row > row[id]).sum().item(), target - window + 1))
    return np.array(found)
