"""Laws of the training loop: what a step computes, and what a run records, repeats and refuses."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX, ModelConfig, TrainConfig, UserError
from slm.data.dataset import TextDataset
from slm.data.tokens import Tokens
from slm.metrics.evaluate import evaluate
from slm.metrics.speed import flops_per_token
from slm.model.loss import WithLoss
from slm.model.transformer import LanguageModel
from slm.training import clock, device, loop
from slm.training.device import Machine, seeded
from slm.training.loop import History, train_and_evaluate
from slm.training.optimizer import learning_rate_at, make_optimizer
from slm.training.step import StepResult, train_step
from slm.training.watch import MAX_BAD_STEPS
from slm.verify import first_difference, kept_by

CPU = torch.device("cpu")
TINY = ModelConfig(vocab_size=11, embed_dim=16, num_heads=2, num_layers=1, hidden_dim=32, max_seq_len=8)
TIMING = {"tokens_per_second", "elapsed_seconds", "mfu"}


def make_model(config: ModelConfig = TINY, seed: int = 0) -> LanguageModel:
    with seeded(CPU, seed):
        return LanguageModel(config)


def make_config(**settings: object) -> TrainConfig:
    base = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 4, "max_steps": 10, "log_every": 1}
    return TrainConfig(**(base | settings))  # type: ignore[arg-type]


def make_data(num_tokens: int = 400, period: int = 7) -> TextDataset:
    return TextDataset(torch.arange(num_tokens) % period, TINY.max_seq_len)


def without_timing(history: History) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in TIMING} for record in history.records]


def step_once(model: nn.Module, tokens: Tensor, targets: Tensor, *, size: int, max_grad_norm: float) -> StepResult:
    """One step of SGD, which shows a wrong gradient at once, where Adam's first step would hide its scale."""
    machine = Machine(CPU, "fp32", 1, "")
    return train_step(
        WithLoss(model),
        torch.optim.SGD(model.parameters(), lr=1.0),
        tokens,
        targets,
        micro_batch_size=size,
        max_grad_norm=max_grad_norm,
        machine=machine,
        scaler=machine.grad_scaler(),
    )


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5])
def test_micro_batches_equal_the_whole_batch_also_with_ragged_masks(micro_batch_size: int) -> None:
    tokens = torch.randint(0, 11, (6, 8), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, dims=1)
    for row in range(6):
        targets[row, 8 - row :] = IGNORE_INDEX  # from no to five masked targets
    targets[5] = IGNORE_INDEX  # and one row without any
    whole, split = make_model(), make_model()
    losses = [
        step_once(model, tokens, targets, size=size, max_grad_norm=0).loss.item()
        for model, size in ((whole, 6), (split, micro_batch_size))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for (name, a), b in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


def test_a_gradient_longer_than_the_maximum_is_scaled_to_it() -> None:
    tokens = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(1))
    moved = {}
    for max_grad_norm in (0.01, 0.0):
        model = make_model()
        before = [p.detach().clone() for p in model.parameters()]
        result = step_once(model, tokens, tokens.roll(-1, dims=1), size=4, max_grad_norm=max_grad_norm)
        change = torch.stack([(p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)])
        moved[max_grad_norm] = (change.sum().sqrt().item(), result.grad_norm.item())
    assert moved[0.01][0] == pytest.approx(0.01, rel=1e-3)
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=1e-4)  # 0 turns clipping off
    assert moved[0.01][1] == pytest.approx(moved[0.0][1], rel=1e-6)  # the norm reported is that before clipping


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_on_cpu_with_float32_weights(precision: str) -> None:
    history = train_and_evaluate(
        model := make_model(),
        make_data(),
        make_data(100),
        make_config(precision=precision, max_steps=60, learning_rate=1e-2, log_every=20),
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.best is not None
    assert history.best["val_loss"] < 1.0 < history.records[0]["train_loss"]


def counts(history: History, name: str) -> list[Any]:
    return [record[name] for record in history.records if "lr" in record]


@pytest.mark.parametrize("log_every", [1, 3])
def test_the_steps_whose_gradient_was_clipped_are_counted(log_every: int) -> None:
    def run(**settings: Any) -> History:
        config = make_config(max_steps=12, warmup_steps=0, **settings)
        return train_and_evaluate(make_model(), make_data(), make_data(100), config)

    # A first run tells norms; the limit is one of them, which itself is not above it.
    free = run(max_grad_norm=1e9, learning_rate=1e-12)
    assert counts(free, "clipped_steps") == [0] * 12
    norms = counts(free, "grad_norm")
    limit = sorted(norms)[5]
    above = list(itertools.accumulate(norm > limit for norm in norms))
    assert above[-1] == 6
    clipped = run(max_grad_norm=limit, learning_rate=1e-12, log_every=log_every)
    told = {record["step"]: record["clipped_steps"] for record in clipped.records if "lr" in record}
    assert told == {step: above[step - 1] for step in ({*range(1, 13)} if log_every == 1 else {1, 3, 6, 9, 12})}
    assert counts(run(max_grad_norm=0.0, learning_rate=1e-12), "clipped_steps") == [0] * 12
    assert counts(run(max_grad_norm=1e-9, learning_rate=1e-12), "clipped_steps") == list(range(1, 13))


def test_a_step_that_is_no_number_is_skipped_and_not_clipped() -> None:
    model = Poisoned(4, 6)
    history = train_and_evaluate(model, make_data(), make_data(100), make_config(max_grad_norm=1e-9))
    assert counts(history, "skipped_steps") == [0, 0, 0, 1, 2, 3, 3, 3, 3, 3]
    assert counts(history, "clipped_steps") == [1, 2, 3, 3, 3, 3, 4, 5, 6, 7]


def test_mfu_is_the_share_of_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def peak(device: str, precision: str, threads: int) -> float:
        asked.append((device, precision, threads, torch.get_num_threads()))
        return 1e9

    monkeypatch.setattr(device, "measured_peak", peak)
    history = train_and_evaluate(make_model(), make_data(), make_data(100), make_config())
    part = stop_after(4)
    train_and_evaluate(make_model(), make_data(), make_data(100), make_config(), model_dir=tmp_path, should_stop=part)
    again = train_and_evaluate(make_model(), make_data(), make_data(100), make_config(), model_dir=tmp_path)
    assert again.resumed_from == 4
    for one in (history, again):
        expected = [speed * flops_per_token(TINY) / 1e9 for speed in counts(one, "tokens_per_second")]
        assert counts(one, "mfu") == pytest.approx(expected)
        assert len(expected) == 10
    assert {one[:3] for one in asked} == {("cpu", "fp32", 1)}
    # Of a module whose operations are not known nothing is said, and nothing is measured.
    asked.clear()
    for module in (Bigram(), Poisoned(99, 99)):
        foreign = train_and_evaluate(module, make_data(), make_data(100), make_config())
        assert all("mfu" not in record for record in foreign.records)
    assert not asked


def test_weight_decay_spares_vectors() -> None:
    model = make_model()
    groups = make_optimizer(model, make_config(weight_decay=0.3), Machine(CPU, "fp32", 1, "")).param_groups
    assert {p.dim() >= 2: g["weight_decay"] for g in groups for p in g["params"]} == {True: 0.3, False: 0.0}
    assert sum(p.numel() for g in groups for p in g["params"]) == TINY.num_parameters


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_rises_to_its_peak_and_falls_to_its_end(schedule: str) -> None:
    config = make_config(schedule=schedule, warmup_steps=10, learning_rate=0.5, min_learning_rate=0.1)
    rates = [learning_rate_at(step, config, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == 0.5
    assert all(b <= a for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.5 if schedule == "constant" else 0.1, abs=0.01)
    if schedule != "constant":
        assert rates[55] == pytest.approx(0.3)  # half way, all fall half


def test_the_schedule_reaches_the_optimizer() -> None:
    history = train_and_evaluate(make_model(), make_data(), make_data(100), config := make_config(warmup_steps=3))
    lrs = [record["lr"] for record in history.records if "lr" in record]
    assert lrs == [learning_rate_at(step, config, 10) for step in range(10)]


def test_training_learns_a_pattern_and_evaluation_knows_it() -> None:
    history = train_and_evaluate(
        make_model(), make_data(2000), make_data(100), make_config(max_steps=80, learning_rate=1e-2)
    )
    assert history.best is not None
    assert history.best["val_loss"] < 0.1
    assert history.best["val_accuracy"] > 0.95
    assert history.best["val_perplexity"] == pytest.approx(math.exp(history.best["val_loss"]))


def test_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    config = ModelConfig(**{**TINY.__dict__, "dropout": 0.2})
    weights, records = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(torch.seed())  # whatever the caller's generator holds
        model = make_model(config)
        history = train_and_evaluate(model, make_data(), make_data(100), make_config(seed=seed))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        records.append(without_timing(history))
    assert torch.equal(weights[0], weights[1])
    assert records[0] == records[1]
    assert not torch.equal(weights[0], weights[2])


def test_evaluating_more_often_changes_nothing_in_training() -> None:
    config = ModelConfig(**{**TINY.__dict__, "dropout": 0.2})
    losses = []
    for eval_every in (1, 10):
        history = train_and_evaluate(
            make_model(config), make_data(), make_data(100), make_config(eval_every=eval_every)
        )
        losses.append([r["train_loss"] for r in history.records if "train_loss" in r])
    assert losses[0] == losses[1]


def test_training_leaves_the_callers_random_state_and_threads_alone() -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train_and_evaluate(make_model(), make_data(), make_data(100), make_config(threads=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_records_have_the_fields_of_the_glossary_in_order_of_steps() -> None:
    seen: list[dict[str, object]] = []
    history = train_and_evaluate(
        make_model(), make_data(), make_data(100), make_config(eval_every=4), on_log=seen.append
    )
    assert seen == history.records
    log, evaluation = history.records[0], history.evaluations[0]
    assert set(log) == {
        "step", "epoch", "train_loss", "lr", "grad_norm", "skipped_steps", "clipped_steps", "tokens_seen"
    } | TIMING  # fmt: skip
    assert set(evaluation) == {
        "step", "epoch", "val_loss", "val_accuracy", "val_perplexity", "tokens_seen", "elapsed_seconds"
    }  # fmt: skip
    assert [r["step"] for r in history.records] == sorted(r["step"] for r in history.records)
    assert log["tokens_seen"] == 4 * 8


def test_evaluations_come_at_every_interval_each_epochs_end_and_the_last_step() -> None:
    data = make_data(8 * 12 + 8)  # 12 windows: 3 steps an epoch
    history = train_and_evaluate(make_model(), data, make_data(100), make_config(eval_every=4, max_steps=10))
    assert [(r["step"], r["epoch"]) for r in history.evaluations] == [(3, 1), (4, 2), (6, 2), (8, 3), (9, 3), (10, 4)]


def test_there_are_about_twenty_evaluations_by_default() -> None:
    history = train_and_evaluate(make_model(), make_data(8 * 400), make_data(20), make_config(max_steps=97))
    assert 18 <= len(history.evaluations) <= 26


@pytest.mark.parametrize(("max_steps", "epochs", "expected"), [(5, 9, 5), (None, 2, 6), (20, 1, 20)])
def test_max_steps_ends_the_run_whatever_the_epochs(max_steps: int | None, epochs: int, expected: int) -> None:
    data = make_data(8 * 12 + 8)
    history = train_and_evaluate(make_model(), data, make_data(100), make_config(max_steps=max_steps, epochs=epochs))
    assert history.total_steps == history.records[-1]["step"] == expected
    assert history.status == "finished"


def test_a_model_ends_with_its_best_evaluated_weights() -> None:
    model = make_model()
    val_data = make_data(100, period=5)  # another pattern: learning the first makes this worse in the end
    history = train_and_evaluate(model, make_data(2000), val_data, make_config(max_steps=80, learning_rate=1e-2))
    assert history.best is not None
    assert history.best["step"] < 80
    assert history.best["val_loss"] == min(r["val_loss"] for r in history.evaluations)
    assert evaluate(model, val_data)["val_loss"] == pytest.approx(history.best["val_loss"], abs=1e-5)


class Poisoned(nn.Module):
    """A model whose output is no number from its n-th training step on."""

    def __init__(self, first_bad_step: int, last_bad_step: int) -> None:
        super().__init__()
        self.model, self.calls = make_model(), 0
        self.first, self.last = first_bad_step, last_bad_step

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        if self.training:
            self.calls += 1
            if self.first <= self.calls <= self.last:
                logits = logits * math.nan
        return logits


def test_a_few_bad_steps_are_skipped_and_change_nothing() -> None:
    model = Poisoned(4, 4 + MAX_BAD_STEPS - 2)
    history = train_and_evaluate(model, make_data(), make_data(100), make_config(max_steps=20))
    assert history.status == "finished"
    assert all(p.isfinite().all() for p in model.parameters())


def test_bad_steps_in_a_row_stop_the_run_with_the_reason_and_the_last_good_weights() -> None:
    model = Poisoned(4, 10**9)
    with pytest.warns(UserWarning, match="from step 4"):
        history = train_and_evaluate(model, make_data(), make_data(100), make_config(max_steps=50, eval_every=50))
    assert history.status == "diverged"
    assert "learning rate" in history.message
    assert "gradient norm" in history.message
    assert all(p.isfinite().all() for p in model.parameters())
    assert history.best is not None  # the weights of step 3, evaluated
    assert math.isfinite(history.best["val_loss"])


def test_weights_that_have_gone_bad_replace_no_good_checkpoint(tmp_path: Path) -> None:
    model = make_model()

    def spoil(record: dict[str, Any]) -> None:
        if record["step"] == 6:
            model.lm_head.weight.data.fill_(math.nan)

    with pytest.warns(UserWarning, match="from step 7"):
        history = train_and_evaluate(
            model,
            make_data(),
            make_data(100),
            make_config(max_steps=50, eval_every=3),
            model_dir=tmp_path,
            on_log=spoil,
        )
    assert (history.status, history.step) == ("diverged", 11)
    kept = kept_by(str(tmp_path))
    assert all(tensor.isfinite().all() for tensor in kept["model.pt"]["model"].values())
    assert all(tensor.isfinite().all() for name in kept if name.startswith("step-") and name.endswith("/model.pt")
               for tensor in kept[name]["model"].values())  # fmt: skip
    assert all(p.isfinite().all() for p in model.parameters())


class FullOnce(nn.Module):
    """A model that draws dropout, and finds the memory full at one of its calls, after it drew."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.inner, self.calls_left = make_model(dataclasses.replace(TINY, dropout=0.3)), call

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.inner(tokens)
        self.calls_left -= 1
        if not self.calls_left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", [1, 2])
def test_a_step_for_which_memory_was_full_equals_one_in_the_smaller_micro_batches(call: int) -> None:
    tokens, targets = make_data().batch(torch.arange(8))
    weights = []
    for model, size in ((FullOnce(call), 4), (FullOnce(0), 2)):
        with seeded(CPU, 7):
            assert step_once(model, tokens, targets, size=size, max_grad_norm=1.0).micro_batch_size == 2
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class NeverFinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(11))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weight * math.nan).expand(*tokens.shape, 11)


def test_nan_is_never_best() -> None:
    with pytest.warns(UserWarning, match="no finite number"):
        history = train_and_evaluate(NeverFinite(), make_data(), make_data(100), make_config())
    assert history.best is None


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(10**9))
    return lambda: next(calls) >= steps


def test_a_request_to_stop_evaluates_once_more() -> None:
    history = train_and_evaluate(
        make_model(), make_data(), make_data(100), make_config(max_steps=50, eval_every=50), should_stop=stop_after(7)
    )
    assert history.status == "interrupted"
    assert [r["step"] for r in history.evaluations] == [7]


def test_a_request_that_comes_with_the_last_step_is_no_interruption() -> None:
    history = train_and_evaluate(
        make_model(), make_data(), make_data(100), make_config(max_steps=5), should_stop=stop_after(5)
    )
    assert history.status == "finished"


def test_the_stop_button_of_a_notebook_returns_what_was_learned() -> None:
    def press(record: dict[str, object]) -> None:
        if record["step"] == 6 and "lr" in record:
            raise KeyboardInterrupt

    history = train_and_evaluate(make_model(), make_data(), make_data(100), make_config(eval_every=50), on_log=press)
    assert history.status == "interrupted"
    assert history.evaluations[-1]["step"] == 6


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Any map-style dataset will do."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = (torch.arange(8) + index) % 7
        return tokens, (tokens + 1) % 7


class Bigram(nn.Module):
    """A module from (B, T) to (B, T, V) that is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens)
        return logits


def test_any_module_and_any_dataset_train_also_outside_the_main_thread() -> None:
    results: list[History] = []

    def work() -> None:
        config = make_config(max_steps=60, learning_rate=0.1)
        results.append(train_and_evaluate(Bigram(), Pairs(), Pairs(), config))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].best is not None
    assert results[0].best["val_loss"] < 0.2


def test_evaluation_equals_a_plain_computation_in_float64() -> None:
    model = make_model().train()
    tokens = torch.randint(0, 11, (203,), generator=torch.Generator().manual_seed(3))
    bytes_per_token = torch.arange(11)
    metrics = evaluate(model, TextDataset(tokens, 8), batch_size=3, bytes_per_token=bytes_per_token)
    assert model.training  # left as it was
    nats, hits = 0.0, 0
    model.eval()
    for start in range(0, 202, 8):
        window, targets = tokens[start : start + 8][: 202 - start], tokens[start + 1 : start + 9]
        log_p = model(window[None]).double().log_softmax(-1)[0]
        nats -= log_p[torch.arange(len(targets)), targets].sum().item()
        hits += int((log_p.argmax(-1) == targets).sum())
    assert metrics["val_loss"] == pytest.approx(nats / 202, abs=1e-6)
    assert metrics["val_accuracy"] == hits / 202
    assert metrics["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / tokens[1:].sum().item(), rel=1e-6)


def test_evaluation_draws_no_random_number() -> None:
    model = make_model(ModelConfig(**{**TINY.__dict__, "dropout": 0.5})).train()
    before = torch.get_rng_state()
    first, second = evaluate(model, make_data(100)), evaluate(model, make_data(100))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_callback_draws_at_random_does_not_change_the_training() -> None:
    config = ModelConfig(**{**TINY.__dict__, "dropout": 0.3})
    results = []
    for on_log in (None, lambda record: torch.rand(3)):
        history = train_and_evaluate(make_model(config), make_data(), make_data(100), make_config(), on_log=on_log)
        results.append(without_timing(history))
    assert results[0] == results[1]


class KeepsItsMask(nn.Module):
    """A module that makes a tensor when first called and keeps it, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(7, 7), None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.scale is None and not self.training:
            self.scale = torch.full((7,), 2.0)
        logits: Tensor = self.table(tokens)
        return logits if self.scale is None else logits * self.scale


def test_a_module_that_keeps_a_tensor_from_an_evaluation_goes_on_training() -> None:
    history = train_and_evaluate(KeepsItsMask(), Pairs(), Pairs(), make_config(eval_every=2, max_steps=6))
    assert [r["step"] for r in history.evaluations] == [2, 3, 4, 6]


class NoBf16(Bigram):
    def forward(self, tokens: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no bf16 here")
        return super().forward(tokens)


def test_a_module_that_cannot_do_bf16_trains_in_fp32() -> None:
    history = train_and_evaluate(NoBf16(), Pairs(), Pairs(), make_config(precision="auto", max_steps=2))
    assert history.status == "finished"


class Nothing(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 0


def test_empty_datasets_are_refused_before_training() -> None:
    for model, datasets in itertools.product((Bigram(), make_model()), ((Nothing(), Pairs()), (Pairs(), Nothing()))):
        with pytest.raises(UserError, match="empty"):
            train_and_evaluate(model, *datasets, make_config())


class Items(Dataset[tuple[Tensor, Tensor]]):
    """One item of tokens (T,) and targets (T,), several times."""

    def __init__(self, tokens: Tensor, targets: Tensor) -> None:
        self.item = (tokens, targets)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.item


def with_id(wrong: int, place: str) -> Dataset[tuple[Tensor, Tensor]]:
    """A dataset with one wrong id: in the last window of a long text, or in the tokens or targets of each item."""
    if place == "text":
        return TextDataset([*[1] * 1000, wrong, 1, 1], TINY.max_seq_len)
    tokens, targets = torch.ones(8, dtype=torch.long), torch.ones(8, dtype=torch.int32)
    (tokens if place == "tokens" else targets)[5] = wrong
    return Items(tokens, targets)


@pytest.mark.parametrize("place", ["text", "tokens", "targets"])
@pytest.mark.parametrize("wrong", [TINY.vocab_size, 50256, -1])
@pytest.mark.parametrize("name", ["training", "validation"])
def test_ids_outside_the_vocabulary_are_refused_before_anything_runs(
    name: str, wrong: int, place: str, tmp_path: Path
) -> None:
    datasets = {"training": make_data(), "validation": make_data(100)} | {name: with_id(wrong, place)}
    model, calls = make_model(), []
    model.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
    with pytest.raises(UserError) as error:
        train_and_evaluate(
            model,
            datasets["training"],
            datasets["validation"],
            make_config(precision="auto"),
            model_dir=tmp_path / "run",
        )
    message = str(error.value)
    low, high = sorted((1, wrong))
    for part in (f"the {name} dataset go from {low} to {high}:", "below the model's vocab_size = 11", "tokenizer"):
        assert part in message
    assert (f"a model with vocab_size = {wrong + 1}." in message) == (wrong > 0)
    assert not calls
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["text", "tokens", "targets"])
@pytest.mark.parametrize("id", [0, TINY.vocab_size - 1])
def test_every_id_of_the_vocabulary_is_taken(id: int, place: str) -> None:
    dataset = with_id(id, place)
    assert train_and_evaluate(make_model(), dataset, dataset, make_config(max_steps=1)).status == "finished"


def test_a_target_that_does_not_count_is_no_id() -> None:
    dataset = with_id(IGNORE_INDEX, "targets")
    assert train_and_evaluate(make_model(), dataset, dataset, make_config(max_steps=1)).status == "finished"


def test_the_windows_of_documents_are_not_laid_out_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "positions", None)  # by which they are
    data = TextDataset(torch.arange(400) % 7, TINY.max_seq_len, start_id=3)
    assert train_and_evaluate(make_model(), data, make_data(100), make_config(max_steps=2)).status == "finished"


class Wraps(Bigram):
    """A module without a vocab_size, which takes any id."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens % 7)


def test_a_model_without_a_vocabulary_takes_what_it_likes() -> None:
    dataset = with_id(50256, "tokens")
    assert train_and_evaluate(Wraps(), dataset, dataset, make_config(max_steps=1)).status == "finished"


@pytest.mark.parametrize("few", [2, 7, 11])
def test_an_evaluation_cut_short_by_a_request_to_stop_is_made_when_the_run_goes_on(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, **others: Any) -> History:
        config = make_config(max_steps=4, eval_every=2, micro_batch_size=1)
        return train_and_evaluate(
            make_model(), make_data(), make_data(100), config, model_dir=tmp_path / folder, **others
        )

    unbroken, ticks, asked = run("whole"), itertools.count(step=2), itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))  # a second passes at each look
        first = run("parts", should_stop=lambda: next(asked) > few)
    assert first.status == "interrupted"
    history = run("parts")
    assert history.resumed_from == first.step
    assert first_difference(kept_by(str(tmp_path / "whole")), kept_by(str(tmp_path / "parts"))) is None
    assert [r["step"] for r in history.records] == [r["step"] for r in unbroken.records]
    seconds = [r["elapsed_seconds"] for r in history.records if "elapsed_seconds" in r]
    assert seconds == sorted(seconds)
    assert seconds[-1] > max(r.get("elapsed_seconds", 0.0) for r in first.records)


def test_the_clock_stands_still_while_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    watch = clock.Clock(seconds=5.0, tokens_seen=10)
    now += 2
    with watch.paused():
        assert watch.elapsed_seconds() == 7
        now += 30
        assert watch.elapsed_seconds() == 7  # else an evaluation's record is later than the step after it
    now += 1
    assert (watch.elapsed_seconds(), watch.lap(40)) == (8, (3, 30))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("default")  # of torch's compiler about itself
def test_compiled_steps_learn_the_same() -> None:
    losses = {}
    for compile in ("off", "on"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            history = train_and_evaluate(
                make_model(), make_data(), make_data(100), make_config(max_steps=3, compile=compile)
            )
        assert not [one for one in told if "torch.compile failed" in str(one.message)]
        losses[compile] = [record["train_loss"] for record in history.records if "train_loss" in record]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)


def test_wsd_stays_at_the_peak_and_falls_in_its_last_steps() -> None:
    config = make_config(schedule="wsd", warmup_steps=10, decay_steps=40, learning_rate=0.5, min_learning_rate=0.1)
    rates = [learning_rate_at(step, config, 100) for step in range(100)]
    assert rates[9:61] == [0.5] * 52
    assert rates[60:] == pytest.approx([0.5 - 0.01 * i for i in range(40)])
    open_end = dataclasses.replace(config, decay_steps=None)
    assert [learning_rate_at(step, open_end, 0) for step in (10, 10**6)] == [0.5, 0.5]


def test_wsd_falls_for_half_of_the_steps_unless_it_is_told_for_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for decay_steps, first_low in ((None, 11), (4, 17)):
        config = make_config(schedule="wsd", decay_steps=decay_steps, max_steps=20, warmup_steps=0, log_every=1)
        history = train_and_evaluate(make_model(), make_data(), make_data(100), config)
        lrs = [record["lr"] for record in history.records if "lr" in record]
        assert [lr == config.learning_rate for lr in lrs] == [step <= first_low for step in range(1, 21)]
