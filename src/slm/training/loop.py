"""The training loop: one step, and the whole run with its evaluations."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, TrainConfig, UserError
from slm.data.batches import Batches, in_order, stream_seed
from slm.data.dataset import TextDataset
from slm.data.tokenizer import Tokenizer
from slm.metrics.evaluate import evaluate, evaluation_batch_size
from slm.model.loss import WithLoss
from slm.training.device import Machine, choose_device, choose_machine, seeded
from slm.training.optimizer import learning_rate_at, make_optimizer
from slm.training.packing import copy_weights, pack_model, versions
from slm.training.saving import RunFolder

Record = dict[str, Any]
EVALUATIONS = 20  # in a run, about
MAX_BAD_STEPS = 5  # non-finite steps in a row after which a run stops


@dataclass
class History:
    """What a run recorded: every log and evaluation in order, the best evaluation, and how the run ended."""

    total_steps: int
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    status: str = "finished"  # or "interrupted" or "diverged"
    message: str = ""  # why it diverged, and what to do

    @property
    def evaluations(self) -> list[Record]:
        """The records of evaluations, each with step, epoch, val_loss, val_accuracy, val_perplexity."""
        return [record for record in self.records if "val_loss" in record]


class StepResult(NamedTuple):
    """The loss of a step before its update, in nats per token, and the length of its gradient before clipping."""

    loss: float
    grad_norm: float


def train_step(
    with_loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    targets: Tensor,
    *,
    micro_batch_size: int,
    max_grad_norm: float,
    machine: Machine,
    scaler: torch.amp.GradScaler,
) -> StepResult:
    """One update from a batch of tokens (B, T) and targets (B, T), in micro-batches whose sum equals the whole.

    Where the loss or the gradient is not finite the weights stay as they are.
    """
    num_targets = (targets != IGNORE_INDEX).sum().clamp(min=1)
    loss = torch.zeros((), device=tokens.device)
    for micro_tokens, micro_targets in zip(
        torch.split(tokens, micro_batch_size), torch.split(targets, micro_batch_size), strict=True
    ):
        with machine.autocast():
            micro_loss = with_loss(micro_tokens, micro_targets)
        # A micro-batch's mean counts by its share of the targets, for masks may be ragged.
        share = micro_loss * ((micro_targets != IGNORE_INDEX).sum() / num_targets)
        scaler.scale(share).backward()
        loss += share.detach()
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf).item()
    result = StepResult(loss.item(), grad_norm)
    # fp16's loss scaling meets infinite gradients in normal operation; it skips them itself and lowers the scale.
    if math.isfinite(result.loss) and (scaler.is_enabled() or math.isfinite(grad_norm)):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return result


def resolve(config: TrainConfig, batches: Batches, val_dataset: Dataset[Any], machine: Machine) -> TrainConfig:
    """The settings with every default that depends on the data or the machine filled in."""
    if not len(val_dataset):  # type: ignore[arg-type]
        raise UserError("the validation dataset is empty: there is nothing to evaluate on.")
    total_steps = config.max_steps or config.epochs * len(batches)
    # A forward costs a third of a step, so this many evaluations are half as much work as the training.
    affordable = 1.5 * total_steps * config.batch_size / len(val_dataset)  # type: ignore[arg-type]
    evaluations = max(1, min(EVALUATIONS, total_steps, int(affordable)))
    return dataclasses.replace(
        config,
        max_steps=total_steps,
        warmup_steps=min(100, total_steps // 20) if config.warmup_steps is None else config.warmup_steps,
        micro_batch_size=min(config.micro_batch_size or config.batch_size, config.batch_size),
        eval_every=config.eval_every or total_steps // evaluations,
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
    if isinstance(dataset, TextDataset):  # whose windows of documents are not laid out before somebody evaluates on it
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


def train_and_evaluate(
    model: nn.Module,
    train_dataset: Dataset[Any],
    val_dataset: Dataset[Any],
    config: TrainConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    model_dir: str | os.PathLike[str] | RunFolder | None = None,
    on_log: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> History:
    """Trains a model in place and returns what was recorded.

    The model ends with its best evaluated weights, on the device of the training, in evaluation mode.
    model: any module from tokens (B, T) to logits (B, T, V). Datasets: items of (tokens (T,), targets (T,)), with
    IGNORE_INDEX in targets that do not count. tokenizer: adds val_bits_per_byte and is saved along. model_dir: a
    folder or URL for model.pt, metrics.jsonl and config.toml; None writes nothing. on_log is given each record of
    metrics.jsonl. should_stop is asked before each step; Ctrl-C (KeyboardInterrupt) stops too, and both evaluate
    and save once more. Raises UserError and OSError before the first step where settings or folder are at fault.
    """
    config = config or TrainConfig()
    batches = Batches(train_dataset, config.batch_size, config.seed)
    check_ids(model, train_dataset, "training", config.batch_size)
    check_ids(model, val_dataset, "validation", config.batch_size)
    model.to(choose_device(config.device)[0])
    machine = choose_machine(config, model, next(batches.epoch(0)))
    config = resolve(config, batches, val_dataset, machine)
    folder = model_dir
    if folder is not None and not isinstance(folder, RunFolder):
        folder = RunFolder(os.fspath(folder))
        folder.begin({}, dataclasses.asdict(config), versions())
    trainer = _Trainer(model, batches, val_dataset, config, machine, tokenizer, folder, on_log)
    try:
        with machine.with_threads(), seeded(machine.device, stream_seed("training", config.seed)):
            trainer.train(should_stop or (lambda: False))
    except BaseException:
        if folder and folder.staging and trainer.history.records:
            warnings.warn(f"what the run wrote before this error is in {folder.staging}.", stacklevel=2)
        raise
    if folder:
        folder.finish()
    for trouble in (trainer.history.message, folder and folder.upload_error):
        if trouble:
            warnings.warn(trouble, stacklevel=2)
    return trainer.history


class _Trainer:
    """The state of one run: model, optimizer, history and clock."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        val_dataset: Dataset[Any],
        config: TrainConfig,
        machine: Machine,
        tokenizer: Tokenizer | None,
        folder: RunFolder | None,
        on_log: Callable[[Record], None] | None,
    ) -> None:
        self.model, self.batches, self.val_dataset = model, batches, val_dataset
        self.config, self.machine, self.tokenizer = config, machine, tokenizer
        self.folder, self.on_log = folder, on_log
        self.total_steps = config.max_steps or 0
        self.with_loss = WithLoss(model)
        self.optimizer = make_optimizer(model, config, machine.device)
        self.scaler = machine.grad_scaler()
        self.bytes_per_token = tokenizer.bytes_per_token() if tokenizer else None
        self.history = History(self.total_steps)
        self.best_weights: dict[str, Tensor] = {}
        self.step = 0  # the last one done
        self.tokens_seen = 0
        self.losses: list[float] = []  # since the last log
        self.bad_steps = 0  # in a row
        self.clock = _Clock()

    def train(self, should_stop: Callable[[], bool]) -> None:
        """All steps and evaluations, until the last step, a request to stop, or a loss that is no number."""
        self.model.train()
        try:
            for epoch, is_epoch_end, tokens, targets in self.steps():
                if should_stop():
                    self.history.status = "interrupted"
                    break
                self.run_step(epoch, tokens, targets)
                if self.history.status == "diverged":
                    break
                if is_epoch_end or self.step % self.config.eval_every == 0:  # type: ignore[operator]
                    self.evaluate(epoch)
        except KeyboardInterrupt:  # the stop button of a notebook; commands install a handler and never get here
            self.history.status = "interrupted"
        if self.step and not (self.history.evaluations and self.history.evaluations[-1]["step"] == self.step):
            self.evaluate(epoch)
        if self.history.best and self.history.best["step"] != self.step:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()

    def steps(self) -> Iterator[tuple[int, bool, Tensor, Tensor]]:
        """For each step: its epoch, counted from 1, whether it ends the epoch, tokens (B, T) and targets (B, T)."""
        for epoch in range(-(-self.total_steps // len(self.batches))):
            before = epoch * len(self.batches)
            for step, (tokens, targets) in enumerate(self.batches.epoch(epoch), before + 1):
                if step > self.total_steps:
                    return
                device = self.machine.device
                yield epoch + 1, step == before + len(self.batches), tokens.to(device), targets.to(device)

    def run_step(self, epoch: int, tokens: Tensor, targets: Tensor) -> None:
        """One step, its log line when one is due, and the watch over losses that are no number."""
        lr = learning_rate_at(self.step, self.config, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        result = train_step(
            self.with_loss,
            self.optimizer,
            tokens,
            targets,
            micro_batch_size=self.config.micro_batch_size or len(tokens),
            max_grad_norm=self.config.max_grad_norm,
            machine=self.machine,
            scaler=self.scaler,
        )
        self.step += 1
        self.tokens_seen += tokens.numel()
        self.watch(result, lr)
        if self.step in (1, self.total_steps) or self.step % self.config.log_every == 0:
            self.log(epoch, lr, result.grad_norm)

    def watch(self, result: StepResult, lr: float) -> None:
        """Keeps count of steps whose loss or gradient is no number; after a few in a row the run has diverged."""
        scale_may_be_too_high = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        fine = math.isfinite(result.loss) and (math.isfinite(result.grad_norm) or scale_may_be_too_high)
        self.bad_steps = 0 if fine else self.bad_steps + 1
        if math.isfinite(result.loss):
            self.losses.append(result.loss)
        if self.bad_steps == MAX_BAD_STEPS:
            first = self.step - MAX_BAD_STEPS + 1
            self.history.status = "diverged"
            self.history.message = (
                f"The loss or gradient was no finite number in {MAX_BAD_STEPS} steps in a row, from step {first} on "
                f"(learning rate {lr:.3g}, loss {result.loss:.3g}, gradient norm {result.grad_norm:.3g}). Those steps "
                "changed nothing. Lower learning_rate, raise warmup_steps, or take precision = fp32."
            )

    def log(self, epoch: int, lr: float, grad_norm: float) -> None:
        """Records the mean training loss since the last log, the learning rate and the speed."""
        seconds, tokens = self.clock.lap(self.tokens_seen)
        self.record(
            {
                "step": self.step,
                "epoch": epoch,
                "train_loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
                "lr": lr,
                "grad_norm": grad_norm,
                "tokens_seen": self.tokens_seen,
                "tokens_per_second": tokens / seconds,
                "elapsed_seconds": self.clock.elapsed_seconds(),
            }
        )
        self.losses.clear()

    def evaluate(self, epoch: int) -> None:
        """Records the metrics over the validation data; the best weights so far are kept and saved."""
        with self.clock.paused():
            metrics = evaluate(
                self.model,
                self.val_dataset,
                batch_size=evaluation_batch_size(self.config.micro_batch_size or 1, _window(self.val_dataset)),
                bytes_per_token=self.bytes_per_token,
                autocast=self.machine.autocast(),
            )
            record = {
                "step": self.step,
                "epoch": epoch,
                **metrics,
                "tokens_seen": self.tokens_seen,
                "elapsed_seconds": self.clock.elapsed_seconds(),
            }
            # NaN is never best: every comparison with it is false.
            if record["val_loss"] < (self.history.best["val_loss"] if self.history.best else math.inf):
                self.history.best = record
                self.best_weights = copy_weights(self.model.state_dict(), torch.clone)
                if self.folder:
                    self.folder.save_model(pack_model(self.model, self.best_weights, self.tokenizer, record))
            self.record(record)

    def record(self, record: Record) -> None:
        """Adds a record to the history and hands it to metrics.jsonl and on_log."""
        self.history.records.append(record)
        if self.folder:
            self.folder.log(record)
        if self.on_log:
            # What a callback draws at random must not change the training.
            with torch.random.fork_rng(devices=[self.machine.device] if self.machine.device.type == "cuda" else []):
                self.on_log(record)


class _Clock:
    """Seconds of training, without those spent in evaluation."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._last_seconds, self._last_tokens = 0.0, 0

    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self._start

    def lap(self, tokens_seen: int) -> tuple[float, int]:
        """The seconds (above 0) and tokens since the last lap."""
        now = self.elapsed_seconds()
        seconds, tokens = now - self._last_seconds, tokens_seen - self._last_tokens
        self._last_seconds, self._last_tokens = now, tokens_seen
        return max(seconds, 1e-9), tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose seconds do not count."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - before


def _window(dataset: Dataset[Any]) -> int:
    """T of a dataset's windows."""
    return len(dataset[0][0])
