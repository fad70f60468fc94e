"""Run, train, load: what a notebook holds in its hand."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slm.answering import Classification, classify, complete
from slm.config import FIELDS, ModelConfig, TrainConfig, UserError
from slm.data.batches import Batches, stream_seed
from slm.data.example_dataset import ExampleDataset
from slm.data.prepare import absolute
from slm.data.prepared import PreparedData
from slm.data.tasks import Task
from slm.data.tokenizer import Tokenizer
from slm.dial import minutes_of, planned_of, read_and_plan
from slm.display import Display
from slm.ending import end, reserved_seconds
from slm.fields import signature_with
from slm.header import header, warn
from slm.metrics.recorded import THIS_RUN, Recorded
from slm.metrics.summary import summary
from slm.model.classifier import Classifier
from slm.model.lora import merge_lora
from slm.model.transformer import LanguageModel
from slm.reading import window_is_open
from slm.sampling import Sampling
from slm.settings import Settings, as_settings, check_asked, flat, layered, read_table
from slm.storage import files
from slm.training.deadline import Deadline
from slm.training.device import check_memory, choose_device, hardware, seeded
from slm.training.history import History, Record, read_records
from slm.training.loop import train_and_evaluate
from slm.training.packing import new_model, pack_model, task_of, versions, weights_of
from slm.training.plan import settle
from slm.training.resume import Previous
from slm.training.saving import RunFolder
from slm.training.starting import (
    Saved,
    brought_by,
    check_task,
    class_weights_of,
    grown,
    read_base,
    read_model,
    set_trainable,
    tuning_of,
)
from slm.writing import stream


@dataclass
class Run:
    """A trained model with its tokenizer, settings and metrics."""

    model: LanguageModel
    tokenizer: Tokenizer | None
    metrics: Record  # of the evaluation at which the model was saved
    asked: dict[str, Any] = field(default_factory=dict)  # what somebody set
    resolved: dict[str, Any] = field(default_factory=dict)  # what every setting became
    made_with: dict[str, Any] = field(default_factory=dict)  # versions and the data's fingerprint
    history: History | None = None  # None for a run that was loaded
    save_error: str | None = None  # what could not be written to this disk
    upload_error: str | None = None  # what did not arrive at the URL
    data: PreparedData | None = field(default=None, repr=False)  # of a run that was trained here; not saved
    path: str = ""  # of a run that was loaded: its folder, URL or model.pt

    @property
    def step(self) -> int:
        """The step of the model's weights."""
        return int(self.metrics.get("step", 0))

    @property
    def start_id(self) -> int | None:
        """The token that begins a document, where the model has seen it begin many; None where it has not."""
        return self.tokenizer.end_id if self.tokenizer and self.made_with.get("many_documents") else None

    @property
    def task(self) -> Task | None:
        """What the model was made to do; None for one that goes on with text."""
        return task_of(self.made_with)

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The prompt and the text that the model writes after it; sampling: the settings of `slm.Sampling`, by name.

        Of a model for pairs the prompt is a source and the text its target alone, drawn; `complete` searches for it.
        It ends after max_new_tokens (200), before a `stop` text, or where the model ends its document. `slm.stream`
        gives the text as it is written; `slm.samples` gives several, of one prompt or many, with all about them.
        """
        return ("" if self.task else prompt) + "".join(stream(self, prompt, **sampling))

    def complete(self, source: str | Sequence[str], **settings: Any) -> Any:
        """The target that a model trained on pairs writes for a source, or the list of those of several.

        settings: num_beams, length_penalty (by default the run's own), max_new_tokens (as many as it can look at).
        """
        made = complete(self, source, **settings)
        return made[0] if isinstance(source, str) else made

    def classify(self, texts: str | Sequence[str]) -> list[Classification]:
        """The label of each text, with its probability and those of all labels, by a model trained to classify."""
        return classify(self, texts)

    def merge(self) -> None:
        """Adds what LoRA trained to the weights of the model beside which it stands: a whole model, to save as one."""
        merge_lora(self.model)
        self.made_with = {**self.made_with, "merged": True}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes model.pt, config.toml, metrics.jsonl and the pages to a folder or URL that holds no run yet.

        metrics.jsonl gets every record of the run, or the model's own metrics where a model.pt alone was loaded.
        overwrite moves a run that is there aside. Raises UserError and OSError.
        """
        folder = RunFolder(os.fspath(path), overwrite=overwrite, resume="never")
        try:
            folder.begin(self.asked, self.resolved, self.made_with)
            for record in self._records():
                folder.log(record)
            folder.save_model(pack_model(self.model, weights_of(self.model), self.tokenizer, self.metrics))
            folder.write_pages()
            folder.finish()
        finally:
            folder.close()
        if folder.errors:
            raise OSError(folder.errors[0])

    def _records(self) -> Sequence[Record]:
        try:
            return self.recorded.records
        except OSError:  # a model.pt alone
            return [self.metrics]

    @property
    def recorded(self) -> Recorded:
        """What can be told about the run. Raises OSError where it was loaded without its metrics.jsonl."""
        if self.history:
            return Recorded(THIS_RUN, self.history.records, self.resolved, self.made_with, self.asked)
        folder = os.path.dirname(self.path) or "."
        return Recorded(folder, read_records(folder), self.resolved, self.made_with, self.asked)

    def plot(self) -> Any:
        """A matplotlib figure of the run's curves, which a notebook shows; `slm.plot` lays several over each other."""
        from slm.metrics.plots import plot

        return plot([self.recorded])

    def __repr__(self) -> str:
        loss = f", val_loss {self.metrics['val_loss']:.4f}" if "val_loss" in self.metrics else ""
        return f"<slm.Run: {self.model.config.num_parameters:,} parameters, step {self.step}{loss}>"


Run.generate.__signature__ = signature_with(  # type: ignore[attr-defined]
    Run.generate, dataclasses.fields(Sampling)
)


def load(path: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None) -> Run:
    """The run in a folder or at a URL, or of one model.pt. Raises UserError and OSError; no code in it is run.

    base: where the model is now beside which LoRA trained the run, if it is no longer where it was.
    """
    saved = read_model(os.fspath(path), None if base is None else os.fspath(base))
    return Run(
        saved.model, saved.tokenizer, saved.metrics, saved.asked, saved.resolved, saved.made_with, path=saved.path
    )


def train(
    data: str | os.PathLike[str] | Iterable[str] | Iterable[int] | Sequence[os.PathLike[str]] | None = None,
    *,
    on_log: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> Run:
    """Trains a model on text from anywhere, or on token ids, and returns the run.

    A str is a file, folder, glob, URL or built-in name ("stories", "python", "dummy", the default); a list of Path
    objects is several files. Any other iterable of str is literal texts, such as a column of a Hugging Face dataset,
    and one of int is token ids, as are arrays and tensors. val_data takes the same.
    `settings` are those of `slm-train --help_all`, by the same names. Nothing is written unless model_dir is given, but
    for the tokens of large texts, which are kept in a cache (docs/your-data.md).
    on_log is given each record of metrics.jsonl as a dict; should_stop is asked before each step and while answers are
    scored. The stop button of a notebook ends training and returns the run so far. Raises UserError and OSError.
    """
    keys, given, val_given = as_settings(data, settings)
    settings_of_run = layered(keys, "keyword", defaults={"model_dir": None})
    return train_run(settings_of_run, given, val_given, on_log=on_log, should_stop=should_stop)


train.__signature__ = signature_with(train, FIELDS.values(), model_dir=None)  # type: ignore[attr-defined]


def train_run(
    settings: Settings,
    given: Any = None,
    val_given: Any = None,
    *,
    on_log: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """The run that resolved settings describe: what both `train` and `slm-train` call."""
    options, display = settings.options, Display(quiet=settings.options.quiet)
    check_asked(settings, has_data=given is not None)
    minutes = minutes_of(settings)
    deadline = Deadline(60 * minutes) if minutes else None
    if options.model_dir is None or options.plan_only:
        if options.resume == "must" and options.model_dir is None:
            raise UserError("resume = 'must': there is no model_dir to go on from. Name it, or leave out resume.")
        settings, base = _with_base(settings, None, display)
        return _train(settings, given, val_given, base, None, display, deadline, on_log, should_stop)
    with display.working() as on_progress:
        if files.is_remote(options.model_dir):
            on_progress(f"looking at {options.model_dir}", 0, None)
        folder = RunFolder(
            options.model_dir,
            overwrite=options.overwrite,
            resume=options.resume,
            save_every=options.save_every,
            keep_last=options.keep_last,
        )
    at_once = False
    try:
        settings, base = _with_base(settings, folder.previous, display)
        if deadline and folder.previous:
            settings = settings.planned(planned_of(folder.previous.resolved))
        folder.check_early(_known_early(settings) | _absolute(settings))
        settings = dataclasses.replace(settings, train=folder.take_over(settings.train))
        return _train(settings, given, val_given, base, folder, display, deadline, on_log, should_stop)
    except SystemExit:  # a second signal
        at_once = True
        raise
    finally:
        folder.close(at_once=at_once)


def _with_base(settings: Settings, previous: Previous | None, display: Display) -> tuple[Settings, Saved | None]:
    """The settings with what the model to start from brings along, and that model, where there is one."""
    path = settings.task.init_from
    if path is None:
        return settings, None
    with display.working() as on_progress:
        on_progress(f"reading {path}", 0, None)
        base = read_base(path, previous)
    check_task(base, settings.task)
    asked = {} if settings.options.repeat else settings.asked()
    return settings.based_on(brought_by(base, asked), tuning_of(base, settings.task, asked)), base


def _train(
    settings: Settings,
    given: Any,
    val_given: Any,
    base: Saved | None,
    folder: RunFolder | None,
    display: Display,
    deadline: Deadline | None,
    on_log: Callable[[Record], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Run:
    device, _ = choose_device(settings.train.device)
    previous = folder.previous if folder else None
    settings, model_config, data, plan = read_and_plan(
        settings, given, val_given, display, deadline, previous, device, base
    )
    made_with = {**versions(), "hardware": hardware(device), **data.facts, "origins": settings.origins_below}
    if base:
        made_with["base"] = base.named()
    _check_repeat(settings, made_with)
    batches = Batches(data.train_dataset, settings.train.batch_size, settings.train.seed)
    micro_batch_size = min(settings.train.micro_batch_size or settings.train.batch_size, batches.num_items)
    memory = check_memory(model_config, micro_batch_size, data.train_dataset.window, device)
    with seeded(device, stream_seed("weights", settings.train.seed)):
        model = _make_model(settings, model_config, data, base)
    machine, config = settle(settings.train, model, batches, data.val_dataset)
    resolved = flat(settings.data, settings.task, model_config, config) | _absolute(settings)
    if data.tokenizer is None:
        del resolved["tokenizer"]
    rows = header(settings, data, model, config, machine, len(batches), memory, plan)
    run = Run(model, data.tokenizer, {}, settings.asked(), resolved, made_with, data=data)
    if settings.options.plan_only:
        display.header(rows)
        display.print(f"{summary(model)}\n")
        warn(settings, data, config, len(batches))
        return run
    if folder:
        folder.check(resolved, made_with)
        folder.begin(run.asked, resolved, made_with)
        if folder.previous and folder.previous.checkpoint:
            rows["resumed"] = folder.previous.told()
    display.header(rows)
    warn(settings, data, config, len(batches))
    config = _for_now(config, settings, deadline)
    left = previous.seconds_left if previous and previous.checkpoint else deadline.left() if deadline else None
    total_steps = config.max_steps or (previous.manifest.get("total_steps", 0) if previous else 0)
    with display.live(total_steps, left, folder.records() if folder else ()) as show:
        run.history = train_and_evaluate(
            model,
            data.train_dataset,
            data.val_dataset,
            config,
            tokenizer=data.tokenizer,
            also_dataset=data.also.dataset if data.also else None,
            model_dir=folder,
            on_log=_both(show, on_log),
            should_stop=should_stop,
        )
    end(run, data, folder, display, on_log, should_stop)
    return run


def _for_now(config: TrainConfig, settings: Settings, deadline: Deadline | None) -> TrainConfig:
    """The configuration with what no run remembers: no samples that nobody sees, and the minutes that are left."""
    if settings.options.quiet and "sample_every" not in settings.asked():
        config = dataclasses.replace(config, sample_every=0)
    if deadline:
        seconds = deadline.left() - reserved_seconds(deadline.seconds, settings.task.task)
        config = dataclasses.replace(config, max_minutes=max(1.0, seconds) / 60)
    return config


def _make_model(settings: Settings, config: ModelConfig, data: PreparedData, base: Saved | None) -> LanguageModel:
    """The model to train: new, or with the weights of the base."""
    task = data.task
    if base is None:
        model = new_model(config, task)
    else:
        same_labels = base.task is not None and task is not None and base.task.labels == task.labels
        model = grown(base.model, config, task, keep_head=same_labels)
        set_trainable(model, settings.task.trainable, settings.task.lora_rank)
    if isinstance(model, Classifier):
        model.token_dropout = settings.task.token_dropout
        assert task and isinstance(data.train_dataset, ExampleDataset)
        if settings.task.class_weights == "balanced":
            model.class_weights = class_weights_of(torch.from_numpy(data.train_dataset.targets), len(task.labels))
    return model


def _both(first: Callable[[Record], None], second: Callable[[Record], None] | None) -> Callable[[Record], None]:
    def call(record: Record) -> None:
        first(record)
        if second:
            second(record)

    return call


def _check_repeat(settings: Settings, made_with: dict[str, Any]) -> None:
    """Refuses to repeat a run on other data; another version of torch or Python is a warning."""
    repeat = settings.options.repeat
    if repeat is None:
        return
    then = read_table(repeat, "made_with")
    if then.get("base", {}).get("checksum") != made_with.get("base", {}).get("checksum"):
        raise UserError(
            f"the run in {repeat} started from another model than {made_with.get('base', {}).get('path')} is now: it "
            "cannot be repeated. Bring that one back, or start a new run with config."
        )
    if then.get("data_fingerprint") != made_with["data_fingerprint"]:
        if settings.data.data is None:
            raise UserError(
                f"the run in {repeat} was trained on data given in Python, which a run does not store: pass the same "
                f"list to slm.train with config = {files.join(repeat, 'config.toml')!r}."
            )
        raise UserError(
            f"the run in {repeat} was trained on other data, or with another tokenizer.json, than "
            f"{', '.join(settings.data.data or ()) or 'the dummy data'} and {settings.data.tokenizer} are now: it "
            "cannot be repeated. Bring them back, or start a new run with config."
        )
    for name in ("slm", "torch", "platform"):
        if then.get(name) != made_with[name]:
            warnings.warn(
                f"the run in {repeat} was made with {name} {then.get(name)}, this one with {made_with[name]}: "
                "losses may differ in the last digits.",
                stacklevel=2,
            )


def _known_early(settings: Settings) -> dict[str, Any]:
    """The settings that are known before any text is read: of a task, its examples may choose the window."""
    known = flat(settings.task, settings.model, settings.train)
    if window_is_open(settings):
        del known["max_seq_len"]
    return known


def _absolute(settings: Settings) -> dict[str, Any]:
    """The settings that name local files, made absolute, so that a run can be repeated from another folder."""
    data, task = settings.data, settings.task
    several = {"data": data.data, "val_data": data.val_data}
    several |= {"target_file": task.target_file, "also_evaluate": task.also_evaluate}
    paths: dict[str, Any] = {name: tuple(map(absolute, names)) for name, names in several.items() if names}
    base = {"init_from": absolute(task.init_from)} if task.init_from else {}
    return paths | base | {"tokenizer": absolute(data.tokenizer)}
