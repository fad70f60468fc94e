"""The training loop: one step, and the whole run with its evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from slm.config import TrainConfig
from slm.data.batches import Batches, stream_seed
from slm.data.tokenizer import Tokenizer
from slm.model.loss import WithLoss
from slm.training.clock import Clock, SpeedWatch
from slm.training.deadline import Deadline
from slm.training.device import Machine, peak_tokens_per_second, seeded
from slm.training.evaluating import bytes_per_target, evaluate_all
from slm.training.history import History as History
from slm.training.history import Record as Record
from slm.training.optimizer import learning_rate_at, make_optimizer
from slm.training.packing import copy_weights, load_weights, pack_model, versions, weights_of
from slm.training.plan import check_ids, fingerprint, settle
from slm.training.samples import Samples
from slm.training.saving import RunFolder, opened
from slm.training.state import checkpoint_of, restore
from slm.training.step import train_step
from slm.training.tuning import compiled
from slm.training.watch import Watch

RESERVE_SECONDS = 0.5  # for what comes after the last step and its evaluation
EVALUATION_COST = 0.4  # of a window, to that of training on it, about


def train_and_evaluate(
    model: nn.Module,
    train_dataset: Dataset[Any],
    val_dataset: Dataset[Any],
    config: TrainConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    also_dataset: Dataset[Any] | None = None,
    model_dir: str | os.PathLike[str] | RunFolder | None = None,
    on_log: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> History:
    """Trains a model in place and returns what was recorded.

    The model ends with its best evaluated weights, on the device of the training, in evaluation mode.
    model: any module from tokens (B, T) to logits (B, T, V). Datasets: items of (tokens (T,), targets (T,)), with
    IGNORE_INDEX in targets that do not count. tokenizer: adds val_bits_per_byte and is saved along. also_dataset: is
    evaluated on, too, and nothing else. model_dir: a folder or URL for model.pt, metrics.jsonl, config.toml and
    checkpoints; None writes nothing. An unfinished run that is there is gone on with, from its newest checkpoint. A
    RunFolder is to be finished by the caller. on_log is given each record of metrics.jsonl. should_stop is asked before
    each step, and about once a second in an evaluation; Ctrl-C (KeyboardInterrupt) stops too. Raises UserError and
    OSError before the first step where settings or folder are at fault.
    """
    config = config or TrainConfig()
    batches = Batches(train_dataset, config.batch_size, config.seed)
    check_ids(model, train_dataset, "training", config.batch_size)
    check_ids(model, val_dataset, "validation", config.batch_size)
    asked = dataclasses.asdict(config)
    with opened(model_dir) as folder:
        if folder and not folder.begun:
            folder.check_early(asked)
            config = folder.take_over(config)
        machine, config = settle(config, model, batches, val_dataset)
        if folder and not folder.begun:
            resolved, data = dataclasses.asdict(config), fingerprint(train_dataset, val_dataset)
            made_with = {**versions(), "data_fingerprint": data}
            folder.check(resolved, made_with)
            folder.begin(asked, resolved, made_with)
        trainer = Trainer(
            model, batches, val_dataset, also_dataset, config, machine, tokenizer, folder, on_log, should_stop
        )
        with machine.in_use(), seeded(machine.device, stream_seed("training", config.seed)):
            restore(trainer)
            if machine.compile:
                tokens, targets = next(batches.epoch(0))
                batch = tokens[: trainer.micro_batch_size], targets[: trainer.micro_batch_size]
                with compiled(trainer.with_loss, batch, machine) as trainer.with_loss:
                    trainer.train()
            else:
                trainer.train()
        if trainer.history.message:
            warnings.warn(trainer.history.message, stacklevel=2)
        if folder and folder is not model_dir:
            trainer.folder = folder
            trainer.record(trainer.history.ending())
            folder.write_pages()
            folder.finish(interrupted=trainer.history.status == "interrupted")
            for error in folder.errors:
                warnings.warn(error, stacklevel=2)
    return trainer.history


class Trainer:
    """The state of one run: model, optimizer, history and clock."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        val_dataset: Dataset[Any],
        also_dataset: Dataset[Any] | None,
        config: TrainConfig,
        machine: Machine,
        tokenizer: Tokenizer | None,
        folder: RunFolder | None,
        on_log: Callable[[Record], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.model, self.batches, self.val_dataset, self.also_dataset = model, batches, val_dataset, also_dataset
        self.config, self.machine, self.tokenizer, self.folder = config, machine, tokenizer, folder
        self.on_log, self.should_stop = on_log, should_stop or (lambda: False)
        self.asked_at = 0.0  # when should_stop was asked last
        self.total_steps = config.max_steps or 0  # 0 as long as max_minutes leaves it open
        self.deadline = Deadline(60 * config.max_minutes) if config.max_minutes and not config.max_steps else None
        self.micro_batch_size = config.micro_batch_size or config.batch_size
        self.with_loss: nn.Module = WithLoss(model)
        self.optimizer, self.scaler = make_optimizer(model, config, machine), machine.grad_scaler()
        self.watch = Watch(machine.device, self.scaler, config.max_grad_norm)
        self.samples = Samples(model, tokenizer, val_dataset, config.sample_every)
        self.peak: float | None = None  # tokens per second, where it is known
        self.bytes_per_token = bytes_per_target(model, tokenizer)
        self.history, self.best_weights = History(self.total_steps), dict[str, Tensor]()
        self.step = self.tokens_seen = 0  # step: the last one done
        self.evaluation_is_due = self.save_is_due = False
        self.clock, self.speed_watch = Clock(), SpeedWatch(machine.threads if machine.device.type == "cpu" else 1)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return (self.step - 1) // len(self.batches) + 1

    @property
    def is_over(self) -> bool:
        """True after the last step."""
        return bool(self.total_steps) and self.step >= self.total_steps

    @property
    def is_best(self) -> bool:
        """True where the best evaluation so far is that of the last step."""
        return self.history.best is not None and self.history.best["step"] == self.step

    @property
    def is_evaluated(self) -> bool:
        """True where there is nothing to evaluate since the last evaluation."""
        evaluations = self.history.evaluations
        return not self.step or bool(evaluations and evaluations[-1]["step"] == self.step)

    @property
    def out_of_patience(self) -> bool:
        """True when too many evaluations in a row were not better than the best."""
        patience = self.config.patience
        return patience is not None and self.history.since_best(patience) >= patience

    @property
    def status(self) -> str:
        """How the run stands, for its checkpoint."""
        ended = self.history.status != "finished" or self.is_over or self.out_of_patience
        return self.history.status if ended else "running"

    def train(self) -> None:
        """All steps and evaluations, until the last step, a request to stop, or a loss that is no number."""
        self.peak = peak_tokens_per_second(self.model, self.machine)
        self.model.train()
        is_whole = True  # False while a step is under way
        try:
            if self.evaluation_is_due:  # the run was interrupted in it
                self.evaluate()
            if self.also_dataset and not self.step:
                self.record({"step": 0, "before": evaluate_all(self)})
                self.clock = Clock()
            if self.deadline:
                self.deadline.begin(self.step)
            for is_epoch_end, tokens, targets in self.steps():
                if self.history.status != "finished" or self.ends_early() or self.is_asked_to_stop():
                    break
                is_whole = False
                self.run_step(tokens, targets)
                is_whole = True
                if self.history.status == "diverged":
                    break
                # A deadline has reckoned with the evaluations of eval_every alone.
                is_epoch_end = is_epoch_end and not self.config.max_minutes
                if is_epoch_end or self.step % self.config.eval_every == 0:  # type: ignore[operator]
                    self.evaluate()
                if self.ends_early():
                    break
                self.save_if_due()
            if self.history.status != "interrupted" and not self.is_evaluated:
                self.evaluate()
        except KeyboardInterrupt:  # the stop button of a notebook; commands install a handler and never get here
            self.history.status = "interrupted"
        self.end(is_whole)

    def ends_early(self) -> bool:
        """True, and told, when patience is over."""
        if self.out_of_patience:
            patience = self.config.patience
            self.history.message = f"stopped early: val_loss has not been better for {patience} evaluations (patience)."
        return self.out_of_patience

    def is_asked_to_stop(self) -> bool:
        """True once should_stop says so; the run is interrupted then."""
        self.asked_at = time.monotonic()
        if self.should_stop():
            self.history.status = "interrupted"
        return self.history.status == "interrupted"

    def end(self, is_whole: bool) -> None:
        """The last checkpoint; the model gets its best weights."""
        self.watch.read()
        self.history.step, self.history.skipped_steps = self.step, self.watch.skipped_steps
        if is_whole:
            self.save()
        else:  # what is left of a step that was broken off is for memory alone
            self.folder = None
        # After the checkpoint: whoever sent a signal may not wait for long, and a run that is gone on with must not
        # hold an evaluation that the unbroken one would not make.
        if not self.is_evaluated and not (self.folder and self.history.best):
            self.evaluate()
        if self.history.best and not self.is_best:
            load_weights(self.model, self.best_weights)
        self.model.eval()

    def steps(self) -> Iterator[tuple[bool, Tensor, Tensor]]:
        """For each step that is left: whether it ends its epoch, tokens (B, T) and targets (B, T)."""
        while not self.is_over:
            epoch, first = divmod(self.step, len(self.batches))
            for index, batch in enumerate(self.batches.epoch(epoch, first), first + 1):
                yield index == len(self.batches), *self.machine.take(*batch)
                if self.is_over:
                    return

    def run_step(self, tokens: Tensor, targets: Tensor) -> None:
        """One step, its log line when one is due, and the watch over losses that are no number."""
        lr = learning_rate_at(self.step, self.config, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        result = train_step(
            self.with_loss,
            self.optimizer,
            tokens,
            targets,
            micro_batch_size=self.micro_batch_size,
            max_grad_norm=self.config.max_grad_norm,
            machine=self.machine,
            scaler=self.scaler,
        )
        self.step += 1
        self.tokens_seen += tokens.numel()
        self.take_smaller(result.micro_batch_size)
        self.watch.add(self.step, lr, result)
        if self.step in (1, self.total_steps) or self.step % self.config.log_every == 0:
            self.watch.read(leave=self.watch.lag if self.step > 1 else 0)  # the first line has a loss, too
            self.log(lr)
        if self.watch.message:
            self.history.status, self.history.message = "diverged", self.watch.message
        if self.folder:
            self.folder.poll()
        if self.deadline:
            self.keep_to(self.deadline)

    def keep_to(self, deadline: Deadline) -> None:
        """Decides, once, when the decay begins and with it when the run ends; cuts a decay that has become too slow."""
        if self.total_steps:
            if deadline.has_passed and not self.is_over:
                self.history.message = f"time is up: the machine became slower, so step {self.step:,} is the last."
                self.record({"step": self.step, "max_steps": self.step})
                self.take_decision(self.history.records[-1])
            return
        windows = len(self.val_dataset)  # type: ignore[arg-type]
        steps = deadline.decay_steps(
            self.step,
            reserve=RESERVE_SECONDS,
            eval_every=self.config.eval_every,  # type: ignore[arg-type]
            evaluation_steps=EVALUATION_COST * windows / self.config.batch_size,
        )
        if steps:
            self.record({"step": self.step, "max_steps": self.step + steps, "decay_steps": steps})
            self.take_decision(self.history.records[-1])

    def take_decision(self, decision: Record) -> None:
        """Sets the end of the run and of its schedule."""
        made = {name: decision[name] for name in ("max_steps", "decay_steps") if name in decision}
        self.config = dataclasses.replace(self.config, **made)
        self.total_steps = self.history.total_steps = decision["max_steps"]

    def take_smaller(self, micro_batch_size: int) -> None:
        """From now on takes the micro-batches for which there was memory, and says so."""
        if micro_batch_size < self.micro_batch_size:
            warnings.warn(
                f"the memory of {self.machine.device} is full: from step {self.step} on the micro-batches have "
                f"{micro_batch_size} windows, not {self.micro_batch_size}. The batch stays, and so does the result.",
                stacklevel=2,
            )
            self.micro_batch_size = micro_batch_size

    def log(self, lr: float) -> None:
        """Records the mean training loss since the last log, the learning rate and the speed."""
        seconds, tokens = self.clock.lap(self.tokens_seen)
        self.speed_watch.see(tokens / seconds)
        self.peak = self.peak and max(self.peak, tokens / seconds)  # measured while the machine was busy, it is low
        self.record(
            {
                "step": self.step,
                "epoch": self.epoch,
                "train_loss": self.watch.take_mean_loss(),
                "lr": lr,
                "grad_norm": self.watch.grad_norm,
                "skipped_steps": self.watch.skipped_steps,
                "clipped_steps": self.watch.clipped_steps,
                "tokens_seen": self.tokens_seen,
                "tokens_per_second": tokens / seconds,
                **({"mfu": tokens / seconds / self.peak} if self.peak else {}),
                "elapsed_seconds": self.clock.elapsed_seconds(),
            }
        )

    def evaluate(self) -> None:
        """Records the metrics over the validation data; the best weights so far are kept and saved.

        Of a running training, a request to stop cuts it short; the run then begins with it when it is gone on with.
        """
        self.evaluation_is_due, running = True, self.history.status == "finished"
        started = time.monotonic()
        with self.clock.paused():
            metrics = evaluate_all(
                self, lambda: running and time.monotonic() > self.asked_at + 1 and self.is_asked_to_stop()
            )
            if not metrics:
                return
            record = {
                "step": self.step,
                "epoch": self.epoch,
                **metrics,
                "tokens_seen": self.tokens_seen,
                "elapsed_seconds": self.clock.elapsed_seconds(),
            }
            # NaN is never best: every comparison with it is false.
            is_best = record["val_loss"] < (self.history.best["val_loss"] if self.history.best else math.inf)
            if is_best:
                self.history.best = record
                self.best_weights = copy_weights(weights_of(self.model), torch.clone)
            self.evaluation_is_due = False
            self.record(record)
            try:
                self.write_samples(record)  # before a checkpoint of this step, which has its records
            finally:
                if is_best and self.folder:
                    if self.folder.step is None:  # a model.pt is never without a checkpoint to go on from
                        self.save()
                    self.folder.save_model(pack_model(self.model, self.best_weights, self.tokenizer, record))
            if self.deadline:
                self.deadline.evaluated(time.monotonic() - started)

    def write_samples(self, evaluation: Record) -> None:
        """Records what the model writes, where it is time for it."""
        if self.history.status == "finished" and self.samples.due(len(self.history.evaluations), evaluation):
            for record in self.samples.records(self.step, is_last=self.is_over):
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

    def save_if_due(self) -> None:
        """Asks for a checkpoint when it is time and the one before is written; the last one comes at the end."""
        if self.folder and not self.is_over:
            every = self.folder.save_every
            self.save_is_due |= self.step % every == 0 if every else self.folder.due
            if self.save_is_due and not self.folder.busy:
                self.save()

    def save(self) -> None:
        """Asks for a checkpoint of this step: training waits only until its tensors are copied."""
        self.save_is_due = False
        self.watch.read()
        folder = self.folder
        if not folder or not self.step:
            return
        if folder.step != self.step or (self.status, folder.status) == ("finished", "interrupted"):
            weights = self.best_weights if self.is_best else copy_weights(weights_of(self.model), torch.clone)
            # Where the weights have gone bad, the last good state is in an earlier checkpoint.
            if not self.watch.bad_steps or all(tensor.isfinite().all() for tensor in weights.values()):
                folder.save(self.step, *checkpoint_of(self, weights))
