"""The dial: minutes become settings, as a layer of their own below what somebody asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from slm.config import ModelConfig, UserError
from slm.data.splits import PreparedData, bytes_of_text
from slm.settings import Settings
from slm.training.budget import PLANNED, make_plan, vocabulary_for
from slm.training.deadline import Deadline

SHORTEST_MINUTES = 0.5


def plan_text(settings: Settings, given: Any, seconds: float) -> dict[str, Any]:
    """The settings that must be known before the text is read: the vocabulary. Raises UserError for too few seconds."""
    if seconds < 60 * SHORTEST_MINUTES:
        raise UserError(f"max_minutes = {seconds / 60:g}: must be at least {SHORTEST_MINUTES}, to plan and to train.")
    num_bytes = bytes_of_text(settings.data, given)
    return {} if num_bytes is None else {"vocab_size": vocabulary_for(num_bytes, seconds)}


def plan_sizes(
    settings: Settings, model: ModelConfig, data: PreparedData, deadline: Deadline, device: torch.device
) -> tuple[Settings, str]:
    """The settings with all that the plan decides, and why. Raises UserError for a schedule that needs another end.

    model: with the vocabulary of the data.
    """
    plan = make_plan(
        model,
        settings.train,
        settings.asked(),
        text_tokens=len(data.train_dataset.tokens),
        val_tokens=min(settings.data.val_tokens, len(data.val_dataset.tokens)),
        seconds=deadline.left(),
        device=device,
    )
    settings = settings.planned({"vocab_size": model.vocab_size, **plan.settings})
    if settings.train.schedule not in ("wsd", "constant") and settings.train.max_steps is None:
        raise UserError(
            f"schedule = {settings.train.schedule!r} needs to know its last step from the beginning, which max_minutes "
            "does not: leave it out, or set max_steps instead of max_minutes."
        )
    return settings, plan.why


def planned_of(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that a run had, from what its settings became."""
    return {name: resolved[name] for name in PLANNED if name in resolved}
