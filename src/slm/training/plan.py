"""What a run will do, settled before its first step: every default filled in, every id in the vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, TrainConfig, UserError
from slm.data.batches import Batches, in_order
from slm.data.dataset import TextDataset
from slm.data.example_dataset import ExampleDataset
from slm.training.device import Machine, choose_device, choose_machine
from slm.training.tuning import quick_part, seconds_of_step

EVALUATIONS = 20  # in a run, about
_EVALUATION_SHARE = 0.06  # of the time of a run with max_minutes
_UPDATE = 1.2  # times a forward and backward is a step with its update, about


def check_minutes(config: TrainConfig) -> None:
    """Raises UserError for settings that need another end of the run than that of its minutes.

    With max_steps and decay_steps it is the repetition of one whose end was decided.
    """
    if config.max_minutes is None or (config.max_steps and config.decay_steps):
        return
    if config.max_steps is not None:
        raise UserError("max_steps and max_minutes both say when training ends: set one of them.")
    if config.schedule != "wsd":
        raise UserError(
            f"schedule = {config.schedule!r} needs to know its last step from the beginning, which max_minutes does "
            "not: it goes with 'wsd' alone. Or set max_steps in place of max_minutes."
        )
    if config.decay_steps is not None:
        raise UserError(
            f"decay_steps = {config.decay_steps}: with max_minutes the decay has the steps that fit into the time. "
            "Leave it out, or set max_steps in place of max_minutes."
        )
    if config.patience is not None:
        raise UserError(
            f"patience = {config.patience} would end the run before its decay, in which it learns most. With "
            "max_minutes leave it out: the best weights are kept anyway."
        )


def settle(
    config: TrainConfig, model: nn.Module, batches: Batches, val_dataset: Dataset[Any]
) -> tuple[Machine, TrainConfig]:
    """The machine, and the settings with every default that depends on it or on the data filled in.

    The model is moved to the machine's device, where its steps are timed. With max_minutes the last step stays open
    until it is decided.
    """
    check_minutes(config)
    model.to(choose_device(config.device)[0])
    micro_batch_size = config.micro_batch_size or config.batch_size
    tokens, targets = next(batches.epoch(0))
    batch, parts = (tokens[:micro_batch_size], targets[:micro_batch_size]), -(-len(tokens) // micro_batch_size)
    total_steps = config.max_steps or config.epochs * len(batches)
    machine = choose_machine(config, model, batch, total_steps * parts)
    if config.max_minutes and not config.max_steps and None in (config.warmup_steps, config.eval_every):
        few = quick_part(batch) if machine.device.type == "cpu" else batch
        seconds = _UPDATE * len(tokens) / len(few[0]) * seconds_of_step(model, few, machine)[0]
        total_steps = max(1, int(60 * config.max_minutes / seconds))
    return machine, resolve(config, total_steps, batches, val_dataset, machine)


def resolve(
    config: TrainConfig, total_steps: int, batches: Batches, val_dataset: Dataset[Any], machine: Machine
) -> TrainConfig:
    """The settings with every default that depends on the data, the machine or the number of steps filled in."""
    if not len(val_dataset):  # type: ignore[arg-type]
        raise UserError("the validation dataset is empty: there is nothing to evaluate on.")
    # A forward costs a third of a step: so many evaluations would be as much work as the training.
    as_many = 3 * total_steps * config.batch_size / len(val_dataset)  # type: ignore[arg-type]
    share = _EVALUATION_SHARE if config.max_minutes else 0.5
    evaluations = max(1, min(EVALUATIONS, total_steps, int(share * as_many)))
    ends = bool(config.max_steps) or not config.max_minutes
    return dataclasses.replace(
        config,
        max_steps=total_steps if ends else None,
        decay_steps=config.decay_steps or (max(1, total_steps // 2) if ends and config.schedule == "wsd" else None),
        warmup_steps=min(100, total_steps // 20) if config.warmup_steps is None else config.warmup_steps,
        micro_batch_size=min(config.micro_batch_size or config.batch_size, config.batch_size),
        eval_every=config.eval_every or max(1, total_steps // evaluations),
        compile="on" if machine.compile else "off",
        device=str(machine.device),
        precision=machine.precision,
        threads=machine.threads,
    )


def check_ids(model: nn.Module, dataset: Dataset[Any], name: str, batch_size: int) -> None:
    """Raises UserError for an id outside the model's vocabulary, anywhere in a TextDataset, else among the first items.

    A model that has no config.vocab_size knows its own limits.
    """
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(vocab_size, int):
        return
    # The windows of documents of a TextDataset are not laid out before somebody evaluates on it.
    if isinstance(dataset, TextDataset | ExampleDataset):
        low, high = dataset.id_range()
    elif not len(dataset):  # type: ignore[arg-type]
        return
    else:
        tokens, targets = next(in_order(dataset, batch_size))
        ids = torch.cat((tokens.flatten().long(), targets[targets != IGNORE_INDEX].long()))
        low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        larger_model = "" if low < 0 else f", or make a model with vocab_size = {high + 1}"
        raise UserError(
            f"the ids of the {name} dataset go from {low} to {high}: must be 0 or above and below the model's "
            f"vocab_size = {vocab_size}. Encode the text with the model's own tokenizer{larger_model}."
        )


def fingerprint(*datasets: Dataset[Any]) -> str:
    """A SHA-256 over the lengths of datasets and, where they are a TextDataset, some evenly spread windows of each.

    The items of any other dataset may be drawn at random, so that only their number can be compared.
    """
    digest = hashlib.sha256()
    for dataset in datasets:
        size = len(dataset)  # type: ignore[arg-type]
        digest.update(size.to_bytes(8, "little"))
        if isinstance(dataset, TextDataset) and size:
            for tensor in dataset.batch(torch.linspace(0, size - 1, 64).long()):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
