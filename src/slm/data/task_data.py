"""Settings -> the training and validation datasets of a task: pairs, or texts with labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

from slm.config import DataConfig, TaskConfig, UserError
from slm.data.counts import many
from slm.data.example_dataset import ExampleDataset
from slm.data.examples import (
    Examples,
    given_examples,
    labels_of,
    read_aligned_examples,
    read_table_examples,
    split_examples,
)
from slm.data.prepare import EVALUATED_TOKENS, Progress
from slm.data.prepared import PreparedData
from slm.data.story_tasks import story_examples
from slm.data.tasks import Encoder, Task
from slm.data.tokenizer import TOKENIZERS, Tokenizer, make_tokenizer, read_tokenizer_file
from slm.task_config import CLASSIFICATION, PAIRS

MOST_POSITIONS = 512  # of a window that suits the examples, unless somebody asks for more
_STEP = 64  # in which such windows grow


def read_examples(
    config: DataConfig, task: TaskConfig, given: Any, val_given: Any, on_progress: Progress
) -> tuple[Examples, Examples, str]:
    """The training and the validation examples, and how these were chosen. Raises UserError."""
    names, val_names = config.data or (), config.val_data or ()
    targets = task.target_file or ()
    if given is not None and targets:
        raise UserError(f"target_file = {targets[0]!r} is for text files named with data: leave it out.")
    if targets and len(targets) != len(names) + len(val_names):
        both = " and one for each of val_data" if val_names else ""
        raise UserError(
            f"target_file names {many(len(targets), 'file')}: it needs one for each of the {len(names)} in data{both}."
        )
    train = read_all(names, targets[: len(names)], given, task, config.text_field, on_progress)
    if val_given is None and not val_names:
        return split_examples(train, config.val_fraction, stratify=task.task == CLASSIFICATION)
    val = read_all(val_names, targets[len(names) :], val_given, task, config.text_field, on_progress)
    return train, dataclasses.replace(val, found=(*val.found, *learned(val, train, task.task))), f"all of {val.name}"


def learned(examples: Examples, train: Examples, task: str) -> list[str]:
    """What is to be told where some of the examples are among those of the training."""
    known = set(train.inputs)
    number = sum(one in known for one in examples.inputs)
    what = many(number, "source" if task == PAIRS else "text")
    are = "is" if number == 1 else "are"
    return [f"{what} {are} among those of the training, so that the scores are too good"] if number else []


def read_all(
    names: tuple[str, ...],
    targets: tuple[str, ...],
    given: Any,
    task: TaskConfig,
    text_field: str,
    on_progress: Progress,
) -> Examples:
    """All examples of files, of a built-in name, or from Python, as a task's settings say. Raises UserError."""
    is_pairs = task.task == PAIRS
    fields = (task.source_field, task.target_field) if is_pairs else (text_field, task.label_field)
    flags = ("source_field", "target_field") if is_pairs else ("text_field", "label_field")
    if given is not None:
        return given_examples(given, *fields)
    if not names or names == ("dummy",):
        raise UserError(
            f"task = {task.task!r} needs examples: name a table with data (--data file.tsv), or try 'stories'."
        )
    if names[0].partition(":")[0] == "stories" and len(names) == 1:
        if targets:
            raise UserError(f"target_file = {targets[0]!r}: {names[0]} has targets already. Leave one of them out.")
        return story_examples(names[0], task.task)
    if targets:
        return read_aligned_examples(names, targets, on_progress=on_progress)
    return read_table_examples(names, *fields, flags=flags, on_progress=on_progress)


def load_task_data(
    config: DataConfig,
    task_config: TaskConfig,
    given: Any,
    val_given: Any = None,
    *,
    tokenizer: Tokenizer | None = None,
    labels: tuple[str, ...] | None = None,
    vocab_size: int,
    max_seq_len: int | None,
    most_positions: int = MOST_POSITIONS,
    on_progress: Progress,
) -> PreparedData:
    """The datasets of a task.

    tokenizer: that of the model to start from, which gets the template's tokens; None makes one from the training
    examples, with at most vocab_size tokens. labels: those of a model that classifies
    already, which are kept where they are all that the examples have. max_seq_len: None chooses one that suits the
    examples, at most most_positions.
    """
    train, val, split = read_examples(config, task_config, given, val_given, on_progress)
    on_progress("tokenizing", 0, None)
    num_bytes = sum(len(text.encode("utf-8", "replace")) for part in (train, val) for text in part.inputs)
    if task_config.task == PAIRS:
        num_bytes += sum(len(text.encode("utf-8", "replace")) for part in (train, val) for text in part.outputs)
    if tokenizer is None:
        tokenizer = _make_tokenizer(config.tokenizer, train, vocab_size, task_config.task)
    if task_config.task == PAIRS:
        task = Task.pairs(tokenizer)
    else:
        has_known = labels is not None and set(train.outputs) <= set(labels)
        task = Task.classification(tokenizer, labels if labels and has_known else labels_of(train))
    tokenizer = tokenizer.with_special_tokens(task.special_tokens)
    encoder = Encoder(task, tokenizer, max_seq_len or most_positions)
    (train_set, train_lost), (val_set, val_lost) = _encoded(encoder, train, everywhere=True), _encoded(encoder, val)
    longest = max(train_set.window, val_set.window)
    found = [*train.found, *(f"validation: {line}" for line in val.found if val.found != train.found)]
    found += _lost(task, train_lost + val_lost, encoder.max_seq_len)
    digest = hashlib.sha256(f"{train.fingerprint} {val.fingerprint} {task.template} {tokenizer.to_json()}".encode())
    return PreparedData(
        train_dataset=train_set,
        val_dataset=val_set.part(min(config.val_tokens, EVALUATED_TOKENS)),
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        fingerprint=digest.hexdigest(),
        name=train.name,
        split=split,
        num_bytes=num_bytes,
        found=tuple(found),
        task=task,
        train_examples=train,
        val_examples=val,
        max_seq_len=max_seq_len or min(encoder.max_seq_len, -(-longest // _STEP) * _STEP),
    )


def _make_tokenizer(name: str, examples: Examples, vocab_size: int, task: str) -> Tokenizer:
    """A tokenizer for the inputs of the examples, and for their outputs where these are to be written.

    It leaves room for the token that a template of pairs adds.
    """
    if name not in TOKENIZERS:
        return Tokenizer.from_json(read_tokenizer_file(name), name)
    texts: Iterable[str] = [*examples.inputs, *examples.outputs] if task == PAIRS else examples.inputs
    return make_tokenizer(name, texts, vocab_size - (name == "bpe" and task == PAIRS))


def _encoded(encoder: Encoder, examples: Examples, *, everywhere: bool = False) -> tuple[ExampleDataset, int]:
    if encoder.task.name == PAIRS:
        return encoder.pairs(examples.inputs, examples.outputs)
    return encoder.labelled(examples.inputs, examples.outputs, examples.name, everywhere=everywhere)


def _lost(task: Task, count: int, max_seq_len: int) -> list[str]:
    """What was cut or left out, in words."""
    if not count:
        return []
    what = f"{many(count, 'pair')} left out" if task.name == PAIRS else f"{many(count, 'text')} cut at the end"
    return [f"{what}, longer than max_seq_len = {max_seq_len}"]
