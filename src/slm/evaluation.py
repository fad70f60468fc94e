"""Evaluate a run on a text, with yardsticks beside its numbers; compare runs on the same text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from slm.config import DataConfig, UserError
from slm.data.dataset import TextDataset
from slm.data.prepare import EVALUATED_TOKENS
from slm.data.prepared import PreparedData
from slm.data.tokenizer import Tokenizer
from slm.data.whole import WholeText, read_whole
from slm.metrics.scoring import Comparison, Evaluation, compare_evaluations, evaluate_text
from slm.metrics.task_evaluation import TaskEvaluation
from slm.metrics.yardsticks import FULL_SECONDS, yardsticks
from slm.reading import read_again
from slm.run import Run, load
from slm.settings import as_settings, nearest
from slm.task_scores import evaluate_task
from slm.training.device import choose_device

Progress = Callable[[str, int, int | None], None]
RunOrPath = Run | str | os.PathLike[str]


def no_progress(what: str, done: int, total: int | None) -> None:
    """Tells nobody."""


def evaluate(
    run: RunOrPath,
    data: Any = None,
    *,
    stride: int | None = None,
    device: str = "auto",
    with_yardsticks: bool = True,
    on_progress: Progress = no_progress,
    **settings: Any,
) -> Evaluation | TaskEvaluation:
    """The numbers of a run, or of what lies in its folder or at its URL, on a text, in fp32, with yardsticks beside.

    data: as for `slm.train`, all of it; None is the run's own validation text, of which the same tokens are read as in
    its training. stride: None reads windows side by side, so that targets at their beginnings have little before them;
    else each window moves on by so many tokens and only its last ones are scored. The smaller it is, the more every
    token has before it, and the longer it takes. settings: text_field and split_documents_on, as for `slm.train`.
    The yardsticks learn from the run's training text, where that is still there; without them it is not read again.
    on_progress is told what is being
    done, the bytes done, and the bytes in all. Raises UserError and OSError.
    Of a run with a task: its scores on examples of data, or on its own validation examples, beside trivial predictors;
    settings are those by which examples are read, and num_beams and length_penalty.
    """
    loaded = run if isinstance(run, Run) else load(run)
    if loaded.task:
        if stride is not None:
            raise UserError(f"stride = {stride!r} is for running text, and this run learned {loaded.task.name}.")
        keys, given, _ = as_settings(data, settings)
        names = DataConfig(data=keys.pop("data", None)).data or ()
        return evaluate_task(
            loaded, names, given, keys, device=device, with_yardsticks=with_yardsticks, on_progress=on_progress
        )
    config, given = _named(data, settings)
    return evaluate_all(
        [loaded], config, given, stride=stride, device=device, with_yardsticks=with_yardsticks, on_progress=on_progress
    )[0]


def compare(
    first: RunOrPath,
    second: RunOrPath,
    data: Any = None,
    *,
    stride: int | None = None,
    device: str = "auto",
    on_progress: Progress = no_progress,
    **settings: Any,
) -> Comparison:
    """By how much the second run is better or worse than the first on the same text, and how sure that is.

    Their tokenizers may differ. data: None is the first run's validation text, all of it; for the rest see `evaluate`.
    """
    config, given = _named(data, settings)
    found = evaluate_all(
        [first, second], config, given, stride=stride, device=device, with_yardsticks=False, on_progress=on_progress
    )
    return compare_evaluations(*found)


def evaluate_all(
    runs: Sequence[RunOrPath],
    config: DataConfig,
    given: Any = None,
    *,
    stride: int | None,
    device: str,
    with_yardsticks: bool = True,
    on_progress: Progress,
) -> list[Evaluation]:
    """The evaluation of each run on the same text: that of config.data, what is given, or the first's own."""
    if stride is not None and (type(stride) is not int or stride < 1):
        raise UserError(f"stride = {stride!r}: must be a whole number from 1 to the model's max_seq_len.")
    is_own = config.data is None and given is None
    if is_own and config != DataConfig():
        raise UserError("text_field and split_documents_on tell how to read a text: name it with data (--data).")
    if len(runs) > 1 and isinstance(given, Iterator):  # to be read by each
        given = list(given)
    loaded = [run if isinstance(run, Run) else load(run) for run in runs]
    for run in loaded:
        if run.task:
            raise UserError(
                f"{run.path or 'one of the runs'} learned {run.task.name}: its scores are told one run at a time, and "
                "no text compares it with others."
            )
    longest = min(run.model.config.max_seq_len for run in loaded)
    if stride is not None and stride > longest:
        raise UserError(f"stride = {stride}: must be at most {longest}, a model's max_seq_len, or tokens are left out.")
    texts: list[WholeText] = []
    if not is_own:  # a mistake in its name is told before the training text is read
        texts = [_read(run, config, given, on_progress) for run in loaded]
    owns = _own_datas(loaded, is_own, with_yardsticks, on_progress)
    if is_own:
        assert isinstance(owns[0], PreparedData)
        texts = _validation_texts(loaded, owns[0], on_progress)
    tell_documents = all(run.tokenizer and run.tokenizer.end_id is not None for run in loaded)
    return [
        _evaluate(run, text, own, stride, device, tell_documents, with_yardsticks, on_progress)
        for run, text, own in zip(loaded, texts, owns, strict=True)
    ]


def _own_datas(runs: list[Run], is_own: bool, with_yardsticks: bool, on_progress: Progress) -> list[PreparedData | str]:
    """What each run was trained on, read once for those that share it, or why it is not known."""
    read: dict[Any, PreparedData | str] = {}
    owns: list[PreparedData | str] = []
    for number, run in enumerate(runs):
        needed = is_own and number == 0
        key = run.made_with.get("data_fingerprint", number) if run.data is None else number
        if key not in read:
            wanted = needed or with_yardsticks
            read[key] = _own_data(run, on_progress, needed=needed) if wanted else "they were not asked for"
        owns.append(read[key])
    return owns


def _named(data: Any, settings: dict[str, Any]) -> tuple[DataConfig, Any]:
    """The configuration of a text, and texts or token ids themselves where they are given."""
    allowed = ("text_field", "split_documents_on")
    for name in settings:
        if name not in allowed:
            known = (*allowed, "stride", "device", "with_yardsticks", "on_progress")
            raise UserError(f"{name} is not a setting of an evaluation: {', '.join(known)}.{nearest(name, known)}")
    keys, given, _ = as_settings(data, settings)
    return DataConfig(**{name: value for name, value in keys.items() if name in (*allowed, "data")}), given


def _own_data(run: Run, on_progress: Progress, *, needed: bool) -> PreparedData | str:
    """What a run was trained and validated on; where it is not needed and not there any more, why.

    Raises UserError and OSError where it is needed.
    """
    if run.data is not None:
        return run.data
    try:
        found = read_again(run.resolved, run.made_with, run.tokenizer, on_progress)
    except (UserError, OSError) as error:
        if needed:
            raise
        return str(error)
    if needed and isinstance(found, str):
        raise UserError(f"{found}: name a text with data (--data).")
    return found


def _read(run: Run, config: DataConfig, given: Any, on_progress: Progress) -> WholeText:
    model = run.model.config
    return read_whole(
        config,
        given,
        tokenizer=run.tokenizer,
        vocab_size=model.vocab_size,
        max_seq_len=model.max_seq_len,
        on_progress=on_progress,
    )


def _validation_texts(runs: list[Run], own: PreparedData, on_progress: Progress) -> list[WholeText]:
    """The first run's validation text in the tokens of each run."""
    name, dataset = f"the validation part of {own.name} ({own.split})", own.texts[1]
    if len(runs) == 1:
        return [WholeText(dataset, name, own.source_bits_per_byte)]
    # Several are judged on all of it, whatever share of it their trainings read.
    known = own.source_bits_per_byte if len(dataset.tokens) <= EVALUATED_TOKENS else None
    texts: list[WholeText] = []
    documents: list[str] = []
    for run in runs:
        if _json(run.tokenizer) == _json(own.tokenizer) and run.model.config.vocab_size == own.vocab_size:
            window = run.model.config.max_seq_len
            texts.append(WholeText(TextDataset(dataset.tokens, window, start_id=dataset.start_id), name, known))
            continue
        if own.tokenizer is None:
            raise UserError("the first run was trained on token ids, and another has another vocabulary: name a text.")
        documents = documents or _documents(dataset, own.tokenizer)
        read = _read(run, DataConfig(), documents, on_progress).dataset
        end_id = run.tokenizer.end_id if run.tokenizer else None
        if dataset.start_id is not None and end_id is not None:  # windows begin where documents do, for all of them
            ends = np.array([end_id])
            read = TextDataset(
                np.concatenate((ends, read.tokens[:], ends)), run.model.config.max_seq_len, start_id=end_id
            )
        texts.append(WholeText(read, name, known))
    return texts


def _json(tokenizer: Tokenizer | None) -> str | None:
    return tokenizer.to_json() if tokenizer else None


def _documents(dataset: TextDataset, tokenizer: Tokenizer) -> list[str]:
    """The texts of a row of tokens."""
    ids = dataset.tokens[:]
    borders = np.flatnonzero(ids == tokenizer.end_id) if tokenizer.end_id is not None else np.empty(0, np.int64)
    return [text for part in np.split(ids, borders) if (text := tokenizer.decode(part.tolist()))]


def _evaluate(
    run: Run,
    text: WholeText,
    own: PreparedData | str,
    stride: int | None,
    device: str,
    tell_documents: bool,
    with_yardsticks: bool,
    on_progress: Progress,
) -> Evaluation:
    name = text.name
    if run.tokenizer and (unknown := _count(text.dataset, run.tokenizer.unknown_id)):
        name += f" ({unknown:,} pieces of it are unknown to the tokenizer, and count as one token)"
    sizes = run.tokenizer.bytes_per_token() if run.tokenizer else None
    per_token = float(sizes[text.dataset.tokens[: 1 << 16]].double().mean()) if sizes is not None else 1.0
    home = next(run.model.parameters()).device
    run.model.to(choose_device(device)[0])
    try:
        found = evaluate_text(
            run.model,
            text.dataset,
            bytes_per_token=sizes,
            end_id=run.tokenizer.end_id if run.tokenizer and tell_documents else None,
            text=name,
            stride=stride,
            on_progress=lambda done, total: on_progress("evaluating", int(done * per_token), int(total * per_token)),
        )
    finally:
        run.model.to(home)
    if not with_yardsticks:
        return found
    if isinstance(own, str):
        return dataclasses.replace(found, yardsticks_missing=own)
    on_progress("measuring the yardsticks", 0, None)
    beside = yardsticks(
        own.train_dataset.tokens,
        text.dataset,
        run.tokenizer,
        run.model.config.vocab_size,
        seconds=FULL_SECONDS,
        source_bits_per_byte=text.source_bits_per_byte,
    )
    return dataclasses.replace(found, yardsticks=beside)


def _count(dataset: TextDataset, id: int | None) -> int:
    return 0 if id is None else len(dataset.tokens.positions(id, len(dataset.tokens)))
