"""From settings to data and model; minutes become settings of their own, below what somebody asked for."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from slm.config import ModelConfig, UserError
from slm.data.example_dataset import ExampleDataset
from slm.data.prepared import PreparedData
from slm.data.splits import bytes_of_text
from slm.data.whole import WholeText
from slm.display import Display
from slm.reading import read_also, read_data, window_is_open
from slm.settings import TASK, Settings
from slm.task_config import LANGUAGE_MODEL, PAIRS
from slm.training.budget import PLANNED, make_plan, vocabulary_for
from slm.training.deadline import Deadline
from slm.training.device import seeded
from slm.training.plan import check_minutes
from slm.training.resume import Previous
from slm.training.starting import Saved, config_from

SHORTEST_MINUTES = 0.5
_LEAST_LEFT = 0.1  # of the time, after reading


def read_and_plan(
    settings: Settings,
    given: Any,
    val_given: Any,
    display: Display,
    deadline: Deadline | None,
    previous: Previous | None,
    device: torch.device,
    base: Saved | None = None,
) -> tuple[Settings, ModelConfig, PreparedData, str]:
    """The settings, the model's configuration, the data, and why the sizes are what they are, where they were planned.

    With a deadline and no previous run, whose plan is kept, what is not set is planned: the vocabulary before the text
    is tokenized, all else after. base: the trained model to start from.
    """
    to_plan = deadline is not None and previous is None
    if deadline and to_plan:
        settings = settings.planned(plan_text(settings, given, deadline.seconds, device))
    data = _read_data(settings, given, val_given, display, base)
    model, why = _fit_model(settings, data, base), ""
    if deadline and to_plan:
        with display.working() as on_progress:
            on_progress("timing some steps, to plan", 0, None)
            settings, why = plan_sizes(settings, model, data, deadline, device)
        data = data.in_windows_of(settings.model.max_seq_len, settings.data.val_tokens)
        model = _fit_model(settings, data, base)
    if base and settings.task.also_evaluate:
        data = dataclasses.replace(data, also=_read_also(settings, base, model.max_seq_len, display))
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, **data.prepared_with))
    return settings, model, data, why


def _read_also(settings: Settings, base: Saved, max_seq_len: int, display: Display) -> WholeText | None:
    """The other text to evaluate on; None, with a warning, where a run goes on without the model that it began with."""
    names = settings.task.also_evaluate or ()
    try:
        with display.working() as on_progress:
            return read_also(names, base, max_seq_len, settings.data.val_tokens, on_progress)
    except (UserError, OSError) as error:
        if not base.stands_for:
            raise
        warnings.warn(f"from here on the other text is not evaluated: {error}", stacklevel=4)
        return None


def minutes_of(settings: Settings) -> float | None:
    """The minutes that a run may take; None for one that ends at a step, such as the repetition of one with minutes.

    Raises UserError where somebody asks for another end, too, or for what does not go with minutes.
    """
    check_minutes(settings.train)
    minutes, steps = settings.train.max_minutes, settings.train.max_steps
    of_a_run = steps is not None and settings.origins["max_steps"] not in ("flag", "keyword")
    if minutes is None or of_a_run:
        return None
    for name in ("epochs", "max_steps"):
        if name in settings.asked():
            raise UserError(f"{name} and max_minutes both say when training ends: set one of them.")
    return minutes


def plan_text(settings: Settings, given: Any, seconds: float, device: torch.device) -> dict[str, Any]:
    """The settings that must be known before the text is read: the vocabulary.

    Raises UserError for too few seconds.
    """
    if seconds < 60 * SHORTEST_MINUTES:
        raise UserError(f"max_minutes = {seconds / 60:g}: must be at least {SHORTEST_MINUTES}, to plan and to train.")
    if settings.task.task != LANGUAGE_MODEL or settings.task.init_from:  # which bring a vocabulary
        return {}
    num_bytes = bytes_of_text(settings.data, given)
    return {} if num_bytes is None else {"vocab_size": vocabulary_for(num_bytes, seconds, device)}


def plan_sizes(
    settings: Settings, model: ModelConfig, data: PreparedData, deadline: Deadline, device: torch.device
) -> tuple[Settings, str]:
    """The settings with all that the plan decides, and why. Raises UserError where the time is nearly spent.

    model: with the vocabulary of the data.
    """
    if deadline.left() < _LEAST_LEFT * deadline.seconds:
        raise UserError(
            f"max_minutes = {deadline.seconds / 60:g}: reading the text alone took "
            f"{deadline.seconds - deadline.left():.0f} seconds of them. Give more minutes; a text from files is in the "
            "cache now, where the next run finds it."
        )
    examples = data.train_dataset if isinstance(data.train_dataset, ExampleDataset) else None
    fixed = settings.fixed()
    if settings.origins.get("dropout") == TASK and settings.task.task == PAIRS:  # the preset knows no passes
        del fixed["dropout"]
    with seeded(device, 0):  # the models that are timed shall not move anybody's random numbers on
        plan = make_plan(
            model,
            settings.train,
            fixed,
            yours=settings.asked(),
            context=max(1, round(examples.mean_length)) if examples else None,
            text_tokens=len(data.train_dataset.tokens),
            val_tokens=min(settings.data.val_tokens, len(data.val_dataset.tokens)),
            seconds=deadline.left(),
            device=device,
        )
    # A window for examples is as long as they are, whatever they were timed with.
    window = {"max_seq_len": model.max_seq_len} if examples else {}
    made = {name: value for name, value in plan.settings.items() if name not in fixed}
    return settings.planned({"vocab_size": model.vocab_size, **made, **window}), plan.why


def planned_of(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that a run had, from what its settings became."""
    return {name: resolved[name] for name in PLANNED if name in resolved}


def _read_data(settings: Settings, given: Any, val_given: Any, display: Display, base: Saved | None) -> PreparedData:
    if base and not base.tokenizer and (settings.task.task != LANGUAGE_MODEL or bytes_of_text(settings.data, given)):
        raise UserError(
            f"{base.path} has no tokenizer, for it was trained on dummy tokens or on token ids: it cannot read text. "
            "Give token ids as data."
        )
    labels = base.task.labels if base and base.task and base.task.name == settings.task.task else ()
    with display.working() as on_progress:
        return read_data(
            settings,
            given,
            val_given,
            tokenizer=base.tokenizer if base else None,
            labels=labels or None,
            on_progress=on_progress,
        )


def _fit_model(settings: Settings, data: PreparedData, base: Saved | None) -> ModelConfig:
    """The model's configuration with the vocabulary that the tokenizer really has, and its separator if needed."""
    if base is None and "vocab_size" in settings.asked() and data.vocab_size > settings.model.vocab_size:
        raise UserError(
            f"vocab_size = {settings.model.vocab_size}, but the tokenizer {settings.data.tokenizer!r} has "
            f"{data.vocab_size} tokens. Leave vocab_size out, or take --tokenizer bpe, which keeps to it."
        )
    length = settings.model.max_seq_len
    if data.max_seq_len and window_is_open(settings):  # what the base can look at, it goes on to
        length = max(data.max_seq_len, base.model.config.max_seq_len if base else 0)
    model = dataclasses.replace(settings.model, vocab_size=data.vocab_size, max_seq_len=length)
    if base:
        return config_from(base, model, settings.asked())
    if not settings.data.mask_documents:
        return model
    start = model.document_start
    if start is None and data.tokenizer:
        start = data.tokenizer.end_id
    if start is None:
        raise UserError(
            "mask_documents = True: there is no token between documents to tell them by. Leave it out, or take "
            "another tokenizer; with token ids of your own, name that token with --document_start."
        )
    return dataclasses.replace(model, document_start=start)
