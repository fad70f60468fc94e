"""From settings to the data of a run, whatever its task; and what a run was trained on, read again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from slm.config import DataConfig, UserError
from slm.data.dataset import TextDataset
from slm.data.prepared import PreparedData
from slm.data.splits import load_data
from slm.data.task_data import MOST_POSITIONS, load_task_data
from slm.data.tokenizer import Tokenizer
from slm.data.whole import WholeText, read_whole
from slm.settings import Settings, merge
from slm.storage import files
from slm.storage.files import MissingError
from slm.task_config import LANGUAGE_MODEL
from slm.training.packing import task_of
from slm.training.resume import CONFIG
from slm.training.starting import Saved, read_model

ALSO_TOKENS = 100_000  # of another text, evaluated on beside the own one: they tell its loss to about 1 %
Progress = Callable[[str, int, int | None], None]


def read_data(
    settings: Settings,
    given: Any,
    val_given: Any,
    *,
    tokenizer: Tokenizer | None = None,
    labels: tuple[str, ...] | None = None,
    on_progress: Progress,
) -> PreparedData:
    """The data of a run. tokenizer, labels: those of a model that is there already."""
    asked = {*settings.asked(), *({"vocab_size"} if settings.task.init_from else ())}
    if settings.task.task == LANGUAGE_MODEL:
        return load_data(
            settings.data,
            given,
            val_given,
            vocab_size=settings.model.vocab_size,
            max_seq_len=settings.model.max_seq_len,
            seed=settings.train.seed,
            recheck=settings.options.recheck,
            asked=asked,
            tokenizer=tokenizer,
            on_progress=on_progress,
        )
    return load_task_data(
        settings.data,
        settings.task,
        given,
        val_given,
        tokenizer=tokenizer,
        labels=labels,
        vocab_size=settings.model.vocab_size,
        max_seq_len=None if window_is_open(settings) else settings.model.max_seq_len,
        most_positions=max(MOST_POSITIONS, settings.model.max_seq_len if settings.task.init_from else 0),
        on_progress=on_progress,
    )


def window_is_open(settings: Settings) -> bool:
    """Whether the examples of a task may choose how many positions the model looks at."""
    if settings.task.task == LANGUAGE_MODEL or "max_seq_len" in settings.asked():
        return False
    return settings.task.init_from is None or settings.model.positions == "rope"


def read_again(
    resolved: Mapping[str, Any], made_with: Mapping[str, Any], tokenizer: Tokenizer | None, on_progress: Progress
) -> PreparedData | str:
    """What the settings of a run name, or why that is not what it was trained on."""
    if not resolved:
        return "this model does not say what it was trained on"
    settings = merge({"resolved": resolved})
    then = str(made_with.get("data_fingerprint"))
    if not settings.data.data and not then.startswith("dummy"):
        return "this run was trained on data given in Python, which a run does not store"
    what = ", ".join(settings.data.data or ("the dummy data",))
    task = task_of(made_with)
    try:
        found = read_data(
            settings,
            None,
            None,
            tokenizer=tokenizer if settings.task.init_from or task else None,
            labels=task.labels if task else None,
            on_progress=on_progress,
        )
    except MissingError:
        return f"{what}, which this run was trained on, is not there any more"
    return found if found.fingerprint == then else f"{what} has changed since this run was trained on it"


def read_also(
    names: tuple[str, ...], base: Saved, max_seq_len: int, val_tokens: int, on_progress: Progress
) -> WholeText:
    """Another text to evaluate on, in the tokens of the model to start from; a run's folder is its validation text.

    Of a longer one about so many tokens are read as tell enough, as at most val_tokens are. Raises UserError where it
    is not there any more, or of other tokens.
    """
    found = _whole(names, base, max_seq_len, on_progress)
    text, most = found.dataset, min(val_tokens, ALSO_TOKENS)
    if text.num_targets <= most:
        return found
    part = TextDataset(text.tokens, max_seq_len, start_id=text.start_id, max_targets=most)
    return dataclasses.replace(found, dataset=part)


def _whole(names: tuple[str, ...], base: Saved, max_seq_len: int, on_progress: Progress) -> WholeText:
    if len(names) == 1 and (names[0].endswith(".pt") or files.exists(files.join(names[0], CONFIG))):
        is_base = not base.stands_for and _is_same(names[0], base.path)  # else it would be the run's own
        run = base if is_base else read_model(names[0])
        found = read_again(run.resolved, run.made_with, run.tokenizer, on_progress)
        if isinstance(found, str):
            raise UserError(f"also_evaluate = {names[0]}: {found}. Name a text.")
        if run.tokenizer and not (base.tokenizer and base.tokenizer.has_all_of(run.tokenizer)):
            raise UserError(f"also_evaluate = {names[0]}: that run has another tokenizer. Name a text.")
        if found.task or (found.tokenizer is None) != (base.tokenizer is None):
            raise UserError(f"also_evaluate = {names[0]}: that run learned no text that this model reads. Name one.")
        _, text = found.in_windows_of(max_seq_len, found.val_dataset.num_targets).texts
        return WholeText(text, f"the validation part of {found.name}", found.source_bits_per_byte)
    return read_whole(
        dataclasses.replace(DataConfig(), data=names),
        None,
        tokenizer=base.tokenizer,
        vocab_size=base.model.config.vocab_size,
        max_seq_len=max_seq_len,
        on_progress=on_progress,
    )


def _is_same(name: str, path: str) -> bool:
    """Whether a model.pt, or the folder of one, is that of a path."""
    return name == path or os.path.dirname(path).rstrip("/") == name.rstrip("/")
