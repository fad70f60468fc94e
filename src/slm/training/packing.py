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
from slm.data.tasks import Task
from slm.data.tokenizer import Tokenizer
from slm.model.classifier import Classifier
from slm.model.lora import is_lora, load_trainable, trainable_weights
from slm.model.transformer import LanguageModel

_KINDS: dict[str, Any] = {"model": dict, "model_config": dict, "tokenizer": str | None, "metrics": dict}
_ORIGIN = ("asked", "resolved", "made_with")  # which `RunFolder` adds
_TABLES = 2**30  # bytes; a model whose tables are larger could not be trained without far more
_AGAIN = "Copy it again from where it was made."


def pack_model(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """What model.pt holds beside the tables of config.toml: tensors and plain Python values only.

    The configuration is stored for a LanguageModel or Classifier; of any other module only the weights can be.
    """
    # Beside which model its LoRA stands is known of a model that `set_trainable` wrapped; of another all is stored.
    is_ours = isinstance(model, LanguageModel) and type(model) in (LanguageModel, Classifier)
    is_ours = is_ours and (is_adapted(model) or not is_lora(model))
    config = dataclasses.asdict(model.config) if is_ours else None  # type: ignore[call-overload]
    # What an slm from before there were tasks cannot read.
    newer = {"format_version": 2} if type(model) is Classifier or is_adapted(model) else {}
    return {
        **newer,
        "model": copy_weights(weights, lambda tensor: tensor.cpu()),
        "model_config": config,
        "tokenizer": tokenizer.to_json() if tokenizer else None,
        "metrics": dict(metrics),
    }


def is_adapted(model: nn.Module) -> bool:
    """True for a model with LoRA that was made from another one, beside which it is saved."""
    return is_lora(model) and bool(getattr(model, "stands_beside_base", False))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is saved of a model, not copied: its state_dict, or, of one that stands beside another, what is trained."""
    return trainable_weights(model) if is_adapted(model) else model.state_dict()


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Puts what `weights_of` gave into a model. Raises ValueError or RuntimeError where it does not fit."""
    if is_adapted(model):
        load_trainable(model, weights)
    else:
        model.load_state_dict(weights)


def copy_weights(
    weights: Mapping[str, torch.Tensor], copy: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Copies by name, in which tensors that share their memory (tied embeddings) still do."""
    copies: dict[object, torch.Tensor] = {}
    places = {name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if places[name] not in copies:
            copies[places[name]] = copy(tensor.detach())
    return {name: copies[places[name]] for name in weights}


def copied(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with tensors, all of them on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value


def task_of(made_with: Mapping[str, Any]) -> Task | None:
    """The task that a model was made for, None for one that goes on with text. Raises ValueError."""
    return Task.from_dict(made_with["task"]) if made_with.get("task") else None


def unpack_model(
    content: Mapping[str, Any],
    path: str,
    with_lora: Callable[[ModelConfig, Task | None], LanguageModel] | None = None,
) -> tuple[LanguageModel, Tokenizer | None, dict[str, Any]]:
    """The model, tokenizer and metrics that `pack_model` packed. Raises UserError where they do not fit together.

    with_lora: makes the model that the content has the adapters of; None for one that is there as a whole.
    """
    if content.get("model_config") is None:
        raise UserError(
            f"{path} holds the weights of a module that is not slm.LanguageModel. Build that module and call "
            "load_state_dict(slm.storage.load_file(path)['model'])."
        )
    wrong = [name for name, types in _KINDS.items() if not isinstance(content.get(name, ...), types)]
    wrong += [name for name in _ORIGIN if not isinstance(content.get(name, {}), dict)]
    if wrong:
        raise UserError(f"{path} is damaged: its weights and configuration do not fit (no {wrong[0]}). {_AGAIN}")
    try:
        config, task = ModelConfig(**content["model_config"]), task_of(content.get("made_with", {}))
        _check_tensors(content["model"])
        if with_lora:
            model = with_lora(config, task)
            load_trainable(model, content["model"])
        else:
            model = _build(config, task, content["model"])
        tokenizer = Tokenizer.from_json(content["tokenizer"], path) if content["tokenizer"] else None
        _check_metrics(content["metrics"])
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: its weights and configuration do not fit ({error!s:.500}). {_AGAIN}"
        ) from error
    if tokenizer and tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{path} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, and its model "
            f"{model.config.vocab_size}. {_AGAIN}"
        )
    return model, tokenizer, content["metrics"]


def new_model(config: ModelConfig, task: Task | None) -> LanguageModel:
    """A model for a task with new weights, drawn from torch's global generator."""
    return Classifier(config, len(task.labels)) if task and task.labels else LanguageModel(config)


def _check_tensors(weights: dict[Any, Any]) -> None:
    """Raises ValueError for what is no weight."""
    if not all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in weights.items()):
        raise ValueError("a weight is no tensor")
    if not all(one.is_floating_point() for one in weights.values()):
        raise ValueError("a weight is of another type than a float")


def _build(config: ModelConfig, task: Task | None, weights: dict[Any, Any]) -> LanguageModel:
    """A model of that configuration with these weights, which are looked at before memory is taken for it."""
    stored = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in weights.values()}
    num_bytes = sum(stored.values())  # of one byte a number at least
    # The tables of rotary positions are made anew, so that no weights tell their size.
    tables = 8 * config.num_layers * config.max_seq_len * config.head_dim if config.positions == "rope" else 0
    # A class head stands in place of the output layer, and may be larger than it where a vocabulary is tiny.
    least = config.num_parameters - (config.vocab_size * config.embed_dim if task and task.labels else 0)
    if config.num_layers > len(weights) or least > num_bytes:
        raise ValueError(f"{least:,} parameters are told of, in {num_bytes:,} bytes of weights")
    if task and 2 * len(task.labels) * config.embed_dim > num_bytes:
        raise ValueError(f"{len(task.labels):,} labels are told of, in {num_bytes:,} bytes of weights")
    if tables > max(_TABLES, 16 * num_bytes):
        raise ValueError(f"max_seq_len = {config.max_seq_len} is more than a model of that size can look at")
    model = new_model(config, task)
    model.load_state_dict(weights)
    return model


def _check_metrics(metrics: dict[Any, Any]) -> None:
    """Raises ValueError for metrics that are not numbers by name, or of no step."""
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("a metric is no number")
    if not isinstance(metrics.get("step", 0), int) or not all(isinstance(name, str) for name in metrics):
        raise ValueError("its metrics are of no step")


def versions() -> dict[str, str]:
    """The versions that a run was made with."""
    return {
        "slm": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
