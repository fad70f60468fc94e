"""What a model file holds: a model, its configuration, tokenizer and metrics <-> plain values and tensors."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from slm._version import __version__
from slm.config import ModelConfig, UserError
from slm.data.tokenizer import Tokenizer
from slm.model.transformer import LanguageModel


def pack_model(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """What model.pt holds beside the tables of config.toml: tensors and plain Python values only.

    The configuration is stored for a LanguageModel; of any other module only the weights can be.
    """
    config = dataclasses.asdict(model.config) if type(model) is LanguageModel else None
    return {
        "model": copy_weights(weights, lambda tensor: tensor.cpu()),
        "model_config": config,
        "tokenizer": tokenizer.to_json() if tokenizer else None,
        "metrics": dict(metrics),
    }


def copy_weights(
    weights: Mapping[str, torch.Tensor], copy: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copies by name, in which tensors that share their memory (tied embeddings) still do."""
    copies: dict[int, torch.Tensor] = {}
    for tensor in weights.values():
        if tensor.data_ptr() not in copies:
            copies[tensor.data_ptr()] = copy(tensor.detach())
    return {name: copies[tensor.data_ptr()].view_as(tensor) for name, tensor in weights.items()}


def unpack_model(content: Mapping[str, Any], path: str) -> tuple[LanguageModel, Tokenizer | None, dict[str, Any]]:
    """The model, tokenizer and metrics that `pack_model` packed. Raises UserError where they do not fit together."""
    if content.get("model_config") is None:
        raise UserError(
            f"{path} holds the weights of a module that is not slm.LanguageModel. Build that module and call "
            "load_state_dict(slm.storage.load_file(path)['model'])."
        )
    try:
        model = LanguageModel(ModelConfig(**content["model_config"]))
        model.load_state_dict(content["model"])
        tokenizer = Tokenizer.from_json(content["tokenizer"], path) if content["tokenizer"] else None
        return model, tokenizer, dict(content["metrics"])
    except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its weights and configuration do not fit ({error}).") from error


def versions() -> dict[str, str]:
    """The versions that a run was made with."""
    return {
        "slm": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
