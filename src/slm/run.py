"""Run, train, load: what a notebook holds in its hand."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.config import FIELDS, DataConfig, UserError
from slm.data.batches import Batches, stream_seed
from slm.data.prepare import absolute
from slm.data.prepared import PreparedData
from slm.data.tokenizer import Tokenizer
from slm.dial import minutes_of, planned_of, read_and_plan
from slm.display import Display
from slm.fields import signature_with
from slm.header import header, warn
from slm.metrics.diagnosis import diagnose
from slm.metrics.recorded import THIS_RUN, Recorded
from slm.metrics.speed import flops_per_token
from slm.metrics.summary import summary
from slm.metrics.yardsticks import FULL_SECONDS, Yardstick, yardsticks
from slm.model.transformer import LanguageModel
from slm.sampling import Sampling
from slm.settings import Settings, as_settings, flat, layered, read_table
from slm.storage import checkpoint, files
from slm.training.deadline import Deadline
from slm.training.device import check_memory, choose_device, hardware, seeded
from slm.training.history import History, Record, read_records
from slm.training.loop import train_and_evaluate
from slm.training.packing import pack_model, unpack_model, versions
from slm.training.plan import settle
from slm.training.resume import MODEL, REPORT
from slm.training.saving import RunFolder
from slm.writing import stream

_SAMPLE_TOKENS, _SAMPLE_SECONDS = 120, 0.5
_FLOPS_PER_SECOND = 2e11  # of training on a laptop's processor, about
_YARDSTICK_SHARE = 0.4  # of the seconds that a slow core takes for the yardsticks: what most take


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

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The prompt and the text that the model writes after it; sampling: the settings of `slm.Sampling`, by name.

        It ends after max_new_tokens (200), before a `stop` text, or where the model ends its document. `slm.stream`
        gives the text as it is written; `slm.samples` gives several, of one prompt or many, with all about them.
        """
        return prompt + "".join(stream(self, prompt, **sampling))

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
            folder.save_model(pack_model(self.model, self.model.state_dict(), self.tokenizer, self.metrics))
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


def load(path: str | os.PathLike[str]) -> Run:
    """The run in a folder or at a URL, or of one model.pt. Raises UserError and OSError; no code in it is run."""
    path = os.fspath(path)
    files.check_path(path)
    if not path.endswith(".pt"):
        path = files.join(path, MODEL)
    content = checkpoint.load_file(path)
    model, tokenizer, metrics = unpack_model(content, path)
    model.eval()
    asked, resolved, made_with = (dict(content.get(name, {})) for name in ("asked", "resolved", "made_with"))
    return Run(model, tokenizer, metrics, asked, resolved, made_with, path=path)


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
    on_log is given each record of metrics.jsonl as a dict; should_stop is asked before each step. The stop button of a
    notebook ends training and returns the run so far. Raises UserError and OSError.
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
    minutes = minutes_of(settings)
    deadline = Deadline(60 * minutes) if minutes else None
    if options.model_dir is None or options.plan_only:
        if options.resume == "must" and options.model_dir is None:
            raise UserError("resume = 'must': there is no model_dir to go on from. Name it, or leave out resume.")
        return _train(settings, given, val_given, None, display, deadline, on_log, should_stop)
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
        if deadline and folder.previous:
            settings = settings.planned(planned_of(folder.previous.resolved))
        folder.check_early(flat(settings.model, settings.train) | _absolute(settings.data))
        settings = dataclasses.replace(settings, train=folder.take_over(settings.train))
        return _train(settings, given, val_given, folder, display, deadline, on_log, should_stop)
    except SystemExit:  # a second signal
        at_once = True
        raise
    finally:
        folder.close(at_once=at_once)


def _train(
    settings: Settings,
    given: Any,
    val_given: Any,
    folder: RunFolder | None,
    display: Display,
    deadline: Deadline | None,
    on_log: Callable[[Record], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Run:
    device, _ = choose_device(settings.train.device)
    previous = folder.previous if folder else None
    settings, model_config, data, plan = read_and_plan(settings, given, val_given, display, deadline, previous, device)
    made_with = {**versions(), "hardware": hardware(device), **data.facts, "origins": settings.origins_below}
    _check_repeat(settings, made_with)
    batches = Batches(data.train_dataset, settings.train.batch_size, settings.train.seed)
    micro_batch_size = min(settings.train.micro_batch_size or settings.train.batch_size, batches.num_items)
    memory = check_memory(model_config, micro_batch_size, data.train_dataset.window, device)
    with seeded(device, stream_seed("weights", settings.train.seed)):
        model = LanguageModel(model_config)
    machine, config = settle(settings.train, model, batches, data.val_dataset)
    resolved = flat(settings.data, model_config, config) | _absolute(settings.data)
    if data.tokenizer is None:
        del resolved["tokenizer"]
    rows = header(settings, data, model_config, config, machine, len(batches), memory, plan)
    run = Run(model, data.tokenizer, {}, settings.asked(), resolved, made_with, data=data)
    if settings.options.plan_only:
        display.header(rows)
        display.print(f"{summary(model_config)}\n")
        warn(settings, data, config, len(batches))
        return run
    if folder:
        folder.check(resolved, made_with)
        folder.begin(run.asked, resolved, made_with)
        if folder.previous and folder.previous.checkpoint:
            rows["resumed"] = folder.previous.told()
    display.header(rows)
    warn(settings, data, config, len(batches))
    if settings.options.quiet and "sample_every" not in run.asked:
        config = dataclasses.replace(config, sample_every=0)
    if deadline:
        reserved = _SAMPLE_SECONDS + _YARDSTICK_SHARE * min(FULL_SECONDS, 0.05 * deadline.seconds)
        config = dataclasses.replace(config, max_minutes=max(1.0, deadline.left() - reserved) / 60)
    left = previous.seconds_left if previous and previous.checkpoint else deadline.left() if deadline else None
    total_steps = config.max_steps or (previous.manifest.get("total_steps", 0) if previous else 0)
    with display.live(total_steps, left, folder.records() if folder else ()) as show:
        run.history = train_and_evaluate(
            model,
            data.train_dataset,
            data.val_dataset,
            config,
            tokenizer=data.tokenizer,
            model_dir=folder,
            on_log=_both(show, on_log),
            should_stop=should_stop,
        )
    _end(run, data, folder, display, on_log)
    return run


def _end(
    run: Run,
    data: PreparedData,
    folder: RunFolder | None,
    display: Display,
    on_log: Callable[[Record], None] | None,
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

    _look_back(run, display, data, tell, is_in_memory=folder is None)
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


def _absolute(config: DataConfig) -> dict[str, Any]:
    """The settings that name local files, made absolute, so that a run can be repeated from another folder."""
    several = {name: getattr(config, name) for name in ("data", "val_data")}
    paths: dict[str, Any] = {name: tuple(map(absolute, names)) for name, names in several.items() if names}
    return paths | {"tokenizer": absolute(config.tokenizer)}


def _look_back(
    run: Run, display: Display, data: PreparedData, tell: Callable[[Record], None], *, is_in_memory: bool
) -> None:
    """Shows and records what the model writes, what simple predictors score, and how the run ended."""
    history = run.history
    assert history is not None
    if run.metrics and history.status != "interrupted":  # who stops a run wants it to end
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


def _show_yardsticks(run: Run, display: Display, data: PreparedData, tell: Callable[[Record], None]) -> None:
    """What simple predictors make of the validation text, measured in a small share of the time that the run took."""
    try:
        found = yardsticks(
            data.train_dataset.tokens,
            data.val_dataset,
            run.tokenizer,
            data.vocab_size,
            seconds=_yardstick_seconds(run),
            source_bits_per_byte=data.source_bits_per_byte,
        )
    except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:  # the model is there, and is not to be lost
        display.print(f"no yardsticks: {error or type(error).__name__}")
        return
    tell({"step": run.step, "yardsticks": [dataclasses.asdict(one) for one in found]})
    metrics = run.metrics
    bits, loss, accuracy = (metrics.get(name) for name in ("val_bits_per_byte", "val_loss", "val_accuracy"))
    display.yardsticks(found, Yardstick("this model", bits, loss, accuracy=accuracy))
    display.print("")


def _yardstick_seconds(run: Run) -> float:
    """What yardsticks may take on a slow core after a run: 5 % of its minutes, or of what its operations may take.

    Reckoned from its settings and steps, not from the clock, so that its repetition measures on the same samples.
    """
    minutes = run.resolved.get("max_minutes")
    tokens = run.metrics["tokens_seen"]
    seconds = 60 * minutes if minutes else tokens * flops_per_token(run.model.config) / _FLOPS_PER_SECOND
    return float(min(FULL_SECONDS, 0.05 * seconds))
