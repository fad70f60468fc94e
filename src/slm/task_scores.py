"""A run's answers to examples of its task, scored, with trivial predictors beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slm.answering import classify, complete, encoder_of
from slm.config import FIELDS, DataConfig, TaskConfig, UserError
from slm.data.counts import many
from slm.data.examples import Examples
from slm.data.prepared import PreparedData
from slm.data.task_data import learned, read_all
from slm.metrics.labels import score_labels
from slm.metrics.task_evaluation import Beside, Example, TaskEvaluation, metrics_of
from slm.metrics.task_yardsticks import label_yardsticks, text_yardsticks
from slm.metrics.translations import score_texts
from slm.reading import Progress, read_again
from slm.settings import nearest
from slm.task_config import CLASSIFICATION, OF_EVALUATION, PAIRS
from slm.training.device import choose_device

if TYPE_CHECKING:
    from slm.run import Run

_SHOWN = 8  # examples that are kept to be looked at
SCORING = "scoring the answers"


def evaluate_task(
    run: Run,
    names: tuple[str, ...],
    given: Any,
    settings: Mapping[str, Any],
    *,
    device: str,
    with_yardsticks: bool,
    on_progress: Progress,
) -> TaskEvaluation:
    """The scores of a run on examples of its task: those of the named files, or given ones, or of its own validation.

    settings: how to read the examples, where that is not as in the run's training, and how to search for targets.
    Raises UserError and OSError.
    """
    assert run.task is not None
    known = [name for name in OF_EVALUATION if FIELDS[name].metadata["group"] == run.task.name]
    known += ["text_field"] if run.task.name == CLASSIFICATION else []
    for name in settings:
        if name not in known:
            raise UserError(f"{name} is no setting for {run.task.name}: {', '.join(known)}.{nearest(name, known)}")
    keys = dict(settings)
    text_field = DataConfig(text_field=keys.pop("text_field", run.resolved.get("text_field", "text"))).text_field
    then = {name: run.resolved[name] for name in OF_EVALUATION if name in run.resolved and name != "target_file"}
    task = TaskConfig(task=run.task.name, **{**then, **keys})
    own = None
    if with_yardsticks or (not names and given is None):
        own = _own(run, on_progress, needed=not names and given is None)
    if names or given is not None:
        examples = read_all(names, task.target_file or (), given, task, text_field, on_progress)
    elif own is None or isinstance(own, str) or own.val_examples is None:
        raise UserError(f"{own}: name examples with data (--data).")
    else:
        examples = dataclasses.replace(own.val_examples, name=f"the validation part of {own.name}")
    train = None if own is None or isinstance(own, str) else own.train_examples
    home = next(run.model.parameters()).device
    run.model.to(choose_device(device)[0])
    try:
        found = score_task(run, examples, train if with_yardsticks else None, task=task, on_progress=on_progress)
    finally:
        run.model.to(home)
    missing = (f"no yardsticks, which learn from the training examples: {own}",) if isinstance(own, str) else ()
    if names or given is not None:
        missing = (*missing, *examples.found[1:], *(learned(examples, train, task.task) if train else ()))
    return dataclasses.replace(found, missing=(*found.missing, *missing))


def _own(run: Run, on_progress: Progress, *, needed: bool) -> PreparedData | str:
    """What a run was trained on, or why that is not there; where it is needed, its errors are raised."""
    try:
        return run.data or read_again(run.resolved, run.made_with, run.tokenizer, on_progress)
    except (UserError, OSError) as error:
        if needed:
            raise
        return str(error)


def score_task(
    run: Run,
    examples: Examples,
    train: Examples | None = None,
    *,
    most: int | None = None,
    task: TaskConfig | None = None,
    seconds: float | None = None,
    on_progress: Progress = lambda what, done, total: None,
) -> TaskEvaluation:
    """The scores of a run on examples, or on so many of them, spread evenly; yardsticks learn from `train`, if any.

    task: how to search for targets, if not as the run does. seconds: of `label_yardsticks`.
    """
    assert run.task is not None
    part = _part(examples, most)
    on_progress(SCORING, 0, None)
    if run.task.name == CLASSIFICATION:
        return _score_labels(run, part, train, seconds)
    part, too_long = _that_fit(run, part)
    search = {"num_beams": task.num_beams, "length_penalty": task.length_penalty} if task else {}
    done = 0

    def on_done(more: int) -> None:
        nonlocal done
        done += more
        on_progress(SCORING, done, len(part.inputs))

    written = complete(run, part.inputs, on_done=on_done, **search)  # type: ignore[arg-type]
    scores = score_texts(written, part.outputs)
    beside = []
    if train:
        found = text_yardsticks(train.inputs, train.outputs, part.inputs, part.outputs)
        beside = [Beside(one.name, metrics_of(one.scores), one.told) for one in found]
    missing = (scores.missing,) if scores.missing else ()
    if too_long:
        told = f"{many(too_long, 'source')} left out, too long for a model that looks at {run.model.config.max_seq_len}"
        missing = (*missing, f"{told} tokens")
    name = (
        part.name if len(part.inputs) == len(examples.inputs) else f"{part.name} ({many(len(part.inputs), 'example')})"
    )
    return TaskEvaluation(run.task.name, name, len(written), scores, beside, _shown(part, written), missing)


def _that_fit(run: Run, examples: Examples) -> tuple[Examples, int]:
    """The examples whose sources leave room for a target, and how many others there are."""
    encoder = encoder_of(run, PAIRS)
    rows = zip(encoder.prompts(examples.inputs), examples.inputs, examples.outputs, strict=True)
    fitting = [(source, target) for prompt, source, target in rows if len(prompt) < encoder.max_seq_len]
    lost = len(examples.inputs) - len(fitting)
    if not fitting:
        raise UserError(f"no source of {examples.name} leaves room for a target in {encoder.max_seq_len} tokens.")
    if not lost:
        return examples, 0
    inputs, outputs = map(list, zip(*fitting, strict=True))
    return dataclasses.replace(examples, inputs=inputs, outputs=outputs), lost


def _score_labels(run: Run, examples: Examples, train: Examples | None, seconds: float | None) -> TaskEvaluation:
    assert run.task is not None
    labels = run.task.labels
    true = run.task.numbers_of(examples.outputs, examples.name)
    answered = [one.label for one in classify(run, examples.inputs)]
    predicted = run.task.numbers_of(answered, "the answers")
    beside, missing = [], ""
    if train:
        trained = run.task.numbers_of(train.outputs, train.name)
        found, missing = label_yardsticks(train.inputs, trained, examples.inputs, true, labels, seconds=seconds)
        beside = [Beside(one.name, metrics_of(one.scores), one.told) for one in found]
    scores = score_labels(true, predicted, labels)
    shown = _shown(examples, answered)
    told = (missing,) if missing else ()
    return TaskEvaluation(CLASSIFICATION, examples.name, len(true), scores, beside, shown, told)


def _part(examples: Examples, most: int | None) -> Examples:
    """At most so many examples, spread evenly."""
    size = len(examples.inputs)
    if most is None or size <= most:
        return examples
    chosen = [number * size // most for number in range(most)]
    inputs, outputs = ([column[place] for place in chosen] for column in (examples.inputs, examples.outputs))
    return dataclasses.replace(examples, inputs=inputs, outputs=outputs)


def _shown(examples: Examples, answered: list[str]) -> list[Example]:
    """Some examples with their answers: half of those that are kept are wrong ones, where there are so many."""
    all_of_them = map(Example, examples.inputs, examples.outputs, answered)
    right: list[Example] = []
    wrong: list[Example] = []
    for one in all_of_them:
        (right if one.is_right else wrong).append(one)
    half = _SHOWN // 2
    few = right[: max(half, _SHOWN - len(wrong))]
    return [*few, *wrong[: _SHOWN - len(few)]]
