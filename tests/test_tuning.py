"""Laws of what a run does for its speed: the choice by throw-away steps, the compiler, and the watch over its steps."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slm.config import ModelConfig, TrainConfig
from slm.model.loss import WithLoss
from slm.model.transformer import LanguageModel
from slm.training import device, tuning
from slm.training.clock import SLOW_LAPS, SpeedWatch
from slm.training.device import Machine
from slm.training.step import StepResult
from slm.training.tuning import WORTH_IT, Choice, choose, compiled, seconds_of_step, thread_counts, time_steps
from slm.training.watch import MAX_BAD_STEPS, Watch

CPU = torch.device("cpu")
V, T = 11, 4
ONE, TWO, FOUR = (Choice(threads, "fp32") for threads in (1, 2, 4))
HALF = Choice(1, "bf16")


def make_model(dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "hidden_dim": 8, "max_seq_len": T}
    return LanguageModel(ModelConfig(**sizes, dropout=dropout))


def make_batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1))
    return tokens, tokens.roll(-1, dims=1)


class Picky(nn.Module):
    """A bigram model that refuses to compute in some precision, and remembers the shapes that it saw."""

    def __init__(self, refuses_bf16: bool = False, refuses_fp32: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(V, V)
        self.refuses = {True: refuses_bf16, False: refuses_fp32}
        self.shapes: list[torch.Size] = []
        self.modes: list[bool] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tokens.shape)
        self.modes.append(self.training)
        if self.refuses[torch.is_autocast_enabled("cpu")]:
            raise RuntimeError("not in this precision")
        output: Tensor = self.table(tokens)
        return output


def made_up(monkeypatch: pytest.MonkeyPatch, seconds: dict[Choice, Callable[[int], float | None]]) -> list[Choice]:
    """Replaces the measurement by the seconds of each choice's first, second, ... step; returns the list of calls."""
    calls: list[Choice] = []

    def seconds_of(with_loss: WithLoss, tokens: Tensor, targets: Tensor, choice: Choice) -> float | None:
        calls.append(choice)
        return seconds[choice](calls.count(choice))

    monkeypatch.setattr(tuning, "_seconds_of_step", seconds_of)
    return calls


# thread_counts and choose


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16]), (17, [1, 2, 4, 8, 16, 17])]
)
def test_powers_of_two_and_the_most_are_worth_trying(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


def test_the_choice_with_the_smallest_mean_is_taken() -> None:
    means = {ONE: 0.3, TWO: 0.2, FOUR: 0.25}
    for order in itertools.permutations(means):
        assert choose({choice: means[choice] for choice in order})[0] == TWO


@pytest.mark.parametrize(
    ("gain", "is_worth_it"), [(0.5, False), (1.0, False), (1.2, False), (WORTH_IT, True), (3.0, True)]
)
def test_bf16_is_taken_where_it_is_clearly_faster(gain: float, is_worth_it: bool) -> None:
    seconds = {ONE: 2 * gain, TWO: gain, HALF: 1.0, Choice(2, "bf16"): 5.0}
    assert choose(seconds)[0] == (HALF if is_worth_it else TWO)


def test_bf16_alone_is_taken_as_it_was_asked_for() -> None:
    assert choose({HALF: 2.0, Choice(2, "bf16"): 1.0}) == (
        Choice(2, "bf16"),
        "a step takes 2,000 ms with 1, 1,000 ms with 2",
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({ONE: 0.5}, ""),
        ({FOUR: 0.0123, ONE: 0.02}, "a step takes 20 ms with 1, 12.3 ms with 4"),
        ({ONE: 0.6, HALF: 0.2}, "bf16 is 3.0 times as fast as fp32 here"),
        ({ONE: 0.2, HALF: 0.2}, "bf16 is 1.0 times as fast as fp32 here, worth it from 1.25 on"),
        (
            {ONE: 0.3, TWO: 0.2, HALF: 0.25, Choice(2, "bf16"): 0.4},
            "bf16 is 0.8 times as fast as fp32 here, worth it from 1.25 on; a step takes 300 ms with 1, 200 ms with 2",
        ),
        (
            {ONE: 0.3, HALF: 0.15, Choice(2, "bf16"): 0.1},
            "bf16 is 3.0 times as fast as fp32 here; a step takes 150 ms with 1, 100 ms with 2",
        ),
    ],
)
def test_the_words_tell_what_was_measured(seconds: dict[Choice, float], words: str) -> None:
    assert choose(seconds)[1] == words


# time_steps


@pytest.mark.parametrize("is_training", [True, False])
def test_timing_leaves_the_model_and_the_threads_as_they_were(is_training: bool) -> None:
    model = make_model(dropout=0.5).train(is_training)
    weights, random = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    seconds = time_steps(model, make_batch(), [ONE, TWO, HALF], 0.0)
    assert seconds
    assert min(seconds.values()) > 0
    assert torch.get_num_threads() == 1
    assert all(module.training == is_training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_each_choice_is_timed_with_its_threads_and_precision() -> None:
    seen: list[Choice] = []

    class Watching(Picky):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(Choice(torch.get_num_threads(), "bf16" if torch.is_autocast_enabled("cpu") else "fp32"))
            return super().forward(tokens)

    time_steps(model := Watching(), make_batch(), [TWO, HALF, ONE], 0.0)
    assert seen[:3] == [TWO, HALF, ONE]
    assert set(model.modes) == {False}  # draws no dropout


def test_a_choice_that_the_model_cannot_run_in_is_dropped() -> None:
    seconds = time_steps(model := Picky(refuses_bf16=True), make_batch(), [ONE, HALF, TWO, Choice(2, "bf16")], 0.0)
    assert seconds.keys() <= {ONE, TWO}
    assert seconds
    assert model.table.weight.grad is None
    assert choose(seconds)[0].precision == "fp32"


def test_a_model_that_fails_in_fp32_fails_and_leaves_all_as_it_was() -> None:
    model = Picky(refuses_fp32=True)
    with pytest.raises(RuntimeError, match="not in this precision"):
        time_steps(model, make_batch(), [HALF, TWO], 0.0)
    assert torch.get_num_threads() == 1
    assert model.training
    assert model.table.weight.grad is None


def test_a_step_has_as_many_windows_as_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for positions, rows in ((2 * T + 1, 2), (T - 1, 1), (100 * T, 5)):
        monkeypatch.setattr(tuning, "_POSITIONS", positions)
        time_steps(model := Picky(), make_batch(rows=5), [ONE, HALF], 0.0)
        assert set(model.shapes) == {(rows, T)}


def test_the_mean_of_all_rounds_but_the_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = tuning._ROUNDS
    drifting = [1 + n / 100 for n in range(rounds)]
    calls = made_up(monkeypatch, {ONE: lambda n: 99.0 if n == 1 else 1.0, TWO: lambda n: [99.0, *drifting][n - 1]})
    seconds = time_steps(Picky(), make_batch(), [ONE, TWO], math.inf)
    assert calls == [ONE, TWO] * (rounds + 1)  # in turns
    assert seconds == pytest.approx({ONE: 1.0, TWO: sum(drifting) / rounds})


def test_timing_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made_up(monkeypatch, {ONE: lambda _: 1.0, TWO: lambda _: 1.5})
    monkeypatch.setattr(tuning.time, "perf_counter", itertools.count(step=0.4).__next__)
    assert time_steps(Picky(), make_batch(), [ONE, TWO], 1.0) == {ONE: 1.0, TWO: 1.5}
    assert calls == [ONE, TWO] * 4  # the clock is read at the start and after each round but the first


def test_hopeless_choices_are_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made_up(monkeypatch, {ONE: lambda _: 1.0, TWO: lambda _: 1.9, FOUR: lambda _: 2.0, HALF: lambda _: 9.0})
    seconds = time_steps(Picky(), make_batch(), [FOUR, ONE, HALF, TWO], math.inf)
    assert seconds == pytest.approx({ONE: 1.0, TWO: 1.9, FOUR: 2.0, HALF: 9.0})
    assert {choice: calls.count(choice) for choice in (FOUR, HALF)} == {FOUR: 2, HALF: 2}
    assert calls.count(TWO) == tuning._ROUNDS + 1


def test_what_is_hopeless_stays_so_when_the_machine_slows_down_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, {ONE: lambda _: 3.0, HALF: lambda n: 1.0 if n < 3 else 5.0})
    seconds = time_steps(Picky(), make_batch(), [ONE, HALF], math.inf)
    assert choose(seconds) == (HALF, "bf16 is 3.0 times as fast as fp32 here")


def test_a_choice_that_was_disturbed_once_is_not_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, {ONE: lambda _: 1.0, TWO: lambda n: 9.0 if n == 3 else 0.9})
    seconds = time_steps(Picky(), make_batch(), [ONE, TWO], math.inf)
    assert seconds[TWO] == pytest.approx((9.0 + 0.9 * (tuning._ROUNDS - 1)) / tuning._ROUNDS)
    assert choose(seconds)[0] == ONE  # what disturbs a step now will disturb later ones


def test_one_choice_that_is_left_is_not_timed_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = made_up(monkeypatch, {ONE: lambda _: 1.0, HALF: lambda _: None})
    assert set(time_steps(Picky(), make_batch(), [ONE, HALF], math.inf)) == {ONE}
    assert calls == [ONE, HALF]


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_timing_a_whole_batch_leaves_the_model_as_it_was(is_training: bool, precision: str) -> None:
    model = Picky(**{f"refuses_{({'fp32', 'bf16'} - {precision}).pop()}": True}).train(is_training)
    forward, update = seconds_of_step(model, make_batch(rows=5), Machine(CPU, precision, 1, ""))
    assert forward > update >= 0
    assert set(model.shapes) == {(5, T)}
    assert set(model.modes) == {False}
    assert model.training == is_training
    assert model.table.weight.grad is None


# compiled


COMPILING = Machine(CPU, "fp32", 1, "", True)


def fake_compiler(monkeypatch: pytest.MonkeyPatch, fails_from: float = math.inf, when: str = "compiled") -> list[Any]:
    """Replaces torch.compile by one that gives its argument back; returns the list of calls of what it gave.

    fails_from: the number, from 0, of the first function with which it fails, when that is compiled or called.
    """
    calls: list[Any] = []
    numbers = itertools.count()

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        fails = next(numbers) >= fails_from
        if fails and when == "compiled":
            raise RuntimeError("no compiler\n  here")

        def call(*args: Any, **keys: Any) -> Any:
            if fails:
                raise RuntimeError("no compiler\n  here")
            calls.append(function)
            return function(*args, **keys)

        if not isinstance(function, nn.Module):
            return call
        module = nn.Module()
        module.forward = call  # type: ignore[method-assign]
        return module

    monkeypatch.setattr(torch, "compile", compile)
    return calls


def is_eager(with_loss: WithLoss) -> bool:
    return all(module._compiled_call_impl is None for module in with_loss.modules())


def test_of_a_language_model_the_blocks_are_compiled_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, with_loss = fake_compiler(monkeypatch), WithLoss(make_model())
    expected = with_loss(*make_batch())
    with compiled(with_loss, make_batch(), COMPILING) as module:
        assert module is with_loss
        assert len(calls) == 2  # each block once, while the context begins
        assert torch.equal(module(*make_batch()), expected)
        assert [call.__self__ for call in calls] == list(with_loss.model.blocks) * 2
    assert is_eager(with_loss)
    assert torch.equal(with_loss(*make_batch()), expected)
    assert len(calls) == 4


def test_of_any_other_model_all_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, with_loss = fake_compiler(monkeypatch), WithLoss(Picky())
    with compiled(with_loss, make_batch(), COMPILING) as module:
        assert module is not with_loss
        assert torch.equal(module(*make_batch()), with_loss(*make_batch()))
    assert calls == [with_loss] * 2


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("make_any", [lambda: make_model(dropout=0.5), Picky])
def test_compiling_leaves_no_gradients_nor_another_mode_nor_random_state(
    monkeypatch: pytest.MonkeyPatch, make_any: Callable[[], nn.Module], is_training: bool
) -> None:
    fake_compiler(monkeypatch)
    with_loss, random = WithLoss(make_any()).train(is_training), torch.get_rng_state()
    with compiled(with_loss, make_batch(), COMPILING):
        assert all(module.training == is_training for module in with_loss.modules())
        assert all(p.grad is None for p in with_loss.parameters())
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("when", ["compiled", "called"])
@pytest.mark.parametrize(("make_any", "fails_from"), [(make_model, 0), (make_model, 1), (Picky, 0)])
def test_where_compiling_fails_the_module_is_used_as_it_is_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, make_any: Callable[[], nn.Module], fails_from: int, when: str
) -> None:
    fake_compiler(monkeypatch, fails_from, when)
    with_loss = WithLoss(make_any()).eval()
    expected, random = with_loss(*make_batch()), torch.get_rng_state()
    told = r"^torch\.compile failed \(no compiler here\): training goes on without it\.$"
    context = compiled(with_loss, make_batch(), COMPILING)
    with pytest.warns(UserWarning, match=told):
        module = context.__enter__()
    assert module is with_loss
    assert is_eager(with_loss)
    assert not any(part.training for part in with_loss.modules())
    assert all(p.grad is None for p in with_loss.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(module(*make_batch()), expected)
    context.__exit__(None, None, None)


def test_blocks_are_restored_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(monkeypatch)
    with_loss = WithLoss(make_model())

    def train() -> None:
        with compiled(with_loss, make_batch(), COMPILING):
            assert not is_eager(with_loss)
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert is_eager(with_loss)


# Watch


def make_watch(device: str = "cpu", scale: float | None = None) -> Watch:
    """scale: that of fp16's loss scaling, where it is on."""
    scaler: Any = SimpleNamespace(is_enabled=lambda: scale is not None, get_scale=lambda: scale)
    return Watch(torch.device(device), scaler)


def add(watch: Watch, *steps: tuple[float, float], first: int = 1, lr: float = 0.1) -> None:
    """Results of steps as (loss, gradient norm)."""
    for number, (loss, norm) in enumerate(steps, first):
        watch.add(number, lr, StepResult(torch.tensor(loss), torch.tensor(norm)))


GOOD, BAD_LOSS, BAD_GRADIENT = (2.0, 1.0), (math.nan, 1.0), (2.0, math.inf)


def test_a_cpu_reads_each_step_at_once() -> None:
    watch = make_watch()
    add(watch, (3.0, 0.5), (2.0, 0.25))
    assert watch.lag == 0
    assert watch.losses == [3.0, 2.0]
    assert watch.grad_norm == 0.25


def test_an_accelerator_is_not_read_before_it_is_asked_and_then_all_but_its_newest_step() -> None:
    watch = make_watch("cuda")
    add(watch, (3.0, 0.5), (2.0, 0.25), (1.0, 0.125))
    assert not watch.losses
    watch.read(leave=watch.lag)
    assert watch.losses == [3.0, 2.0]
    assert watch.grad_norm == 0.25
    add(watch, (0.5, 0.75), first=4)
    watch.read(leave=watch.lag)
    assert watch.losses == [3.0, 2.0, 1.0]
    watch.read()
    watch.read()
    assert watch.losses == [3.0, 2.0, 1.0, 0.5]
    assert watch.grad_norm == 0.75


def test_the_mean_loss_is_that_of_the_steps_since_it_was_taken_last() -> None:
    watch = make_watch()
    assert math.isnan(watch.take_mean_loss())
    add(watch, (3.0, 1.0), BAD_LOSS, (2.0, math.inf))
    assert watch.take_mean_loss() == 2.5
    add(watch, (7.0, 1.0))
    assert watch.take_mean_loss() == 7.0
    add(watch, BAD_LOSS)
    assert math.isnan(watch.take_mean_loss())
    assert watch.skipped_steps == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_GRADIENT, (math.inf, 1.0), (-math.inf, math.nan)], ids=str)
def test_bad_steps_in_a_row_make_a_message(device: str, bad: tuple[float, float]) -> None:
    watch = make_watch(device)
    add(watch, GOOD, GOOD, *[bad] * (MAX_BAD_STEPS - 1), lr=0.25)
    watch.read()
    assert not watch.message
    add(watch, bad, GOOD, first=MAX_BAD_STEPS + 2, lr=0.25)
    watch.read()
    assert f"{MAX_BAD_STEPS} steps in a row, from step 3 on (learning rate 0.25, loss {bad[0]:.3g}" in watch.message
    assert watch.skipped_steps == MAX_BAD_STEPS


def test_what_comes_after_a_run_has_diverged_is_not_read() -> None:
    watch = make_watch("cuda")
    add(watch, *[BAD_LOSS] * MAX_BAD_STEPS, GOOD, BAD_LOSS)
    watch.read()
    assert watch.message
    assert not watch.losses
    assert watch.skipped_steps == MAX_BAD_STEPS


def test_a_good_step_among_bad_ones_resets_their_count() -> None:
    watch = make_watch()
    for turn in range(3):
        add(watch, *[BAD_LOSS] * (MAX_BAD_STEPS - 1), GOOD, first=1 + turn * MAX_BAD_STEPS)
        assert watch.bad_steps == 0
    assert not watch.message
    assert watch.skipped_steps == 3 * (MAX_BAD_STEPS - 1)


@pytest.mark.parametrize(
    ("scale", "bad", "is_message"),
    [
        (1024.0, BAD_GRADIENT, False),
        (1.0, BAD_GRADIENT, False),
        (0.5, BAD_GRADIENT, True),
        (1024.0, BAD_LOSS, True),
        (None, BAD_GRADIENT, True),
    ],
)
def test_infinite_gradients_are_no_divergence_as_long_as_the_loss_scale_can_fall(
    scale: float | None, bad: tuple[float, float], is_message: bool
) -> None:
    watch = make_watch(scale=scale)
    add(watch, *[bad] * MAX_BAD_STEPS)
    assert bool(watch.message) == is_message
    assert watch.skipped_steps == MAX_BAD_STEPS


# SpeedWatch


def warnings_of(watch: SpeedWatch, *speeds: float) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for speed in speeds:
            watch.see(speed)
    return [str(warning.message) for warning in caught]


def test_a_machine_that_became_slow_is_told_once() -> None:
    watch = SpeedWatch(threads=2)
    assert warnings_of(watch, 3000, 9000, *[2999] * (SLOW_LAPS - 1)) == []
    (told,) = warnings_of(watch, 2999)
    assert told.startswith("2,999 tokens/s, less than a third of the 9,000 that there were")
    assert "2 threads" in told and "--threads 1" in told
    assert warnings_of(watch, *[100] * 10, 9000, *[100] * 10) == []


def test_one_thread_waits_for_no_other() -> None:
    assert warnings_of(SpeedWatch(threads=1), 9000, *[1] * 10) == []


def test_a_fast_lap_among_slow_ones_resets_their_count() -> None:
    slow = [2999] * (SLOW_LAPS - 1)
    watch = SpeedWatch(threads=4)
    assert warnings_of(watch, 9000, *slow, 3000, *slow, 9000, *slow, 5000) == []
    assert len(warnings_of(watch, *slow, 2999)) == 1


def test_a_machine_that_always_was_slow_is_not_told() -> None:
    assert warnings_of(SpeedWatch(threads=2), *[10] * 10, *[4] * 10) == []


# When compiling pays


@pytest.mark.parametrize(
    ("settings", "steps", "compiles"),
    [({}, 59, False), ({}, 61, True), ({"max_minutes": 9.0}, 61, False), ({"max_minutes": 11.0}, 59, True)],
)
def test_a_run_is_compiled_where_it_is_long_enough(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, float], steps: int, compiles: bool
) -> None:
    monkeypatch.setattr(device, "seconds_of_step", lambda model, batch, machine: (10.0, 0.0))
    machine = Machine(CPU, "fp32", 1, "why")
    config = TrainConfig(schedule="wsd", **settings)
    assert device._with_compile(machine, Picky(), make_batch(), config, steps).compile == compiles
