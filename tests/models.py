"""Every combination of the model's options, and weights large enough for an error to show."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from slm.config import ModelConfig
from slm.model import LanguageModel

CHOICES: dict[str, tuple[Any, ...]] = {
    "positions": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "relu2", "swiglu"),
    "qk_norm": (False, True),
    "num_kv_heads": (None, 2),
}
COMBINATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(value if isinstance(value, str) else f"{name}={value}" for name, value in options.items())


every_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
# Few enough to be quick; any two choices still meet in one of them.
every_pair = pytest.mark.parametrize("options", COMBINATIONS[::5], ids=name_of)


def with_large_weights(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """The model in eval mode with large weights: at its initial weights an error would drown in logits near 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def small_model(**options: Any) -> LanguageModel:
    """A model of two layers, a window of 8 and 23 tokens, each of which changes what comes next."""
    sizes = {"vocab_size": 23, "embed_dim": 16, "num_heads": 4, "num_layers": 2, "hidden_dim": 12, "max_seq_len": 8}
    return with_large_weights(LanguageModel(ModelConfig(**(sizes | options))))
