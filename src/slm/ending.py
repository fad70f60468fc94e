"""What comes after the last step of a run: a sample or scores, yardsticks, the pages, the last files, the summary."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from slm.config import UserError
from slm.data.example_dataset import ExampleDataset
from slm.data.prepared import PreparedData
from slm.display import Display
from slm.metrics.diagnosis import diagnose
from slm.metrics.speed import flops_per_token
from slm.metrics.yardsticks import FULL_SECONDS, Yardstick, yardsticks
from slm.storage import files
from slm.task_config import LANGUAGE_MODEL
from slm.task_scores import score_task
from slm.training.history import Record
from slm.training.resume import MODEL, REPORT
from slm.training.saving import RunFolder

if TYPE_CHECKING:
    from slm.run import Run

_SAMPLE_TOKENS, _SAMPLE_SECONDS = 120, 0.5
_FLOPS_PER_SECOND = 2e11  # of training on a laptop's processor, about
_LEAST_SECONDS, _MOST_SECONDS = 15.0, 60.0  # of a slow core for the yardsticks of labels: with less they get weak
MOST_WRITTEN, _FEWEST_WRITTEN = 1000, 50  # sources that are answered: a thousand tell BLEU to about a point
_TRAINED_PER_WRITTEN = 50  # examples that were trained on, for each source that is answered
_TRAINED_PER_READ = 4  # and for each text whose label is told
_YARDSTICK_SHARE = 0.4  # of the seconds that a slow core takes for the yardsticks: what most take


def reserved_seconds(seconds: float, task: str) -> float:
    """What of so many seconds is kept for what comes after the last step: scores and yardsticks take what they take."""
    if task != LANGUAGE_MODEL:
        return 0.0
    return _SAMPLE_SECONDS + _YARDSTICK_SHARE * min(FULL_SECONDS, 0.05 * seconds)


def end(
    run: Run,
    data: PreparedData,
    folder: RunFolder | None,
    display: Display,
    on_log: Callable[[Record], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """What comes after the last step: a sample, the yardsticks, the pages, the last files, the summary."""
    history = run.history
    assert history is not None
    run.metrics = dict(history.best or {})

    def tell(record: Record) -> None:
        history.records.append(record)
        if folder:
            folder.log(record)
        if on_log:
            on_log(record)

    _look_back(run, display, data, tell, should_stop, is_in_memory=folder is None)
    if folder:
        _finish_folder(folder, run, display)
    path, report = (files.join(folder.path, name) if folder else None for name in (MODEL, REPORT))
    found = diagnose(run.recorded)
    told = [f"{one.title}. {one.advice} {one.flag}" for one in found]
    display.summary(run.metrics, history, path, data.source_bits_per_byte, report=report, diagnosis=told)


def _finish_folder(folder: RunFolder, run: Run, display: Display) -> None:
    """Writes the pages and waits until all is written and sent; what is not is told."""
    folder.write_pages()
    with display.working() as on_progress:
        if folder.remote:
            on_progress(f"sending what is left to {folder.path}", 0, None)
        folder.finish(interrupted=run.history is not None and run.history.status == "interrupted")
    run.save_error, run.upload_error = folder.save_error, folder.upload_error
    for error in folder.errors:
        warnings.warn(error, stacklevel=3)


def _look_back(
    run: Run,
    display: Display,
    data: PreparedData,
    tell: Callable[[Record], None],
    should_stop: Callable[[], bool] | None,
    *,
    is_in_memory: bool,
) -> None:
    """Shows and records what the model writes, what simple predictors score, and how the run ended."""
    history = run.history
    assert history is not None
    if run.metrics and history.status != "interrupted" and data.task:
        if not (display.quiet and is_in_memory):
            _show_scores(run, display, data, tell, should_stop)
    elif run.metrics and history.status != "interrupted":  # who stops a run wants it to end
        if run.tokenizer and not display.quiet:
            # Only where documents were told apart has the model learned how one begins.
            prompt = "" if data.many_documents else "\n"
            with contextlib.suppress(KeyboardInterrupt):  # the stop button: the model is there, and is not to be lost
                text = run.generate(prompt, max_new_tokens=_SAMPLE_TOKENS, seed=0).strip()
                tell({"step": run.step, "prompt": "", "sample": text})
                display.sample(text)
        if data.name != "dummy" and not (display.quiet and is_in_memory):
            _show_yardsticks(run, display, data, tell)
    tell(history.ending())


def _show_scores(
    run: Run,
    display: Display,
    data: PreparedData,
    tell: Callable[[Record], None],
    should_stop: Callable[[], bool] | None,
) -> None:
    """How well the model does its task on validation examples, beside what trivial predictors score on them."""
    assert data.val_examples and data.train_examples
    try:
        with display.working() as on_progress:

            def show(what: str, done: int, total: int | None) -> None:
                on_progress(what, done, total)
                if should_stop and should_stop():
                    raise KeyboardInterrupt("stopped while scoring")

            seconds = max(_LEAST_SECONDS, _yardstick_seconds(run, _MOST_SECONDS))
            most = _num_scored(run, data)
            found = score_task(
                run, data.val_examples, data.train_examples, most=most, seconds=seconds, on_progress=show
            )
    except (Exception, KeyboardInterrupt) as error:  # whatever it is: the model is there, and is not to be lost
        why = str(error) or ("stopped" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
        warnings.warn(f"no scores: {why}. slm-evaluate makes them for a run in a folder.", stacklevel=2)
        return
    tell({"step": run.step, "task_scores": found.as_record()})
    for line in found.lines():
        display.print(line)
    display.print("")


def _num_scored(run: Run, data: PreparedData) -> int:
    """How many examples are answered, which is to take a small part of the time of the training; to write is slow."""
    assert isinstance(data.val_dataset, ExampleDataset)
    examples_seen = run.metrics["tokens_seen"] / data.val_dataset.mean_length
    if data.task and data.task.labels:
        return max(MOST_WRITTEN, int(examples_seen / _TRAINED_PER_READ))
    return min(MOST_WRITTEN, max(_FEWEST_WRITTEN, int(examples_seen / _TRAINED_PER_WRITTEN)))


def _show_yardsticks(run: Run, display: Display, data: PreparedData, tell: Callable[[Record], None]) -> None:
    """What simple predictors make of the validation text, measured in a small share of the time that the run took."""
    train, val = data.texts
    try:
        found = yardsticks(
            train.tokens,
            val,
            run.tokenizer,
            data.vocab_size,
            seconds=_yardstick_seconds(run),
            source_bits_per_byte=data.source_bits_per_byte,
        )
    except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:  # the model is there, and is not to be lost
        display.print(f"no yardsticks: {str(error) or type(error).__name__}")
        return
    tell({"step": run.step, "yardsticks": [dataclasses.asdict(one) for one in found]})
    metrics = run.metrics
    bits, loss, accuracy = (metrics.get(name) for name in ("val_bits_per_byte", "val_loss", "val_accuracy"))
    display.yardsticks(found, Yardstick("this model", bits, loss, accuracy=accuracy))
    display.print("")


def _yardstick_seconds(run: Run, most: float = FULL_SECONDS) -> float:
    """What yardsticks may take on a slow core after a run: 5 % of its minutes, or of what its operations may take.

    Reckoned from its settings and steps, not from the clock, so that its repetition measures on the same samples.
    """
    minutes = run.resolved.get("max_minutes")
    tokens = run.metrics["tokens_seen"]
    seconds = 60 * minutes if minutes else tokens * flops_per_token(run.model.config) / _FLOPS_PER_SECOND
    return float(min(most, 0.05 * seconds))
